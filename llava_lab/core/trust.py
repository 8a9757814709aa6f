"""Trust: which classes a configuration may name, checked before anything of them is imported.

A YAML of the user's own names any class that can be imported. A MODEL folder may be someone else's:
it names classes of this package, and of modules that the user trusts by `--trust-code`.
"""

import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

PACKAGE = __name__.partition(".")[0]
MOST_NODES = 100_000  # most nodes of a configuration; ours have some hundreds
MOST_LEVELS = 100

_trusted: ContextVar[tuple[str, ...] | None] = ContextVar("trusted", default=None)


class Untrusted(ImportError):
    """A name that may not be imported; jsonargparse reports ImportErrors with the key."""


@contextmanager
def only_trusted(modules: Sequence[str] = ()) -> Iterator[None]:
    """Inside of the block, configurations may name this package and these modules only."""
    token = _trusted.set((PACKAGE, *modules))
    try:
        yield
    finally:
        _trusted.reset(token)


def guarded(import_object: Callable[..., Any]) -> Callable[..., Any]:
    """Import what a value names, as jsonargparse does, if it may be imported."""

    def checked(name: str, check_path: bool = True) -> Any:
        if not check_path:  # the name comes from code, not from a value
            return import_object(name, check_path=False)
        check_name(name)
        try:
            found = import_object(name)
        except (ImportError, AttributeError, ValueError) as error:
            raise Untrusted(f"{error}{_elsewhere(name)}") from error
        if not inspect.isclass(found):
            raise Untrusted(f"{name} is no class; a configuration names classes")
        check_name(f"{found.__module__}.{found.__qualname__}")
        return found

    return checked


def check_name(name: Any) -> None:
    """Refuse a name outside of the trusted modules, without importing what it names.

    Raises:
        Untrusted: If it is not MODULE.CLASS of a module that is trusted.
    """
    modules = _trusted.get()
    if modules is None or (isinstance(name, str) and "." not in name):
        return  # a bare name is looked up among loaded classes first, and checked again in full
    module, _, attribute = str(name).rpartition(".")
    root = next((m for m in modules if module == m or module.startswith(f"{m}.")), None)
    if not isinstance(name, str) or root is None:
        raise Untrusted(
            f"{name!r} is no class of {PACKAGE}, and nothing else is imported for a MODEL folder. "
            f"If you know and trust that code, add --trust-code {str(name).partition('.')[0]}"
        )
    if not (attribute.isidentifier() and _is_module(module)):
        raise Untrusted(f"{name!r}: there is no module {module}")


def _elsewhere(name: str) -> str:
    """Where the class is that a name of an older version, or a wrong one, may have meant."""
    wanted = name.rpartition(".")[2]
    known = modules_with(wanted) if name.startswith(f"{PACKAGE}.") else []
    return f". The class is {known[0]}.{wanted}" if known else ""


def modules_with(name: str) -> list[str]:
    """Modules of this package in which a class of this name is defined."""
    if not name.isidentifier():
        return []
    root = Path(__file__).resolve().parents[1]
    defined = re.compile(rf"^class {name}\b", re.MULTILINE)
    files = [file for file in sorted(root.rglob("*.py")) if defined.search(file.read_text("utf-8"))]
    return [".".join(file.relative_to(root.parent).with_suffix("").parts) for file in files]


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def check_tree(tree: Any) -> None:
    """Refuse every `class_path` at any depth that `check_name` refuses, with its place.

    Raises:
        ValueError: If there is one, or the tree is too large or deep to be a configuration.
    """
    left, pending = MOST_NODES, [("", tree, 0)]
    while pending:
        place, value, level = pending.pop()
        left -= 1
        if left < 0 or level > MOST_LEVELS:
            raise ValueError(f"more than {MOST_NODES} values or {MOST_LEVELS} levels of them")
        if isinstance(value, dict):
            if "class_path" in value:
                try:
                    check_name(value["class_path"])
                except Untrusted as error:
                    raise ValueError(f"{place or 'class_path'}: {error}") from error
            pending += [(f"{place}.{k}".lstrip("."), v, level + 1) for k, v in value.items()]
        elif isinstance(value, list):
            pending += [(f"{place}[{n}]", each, level + 1) for n, each in enumerate(value)]
