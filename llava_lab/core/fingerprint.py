"""Fingerprint: everything that decides a result -> one SHA-256.

Stages, feature stores, reference stores and results are found again by a fingerprint. `describe`
turns options, parts and whole modules into plain data: every option and every public attribute
counts, and so does the source of classes and functions from outside this package and the content
of files that an option names. What does not decide a result is left out only where the class that
owns it says so, in `idle`.
"""

import enum
import errno
import functools
import hashlib
import importlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from llava_lab.core.below import files_below
from llava_lab.core.origin import file_of, foreign_modules, origin_of, package_sha256
from llava_lab.core.records import file_sha256
from llava_lab.core.tensors import digest
from llava_lab.core.version import __version__

# Values of a transformers configuration that do not change what the model computes.
IDLE_CONFIG = ("_name_or_path", "architectures", "transformers_version")
# What stages switch on a module without changing what it computes.
IDLE_ATTRIBUTES = ("training", "gradient_checkpointing")


def fingerprint(*values: Any, leave_out: Sequence[str] = ("idle",)) -> str:
    """SHA-256 of this package's version and of the descriptions of all values."""
    described = [describe(value, leave_out) for value in values]
    text = json.dumps([__version__, *described], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def describe(value: Any, leave_out: Sequence[str] = ("idle",)) -> Any:
    """Plain data (JSON) that is equal for two values where nothing that decides differs.

    A class lists the options that do not decide in a class attribute `idle`, with dots for options
    of options (`sources.path`), and may have a method `identity()` for what stands in their place.

    Args:
        value: An option, a parsed configuration with `class_path`, a part, a module, a function.
        leave_out: Names of the class attributes that list what is left out.
    """
    return _Describer(leave_out).describe(value)


class _Describer:
    """One description; remembers configurations and sources that many modules share."""

    def __init__(self, leave_out: Sequence[str]):
        self.leave_out = leave_out
        self.sources: dict[str, str] = {}
        self.configs: dict[int, Any] = {}
        self.above: list[int] = []

    def describe(self, value: Any) -> Any:
        """Plain data that stands for a value."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str | Path):
            return content_or_text(str(value))
        if isinstance(value, torch.dtype | torch.device | enum.Enum | bytes | complex):
            return str(value)
        if isinstance(value, Tensor):
            return digest({"": value})
        if isinstance(value, type) or inspect.isroutine(value):
            return self._code(value)
        if isinstance(value, functools.partial):
            return [self.describe(each) for each in (value.func, value.args, value.keywords)]
        if id(value) in self.above:
            return "one of those above"
        self.above.append(id(value))
        try:
            return self._compound(value)
        finally:
            self.above.pop()

    def _compound(self, value: Any) -> Any:
        if hasattr(value, "as_dict"):  # a Namespace of jsonargparse
            value = value.as_dict()
        if hasattr(value, "tolist"):  # an array of numpy
            value = value.tolist()
        if isinstance(value, Mapping):
            return self._configured(value) if "class_path" in value else self._items(value)
        if isinstance(value, Set):
            return sorted((self.describe(each) for each in value), key=json.dumps)
        if isinstance(value, Sequence):
            return [self.describe(each) for each in value]
        if hasattr(value, "to_diff_dict"):  # a configuration of transformers
            return self._config(value)
        return self._instance(value)

    def _items(self, value: Mapping[Any, Any], left_out: Sequence[str] = ()) -> dict[str, Any]:
        """Items of a mapping without those that are left out."""
        kept = without(value, left_out)
        return {str(key): self.describe(each) for key, each in kept.items()}

    def _configured(self, value: Mapping[str, Any]) -> Any:
        """A class and its options, as a parsed configuration has them."""
        module, _, name = value["class_path"].rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        options = {**(value.get("init_args") or {}), **(value.get("dict_kwargs") or {})}
        return [self.describe(kind), self._items(options, self._left_out(kind))]

    def _config(self, value: Any) -> Any:
        if id(value) not in self.configs:
            items = value.to_diff_dict().items()
            self.configs[id(value)] = {
                key: self.describe(each) for key, each in items if key not in IDLE_CONFIG
            }
        return self.configs[id(value)]

    def _instance(self, value: Any) -> Any:
        """An object's class and public attributes; of a module its submodules, too."""
        kind = type(value)
        described: dict[str, Any] = {
            "class": self.describe(kind),
            "attributes": self._items(dict(_attributes(value)), self._left_out(kind)),
        }
        if isinstance(value, nn.Module):
            described["shown"] = value.extra_repr()
            described["modules"] = self._items(dict(value.named_children()))
            if origin_of(kind.__module__) == "foreign":
                described["buffers"] = self._items(_unsaved_buffers(value))
        if identity := getattr(value, "identity", None):
            described["identity"] = self.describe(identity())
        return described

    def _left_out(self, kind: Any) -> list[str]:
        return [name for each in self.leave_out for name in getattr(kind, each, ())]

    def _code(self, value: Any) -> Any:
        """A class or function by its name, and by its source where nothing else records it."""
        name = f"{value.__module__}.{value.__qualname__}"
        if isinstance(value, FunctionType) and "<" in name:  # a lambda or an inner function
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            return [
                name,
                *_compiled(value.__code__),
                *map(self.describe, (value.__defaults__, value.__kwdefaults__, cells)),
            ]
        return [name, source] if (source := self._source(value)) else name

    def _source(self, value: Any) -> str:
        """SHA-256 of the file of a foreign class or function and of what that imports; or none."""
        module = value.__module__
        origin = origin_of(module)
        if origin == "recorded":
            return ""
        if module not in self.sources:
            total = hashlib.sha256()
            for name in sorted(foreign_modules(module) if origin == "foreign" else [module]):
                if origin_of(name) == "package":
                    total.update(package_sha256(name).encode())
                else:
                    file = file_of(name)
                    total.update(file.read_bytes() if file else inspect.getsource(value).encode())
            self.sources[module] = total.hexdigest()
        return self.sources[module]


def _compiled(code: CodeType) -> list[Any]:
    """What a function does, with the functions inside of it; the same in every process."""
    constants = [
        _compiled(each)
        if isinstance(each, CodeType)
        else sorted(map(repr, each))
        if isinstance(each, frozenset)
        else repr(each)
        for each in code.co_consts
    ]
    return [code.co_code.hex(), list(code.co_names), constants]


def content_or_text(text: str) -> Any:
    """A text; or, where it names a file or a folder, what is inside, wherever it lies."""
    path = Path(text)
    try:
        if path.is_file():
            return {"file": file_sha256(path)}
        if "/" in text and path.is_dir():
            inside = files_below(path)
            names = [str(each.relative_to(path)) for each in inside]
            return {"folder": [names, *(content_or_text(str(each)) for each in inside)]}
    except ValueError:  # a NUL byte: no name of a file
        pass
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
    return text


def without(value: Any, left_out: Sequence[str]) -> Any:
    """A configuration without the options of these names; lists are looked through."""
    if isinstance(value, Mapping) and left_out:
        kept = {}
        for key in value.keys() - set(left_out):
            below = [
                name.removeprefix(f"{key}.") for name in left_out if name.startswith(f"{key}.")
            ]
            kept[key] = without(value[key], below)
        return kept
    if isinstance(value, list | tuple) and left_out:
        return [without(each, left_out) for each in value]
    return value


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Public attributes that an object has itself; those of a module without its submodules."""
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    for name in [*getattr(value, "__dict__", {}), *slots]:
        if not name.startswith("_") and name not in IDLE_ATTRIBUTES and hasattr(value, name):
            yield name, getattr(value, name)


def _unsaved_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Buffers of a module that no state dict holds."""
    names = module._non_persistent_buffers_set
    return {name: each for name, each in module.named_buffers(recurse=False) if name in names}
