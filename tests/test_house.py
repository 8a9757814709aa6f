"""The house: who may import whom, how long modules and functions are, what has a docstring."""

import ast
import importlib
import inspect
import math
import pkgutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin
from unittest.mock import Mock

import pytest
from conftest import REPOSITORY
from docstring_parser import parse
from importlinter.cli import lint_imports
from lightning.pytorch import Callback, LightningDataModule
from torch import nn
from torchmetrics import Metric

import llava_lab
from llava_lab import __version__
from llava_lab.data.source import Source
from llava_lab.data.views.base import Views
from llava_lab.evaluate.benchmark import Benchmark
from llava_lab.model.connector.base import Connector
from llava_lab.tiny_world.base import World
from llava_lab.train.lora import Lora

MODULE, FUNCTION = 300, 60


def modules() -> Iterator[tuple[str, str]]:
    """Every module of the package, by its path, with its text."""
    package = REPOSITORY / "llava_lab"
    for path in sorted(package.rglob("*.py")):
        yield path.relative_to(package).as_posix(), path.read_text(encoding="utf-8")


def test_folders_import_only_those_below_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    status = lint_imports(config_filename="pyproject.toml", no_cache=True)
    assert status == 0, capsys.readouterr().out
    assert "ignore_imports" not in (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")


def test_files_of_tests_have_names_of_their_own() -> None:
    names = Counter(path.name for path in (REPOSITORY / "tests").rglob("test_*.py"))
    assert not [name for name, n in names.items() if n > 1], "pytest takes the second for the first"


def test_no_module_is_longer_than_one_sitting() -> None:
    lengths = {name: len(text.splitlines()) for name, text in modules()}
    long = {name: n for name, n in lengths.items() if n > MODULE}
    assert not long, f"modules of more than {MODULE} lines"


def test_no_function_is_longer_than_a_screen() -> None:
    lengths: dict[str, int] = {}
    for name, text in modules():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                key = f"{name} {node.name}"
                lengths[key] = max(lines, lengths.get(key, 0))
    long = {key: n for key, n in lengths.items() if n > FUNCTION}
    assert not long, f"functions of more than {FUNCTION} lines"


def test_everything_public_has_a_docstring() -> None:
    command = [sys.executable, "-m", "ruff", "check", "--select", "D1", "--ignore", "D105,D107"]
    found = subprocess.run([*command, "llava_lab"], cwd=REPOSITORY, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_no_folder_is_without_a_line_in_the_packages_docstring() -> None:
    package = REPOSITORY / "llava_lab"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    listed = {line.split("/")[0].strip() for line in text.splitlines() if "/  " in line}
    assert folders == listed


def classes_of_yaml() -> Iterator[type]:
    """Every class that a configuration may name in place of a part, a stage's data, a metric."""
    bases = (nn.Module, Views, LightningDataModule, Callback, Metric, Benchmark, World)
    for info in pkgutil.walk_packages(llava_lab.__path__, "llava_lab."):
        if info.name.split(".")[1] in ("data", "model", "train", "evaluate", "tiny_world"):
            module = importlib.import_module(info.name)
            for name, each in vars(module).items():
                own = inspect.isclass(each) and each.__module__ == info.name
                if own and issubclass(each, bases) and not name.startswith("_"):
                    yield each


def test_every_option_of_a_class_of_yaml_is_documented() -> None:
    """Its description is what `--help` shows."""
    lacking = {}
    for each in classes_of_yaml():
        known = inspect.signature(each).parameters.values()
        options = {p.name for p in known if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        injected = {"in_width", "out_width"} if issubclass(each, Connector) else set()
        documents = [parse(inspect.getdoc(kind) or "") for kind in each.__mro__]
        described = {p.arg_name for found in documents for p in found.params if p.description}
        if missing := options - injected - described:
            lacking[f"{each.__module__}.{each.__name__}"] = missing
    assert not lacking


NUMBERS = {int: (-1,), float: (-1.0, math.nan, math.inf)}
# Widths come from other parts, and layers are counted from the end, too.
ANY_NUMBER = {"in_width", "out_width", "width", "layer"}


def numbers_of_yaml() -> Iterator[tuple[type, dict[str, Any], str]]:
    """Classes of configurations, each with what it has to be given, and an odd number."""
    stand_ins = {f"{int}": 8, f"{float}": 1.0, f"{str}": "x", f"{Path}": "x"}
    stand_ins |= {"dict[str, float | None]": {"x": 1}}
    for each in (*classes_of_yaml(), Lora, Source):
        known = inspect.signature(each).parameters.values()
        kinds = {p.name: p.annotation for p in known if p.kind is p.POSITIONAL_OR_KEYWORD}
        lists = {p.name: [] for p in known if get_origin(p.annotation) is list}
        given = {
            p.name: stand_ins.get(f"{p.annotation}", lists.get(p.name, Mock()))
            for p in known
            if p.name in kinds and p.default is p.empty
        }
        for name in () if inspect.isabstract(each) else kinds.keys() - ANY_NUMBER:
            for kind, values in NUMBERS.items():
                union = get_args(kinds[name]) if isinstance(kinds[name], UnionType) else ()
                if kind in (kinds[name], *union):
                    yield from ((each, given | {name: value}, name) for value in values)


def test_no_option_takes_a_number_that_it_cannot_be() -> None:
    """A length of -1, a rate that is no number: refused where they are given, by their name."""
    taken = []
    for each, given, name in numbers_of_yaml():
        try:
            each(**given)
        except ValueError as error:
            if name in f"{error}":
                continue
        taken.append(f"{each.__name__}.{name}: {given[name]}")
    assert not taken


def test_one_version_stands_everywhere() -> None:
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {__version__}\n" in citation
    assert f"\n## [{__version__}] - " in changelog
