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

TINY = "configs/scale/tiny.yaml"
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
        tiny = shipped(TINY) if quiet else _default_scale()
        found.insert(experiment + 1, read_layer(tiny))
        lineage.insert(experiment + 1, _lineage(tiny))
    layers: list[Tree] = []
    for layer, known in zip(found, lineage, strict=True):
        layers.append(layer)
        if known and not known["experiment"]:
            layers += [read_layer(path) for path in _own_files(known["files"], names)]
    return layers


def own_layer(given: Path | str) -> Tree:
    """What a file or an override says itself; nothing where a file is of a scale.

    Args:
        given: A file as a path, an override as a text.
    """
    return {} if isinstance(given, Path) and _lineage(given)["scale"] else _layer(given)


@functools.cache
def _default_scale() -> Path:
    """The tiny scale's file; says once in a process that it is taken, apart from what is read."""
    if ranks.first():
        print(f"llava_lab: {DEFAULT}", file=sys.stderr, flush=True)
    return shipped(TINY)


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
