"""YAML files that hold a mapping; whatever is wrong with one becomes one message."""

import copy
import functools
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from llava_lab.core.atomic import check_regular


class _Loader(yaml.SafeLoader):
    """YAML's safe loader; a repeated key in a mapping is refused."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """Read a mapping, or refuse a repeated key."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                where = f"line {key_node.start_mark.line + 1}"
                raise ValueError(f"key {key!r} is repeated, the second time in {where}")
            if isinstance(key, Hashable):
                seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        """A whole number: 010 is ten, as whoever writes it means, and no octal eight."""
        text = self.construct_scalar(node).replace("_", "")
        sign = -1 if text.startswith("-") else 1
        digits, bases = text.lstrip("+-"), {"0x": 16, "0o": 8, "0b": 2}
        base = bases.get(digits[:2], 10)
        return sign * int(digits[2:] if base != 10 else digits, base)


# Numbers are those of YAML 1.2: 5e-4 is one, and 1:30 is a text, where YAML 1.1 reads a text and
# ninety. Nor does YAML 1.2 read dates, which no option is: a run may be called 2026-11-27.
INT, FLOAT, DATE, TEXT = (
    f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp", "str")
)
_Loader.yaml_implicit_resolvers = {
    first: [each for each in known if each[0] not in (INT, FLOAT, DATE)]
    for first, known in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    FLOAT,
    re.compile(
        r"[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?$|[-+]?\d[\d_]*[eE][-+]?\d+$"
        r"|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver(
    INT,
    re.compile(r"[-+]?(0x[\da-fA-F][\da-fA-F_]*|0o[0-7][0-7_]*|0b[01][01_]*|\d[\d_]*)$"),
    list("-+0123456789"),
)
_Loader.add_constructor(INT, _Loader.construct_yaml_int)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that the loader would take for something else."""

    def represent_str(self, data: str) -> Any:
        """A text; the lines that Unicode knows beside line feeds would be folded to spaces."""
        style = '"' if any(each in data for each in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers
_Dumper.add_representer(str, _Dumper.represent_str)


def to_yaml(found: Any) -> str:
    """The YAML of plain data; reading it again gives the same."""
    return yaml.dump(found, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def parse_value(text: str) -> Any:
    """What a text says as YAML, such as an option's value on the command line.

    A text without quotes is itself, to the letter: no line feed, `#` or `&` of it is YAML's.

    Raises:
        YAMLError: If it is not YAML.
    """
    loader = _Loader(text)
    node = loader.get_single_node()
    if node is None:  # nothing, or all of it would be a comment
        return text if text.strip() else None
    plain = isinstance(node, yaml.ScalarNode) and not node.style and node.tag == TEXT
    if plain or text.startswith("&") or text[node.end_mark.index :].strip():
        return text
    return loader.construct_document(node)


@functools.lru_cache(maxsize=256)
def _read(text: str) -> Any:
    """What a text says; the points of a sweep read the same files hundreds of times."""
    return yaml.load(text, _Loader)


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds names with values; an empty file holds none.

    Raises:
        ValueError: If it is not UTF-8, not YAML, or holds something else; names the file.
    """
    check_regular(path, "options file")
    try:
        found = copy.deepcopy(_read(path.read_text(encoding="utf-8-sig")))
    except RecursionError:
        raise ValueError(f"{path}: not YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds no options, but {type(found).__name__}")
    if odd := [key for key in found if not isinstance(key, str)]:
        raise ValueError(f"{path}: key {odd[0]!r} is no name")
    return found
