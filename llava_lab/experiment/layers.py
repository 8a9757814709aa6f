"""Layers: -c files and overrides, in their order, with the scale that an experiment runs at.

An experiment says what is particular to a version of LLaVA. A scale says which weights, data and
budget fill it in, and hardware how it is spread over devices; what either says of one experiment
alone stands in a folder of its name: `configs/scale/tiny.yaml`, then
`configs/scale/tiny/llava_next_video.yaml`.
"""

import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llava_lab.core import ranks
from llava_lab.core.shipped import shipped
from llava_lab.core.yaml_file import read_mapping
from llava_lab.experiment.compose import CLASS, EXTENDS, Tree, override, read_layer
from llava_lab.experiment.places import lost, places, settled

TINY = "configs/scale/tiny.yaml"
NAMES = (EXTENDS, "experiment")  # what an experiment's file says of itself
MOST = 8  # options that a line names
DEFAULT = "tiny scale (the default); for the published recipe add -c configs/scale/paper.yaml"


def read_layers(given: Sequence[Path | str], quiet: bool = False) -> list[Tree]:
    """What files and overrides say, later ones to win.

    Where no file names a scale, the tiny one comes behind the experiment's file.

    Args:
        given: Files as paths, overrides as texts, `model.connector.depth=3`.
        quiet: Do not say that the tiny scale is taken.
    """
    given, found = list(given), [_layer(each) for each in given]
    lineage = [_lineage(each) if isinstance(each, Path) else {} for each in given]
    names = [name for each in lineage for name in each.get("experiment", [])]
    experiment = next((n for n, each in enumerate(lineage) if each.get("experiment")), None)
    if experiment is not None and not any(each.get("scale") for each in lineage):
        tiny = shipped(TINY)
        if not quiet:
            _say_once(DEFAULT)
        found.insert(experiment + 1, read_layer(tiny))
        lineage.insert(experiment + 1, _lineage(tiny))
    layers: list[Tree] = []
    before: list[Path] = []  # experiments of the user's own
    for layer, known in zip(found, lineage, strict=True):
        own = _own_files(known["files"], names) if known and not known["experiment"] else ()
        here = [layer, *map(read_layer, own)]
        if known.get("scale") and not quiet:
            for file in before:
                _say_replaced(file, known["scale"][0], here)
        before += filter(_is_own, known["files"] if known.get("experiment") else ())
        layers += here
    return layers


def own_layer(given: Path | str) -> Tree:
    """What a file or an override says itself; nothing where a file is of a scale.

    Args:
        given: A file as a path, an override as a text.
    """
    return {} if isinstance(given, Path) and _lineage(given)["scale"] else _layer(given)


def _is_own(file: Path) -> bool:
    """Whether a file is none of those that ship."""
    folders = (shipped(name).resolve() for name in ("experiments", "configs"))
    return not any(file.resolve().is_relative_to(folder) for folder in folders)


def _say_replaced(file: Path, scale: str, layers: Sequence[Tree]) -> None:
    """Say which options of an experiment of the user's own a scale behind it replaces."""
    own = {key: value for key, value in read_mapping(file).items() if key not in NAMES}
    theirs = {place for layer in layers for place in places(layer, whole=True)}
    gone = sorted({".".join(each) for each in map(settled, places(own)) if lost(each, theirs)})
    if gone:
        more = f" and {len(gone) - MOST} more" if len(gone) > MOST else ""
        _say_once(
            f"the {scale} scale replaces {', '.join(gone[:MOST])}{more} of {file}; what should "
            "stand at any scale goes into a -c file behind it, or on the command line"
        )


@functools.cache
def _say_once(message: str) -> None:
    """Say something once in a process, apart from what is read."""
    if ranks.first():
        print(f"llava_lab: {message}", file=sys.stderr, flush=True)


def _layer(given: Path | str) -> Tree:
    layer = read_layer(given) if isinstance(given, Path) else override(given)
    if not isinstance(given, Path) and "scale" in layer:
        raise ValueError(
            f"--{given}: that alone would only be a name. A scale is a file: "
            f"-c configs/scale/{layer['scale']}.yaml"
        )
    if CLASS in layer:
        raise ValueError(
            f"{given}: describes a {layer[CLASS]}, and not options of an experiment; name the file "
            f"where it belongs, such as --model.connector={given}"
        )
    return layer


def _lineage(path: Path) -> dict[str, list[Any]]:
    """A file and those that it extends, the outermost last, with their experiments and scales."""
    mapping = read_mapping(path)
    bases = mapping.get(EXTENDS) or []
    found: dict[str, list[Any]] = {"files": [], "experiment": [], "scale": []}
    for base in [bases] if isinstance(bases, str) else bases:
        if isinstance(base, str) and "${" not in base:
            for key, values in _lineage(path.parent / base).items():
                found[key] += values
    found["files"].append(path)
    for key in ("experiment", "scale"):
        found[key] += [mapping[key]] if key in mapping else []
    return found


def _own_files(files: Sequence[Path], experiments: Sequence[str]) -> Iterator[Path]:
    """What scales and hardware say of these experiments alone."""
    for file in files:
        for name in experiments:
            if (own := file.with_suffix("") / f"{name}.yaml").is_file():
                yield own
