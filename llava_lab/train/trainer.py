"""Trainer: each of Lightning's options is honoured or refused, and decides a stage or does not."""

import copy
import difflib
import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args
from weakref import WeakKeyDictionary

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    Checkpoint,
    DeviceStatsMonitor,
    LearningRateMonitor,
    ModelSummary,
    ProgressBar,
)
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from llava_lab.core import ranks
from llava_lab.core.numbers import at_least
from llava_lab.train import sharded  # noqa: F401  (its strategies are named in trainer.strategy)
from llava_lab.train.precision import UNFIT, Precisions, with_precision

DEFAULTS = {
    name: option.default
    for name, option in inspect.signature(Trainer.__init__).parameters.items()
    if name != "self"
}
# Options that the stages set themselves, and what to set instead.
LENGTH = "a stage's length is that of its data: set stages.NAME.data.epochs or data.max_steps"
SHARES = "a stage hands out its own batches, the same for any number of devices; leave it out"
REFUSED = {
    "max_epochs": LENGTH,
    "min_epochs": LENGTH,
    "max_steps": LENGTH,
    "min_steps": LENGTH,
    "overfit_batches": "to fit few rows often, set a source's sampling to first:N and data.epochs",
    "accumulate_grad_batches": "set stages.NAME.data.micro_batch_size; the rest of batch_size is "
    "accumulated",
    "use_distributed_sampler": SHARES,
    "reload_dataloaders_every_n_epochs": SHARES,
    "default_root_dir": "everything is written below --runs",
    "enable_checkpointing": "checkpoints to go on from are written every --checkpoint_seconds; for "
    "others name a ModelCheckpoint in trainer.callbacks",
    "barebones": "it would record nothing of the stage; leave it out",
}
CLIP = "gradient_clip_val"
# Options that decide neither a stage's weights nor its held-out numbers; of plugins those of
# precision do.
IDLE = (
    *(*ranks.WHERE, "plugins"),
    *("logger", "log_every_n_steps", "enable_autolog_hparams", "model_registry"),
    *("enable_progress_bar", "enable_model_summary", "profiler", "detect_anomaly"),
    *("limit_test_batches", "limit_predict_batches", "inference_mode"),
    *("deterministic", "benchmark", "num_sanity_val_steps"),
)
# Options that take objects, or say where a run is computed: they are those of all stages.
SHARED = ("logger", "callbacks", "profiler", "plugins", *ranks.WHERE)
# What the user calls the numbers of a logger, which stages put their names behind.
PREFIXES: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
OBSERVERS = (DeviceStatsMonitor, LearningRateMonitor, ModelSummary, ProgressBar)


def check_options(options: Mapping[str, Any], place: str) -> None:
    """Refuse unknown options and those that the stages set themselves.

    Args:
        options: Options of Lightning's Trainer.
        place: Key under which they stand, for messages.

    Raises:
        ValueError: Names the option and what to set instead.
    """
    for name, value in options.items():
        if name not in DEFAULTS:
            near = difflib.get_close_matches(name, DEFAULTS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{place}: no option {name!r}{hint}")
        if name in REFUSED and value != DEFAULTS[name]:
            raise ValueError(f"{place}.{name} cannot be {value!r}: {REFUSED[name]}")
        if name == "precision" and value in UNFIT:
            known = ", ".join(get_args(Precisions))
            raise ValueError(f"{place}.precision cannot be {value!r}; it is one of {known}")
        if name == "gradient_clip_val":  # Lightning takes one below 0 for none
            at_least(0, f"{place}.", gradient_clip_val=value)


def check_stage_options(options: Mapping[str, Any], place: str) -> None:
    """Refuse in a stage's own options also those that all stages share."""
    check_options(options, place)
    if found := [name for name in SHARED if name in options]:
        raise ValueError(f"{place}.{found[0]}: set trainer.{found[0]}, which all stages share")


def check_clipping(shared: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a way of clipping gradients that nothing clips.

    Args:
        shared: Options of Lightning's Trainer that all stages share.
        stages: Those of each stage's own, by its name.

    Raises:
        ValueError: Names the option.
    """
    places = {"": any({**shared, **own}.get(CLIP) for own in stages.values())}
    places |= {f"stages.{name}.": {**shared, **own}.get(CLIP) for name, own in stages.items()}
    given = {"": shared, **{f"stages.{name}.": own for name, own in stages.items()}}
    for place, clips in places.items():
        if given[place].get("gradient_clip_algorithm") is not None and not clips:
            raise ValueError(
                f"{place}trainer.gradient_clip_algorithm: nothing is clipped; set "
                f"{place}trainer.{CLIP}, too, or leave it out"
            )


def deciding(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that decide what a stage becomes, where they are not Lightning's defaults.

    Args:
        options: Options as a parsed configuration has them.
    """
    chosen = {
        name: value
        for name, value in options.items()
        if name not in (*IDLE, *REFUSED) and value != DEFAULTS[name]
    }
    callbacks = _listed(chosen.pop("callbacks", None))
    acting = [each for each in callbacks if not issubclass(_kind(each), OBSERVERS)]
    plugins = [each for each in _listed(options.get("plugins")) if isinstance(each, Mapping)]
    precise = [each for each in plugins if issubclass(_kind(each), Precision)]
    found = {"callbacks": acting, "plugins": precise}
    return chosen | {name: each for name, each in found.items() if each}


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given] if given else []


def _kind(callback: Mapping[str, Any]) -> type:
    module, _, name = callback["class_path"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def make_trainer(
    options: Mapping[str, Any],
    folder: Path,
    name: str,
    callbacks: Sequence[Callback],
    bar: Callback,
) -> Trainer:
    """The trainer of one stage, or of the questions.

    Args:
        options: Options of Lightning's Trainer, checked; None takes the default.
        folder: The run's.
        name: Name of the stage, for its logs.
        callbacks: What the lab adds to the user's own.
        bar: Progress bar to show unless the user has another one or none.
    """
    given = _given(options)
    own = given.pop("callbacks", [])
    own = list(own) if isinstance(own, Sequence) else [own]
    shown = given.get("enable_progress_bar", True)
    if shown and not any(isinstance(each, ProgressBar) for each in own):
        own.append(bar)
    given["logger"] = _loggers(given.get("logger", True), folder, name)
    for key in REFUSED:
        given.pop(key, None)
    defaults = {"enable_model_summary": False, "num_sanity_val_steps": 0, "log_every_n_steps": 10}
    chosen: dict[str, Any] = {**defaults, **given}
    with named_refusal():
        trainer = Trainer(
            **with_precision(chosen),
            callbacks=[*own, *callbacks],
            enable_checkpointing=any(isinstance(each, Checkpoint) for each in own),
            max_epochs=1,
            max_steps=-1,
            default_root_dir=str(folder),
            use_distributed_sampler=False,
        )
    # Its handler of SIGTERM saves nothing, and hangs with several ranks; ours is core/signals.
    trainer._signal_connector.register_signal_handlers = lambda: None
    # So nothing comes of its asking every rank before every micro-batch, for which all would wait.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    return trainer


def probe(options: Mapping[str, Any]) -> Trainer:
    """A trainer that knows the devices and refuses what Lightning does not take; it trains nothing.

    Args:
        options: Options of Lightning's Trainer, checked; None takes the default.
    """
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    given = _given(options)
    given |= {**quiet, "callbacks": None, "enable_checkpointing": False}
    with named_refusal():
        return Trainer(**with_precision(given))


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that are set; each trainer has a strategy of its own, which knows its devices."""
    given = {key: value for key, value in options.items() if value is not None}
    if "strategy" in given:
        given["strategy"] = copy.deepcopy(given["strategy"])
    return given


def _loggers(given: Any, folder: Path, name: str) -> Any:
    """TensorBoard's, unless the user has others, which tell stages apart by a prefix."""
    if given is True:
        return TensorBoardLogger(folder / "stages", name=name, version="")
    loggers = given if isinstance(given, Sequence) else [given] if given else []
    for each in loggers:
        # One logger serves all stages, and each stage counts its steps from 0.
        if hasattr(each, "_prefix"):
            PREFIXES.setdefault(each, each._prefix)
            each._prefix = "-".join(filter(None, (PREFIXES[each], name)))
    return list(loggers) or False


@contextmanager
def named_refusal() -> Iterator[None]:
    """Let what Lightning refuses end in one message."""
    try:
        yield
    except (MisconfigurationException, ImportError, TypeError) as error:
        raise ValueError(f"trainer: {' '.join(str(error).split())}") from error
