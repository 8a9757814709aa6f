"""Compose: files and overrides -> one configuration, before any class is looked at.

The configuration is a tree in the short form: a class and its arguments are one mapping,
`{class_path: llava_lab.model.connector.mlp.MLP, depth: 2}`. The long form of jsonargparse, with
`init_args`, means the same wherever something is read. Later layers win, with three rules:

- Mappings are merged key by key; lists and values are replaced. `key+: [...]` appends to a list,
  and `key.0.option` changes its first entry, `key.NAME.option` the one of that name.
- Where a layer names another class, the arguments of the class before it are dropped.
- `extends: FILE`, or `extends: ${another.key}`, begins a mapping with what stands there, and
  `extends: null` with nothing, whatever earlier layers say. A text that names a YAML file with a
  class_path stands for that class with these arguments and no others.

`${a.b}` refers to another option of the whole configuration and is resolved last.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from llava_lab.core.shipped import here_or_shipped
from llava_lab.core.trust import modules_with
from llava_lab.core.yaml_file import parse_value, read_mapping
from llava_lab.experiment.renamed import refuse_old_names
from llava_lab.experiment.twice import refuse_twice

Tree = dict[str, Any]
CLASS, ARGUMENTS, EXTENDS = "class_path", "init_args", "extends"
REFERENCE = re.compile(r"\$\{([\w.-]+)\}")


def read_layer(path: Path) -> Tree:
    """A YAML file, with the files that it extends and the classes in other files that it names.

    Raises:
        ValueError: If it is not a mapping, extends itself, or has an option of an older version.
    """
    return _read_layer(path, ())


def _read_layer(path: Path, above: tuple[Path, ...]) -> Tree:
    if path.resolve() in above:
        raise ValueError(f"{path}: extends itself, by way of {above[-1].name}")
    found = read_mapping(path)
    try:
        layer = _with_flat_rates(expand_keys(_short(found, "")))
        refuse_old_names(layer)
        return _with_files(layer, path.parent, (*above, path.resolve()))
    except ValueError as error:
        known = str(error).startswith(tuple(str(each) for each in (path, *above)))
        raise error if known else ValueError(f"{path}: {error}") from error


def _short(value: Any, place: str) -> Any:
    """The short form of a tree that may have `init_args`."""
    if isinstance(value, list):
        return [_short(each, f"{place}[{number}]") for number, each in enumerate(value)]
    if isinstance(value, str):
        return value.replace(f".{ARGUMENTS}.", ".") if "${" in value else value
    if not isinstance(value, Mapping):
        return value
    if odd := [key for key in value if not isinstance(key, str)]:
        raise ValueError(f"{place}: the name {odd[0]!r} is no text; put it in quotes")
    arguments = value.get(ARGUMENTS) or {}
    if not isinstance(arguments, Mapping):
        raise ValueError(f"{place}.{ARGUMENTS}: is {arguments!r:.80}, not names with values")
    if twice := sorted(arguments.keys() & value.keys()):
        raise ValueError(f"{place}: {twice[0]} stands inside of {ARGUMENTS} and beside it")
    kept = {key: each for key, each in value.items() if key != ARGUMENTS} | dict(arguments)
    return {key: _short(each, f"{place}.{key}".lstrip(".")) for key, each in kept.items()}


def long(value: Any) -> Any:
    """The long form of a tree: arguments of classes under `init_args`, as jsonargparse takes it."""
    if isinstance(value, list):
        return [long(each) for each in value]
    if not isinstance(value, dict):
        return value
    if CLASS not in value:
        return {key: long(each) for key, each in value.items()}
    beside = {key: value[key] for key in (CLASS, "dict_kwargs") if key in value}
    arguments = {key: long(each) for key, each in value.items() if key not in beside}
    return {**beside, ARGUMENTS: arguments}


def short(value: Any) -> Any:
    """The short form of a tree, such as jsonargparse's."""
    return _short(value, "")


def expand_keys(layer: Mapping[str, Any]) -> Tree:
    """A layer whose own keys may be dotted, such as `stages.instruct.data.views.grids`."""
    refuse_twice(trees := {key: nested(key, value) for key, value in layer.items()})
    return reduce(merge, trees.values(), {})


def nested(key: str, value: Any) -> Tree:
    """`{a: {b: value}}` of `a.b`; `init_args` may stand in the key and means nothing."""
    tree = value
    for part in reversed([part for part in key.split(".") if part != ARGUMENTS]):
        if not part:
            raise ValueError(f"{key!r} is no option: a name is missing between its dots")
        tree = {part: tree}
    return tree


def _with_flat_rates(layer: Tree) -> Tree:
    """A layer, or a stage's file, in which a rate has one spelling: `encoder.blocks.0-3` of `lr`.

    `lr: {encoder: 2e-6}` with `lr.encoder.blocks.0-3: 0` has both afterwards, in either order.
    """
    if isinstance(stages := layer.get("stages"), dict):
        flat_stages = {
            name: _with_flat_rates(each) if isinstance(each, dict) else each
            for name, each in stages.items()
        }
        layer = {**layer, "stages": flat_stages}
    if not isinstance(rates := layer.get("lr"), dict):
        return layer
    names = [name for name, _ in leaves(rates)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"lr: {twice[0]} stands there twice, in two spellings")
    return {**layer, "lr": dict(leaves(rates))}


def _with_files(value: Any, folder: Path, above: tuple[Path, ...]) -> Any:
    """A tree in which files that are named stand in place of their names."""
    if isinstance(value, list):
        return [_with_files(each, folder, above) for each in value]
    if isinstance(value, str):
        found = _class_file(value, folder, above)
        return value if found is None else found
    if not isinstance(value, dict):
        return value
    inner = {key: _with_files(each, folder, above) for key, each in value.items() if key != EXTENDS}
    bases = value.get(EXTENDS)
    if EXTENDS in value and bases is None:
        return {EXTENDS: None, **inner}
    if isinstance(bases, str) and "${" in bases:
        return {EXTENDS: bases, **inner}
    found: Any = {}
    for base in [bases] if isinstance(bases, str) else bases or []:
        if not isinstance(base, str) or "${" in base:
            raise ValueError(f"{EXTENDS}: {base!r:.80} is no file; a reference stands alone")
        found = merge(found, _read_layer(folder / base, above))
    return merge(found, inner)


def _class_file(text: str, folder: Path, above: tuple[Path, ...]) -> Tree | None:
    """What a text stands for that names a YAML file with a class; None for any other text."""
    if not text.endswith((".yaml", ".yml")) or "${" in text or "\n" in text:
        return None
    path = here_or_shipped(folder / text)
    if path.is_file() and {CLASS, EXTENDS} & read_mapping(path).keys():
        layer = _read_layer(path, above)
        return {EXTENDS: None, **layer} if CLASS in layer else None
    return None


def merge(base: Any, over: Any) -> Any:
    """What two layers say together; the second one wins."""
    if isinstance(base, dict) and CLASS in base and is_class_name(over):
        over = {CLASS: over}
    if not isinstance(over, dict):
        return over
    if isinstance(base, list) and over:
        return _merged_entries(base, over)
    if isinstance(base, str):
        # A reference, or a class by its name alone, of which some options are changed.
        reference = REFERENCE.fullmatch(base)
        base = {EXTENDS: base} if reference else {CLASS: base} if is_class_name(base) else {}
    anew = not isinstance(base, dict) or EXTENDS in over
    if anew or not _same_class(base.get(CLASS), over.get(CLASS)):
        base = {}
    found = dict(base)
    for key, value in over.items():
        appended = key.endswith("+")
        found |= _appended(found, key, value) if appended else {key: merge(found.get(key), value)}
    return found


def _appended(there: Tree, key: str, value: Any) -> Tree:
    """`key+` of a mapping; where there is no list yet, it waits for one of an earlier layer."""
    name = key.removesuffix("+")
    before = there.get(name) if name in there else there.get(key)
    for each, what in ((value, "put brackets around it"), (before or [], "nothing is appended")):
        if not isinstance(each, list):
            raise ValueError(f"{key}: {each!r:.80} is no list; {what}")
    return {name if name in there else key: [*(before or []), *value]}


def _same_class(name: Any, other: Any) -> bool:
    """Whether two names are of one class, which may be in full or the name alone; null is any."""
    if None in (name, other) or name == other:
        return True
    bare, full = sorted(map(str, (name, other)), key=len)
    return full in [f"{module}.{bare}" for module in modules_with(bare)]


def _merged_entries(base: list[Any], over: Tree) -> list[Any]:
    """A list of which some entries are changed; keys are their names, or numbers from 0."""
    found = list(base)
    names = {each.get("name"): n for n, each in enumerate(base) if isinstance(each, dict)}
    for key, value in over.items():
        number = int(key) if key.isdecimal() else names.get(key, len(found))
        if number >= len(found):
            known = ", ".join(str(name) for name in names if name)
            raise ValueError(
                f"{key!r} is an option of a list of {len(found)} entries; name the entry by its "
                f"number: 0.{key}" + f"; or by its name: {known}" * bool(known)
            )
        found[number] = merge(found[number], value)
    return found


def leaves(tree: Tree) -> Iterator[tuple[str, Any]]:
    """Dotted names and values of a tree, whose own names may be dotted."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from ((f"{key}.{name}", leaf) for name, leaf in leaves(value))
        else:
            yield key, value


def is_class_name(value: Any) -> bool:
    """Whether a value is a text that may name a class."""
    return isinstance(value, str) and re.fullmatch(r"([A-Za-z_]\w*\.)*[A-Z]\w*", value) is not None


def override(text: str) -> Tree:
    """The layer of one `key=value`, its value read as YAML."""
    key, found, value = text.partition("=")
    if not found or not key:
        raise ValueError(f"{text!r} is no option with a value, such as model.connector.depth=3")
    try:
        value = read_value(value)
    except ValueError as error:
        raise ValueError(f"--{key}: {error}") from error
    return read_options({key: value})


def read_options(options: Mapping[str, Any]) -> Tree:
    """The layer of options by their names, which may be dotted; files are named from here.

    Raises:
        ValueError: If an option has its name of an older version, or a file cannot be read.
    """
    refuse_old_names(layer := _with_flat_rates(expand_keys(_short(options, ""))))
    return _with_files(layer, Path(), ())


def read_value(text: str) -> Any:
    """The value that a text on the command line stands for: what it says as YAML, or itself.

    `{2x2, 1x2}`, which YAML reads as names without values, and what is not YAML are texts.
    """
    try:
        value = parse_value(text)
    except yaml.YAMLError as error:
        if "${" in text:
            raise ValueError(f'{text}: not YAML; quote what refers: "${{...}}"') from error
        return text
    bare = isinstance(value, dict) and value and all(each is None for each in value.values())
    return text if bare and ":" not in text else value


def write_value(value: Any) -> str:
    """The text that `read_value` reads as a value."""
    if isinstance(value, str) and value == " ".join(value.split()) and read_value(value) == value:
        return value
    text = json.dumps(value)
    # YAML reads no pairs of surrogates.
    return text if read_value(text) == value else json.dumps(value, ensure_ascii=False)


def differences(left: Tree, right: Tree) -> list[tuple[str, Any, Any]]:
    """Keys in which two trees differ, with both values; None where a side has no such key."""
    ours, theirs = (dict(flat(tree)) for tree in (left, right))
    keys = dict.fromkeys([*ours, *theirs])
    return [
        (key, ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)
    ]


def flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a tree; entries of lists have their numbers."""
    inner: Sequence[tuple[str, Any]] = ()
    if isinstance(value, dict):
        inner = [(f"{place}.{key}".lstrip("."), each) for key, each in value.items()]
    elif isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        inner = [(f"{place}[{number}]", each) for number, each in enumerate(value)]
    if not inner:
        yield place, value
    for name, each in inner:
        yield from flat(each, name)
