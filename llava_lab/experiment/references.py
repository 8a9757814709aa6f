"""References: `${a.b}` and `extends: ${a.b}` -> what stands there, in the whole configuration."""

import difflib
import re
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
    tree = _extended(tree, tree, ())
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
    inner = {
        key.removesuffix("+"): _extended(each, root, above)
        for key, each in value.items()
        if key != EXTENDS
    }
    if value.get(EXTENDS) is None:
        return inner
    reference = REFERENCE.fullmatch(value[EXTENDS])
    if reference is None:
        raise ValueError(f"{EXTENDS}: {value[EXTENDS]!r} is no reference such as ${{stages.align}}")
    key = reference[1]
    if key in above:
        raise ValueError(f"{EXTENDS}: ${{{key}}} extends itself")
    base = find(root, key)
    while isinstance(base, str) and (further := REFERENCE.fullmatch(base)):
        base = find(root, further[1])
    return merge(_extended(base, root, (*above, key)), inner)


def find(tree: Tree, key: str) -> Any:
    """What stands at a dotted key.

    Raises:
        ValueError: If nothing does; names the nearest.
    """
    found: Any = tree
    for number, part in enumerate(parts := key.split(".")):
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
