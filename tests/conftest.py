"""What several tests share, made in memory: small tokenizers of the two common kinds."""

import functools
import importlib
import json
import os
import string
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

# Tests run side by side, a core each; the processes that they start take no more, either.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llava_lab.experiment.experiment import Experiment
from llava_lab.tiny_world.generate import TinyWorld
from llava_lab.tiny_world.videos import TinyVideos

settings.register_profile("untimed", deadline=None)  # a machine may be slow or busy
settings.load_profile("untimed")
CACHE = tempfile.TemporaryDirectory(prefix="llava_lab-cache-")
os.environ.setdefault("LLAVA_LAB_CACHE", CACHE.name)  # that of the first process, for all

if TYPE_CHECKING:
    from llava_lab.report.claims import Claims

CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the human's questions.",
    "USER: What is in the picture? ASSISTANT: A red car and two dogs, next to a tree.",
    "[INST] How many dogs are there? [/INST] There are two of them.",
    "Human: Describe it. Assistant: It is a street. Answer the questions. user system",
    "You are a helpful language and vision assistant. You are able to understand it.",
]
MARKS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def train(pre_tokenizer: pre_tokenizers.PreTokenizer, alphabet: list[str]) -> dict[str, list]:
    """Learn words from the corpus, and return the model as tokenizers writes it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return json.loads(tokenizer.to_str())["model"]


def make_llama_tokenizer(prepend_scheme: str) -> PreTrainedTokenizerBase:
    """Build a tokenizer that writes "▁" for a space, falls back to bytes, and puts BOS in front."""
    special = ["<unk>", "<s>", "</s>"]
    model = train(pre_tokenizers.Metaspace(prepend_scheme="first"), [*string.punctuation])
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=[tuple(pair) for pair in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokens.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="session")
def llama_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer like Llama's and Mistral's: only a text's first word gets a "▁" of its own."""
    return make_llama_tokenizer("first")


@pytest.fixture(scope="session")
def legacy_llama_tokenizer() -> PreTrainedTokenizerBase:
    """The same, as Vicuna's was loaded: a word after `</s>` gets a "▁" as well."""
    return make_llama_tokenizer("always")


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer like GPT-2's and Qwen's: bytes, no BOS; with ChatML's and Llama-3's marks."""
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model = train(pre_tokenizer, pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    )
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(mark, special=True) for mark in ["<|endoftext|>", *MARKS]]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


# A small LM in Llama's shape, for tests that make one.
LLAMA = {
    "model_type": "llama",
    "vocab_size": 768,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world of 48 pictures to train on and 12 to ask about."""
    root = tmp_path_factory.mktemp("world") / "small"
    TinyWorld(root, train_images=48, eval_images=12, text_rows=40).generate()
    return root


@pytest.fixture(scope="session")
def small_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos to train on and four to ask about."""
    root = tmp_path_factory.mktemp("world") / "videos"
    TinyVideos(root, train_videos=6, eval_videos=4).generate()
    return root


@pytest.fixture
def shortened(small_world: Path, small_videos: Path, tmp_path: Path) -> list[str]:
    """Options that make any experiment run two steps a stage in a folder of its own."""
    options = {
        "tiny_world": "null",
        "tiny_videos": "null",
        "paths.root": small_world,
        "paths.video_root": small_videos,
        "runs": tmp_path / "runs",
        "data.images_per_batch": 6,
        "data.max_new_tokens": 3,
        "trainer.accelerator": "cpu",
    }
    return [f"--{key}={value}" for key, value in options.items()]


def stage_options(experiment: Path, folder: Path) -> list[str]:
    """Two steps of four rows for every stage of an experiment."""
    options = []
    for stage in _stages(experiment):
        options += [f"--stages.{stage}.data.max_steps=2", f"--stages.{stage}.data.batch_size=4"]
        if stage in ("align", "instruct", "video", "dpo"):
            options.append(f"--stages.{stage}.data.feature_store={folder / 'features'}")
    return options


@functools.cache
def _stages(experiment: Path) -> list[str]:
    return list(Experiment.read(experiment).config["stages"])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, empty at first."""
    monkeypatch.setenv("LLAVA_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class EngineHandler(BaseHTTPRequestHandler):
    """What engines on this machine share: they are silent, and answer in OpenAI's form."""

    def log_message(self, *_: object) -> None:
        pass

    def body(self) -> dict:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def reply(self, said: str, status: int = 200) -> None:
        self.send({"choices": [{"message": {"content": said}}]} if status == 200 else {}, status)

    def send(self, reply: dict, status: int = 200) -> None:
        content = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class EngineServer(ThreadingHTTPServer):
    """An engine on a free port of this machine."""

    def __init__(self, handler: type[EngineHandler]):
        super().__init__(("127.0.0.1", 0), handler)
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


@pytest.fixture
def running() -> Iterator[Callable[[EngineServer], None]]:
    """Runs engines until the test is over."""
    servers: list[EngineServer] = []

    def start(server: EngineServer) -> None:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)

    yield start
    for server in servers:
        server.shutdown()


class JudgeServer(EngineServer):
    """An OpenAI-compatible judge: `say` makes a text, or an HTTP status, of a request's body."""

    def __init__(self, say: Callable[[dict], str | int]):
        super().__init__(JudgeHandler)
        self.say, self.bodies = say, []


class JudgeHandler(EngineHandler):
    server: JudgeServer

    def do_POST(self) -> None:
        body = self.body()
        with self.server.lock:
            self.server.bodies.append(body)
            said = self.server.say(body)
        self.reply("", said) if isinstance(said, int) else self.reply(said)


@pytest.fixture
def judge_server(running) -> Callable[[Callable[[dict], str | int]], JudgeServer]:
    """Starts judges on this machine."""

    def start(say: Callable[[dict], str | int]) -> JudgeServer:
        server = JudgeServer(say)
        running(server)
        return server

    return start


@pytest.fixture
def run_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], "Claims"]:
    """Makes up the runs of a folder's findings: counts have what MOVED says, colors differ."""
    from test_running import MOVED, SCORES, make_run

    from llava_lab.core.records import write_record
    from llava_lab.experiment.rehearsal import Rehearsal
    from llava_lab.report import running
    from llava_lab.report.finding_file import read_findings

    def run_sweep(sweep, runs, jobs, more) -> None:
        for point in sweep.points():
            folder = runs / f"{point.name}-{point.seed}"
            folder.mkdir(parents=True, exist_ok=True)
            color = 0.8 if point.name == "2" and point.seed % 2 else 0.5
            results = make_run(folder, point, {"count": MOVED[point.name], "color": color})
            kept = {"command": [], "exit": 0, "results": str(results)}
            write_record(sweep.record(runs, point, more), kept)

    def start() -> "Claims":
        findings = read_findings(tmp_path / "findings")
        made = running.Running(findings, tmp_path / "results", tmp_path / "runs")
        return made.run(list(findings))

    monkeypatch.setattr(running, "run_sweep", run_sweep)
    monkeypatch.setattr(running, "rehearse", lambda *_: Rehearsal({}, SCORES))
    return start


@pytest.fixture
def lmms_adapter(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The adapter for lmms-eval, beside as much of that as it asks for."""
    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.models")
    for name in (*names, "lmms_eval.models.registry_v2"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["lmms_eval.api.model"], "lmms", object, raising=False)
    registry = sys.modules["lmms_eval.models.registry_v2"]
    monkeypatch.setattr(registry, "ModelManifest", dict, raising=False)
    monkeypatch.delitem(sys.modules, "llava_lab.serve.lmms_eval", raising=False)
    return importlib.import_module("llava_lab.serve.lmms_eval")
