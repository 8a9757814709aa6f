"""Runs verbs in children of one process that has imported everything: a start in milliseconds."""

import ctypes
import importlib
import json
import mmap
import os
import signal
import sys
import threading
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
REPOSITORY = Path(__file__).resolve().parents[2]
MODULES = (
    *(
        "llava_lab.__main__",
        "llava_lab.cli.fit",
        "llava_lab.experiment.sweep",
        "llava_lab.cli.table",
    ),
    *(
        "llava_lab.data.modules.preference",
        "llava_lab.data.modules.phrases",
        "llava_lab.data.views.video",
    ),
    *("llava_lab.train.contrastive", "llava_lab.train.preference", "llava_lab.train.muon"),
    *("llava_lab.evaluate.metrics.hallucination", "tensorboard", "timm", "transformers"),
)
# Functions in which a process may be found, and what it is at then; the innermost one counts.
PLACES = {
    ("tiny_world/base.py", "generate"): "world",
    ("train/feature_store.py", "fill"): "features",
    ("train/reference.py", "fill"): "references",
    ("train/checkpoint.py", "save"): "checkpoint",
    ("experiment/fitting.py", "_evaluate"): "evaluation",
}
HANG_SECONDS = 300
EXPERIMENT = REPOSITORY / "experiments" / "llava_next_video_dpo.yaml"
IMAGES = REPOSITORY / "experiments" / "llava15.yaml"
PARTS = REPOSITORY / "experiments" / "tiny_parts.yaml"
VIDEO = """{
  data: {class_path: VideoDataModule, views: "${data.views}", batch_size: 4, max_steps: 6,
    sources: [{path: "${paths.videos}", images: "${paths.videos_folder}"}]},
  loss: NextToken, lr: {llm: 1.0e-5}}"""


def load() -> None:
    """Import what verbs import, with one thread: a forked process has no others."""
    import torch

    torch.set_num_threads(1)
    for name in MODULES:
        importlib.import_module(name)


class Child:
    """A verb in a forked process.

    Args:
        arguments: The verb and its options.
        log: File that takes what it says.
    """

    def __init__(self, arguments: list[str], log: Path):
        self.log, self.began = log, time.monotonic()
        self.board = mmap.mmap(-1, 64)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            self._run(arguments)
        self.code: int | None = None

    def _run(self, arguments: list[str]) -> None:
        os.setsid()
        handle = os.open(self.log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(handle, stream)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        main = threading.get_ident()
        threading.Thread(target=self._watch, args=(main,), daemon=True).start()
        code = 1
        try:
            importlib.import_module("llava_lab.__main__").main(arguments)
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _watch(self, main: int) -> None:
        """Keep on the board what the main thread is at."""
        while True:
            frame, place = sys._current_frames().get(main), "start"
            while frame is not None:
                name = frame.f_code.co_name
                if found := next(
                    (
                        each
                        for (file, function), each in PLACES.items()
                        if name == function and frame.f_code.co_filename.endswith(file)
                    ),
                    None,
                ):
                    place = found
                    break
                if name == "_stage" and frame.f_code.co_filename.endswith("experiment/fitting.py"):
                    place = f"stage {frame.f_locals['stage'].name}"
                    break
                frame = frame.f_back
            self.board[:] = place.encode()[:64].ljust(64, b"\0")
            time.sleep(0.003)

    def place(self) -> str:
        """What it is at."""
        return self.board[:].rstrip(b"\0").decode() or "start"

    def ended(self) -> bool:
        """Whether it has ended."""
        if self.code is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def wait(self) -> int | None:
        """Its exit status, or None where it hangs and had to be killed."""
        deadline = time.monotonic() + HANG_SECONDS
        while not self.ended():
            if time.monotonic() > deadline:
                os.killpg(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                return None
            time.sleep(0.005)
        return self.code

    def said(self) -> str:
        """What it said."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def options(folder: Path) -> list[str]:
    """A miniature run of align, instruct, video and dpo, with a world of its own."""
    stages = ("align", "instruct", "video", "dpo")
    values = {
        "tiny_world.root": folder / "world",
        "tiny_world.train_images": 24,
        "tiny_world.eval_images": 4,
        "tiny_world.text_rows": 8,
        "tiny_videos.root": folder / "videos",
        "tiny_videos.train_videos": 4,
        "tiny_videos.eval_videos": 2,
        "paths.root": folder / "world",
        "paths.video_root": folder / "videos",
        "runs": folder / "runs",
        "checkpoint_seconds": 0,
        "data.images_per_batch": 4,
        "data.max_new_tokens": 2,
        "trainer.accelerator": "cpu",
        "stages.instruct.data.views.frames": 2,
        "stages.dpo.data.views.frames": 2,
        "data.views.frames": 2,
        "stages.dpo.data.reference_store": folder / "references",
        **{f"stages.{name}.data.feature_store": folder / "features" for name in stages},
        **{f"stages.{name}.data.max_steps": 6 for name in stages},
        **{f"stages.{name}.data.batch_size": 4 for name in stages},
    }
    return [
        "-c",
        str(EXPERIMENT),
        f"--stages.video={VIDEO}",
        *(f"--{k}={v}" for k, v in values.items()),
    ]


def images_options(folder: Path) -> list[str]:
    """The smallest run: align and instruct on pictures."""
    stages = ("align", "instruct")
    values = {
        "tiny_world.root": folder / "world",
        "tiny_world.train_images": 12,
        "tiny_world.eval_images": 2,
        "tiny_world.text_rows": 4,
        "tiny_videos": "null",
        "paths.root": folder / "world",
        "runs": folder / "runs",
        "checkpoint_seconds": 0,
        "data.images_per_batch": 4,
        "data.max_new_tokens": 1,
        "trainer.accelerator": "cpu",
        **{f"stages.{name}.data.feature_store": folder / "features" for name in stages},
        **{f"stages.{name}.data.max_steps": 6 for name in stages},
        **{f"stages.{name}.data.batch_size": 2 for name in stages},
    }
    return ["-c", str(IMAGES), *(f"--{key}={value}" for key, value in values.items())]


def parts_options(folder: Path) -> list[str]:
    """A miniature run of contrast, lists, facts and language."""
    values = {
        "tiny_world.root": folder / "world",
        "tiny_world.train_images": 24,
        "tiny_world.eval_images": 4,
        "tiny_world.text_rows": 24,
        "tiny_world.tiles": 8,
        "paths.root": folder / "world",
        "runs": folder / "runs",
        "checkpoint_seconds": 0,
        "trainer.accelerator": "cpu",
        **{
            f"stages.{name}.data.{key}": value
            for name in ("contrast", "lists", "facts", "language")
            for key, value in {"max_steps": 6, "batch_size": 4}.items()
        },
    }
    return ["-c", str(PARTS), *(f"--{key}={value}" for key, value in values.items())]


def outcome(folder: Path) -> dict[str, object]:
    """What a finished run gave: weights and predictions by their bytes, scores, counts, world."""
    import hashlib

    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    found: dict[str, object] = {}
    for pattern in ("runs/*/*/stages/*/*.safetensors", "runs/*/*/predictions/*"):
        for path in sorted(folder.glob(pattern)):
            found[str(path.relative_to(folder))] = digest(path)
    for name in ("features", "references", "world", "videos"):
        for path in sorted((folder / name).rglob("*")):
            if path.is_file():
                found[str(path.relative_to(folder))] = digest(path)
    for path in folder.glob("runs/*/*/results.json"):
        results = json.loads(path.read_text(encoding="utf-8"))
        run = path.parent.name
        found[f"{run} benchmarks"] = results["benchmarks"]
        for stage in results["stages"]:
            for key in ("fingerprint", "steps", "samples", "tokens", "loss_first", "loss_last"):
                found[f"{run} {stage['name']} {key}"] = stage[key]
            found[f"{run} {stage['name']} held out"] = stage["held_out"]
    return found


def leftovers(folder: Path) -> list[str]:
    """Half-written files, and checkpoints of finished stages."""
    files = [path for path in folder.rglob("*") if path.suffix in (".draft", ".ckpt")]
    return [str(path.relative_to(folder)) for path in files]


def die_with_parent() -> None:
    """Let this process end when its parent does, where the system can (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
