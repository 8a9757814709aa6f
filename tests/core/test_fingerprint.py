"""A fingerprint moves with everything that decides a result, and with nothing else."""

import functools
import importlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, stage_options
from jsonargparse import Namespace
from PIL import Image
from torch import nn

from llava_lab.core import origin
from llava_lab.core.fingerprint import describe, fingerprint
from llava_lab.core.tensors import digest
from llava_lab.data.views.pad import Pad
from llava_lab.experiment import fingerprints
from llava_lab.experiment.experiment import Experiment
from llava_lab.experiment.fingerprints import benchmark_fingerprints
from llava_lab.experiment.fitting import Fitting
from llava_lab.model.encoder.base import Encoder
from llava_lab.model.encoder.timm import TimmEncoder
from llava_lab.model.llava import Llava
from llava_lab.train.feature_store import FeatureStore

# Two stages, all kinds of stages of three, and stages without pictures or without an LM; the others
# have no option that these do not have, and are slow.
QUICK = ("llava15", "llava_next_video_dpo", "tiny_parts")
EXPERIMENTS = [
    pytest.param(path, marks=() if path.stem in QUICK else pytest.mark.slow, id=path.stem)
    for path in sorted((REPOSITORY / "experiments").glob("*.yaml"))
]


class Activated(nn.Module):
    """Keeps an option that shows neither in weights nor in its repr."""

    def __init__(self, activation: Any, num_heads: int = 2):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.activation, self.num_heads = activation, num_heads


def test_options_that_show_neither_in_weights_nor_in_repr_are_seen() -> None:
    relu, gelu = nn.functional.relu, nn.functional.gelu
    assert repr(Activated(relu)) == repr(Activated(gelu))
    assert describe(Activated(relu)) == describe(Activated(relu))
    assert describe(Activated(relu)) != describe(Activated(gelu))
    assert describe(Activated(relu, 2)) != describe(Activated(relu, 4))
    assert describe(Activated(lambda x: x + 1)) != describe(Activated(lambda x: x + 2))
    scaled = [Activated(functools.partial(torch.mul, other=n)) for n in (1, 2)]
    assert describe(scaled[0]) != describe(scaled[1])

    def by(number: float) -> Any:
        return lambda x: x * number

    assert describe(Activated(by(1.0))) != describe(Activated(by(2.0)))
    assert describe(lambda x: x.sin()) != describe(lambda x: x.cos())


def test_a_function_inside_of_a_function_is_the_same_in_every_process() -> None:
    code = (
        "from llava_lab.core.fingerprint import fingerprint\n"
        "part = lambda xs: sum(x * 2 for x in xs if x not in {'a', 'b', 'c', 'd'})\n"
        "padding = [object() for _ in range({})]\n"
        "print(fingerprint(part))\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code.replace("range({})", f"range({seed}000)")],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    }
    assert len(found) == 1


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Writes modules outside of the package and imports them anew."""
    monkeypatch.syspath_prepend(tmp_path)
    names: set[str] = set()

    def write(**texts: str) -> ModuleType:
        for name, text in texts.items():
            (tmp_path / f"{name}.py").write_text(text)
            names.add(name)
        for name in names:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return importlib.import_module(next(iter(texts)))

    yield write
    for name in names:
        sys.modules.pop(name, None)


def test_source_outside_of_the_package_is_seen_and_what_it_imports(foreign: Any) -> None:
    text = "import theirs\nclass Part:\n    width = theirs.width()\n"
    helper = "def width():\n    return {}\n"
    sys.dont_write_bytecode = True
    config = {"class_path": "ours.Part", "init_args": {"depth": 1}}
    foreign(ours=text, theirs=helper.format(1))
    before = describe(config)
    assert describe(config) == before
    foreign(ours=text, theirs=helper.format(2))
    assert describe(config) != before
    foreign(ours=text + "# more\n", theirs=helper.format(1))
    assert describe(config) != before
    foreign(ours=text, theirs=helper.format(1))
    assert describe(config) == before


def test_a_number_that_foreign_source_imports_is_seen(foreign: Any) -> None:
    text = "from theirs import SCALE\nclass Part:\n    def forward(self, x): return x * SCALE\n"
    sys.dont_write_bytecode = True
    foreign(ours=text, theirs="SCALE = 1.0\n")
    before = describe({"class_path": "ours.Part"})
    foreign(ours=text, theirs="SCALE = 2.0\n")
    assert describe({"class_path": "ours.Part"}) != before
    foreign(ours=text, theirs="SCALE = 1.0\n")
    assert describe({"class_path": "ours.Part"}) == before


def test_what_a_function_imports_when_it_is_called_is_seen(foreign: Any) -> None:
    text = (
        "class Part:\n    def forward(self, x):\n        import later\n        return later.f(x)\n"
    )
    sys.dont_write_bytecode = True
    described = []
    for number in (1, 2, 1):
        foreign(lazy=text, later=f"def f(x):\n    return x * {number}\n")
        described.append(describe({"class_path": "lazy.Part"}))
    assert described[0] == described[2] != described[1]


def test_all_source_of_an_installed_package_is_seen(
    foreign: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sys.dont_write_bytecode = sysconfig.get_path, True
    site = tmp_path / "site-packages"
    monkeypatch.setattr(
        sysconfig, "get_path", lambda name: str(site) if name == "purelib" else real(name)
    )
    monkeypatch.syspath_prepend(site)
    (package := site / "installed").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "part.py").write_text("class Part:\n    pass\n")
    described = []
    for number in (1, 2, 1):
        (package / "layers.py").write_text(f"WIDTH = {number}\n")
        origin._folder_sha256.cache_clear()
        foreign(uses="import installed.layers as layers\nclass Part:\n    pass\n")
        theirs = describe({"class_path": "installed.part.Part"})
        described.append((theirs, describe({"class_path": "uses.Part"})))
    assert described[0] == described[2]
    for before, after in zip(described[0], described[1], strict=True):
        assert before != after


def test_a_file_that_an_option_names_counts_by_its_content(tmp_path: Path) -> None:
    loss = {"class_path": "torch.nn.Linear", "init_args": {"path": str(tmp_path / "teacher.bin")}}
    before = describe(loss)
    (tmp_path / "teacher.bin").write_bytes(b"one")
    one = describe(loss)
    (tmp_path / "teacher.bin").write_bytes(b"two")
    assert len({json.dumps(each) for each in (before, one, describe(loss))}) == 3
    shutil.move(tmp_path / "teacher.bin", tmp_path / "moved.bin")
    loss["init_args"]["path"] = str(tmp_path / "moved.bin")
    (tmp_path / "moved.bin").write_bytes(b"one")
    assert describe(loss) == one
    folder = {"images": f"{tmp_path}/"}
    before = describe(folder)
    (tmp_path / "more.bin").write_bytes(b"")
    assert describe(folder) != before


def test_only_what_a_class_declares_idle_is_left_out() -> None:
    def config(**options: Any) -> dict[str, Any]:
        return {"class_path": "llava_lab.data.modules.image.ImageDataModule", "init_args": options}

    source = {"path": "a.json", "images": "a", "sampling": "all"}
    before = describe(config(sources=[source], num_workers=0))
    assert describe(config(sources=[source], num_workers=4)) == before
    assert describe(config(sources=[{**source, "path": "b.json"}], num_workers=0)) == before
    assert describe(config(sources=[{**source, "sampling": "first:1"}], num_workers=0)) != before
    other = {"class_path": "torch.nn.Linear", "init_args": {"num_workers": 0, "images": "a"}}
    assert describe(other) != describe({**other, "init_args": {"num_workers": 1, "images": "a"}})


def test_a_feature_store_sees_what_does_not_show_in_weights(
    small_world: Path, tmp_path: Path
) -> None:
    class Shifted(Pad):
        def __init__(self, by: int):
            self.by = by

    class Own(Encoder):
        def __init__(self, inner: Encoder, power: float):
            super().__init__()
            self.inner, self.power = inner, power
            self.width, self.view_spec = inner.width, inner.view_spec

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.inner(pixels) ** self.power

    options = {"embed_dim": 32, "depth": 1, "num_heads": 4, "mlp_ratio": 2}
    timm = TimmEncoder("xcit_nano_12_p16_224", -1, False, False, 64, None, options)
    image = next((small_world / "images" / "train").glob("*.png"))
    encoders = [(Own(timm, power), Pad()) for power in (1.0, 2.0)]
    choices = [(timm, Shifted(by)) for by in (1, 2)]
    keys = {FeatureStore(tmp_path, *each, [image]).key for each in (*encoders, *choices)}
    assert len(keys) == 4


def captured(experiment: Path, options: list[str]) -> Fitting:
    """An experiment, built; options are those of `fit`, of which it takes no folder of runs."""
    given = [option.removeprefix("--") for option in options if not option.startswith("--runs=")]
    return Experiment.read_layers([experiment, *given]).fitting("runs")


def leaves(config: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every option with its path."""
    if isinstance(config, Namespace):
        config = dict(vars(config))
    items = config.items() if isinstance(config, dict) else enumerate(config)
    for key, value in list(items):
        if isinstance(value, Namespace | dict) or (isinstance(value, list) and value):
            yield from leaves(value, (*path, key))
        elif key != "class_path":
            yield (*path, key), value


def changed(value: Any) -> Any:
    """Another value than this one, of its kind where it has one."""
    if isinstance(value, bool) or value is None:
        return not value
    return value + 1 if isinstance(value, int | float) else f"{value} changed"


def put(config: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        config = config[key]
    config[path[-1]] = value


# Options that decide no stage, as one who knows them would list them.
IDLE_TRAINER = {
    *("accelerator", "strategy", "devices", "num_nodes", "plugins", "profiler", "logger"),
    *("log_every_n_steps", "enable_autolog_hparams", "model_registry", "enable_progress_bar"),
    *("enable_model_summary", "detect_anomaly", "limit_test_batches", "limit_predict_batches"),
    *("inference_mode", "deterministic", "benchmark", "num_sanity_val_steps"),
}
REFUSED_TRAINER = {
    *("max_epochs", "min_epochs", "max_steps", "min_steps", "overfit_batches", "barebones"),
    *("accumulate_grad_batches", "use_distributed_sampler", "default_root_dir"),
    *("reload_dataloaders_every_n_epochs", "enable_checkpointing"),
}
IDLE_DATA = ["num_workers", "feature_store", "reference_store", "path", "images"]
IDLE_PARTS = ["weights", "name", "tokenizer", "template", "max_length", "kernels"]


def moved(path: tuple[Any, ...], own: dict[str, dict[str, Any]]) -> list[str]:
    """Stages whose fingerprint an option moves.

    Args:
        path: Keys of the option.
        own: Trainer options of each stage's own, which stand above those of all stages.
    """
    stages = list(own)
    match tuple(key for key in path if key != "init_args"):
        case ("seed_everything",):
            return stages
        case ("model", "encoder", "name" | "pretrained" | "image_size" | "layer"):
            return stages  # timm's; one of transformers counts by its configuration
        case ("model", "encoder" | "connector" | "llm", *_, name) if name not in IDLE_PARTS:
            return stages
        case ("trainer", name, *_) if name not in IDLE_TRAINER | REFUSED_TRAINER:
            taken = [stage for stage in stages if name not in own[stage]]
            return stages[stages.index(taken[0]) :] if taken else []
        case ("stages", stage, "data", *_, name) if name in IDLE_DATA:
            return []
        case ("stages", _, "evaluate_every" | "keep_every"):
            return []
        case ("stages", stage, *_):
            return stages[stages.index(stage) :]
    return []


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_each_option_moves_its_own_stage_and_those_behind(
    experiment: Path, shortened: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = captured(experiment, [*shortened, *stage_options(experiment, tmp_path)])
    model, stages = found.parts.model, list(found.parts.stages)
    for step in found.parts.stages.values():
        content, chat = step.data.content(), step.data.chat(model)
        monkeypatch.setattr(step.data, "check", lambda _: None)
        monkeypatch.setattr(step.data, "content", lambda content=content: content)
        monkeypatch.setattr(step.data, "chat", lambda _, chat=chat: chat)
    monkeypatch.setattr(found.parts.benchmarks, "check", lambda _: None)
    own = {name: stage.trainer_options for name, stage in found.parts.stages.items()}
    hashed = functools.cache(lambda _: digest(model.state_dict()))
    monkeypatch.setattr(fingerprints, "digest", lambda weights: hashed(len(weights)))
    before = found.fingerprints(found.parts.stages)
    count = 0
    for path, value in leaves(found.options):
        if path[-1] == "trainer":  # no options of a stage's own
            continue
        other = changed(value)
        if path == ("trainer", "callbacks"):
            callback = "lightning.pytorch.callbacks.StochasticWeightAveraging"
            other = [{"class_path": callback, "init_args": {"swa_lrs": 0.1}}]
        put(found.options, path, other)
        after = found.fingerprints(found.parts.stages)
        assert [name for name in stages if after[name] != before[name]] == moved(path, own), path
        put(found.options, path, value)
        count += 1
    assert found.fingerprints(found.parts.stages) == before
    assert count > 100


def test_stored_features_decide_wherever_the_precision_is_not_theirs(
    monkeypatch: pytest.MonkeyPatch, shortened: list[str], tmp_path: Path
) -> None:
    path = REPOSITORY / "experiments/llava15.yaml"
    found = captured(path, [*shortened, *stage_options(path, tmp_path)])
    stages = found.parts.stages
    for step in stages.values():
        monkeypatch.setattr(step.data, "check", lambda _: None)
        monkeypatch.setattr(step.data, "content", lambda: "")
    for precision, same in (("32-true", True), (None, True), ("bf16-mixed", False)):
        found.options.trainer.precision = precision
        stored = found.fingerprints(stages)
        with monkeypatch.context() as without:
            for step in stages.values():
                without.setattr(step.data, "feature_store", None)
            anew = found.fingerprints(stages)
        assert all((stored[name] == anew[name]) is same for name in stages), precision


class Scaled(Llava):
    """Multiplies what the connector gives, by a number of which no weight knows."""

    def __init__(self, encoder: Encoder, connector: Any, llm: Any, visual_scale: float = 1.0):
        super().__init__(encoder, connector, llm)
        self.visual_scale = visual_scale


def test_an_option_of_a_model_of_the_users_own_moves_all_stages(
    monkeypatch: pytest.MonkeyPatch, shortened: list[str], tmp_path: Path
) -> None:
    path = REPOSITORY / "experiments/llava15.yaml"
    found = captured(path, [*shortened, *stage_options(path, tmp_path)])
    for step in found.parts.stages.values():
        monkeypatch.setattr(step.data, "check", lambda _: None)
        monkeypatch.setattr(step.data, "content", lambda: "")
    given, before = found.options.model, found.fingerprints(found.parts.stages)
    given.class_path, given.init_args.visual_scale = f"{__name__}.Scaled", 1.0
    ours = found.fingerprints(found.parts.stages)
    given.init_args.visual_scale = 2.0
    other = found.fingerprints(found.parts.stages)
    assert all(len({before[name], ours[name], other[name]}) == 3 for name in before)


def test_each_data_file_moves_what_reads_it(
    shortened: list[str], small_world: Path, small_videos: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_world, tmp_path / "world")
    shutil.copytree(small_videos, tmp_path / "videos")
    experiment = REPOSITORY / "experiments" / "llava_next_video_dpo.yaml"
    options = [*shortened, *stage_options(experiment, tmp_path)]
    options += [f"--paths.root={tmp_path / 'world'}", f"--paths.video_root={tmp_path / 'videos'}"]
    built = captured(experiment, options)

    def now() -> dict[str, str]:
        """Fingerprints of stages and benchmarks, the data read anew."""
        for step in built.parts.stages.values():
            step.data.samples, step.data.held = [], []
        for benchmark in built.parts.benchmarks.benchmarks:
            for name in ("questions", "_rows"):
                vars(benchmark).pop(name, None)
        return built.fingerprints(built.parts.stages) | benchmark_fingerprints(
            built.options, built.parts.benchmarks
        )

    before = now()
    assert now() == before
    steps = built.parts.stages

    def rewritten(path: Path, **change: Any) -> set[str]:
        kept = path.read_bytes()
        if path.suffix == ".png":
            Image.new("RGB", Image.open(path).size).save(path)
        elif path.suffix == ".mp4":
            other = next(p for p in path.parent.glob("*.mp4") if p.read_bytes() != kept)
            path.write_bytes(other.read_bytes())
        else:
            path.write_bytes(kept.replace(*(each.encode() for each in change["words"]), 1))
        assert path.read_bytes() != kept
        after = now()
        path.write_bytes(kept)
        return {name for name in before if after[name] != before[name]}

    behind = {
        "align": {"align", "instruct", "dpo"},
        "instruct": {"instruct", "dpo"},
        "dpo": {"dpo"},
    }
    instruct = steps["instruct"].data
    held, trained = (
        next(sample for sample in samples if sample.images)
        for samples in (instruct.held, instruct.samples)
    )
    pair = steps["dpo"].data.samples[0]
    asked = built.parts.benchmarks.benchmarks[0].questions[0]
    (align,) = steps["align"].data.sources
    only_aligned = next(
        image
        for sample in steps["align"].data.samples
        for image in sample.images
        if image not in {i for s in instruct.samples + instruct.held for i in s.images}
    )
    assert rewritten(only_aligned) == behind["align"]
    assert behind["instruct"] <= rewritten(held.images[0])
    assert behind["instruct"] <= rewritten(trained.images[0])
    assert rewritten(pair.images[0]) >= behind["dpo"]
    assert rewritten(Path(align.path), words=("a ", "one ")) == behind["align"]
    assert rewritten(Path(built.options.paths.preferences), words=("a ", "one ")) == behind["dpo"]
    assert "questions" in rewritten(asked.images[0])
    assert not rewritten(asked.images[0]) & {"align", "instruct", "dpo"}
    questions = Path(built.options.paths.questions)
    assert rewritten(questions, words=("the ", "that ")) == {"questions"}


def test_a_fingerprint_is_a_hash_of_all_its_values() -> None:
    values = {fingerprint(), fingerprint(1), fingerprint(1, 2), fingerprint([1, 2]), fingerprint(2)}
    assert len(values) == 5
    assert all(len(each) == 64 for each in values)
