"""Campaign of mutations: changed and damaged inputs are read right or refused with one message.

    python -m tests.campaigns.mutations [--write]

Deterministic by its seed. Each input is a copy of a good file with a mutation of `mutate.py`; what
the package reads of it is compared with an independent reading of `readings.py`.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from PIL import Image

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import readings  # noqa: E402
import report  # noqa: E402
from mutate import copied, mutate  # noqa: E402

COMMAND = "python -m tests.campaigns.mutations --write"
SECONDS = 20  # an input that takes longer hangs
OUTCOMES = ("right", "message", "silent wrong", "traceback", "unnamed", "hang")


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        name: In the table.
        count: Inputs of the whole campaign.
        make: Makes a folder of good files and returns those that are mutated.
        read: Reads a file; see `readings`.
    """

    name: str
    count: int
    make: Callable[[Path], Sequence[Path]]
    read: Callable[[Path], None]


@dataclass
class Counts:
    """Outcomes of one kind, and what went wrong."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    draw = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(draw).resize((width, height), Image.Resampling.BICUBIC)


def make_pictures(folder: Path) -> list[Path]:
    picture = noise(60, 40)
    picture.save(folder / "rgb.png")
    picture.convert("L").save(folder / "gray.png")
    picture.quantize(50).save(folder / "palette.png")
    Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27).save(folder / "16.png")
    picture.save(folder / "a.jpg", quality=90)
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    for ending in ("webp", "bmp", "gif", "tiff", "ppm"):
        picture.save(folder / f"a.{ending}")
    return sorted(folder.iterdir())


def make_videos(folder: Path) -> list[Path]:
    for name, codec in (("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")):
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=10)
            stream.width = stream.height = 64
            stream.pix_fmt, stream.gop_size, stream.max_b_frames = "yuv420p", 5, 0
            for number in range(14):
                container.mux(stream.encode(av.VideoFrame.from_image(noise(64, 64, number))))
            container.mux(stream.encode())
    return sorted(folder.iterdir())


def make_images(folder: Path) -> None:
    (folder / "images" / "more").mkdir(parents=True)
    for name in ("a.png", "b.png", "more/c.png"):
        noise(8, 8).save(folder / "images" / name)
    (folder / "images" / "clip.mp4").write_bytes(b"not looked into")
    noise(9, 9).save(folder / "secret.png")


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if n % 2 else "human", "value": text} for n, text in enumerate(texts)]


def written(folder: Path, name: str, rows: list[dict]) -> list[Path]:
    make_images(folder)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / f"{name}.json").write_text(json.dumps(rows, indent=1))
    return [folder / f"{name}.jsonl", folder / f"{name}.json"]


def make_samples(folder: Path) -> list[Path]:
    rows = [
        {"id": "1", "image": "a.png", "conversations": talk("<image>\nWhat?", "A dog.")},
        {
            "id": 2,
            "image": ["a.png", "more/c.png"],
            "conversations": talk("<image><image>?", "No."),
        },
        {"id": "3", "conversations": talk("Hi", "Ho", "So?", "Yes."), "model": "gpt-4"},
        {"id": "4", "video": "clip.mp4", "conversations": talk("<video>\nWhat?", "It is só.")},
        {"id": "5", "image": None, "conversations": talk("Hi", "Ho")},
    ]
    return written(folder, "rows", rows)


def make_questions(folder: Path) -> list[Path]:
    rows = [
        {"question_id": 1, "image": "a.png", "text": "What?", "category": "a", "answer": "dog"},
        {"question_id": "q", "image": ["a.png", "b.png"], "text": "Is <image> or <image> red?"},
        {"question_id": 3, "video": "clip.mp4", "text": "<video>\nWhat?", "answers": ["a", "b"]},
        {"question_id": 4, "text": "Hi?", "caption": ["One.", "Two."]},
    ]
    return written(folder, "questions", rows)


def make_preferences(folder: Path) -> list[Path]:
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    answers = {
        key: [{"role": "assistant", "content": text}]
        for key, text in (("chosen", "A."), ("rejected", "B."))
    }
    pair = {"chosen": "A.", "rejected": "B."}
    rows = [
        {"id": "1", "image": "a.png", "prompt": "<image>\nWhat?", **pair, "chosen_score": 5},
        {"id": "2", "images": ["a.png", "b.png"], "prompt": "<image> or <image>?", **pair},
        {"id": "3", "video": "clip.mp4", "prompt": "<video>\nWhat?", **pair},
        {"id": "4", "prompt": "What?", **pair},
        {"id": "5", "images": ["a.png"], "prompt": message, **answers},
        {"id": "6", "images": ["a.png"], **{k: [*message, *v] for k, v in answers.items()}},
    ]
    return written(folder, "pairs", rows)


def make_captions(folder: Path) -> list[Path]:
    rows = [
        {"id": "1", "image": "a.png"},
        {"image": "more/c.png", "conversations": talk("<image>", "A dog.")},
        {"id": 3, "video": "clip.mp4"},
    ]
    return written(folder, "inputs", rows)


def make_sweeps(folder: Path) -> list[Path]:
    (folder / "experiment.yaml").write_text("experiment: e\n")
    (folder / "sweep.yaml").write_text(
        "sweep: connector\nexperiment: experiment.yaml\noverlays: []\nseeds: [0, 1]\naxes:\n"
        "  model.connector.depth: [1, 2]\n  rate:\n    half: {stages.a.rate: 25}\n    full: {}\n"
        "published: [llava15/table2]\n"
    )
    return [folder / "sweep.yaml"]


def make_prompts(folder: Path) -> list[Path]:
    (folder / "prompt.yaml").write_text("system: Judge.\nuser: |\n  {question}\n  {prediction}\n")
    return [folder / "prompt.yaml"]


def make_options(folder: Path) -> list[Path]:
    path = Path(__file__).parents[2] / "experiments" / "llava15.yaml"
    (folder / "llava15.yaml").write_text(path.read_text())
    return [folder / "llava15.yaml"]


def make_journals(folder: Path) -> list[Path]:
    with readings.Journal(folder / "rows.jsonl", "asked") as kept:
        for number in range(4):
            kept.add(f"{number}.png", [f"A dog, {number}."])
    return [kept.path]


def make_results(folder: Path) -> list[Path]:
    score = {"value": 0.5, "ci95": [0.4, 0.6], "n": 12}
    stage = {"name": "align", "fingerprint": "f" * 64, "reused": False, "steps": 3, "samples": 12}
    stage |= {"tokens": 100, "seconds": 1.5, "loss_first": 3.0, "loss_last": 2.0, "held_out": {}}
    cost = {"parameters": 10, "trainable_parameters": 5, "visual_tokens_mean": 36.0}
    cost |= {"train_flops": 1e9, "seconds": 2.0, "peak_memory_bytes": 10**9}
    said = {"experiment": "e", "scale": "tiny", "seed": 0, "git": None, "versions": {}}
    said |= {"config_sha256": "0" * 64, "stages": [stage], "cost": cost}
    said |= {"benchmarks": {"questions": {"accuracy": score, "blind_accuracy": score}}}
    (folder / "results.json").write_text(json.dumps(said, indent=2))
    return [folder / "results.json"]


def make_released(folder: Path) -> list[Path]:
    from test_exchange import make_theirs

    make_theirs(folder / "checkpoint", "clip", "llama")
    return sorted(path for path in (folder / "checkpoint").rglob("*") if path.is_file())


def make_ours(folder: Path) -> list[Path]:
    make_released(folder)
    readings.import_checkpoint(str(folder / "checkpoint"), folder / "ours", "v1")
    return sorted(path for path in (folder / "ours").iterdir() if path.is_file())


KINDS = (
    Kind("pictures", 500, make_pictures, readings.picture),
    Kind("videos", 250, make_videos, readings.video),
    Kind("conversations", 300, make_samples, readings.samples),
    Kind("questions", 250, make_questions, readings.questions),
    Kind("preferences", 300, make_preferences, readings.preferences),
    Kind("inputs of caption", 120, make_captions, readings.captions),
    Kind("sweep files", 150, make_sweeps, readings.sweep),
    Kind("judges' prompts", 60, make_prompts, readings.judge_prompt),
    Kind("options files", 60, make_options, readings.options),
    Kind("journals", 60, make_journals, readings.journal),
    Kind("results of runs", 150, make_results, readings.results),
    Kind("checkpoints of ours", 120, make_ours, readings.ours),
    Kind("released checkpoints", 120, make_released, readings.released),
)


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise a TimeoutError where the block takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(kind: Kind, path: Path, folder: Path) -> tuple[str, str]:
    """What comes of one input, and what is said of it."""
    try:
        with limited(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.read(path)
    except TimeoutError as error:
        return "hang", str(error)
    except readings.Wrong as error:
        return "silent wrong", str(error)
    except (OSError, ValueError) as error:
        named = any(part.name in str(error) for part in (path, folder, path.parent))
        return ("message" if named else "unnamed"), f"{type(error).__name__}: {error}"
    except Exception:
        return "traceback", traceback.format_exc(limit=-4)
    return "right", ""


def run(kind: Kind, count: int, seed: int) -> Counts:
    """Mutate a kind's files so many times."""
    counts = Counts()
    with tempfile.TemporaryDirectory() as root:
        base, work = Path(root) / "base", Path(root) / "work"
        work.mkdir()  # an imported folder names its files by their place
        files = [path.relative_to(work) for path in kind.make(work)]
        copied(work, base)
        for name in files:
            copied(base, work)
            found, said = outcome(kind, work / name, work)
            assert found == "right", f"{kind.name}: {name} as it is made: {found}: {said}"
        for number in range(count):
            rng = random.Random(f"{seed}/{kind.name}/{number}")
            copied(base, work)
            path, how = mutate(work / rng.choice(files), rng)
            found, said = outcome(kind, path, work)
            counts.outcomes[found] += 1
            if found not in OUTCOMES[:2]:
                counts.faults.append(f"{kind.name} {number}, {path.name}, {how}: {found}: {said}")
    return counts


def campaign(share: float = 1.0, seed: int = 0, kinds: Sequence[Kind] = KINDS) -> dict[str, Counts]:
    """All kinds, each with a share of its inputs."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    av.logging.set_level(av.logging.PANIC)
    return {kind.name: run(kind, max(1, round(kind.count * share)), seed) for kind in kinds}


def rows(counts: dict[str, Counts]) -> list[dict[str, object]]:
    """The table."""
    return [
        {
            "input": name,
            "mutated": sum(found.outcomes.values()),
            "read right": found.outcomes["right"],
            "one message": found.outcomes["message"],
            **{name: found.outcomes[name] for name in OUTCOMES[2:]},
        }
        for name, found in counts.items()
    ]


def main() -> None:
    """Run the whole campaign and print its table."""
    parser = argparse.ArgumentParser(description="Mutate inputs of every kind.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of all inputs")
    parser.add_argument("--only", help="one kind by its name")
    parser.add_argument("--write", action="store_true", help="put the table into docs")
    options = parser.parse_args()
    kinds = [kind for kind in KINDS if options.only in (None, kind.name)]
    counts = campaign(options.share, options.seed, kinds)
    for fault in [fault for found in counts.values() for fault in found.faults]:
        print(fault)
    print(report.table(rows(counts)))
    if options.write:
        report.put("mutations", COMMAND, rows(counts), f"Seed {options.seed}.")
    sys.exit(any(found.faults for found in counts.values()))


if __name__ == "__main__":
    main()
