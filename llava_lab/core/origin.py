"""Origin: a module -> whose code it is, the file that it lies in, and the modules that it needs."""

import ast
import contextlib
import functools
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
# Packages whose source is not read. results.json records their versions, but not those of numpy,
# peft and torchvision: torch's and transformers' say of what age these are.
RECORDED = ("lightning", "numpy", "peft", "timm", "tokenizers", "torch", "torchvision")
RECORDED += ("torchmetrics", "transformers")


def file_of(module: str) -> Path | None:
    """The file of a module, imported or not; nothing is imported to find it."""
    if module in sys.modules:
        file = getattr(sys.modules[module], "__file__", None)
        return Path(file).resolve() if file else None
    spec, folders, parts = None, None, module.split(".")
    for number in range(1, len(parts) + 1):
        try:
            spec = PathFinder.find_spec(".".join(parts[:number]), folders)
        except (ImportError, ValueError):
            return None
        if spec is None or (number < len(parts) and spec.submodule_search_locations is None):
            return None
        folders = spec.submodule_search_locations
    return Path(spec.origin).resolve() if spec and spec.has_location and spec.origin else None


def _package(module: str) -> Path:
    """Where a module's package lies among those that are installed: its folder, or its file."""
    environment, file = Path(sysconfig.get_path("purelib")).resolve(), file_of(module)
    assert file is not None
    return environment / file.relative_to(environment).parts[0]


def package_sha256(module: str) -> str:
    """SHA-256 of all source of the installed package that a module is of: any of it may decide."""
    return _folder_sha256(_package(module))


@functools.cache
def _folder_sha256(package: Path) -> str:
    files = sorted(package.rglob("*.py")) if package.is_dir() else [package]
    total = hashlib.sha256()
    for file in files:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        total.update(f"{file.relative_to(package.parent)} {digest}\n".encode())
    return total.hexdigest()


@functools.cache
def origin_of(module: str | None) -> str:
    """Whose code a module is: `recorded` by a version, of another `package`, or `foreign`."""
    top, file = (module or "builtins").partition(".")[0], file_of(module or "")
    if top in RECORDED or (file and file.is_relative_to(PACKAGE)):
        return "recorded"
    if file is None:  # compiled into Python, or typed at a prompt
        return "foreign" if top == "__main__" else "recorded"
    environment, standard = (Path(sysconfig.get_path(n)).resolve() for n in ("purelib", "stdlib"))
    if file.is_relative_to(environment):
        return "package"
    return "recorded" if file.is_relative_to(standard) else "foreign"


def foreign_modules(module: str) -> set[str]:
    """A module and, of those that its names come from, all that are foreign or of a package.

    What a function imports only when it is called counts, too.
    """
    found, waiting = set(), [module]
    while waiting:
        found.add(name := waiting.pop())
        if origin_of(name) == "package":
            continue
        others: set[Any] = set(_imported(name))
        for value in vars(sys.modules[name]).values() if name in sys.modules else ():
            is_module = isinstance(value, ModuleType)
            others.add(value.__name__ if is_module else getattr(value, "__module__", None))
        for other in others - found:
            if isinstance(other, str) and origin_of(other) != "recorded":
                waiting.append(other)
    return found


def _imported(module: str) -> Iterator[str]:
    """What a module's file imports by name: a number that it takes says not where it is from."""
    file = file_of(module)
    if file is None or file.suffix != ".py":
        return
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    if module in sys.modules:
        package = getattr(sys.modules[module], "__package__", None) or ""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            with contextlib.suppress(ImportError):  # one that was tried, and failed
                name = importlib.util.resolve_name(name, package)
                yield from (name, *(f"{name}.{each.name}" for each in node.names))
