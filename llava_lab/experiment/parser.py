"""Parser: jsonargparse with one message for a mistake, which names the option and the nearest."""

import difflib
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path, PosixPath, PurePath
from typing import Any

import jsonargparse._actions as actions
import jsonargparse._typehints as typehints
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings
from jsonargparse.typing import register_type

from llava_lab.core.trust import guarded, modules_with
from llava_lab.experiment.compose import long

# jsonargparse's list of modules that no value may name (os, subprocess, ...) refuses, not warns.
set_parsing_settings(import_path_denylist=[])

# Lines of jsonargparse's messages that say where in its types it was, and not what is wrong.
FRAME = re.compile(
    r"Parser key \"|Problem with given class_path|Does not validate against|Subtypes:|Errors:|"
    r"- Expected a <class 'NoneType'>|Given value|- Expected a path but"
)


def _path_text(path: Any) -> str:
    """A path as text; nothing else, or the null of a `Path | None` would be written as "None"."""
    if not isinstance(path, str | PurePath):
        raise ValueError(f"expected a path, not {type(path).__name__}")
    return str(path)


for kind in (Path, PosixPath):
    register_type(kind, _path_text, kind, type_check=isinstance)
# Every value that names a class passes here, at any depth and in either form of a name.
typehints.import_object = actions.import_object = guarded(typehints.import_object)


def _loaded_first(resolve: Callable[..., str]) -> Callable[..., str]:
    """Let `MLP` name the class llava_lab.model.connector.mlp.MLP, whether it is loaded or not."""

    def resolved(kind: Any, name: str) -> str:
        for module in modules_with(name):
            importlib.import_module(module)
        return resolve(kind, name)

    return resolved


def _whole_numbers_first(sort: Callable[..., Any]) -> Callable[..., Any]:
    """Let 10 stay a whole number where an option takes whole numbers and shares alike.

    Python keeps `int | float` and `float | int` as one type, in the order that was seen first in
    the process. `limit_val_batches` of 10 are ten batches, and of 10.0 ten times all of them.
    """

    def sorted_(subtypes: Any, value: Any, *more: Any) -> Any:
        found = sort(subtypes, value, *more)
        whole = isinstance(value, int) and not isinstance(value, bool)
        return sorted(found, key=lambda each: each is not int) if whole else found

    return sorted_


typehints.sort_subtypes_for_union = _whole_numbers_first(typehints.sort_subtypes_for_union)
typehints.resolve_class_path_by_name = _loaded_first(typehints.resolve_class_path_by_name)


class LabParser(ArgumentParser):
    """Checks a tree against the signatures of the classes that it names."""

    def __init__(self, *arguments: Any, **options: Any):
        options["exit_on_error"] = False  # also of the parsers that jsonargparse makes inside
        super().__init__(*arguments, **options)

    def checked(self, tree: dict[str, Any]) -> Namespace:
        """The tree with its types checked and every default filled in, in the long form.

        Raises:
            ValueError: Names the option that is wrong and, of an unknown one, the nearest.
        """
        try:
            return self.parse_object(long(tree))
        except ArgumentError as error:
            raise ValueError(self._explained(str(error))) from error

    def _explained(self, message: str) -> str:
        """One line of jsonargparse's account: the option's whole key, and what is wrong with it."""
        place = ".".join(re.findall(r'Parser key "([^"]+)"', message))
        lines = [line.strip() for line in message.splitlines()]
        wrong = [line for line in lines if line and not FRAME.match(line)]
        what = "; ".join(line.removeprefix("- ") for line in wrong) or message
        what = what.partition(" Got value: Namespace(")[0]
        what = re.sub(r"^Type \S.* expects a function or a callable class: ", "", what)
        return f"{place}: {what}{self._hint(message)}".removeprefix(": ")

    def _hint(self, message: str) -> str:
        """The nearest name to one that is not accepted."""
        found = re.search(r"option '([\w.-]+)'", message, re.IGNORECASE)
        if not found:
            return ""
        parts, known = found[1].split("."), self._known(message)
        wrong = next((part for part in parts if part not in known), parts[-1])
        near = difflib.get_close_matches(wrong, known, n=1)
        return f"; did you mean {near[0]!r}?" if near else ""

    def _known(self, message: str) -> set[str]:
        """Names that could have been meant: a class's arguments, or those of all options."""
        if paths := re.findall(r"class_path[= ]'([\w.]+)'", message):
            module, name = paths[-1].rsplit(".", 1)
            return set(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
        return {part for action in self._actions for part in action.dest.split(".")}
