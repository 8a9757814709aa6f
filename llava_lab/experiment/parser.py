"""The parser: one message for a mistake, with the nearest right word; no carried-over arguments."""

import difflib
import functools
import importlib
import inspect
import json
import re
from collections.abc import Iterable
from pathlib import Path, PosixPath, PurePath
from typing import Any, NoReturn

import jsonargparse._actions as actions
import jsonargparse._typehints as typehints
import yaml
from jsonargparse import Namespace, set_parsing_settings
from jsonargparse.typing import register_type
from lightning.pytorch.cli import LightningArgumentParser
from omegaconf import OmegaConf

from llava_lab.core.trust import guarded

# `${resolution}` in a file means the root of the whole configuration, whatever the verb.
# jsonargparse's list of modules that no value may name (os, subprocess, ...) refuses, not warns.
set_parsing_settings(omegaconf_absolute_to_relative_paths=True, import_path_denylist=[])
# The tiny scale shrinks views by two sevenths: 336 px to 96, 224 px to 64.
OmegaConf.register_resolver("sevenths", lambda pixels: int(pixels) * 2 // 7, replace=True)


def _forget(parser_or_action: Any, prev_val: Any, value: Any) -> None:
    """Drop the arguments of a class that another one replaces.

    jsonargparse would hand those that both accept to the new class, its predecessor's defaults
    included (mauvilsa/jsonargparse#460).
    """
    if prev_val and "init_args" in prev_val and prev_val["class_path"] != value["class_path"]:
        prev_val.init_args = Namespace()


def _as_a_whole(adapt: Any) -> Any:
    """Let a list that is given as a whole replace the one before it, entry by entry anew.

    jsonargparse would fill the entries of a list of the same length with what they do not say
    from those before: `sources=[{path: my.json}]` would keep the pictures of another file.
    """

    @functools.wraps(adapt)
    def adapted(val: Any, typehint: Any, *more: Any, prev_val: Any = None, **options: Any) -> Any:
        nested = isinstance(val, list) and any(isinstance(v, typehints.NestedArg) for v in val)
        if isinstance(val, list) and not nested and not options.get("append"):
            prev_val = None
        return adapt(val, typehint, *more, prev_val=prev_val, **options)

    return adapted


def _with_nulls(adapt_class: Any) -> Any:
    """Let `--stages.align.data.sources=[{images: null}]` keep its nulls.

    jsonargparse hands what is inside of a class on as Python writes it, where a null is None, which
    YAML reads as a text.
    """

    @functools.wraps(adapt_class)
    def adapted(value: Any, *more: Any, **options: Any) -> Any:
        inner = value.get("init_args") if isinstance(value, Namespace) else None
        if isinstance(inner, typehints.NestedArg) and isinstance(inner.val, list | dict | None):
            text = json.dumps(inner.val, default=str)
            value = Namespace({**vars(value), "init_args": inner._replace(val=text)})
        return adapt_class(value, *more, **options)

    return adapted


def _path_text(path: Any) -> str:
    """A path as text; nothing else, or the null of a `Path | None` would be written as "None"."""
    if not isinstance(path, str | PurePath):
        raise ValueError(f"expected a path, not {type(path).__name__}")
    return str(path)


typehints.discard_init_args_on_class_path_change = _forget
typehints.adapt_typehints = _as_a_whole(typehints.adapt_typehints)
typehints.adapt_class_type = _with_nulls(typehints.adapt_class_type)
for kind in (Path, PosixPath):
    register_type(kind, _path_text, kind, type_check=isinstance)
# Every value that names a class passes here, at any depth and in either form of a name.
typehints.import_object = actions.import_object = guarded(typehints.import_object)


def with_references(arguments: Iterable[str]) -> list[str]:
    """Let the value of `--key=value` or `--key value` refer to another option, as in a file.

    jsonargparse resolves `${...}` in files alone, of which `-c` takes the text, too.
    """
    found: list[str] = []
    for argument in arguments:
        before = found[-1] if found else ""
        if "${" in argument and before.startswith("--") and "=" not in before:
            argument = f"{found.pop()}={argument}"
        key, _, value = argument.partition("=")
        if not (key.startswith("--") and "${" in value) or key == "--config":
            found.append(argument)
            continue
        try:
            tree = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f'{argument}: not YAML; quote what refers: "${{...}}"') from error
        for part in reversed(key.removeprefix("--").split(".")):
            tree = {part: tree}
        found += ["-c", json.dumps(tree)]
    return found


class LabParser(LightningArgumentParser):
    """Fails with the message alone and, where a name is unknown, the nearest one."""

    def __init__(self, *args: Any, **options: Any):
        options["allow_abbrev"] = False  # `--trainer.max_step` is a mistake, not `max_steps`
        super().__init__(*args, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one message and exit with 2; a nested parser lets the outer one report."""
        if not self.exit_on_error:
            super().error(message, ex)
        self.exit(2, f"error: {message.strip()}{self._hint(message)}\n")
        raise AssertionError("exit returned")

    def _hint(self, message: str) -> str:
        patterns = r"option '([\w.]+)' is not accepted|accept option '([\w.]+)'"
        found = re.search(patterns + r"|arguments: --([\w.]+)", message, re.IGNORECASE)
        if not found:
            return ""
        parts = next(group for group in found.groups() if group).split(".")
        known = self._known(message)
        wrong = next((part for part in parts if part not in known), parts[-1])
        near = difflib.get_close_matches(wrong, known, n=1)
        return f"\n  did you mean '{near[0]}'?" if near else ""

    def _known(self, message: str) -> set[str]:
        """Names that could have been meant: a class's arguments, or all options."""
        if paths := re.findall(r"class_path[= ]'([\w.]+)'", message):
            module, name = paths[-1].rsplit(".", 1)
            return set(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
        inner = getattr(self, "_subcommands_action", None)
        parsers = [self, *(inner.choices.values() if inner else [])]
        return {part for p in parsers for a in p._actions for part in a.dest.split(".")}
