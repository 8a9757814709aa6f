"""Unread: options of the user's own that do nothing beside the others, refused or said.

What a scale or a file that ships sets in vain is no mistake of the user's, and stays as it is.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from llava_lab.experiment.build import reads_below, stage_options
from llava_lab.experiment.compose import REFERENCE, Tree, merge
from llava_lab.experiment.layers import read_layers, say_once
from llava_lab.experiment.own import Own

WORLDS = {"tiny_world": "root", "tiny_videos": "video_root"}  # and which of paths is to be theirs
HELD = re.compile(r"\$\{stages\.([\w-]+)\.data\.hold_out\}")


def check(own: Sequence[Own], files: Sequence[Path], tree: Tree, options: Namespace) -> None:
    """Refuse options of the user's own that nothing reads; say where others win over them.

    Args:
        own: What his files and overrides set, in their order.
        files: The files that the experiment is of.
        tree: The whole configuration, before references are resolved.
        options: All options, checked.

    Raises:
        ValueError: Names the option and what to set in its place.
    """
    for line in _check_references(own, files, tree, options):
        say_once(line)
    _check_worlds(own, options)
    _check_held_out(tree, options)
    for line in _kept(own, options):
        say_once(line)


def _check_references(
    own: Sequence[Own], files: Sequence[Path], tree: Tree, options: Namespace
) -> Iterator[str]:
    """Refuse an override of what no other option refers to; a file may hold paths for all.

    Yields:
        Lines about those that would be referred to but for other overrides: an option for all
        points of a sweep may be for some of them.
    """
    shared = [f"paths.{name}" for name in WORLDS.values()]  # verdict runs set both everywhere
    given = {key: each.name for each in own if each.file is None for key in each.keys}
    read = _referred(tree)
    idle = {
        key: name
        for key, name in given.items()
        if (key.startswith("paths.") or key == "resolution") and key not in {*read, *shared}
    }
    others = _referred(reduce(merge, read_layers(files, quiet=True), {})) if idle else set[str]()
    for key, name in idle.items():
        if key in others:
            yield f"{name}: nothing refers to it, as another option replaces what would"
        elif key == "resolution":
            raise ValueError(
                f"{name}: nothing refers to ${{resolution}} here, as the encoder of the "
                f"{options.scale or 'experiment'} scale has a size of its own; name another one, "
                "such as --model.encoder=configs/encoder/clip_vit_l14_224.yaml"
            )
        else:
            known = ", ".join(sorted(each for each in read if each.startswith("paths.")))
            raise ValueError(
                f"{name}: nothing in {options.experiment} at this scale refers to "
                f"${{{key}}}; what is read is {known or 'none of paths'}. Set one of these, or "
                "name the file where it belongs, such as stages.NAME.data.sources"
            )


def _referred(tree: Tree) -> set[str]:
    """Keys of `paths`, and `resolution`, that are referred to, by whatever way."""
    paths = tree.get("paths") or {}
    known = {"resolution": None, **{f"paths.{name}": each for name, each in paths.items()}}
    rest = {name: each for name, each in tree.items() if name not in ("paths", "resolution")}
    found, waiting = set[str](), [rest]
    while waiting:
        for name in REFERENCE.findall(f"{waiting.pop()}"):
            # A reference may be to all paths, or begin with a dot and be relative.
            near = [key for key in known if key == name or key.startswith(f"{name}.")]
            near += [key for key in known if name[0] == "." and key.endswith(f".{name.strip('.')}")]
            waiting += [known[key] for key in near if key not in found]
            found |= set(near)
    return found


def _check_worlds(own: Sequence[Own], options: Namespace) -> None:
    """Refuse options of a tiny world that is not made, as other files are read."""
    for key, name in WORLDS.items():
        setting = [
            each for each in own if any(f"{one}.".startswith(f"{key}.") for one in each.keys)
        ]
        if not setting or (world := options[key]) is None:
            continue
        there = options.paths[name]
        if Path(world.root) != Path(there) and not reads_below(options, world.root):
            raise ValueError(
                f"{setting[-1].name}: nothing reads {key}.root, {world.root}, so that it is not "
                f"made: paths.{name} is {there}. Set --paths.{name}={world.root}, or leave out "
                f"what says {key}"
            )


def _check_held_out(tree: Tree, options: Namespace) -> None:
    """Refuse a benchmark of what a stage holds out where the stage holds out nothing."""
    written = (tree.get("data") or {}).get("benchmarks")
    shares = {
        each.get("name"): HELD.fullmatch(f"{each.get('held_out')}")
        for each in (written if isinstance(written, list) else [])
        if isinstance(each, Mapping)
    }
    for each in options.data.init_args.get("benchmarks") or []:
        asked = each.init_args
        found = shares.get(asked.get("name"))
        if found is None or asked.held_out:
            continue
        data = stage_options(options)[found[1]].init_args.data.init_args
        files = [f"{source.path}" for source in data.get("sources") or []]
        if f"{asked.questions}" in files:
            raise ValueError(
                f"stages.{found[1]}.data.hold_out is 0, so that benchmark {asked.name} would ask "
                "what the stage trains on; hold some out, or leave the benchmark out: "
                f"--data.benchmarks.{asked.name}=null"
            )


def _kept(own: Sequence[Own], options: Namespace) -> Iterator[str]:
    """Lines that say which stages and benchmarks keep a value of their own beside the user's."""
    last = {key: (number, each) for number, each in enumerate(own) for key in each.keys}
    for key, (number, each) in last.items():
        later = [name for one in own[number:] for name in one.keys]
        found = [
            f"{place} stays {value}"
            for place, value in _themselves(key, options)
            if not any(f"{place}.".startswith(f"{name}.") for name in later)
        ]
        if found:
            yield (
                f"{each.name}: {', '.join(found)}; what a stage or a benchmark says itself wins "
                f"over {key}"
            )


def _themselves(key: str, options: Namespace) -> Iterator[tuple[str, Any]]:
    """Keys and values of stages and benchmarks that win over an option with another value."""
    general, stages = options.get(key), stage_options(options)
    found: list[tuple[str, Any]] = []
    folder, _, name = key.rpartition(".")
    if folder == "trainer":
        trainers = {stage: each.init_args.get("trainer") or {} for stage, each in stages.items()}
        found = [(f"stages.{n}.{key}", each[name]) for n, each in trainers.items() if name in each]
    elif key == "model.llm.max_length":
        general = options.model.init_args.llm.init_args.get(name)
        data = {stage: each.init_args.data.init_args for stage, each in stages.items()}
        found = [(f"stages.{n}.data.{name}", each.get(name)) for n, each in data.items()]
    elif key in ("data.max_new_tokens", "data.temperature"):
        general = options.data.init_args.get(name)
        asked = [each.init_args for each in options.data.init_args.get("benchmarks") or []]
        found = [(f"data.benchmarks.{each.name}.{name}", each.get(name)) for each in asked]
    for place, value in found:
        if value not in (None, general) or (folder == "trainer" and value != general):
            yield place, value
