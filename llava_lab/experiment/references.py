"""References: `${a.b}` and `extends: ${a.b}` -> what stands there, in the whole configuration."""

import difflib
import re
from collections.abc import Callable
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llava_lab.experiment.compose import EXTENDS, REFERENCE, Tree, merge

# The tiny scale shrinks views by two sevenths: 336 px to 96, 224 px to 64.
OmegaConf.register_resolver("sevenths", lambda pixels: int(pixels) * 2 // 7, replace=True)


def resolve(tree: Tree) -> Tree:
    """The tree with every reference replaced by what it refers to.

    Raises:
        ValueError: If a reference leads nowhere or to itself; names the key and near ones.
    """
    tree = _settled(_extended(tree, tree, ()))
    try:
        found = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(_explained(tree, error)) from error
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def _extended(value: Any, root: Tree, above: tuple[str, ...]) -> Any:
    """A tree in which `extends: ${...}` is replaced by a copy of what it refers to."""
    if isinstance(value, list):
        return [_extended(each, root, above) for each in value]
    if not isinstance(value, dict):
        return value
    opened = _opened(value, root, above)
    if not isinstance(opened, dict):
        return opened
    return {key: _extended(each, root, above) for key, each in opened.items() if key != EXTENDS}


def _opened(value: Any, root: Tree, above: tuple[str, ...]) -> Any:
    """A mapping that begins with what its `extends` refers to; anything else as it is."""
    if not isinstance(value, dict) or value.get(EXTENDS) is None:
        return value
    reference = REFERENCE.fullmatch(value[EXTENDS])
    if reference is None:
        raise ValueError(f"{EXTENDS}: {value[EXTENDS]!r} is no reference such as ${{stages.align}}")
    base = _referred(root, reference[1], above)
    inner = {key: each for key, each in value.items() if key != EXTENDS}
    return merge(base, inner) if inner else base


def _referred(root: Tree, key: str, above: tuple[str, ...]) -> Any:
    """What stands at a key, extended; what it stands in is extended on the way."""
    if key in above:
        raise ValueError(f"{EXTENDS}: ${{{key}}} extends itself")
    above = (*above, key)
    found = find(root, key, lambda each: _opened(each, root, above))
    if isinstance(found, str) and (further := REFERENCE.fullmatch(found)):
        return _referred(root, further[1], above)
    return _extended(found, root, above)


def _settled(value: Any) -> Any:
    """A tree in which a list that waited for another to be appended to is the list."""
    if isinstance(value, list):
        return [_settled(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {key.removesuffix("+"): _settled(each) for key, each in value.items()}


def find(tree: Tree, key: str, opened: Callable[[Any], Any] = lambda each: each) -> Any:
    """What stands at a dotted key.

    Args:
        tree: The tree.
        key: The key.
        opened: Makes a mapping on the way whole.

    Raises:
        ValueError: If nothing does; names the nearest.
    """
    found: Any = tree
    for number, part in enumerate(parts := key.split(".")):
        found = opened(found) if number else found
        if not isinstance(found, dict) or part not in found:
            known = list(found) if isinstance(found, dict) else []
            near = difflib.get_close_matches(part, known, n=1)
            hint = f"; did you mean {'.'.join([*parts[:number], near[0]])!r}?" if near else ""
            raise ValueError(f"${{{key}}}: there is no option {key!r}{hint}")
        found = found[part]
    return found


def _explained(tree: Tree, error: OmegaConfBaseException) -> str:
    """The message of a reference that cannot be resolved."""
    first = str(error).splitlines()[0]
    if missing := re.search(r"Interpolation key '([\w.-]+)' not found", first):
        try:
            find(tree, missing[1])
        except ValueError as problem:
            first = str(problem)
    place = f"{error.full_key}: " if error.full_key else ""
    return f"{place}{first}. A reference to another option is ${{its.name}}"
