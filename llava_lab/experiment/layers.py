"""Layers: -c files and overrides, in their order, with the scale that an experiment runs at.

An experiment says what is particular to a version of LLaVA. A scale says which weights, data and
budget fill it in, and hardware how it is spread over devices; what either says of one experiment
alone stands in a folder of its name: `configs/scale/tiny.yaml`, then
`configs/scale/tiny/llava_next_video.yaml`.
"""

import functools
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llava_lab.core import ranks
from llava_lab.core.shipped import shipped
from llava_lab.core.yaml_file import read_mapping
from llava_lab.experiment.compose import CLASS, EXTENDS, Tree, override, read_layer, read_value
from llava_lab.experiment.own import Own, replaced

TINY = "configs/scale/tiny.yaml"
DEFAULT = "tiny scale (the default); for the published recipe add -c configs/scale/paper.yaml"


def read_layers(given: Sequence[Path | str], quiet: bool = False) -> list[Tree]:
    """What files and overrides say, later ones to win.

    Where no file names a scale, the tiny one comes behind the experiment's file.

    Args:
        given: Files as paths, overrides as texts, `model.connector.depth=3`.
        quiet: Do not say that the tiny scale is taken, nor what a scale or an experiment behind
            the user's own files and overrides replaces of them.
    """
    given, found = list(given), [_layer(each) for each in given]
    lineage = [_lineage(each) if isinstance(each, Path) else {} for each in given]
    names = [name for each in lineage for name in each.get("experiment", [])]
    experiment = next((n for n, each in enumerate(lineage) if each.get("experiment")), None)
    if experiment is not None and not any(each.get("scale") for each in lineage):
        tiny = shipped(TINY)
        if not quiet:
            say_once(DEFAULT)
        given.insert(experiment + 1, tiny)
        found.insert(experiment + 1, read_layer(tiny))
        lineage.insert(experiment + 1, _lineage(tiny))
    layers: list[list[Tree]] = []
    for layer, known in zip(found, lineage, strict=True):
        own = _own_files(known["files"], names) if known and not known["experiment"] else ()
        layers.append([layer, *map(read_layer, own)])
    if not quiet:
        sets = [_sets(each, known) for each, known in zip(given, lineage, strict=True)]
        for line in replaced(sets, [_stands_for(each) for each in lineage], layers):
            say_once(line)
    return list(itertools.chain.from_iterable(layers))


def own_settings(given: Sequence[Path | str]) -> list[Own]:
    """What files of the user's own and overrides say themselves, in their order.

    A whole configuration, such as a run's config.yaml, is none of them: it says everything.

    Args:
        given: Files as paths, overrides as texts.
    """
    found: list[Own] = []
    for each in given:
        known = _lineage(each) if isinstance(each, Path) else {}
        own = [one for one in _sets(each, known) if not one.file or _is_own(one.file)]
        found += [one for one in own if EXTENDS in one.options or "experiment" not in one.options]
    return found


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


def _sets(given: Path | str, known: dict[str, list[Any]]) -> list[Own]:
    """What a layer says that a scale or an experiment behind it may replace.

    Of an experiment or a scale that is what files of the user's own say, and of anything else
    that he names all.
    """
    if isinstance(given, str):
        key, _, value = given.partition("=")
        return [Own(f"--{given}", {key: read_value(value)})]
    kind = known["experiment"] or known["scale"]
    files = [file for file in known["files"] if not kind or _is_own(file)]
    return [Own(f"{file}", read_mapping(file), file) for file in files]


def _stands_for(known: dict[str, list[Any]]) -> str:
    """What a layer is called that is of a scale or an experiment; nothing for any other."""
    for kind in ("experiment", "scale"):
        if known and known[kind]:
            return f"the {known[kind][-1]} {kind}"
    return ""


@functools.cache
def say_once(message: str) -> None:
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
