"""Every dependency has a lowest version, and an upper bound a reason beside it."""

import re
from pathlib import Path

import pytest
from lowest import REPOSITORY, lowest

PYPROJECT = REPOSITORY / "pyproject.toml"


def test_every_dependency_has_a_lowest_version() -> None:
    pins = lowest(PYPROJECT)
    assert all(re.fullmatch(r"[\w.-]+==[\d.]+", pin) for pin in pins)
    assert {"torch", "transformers", "timm", "peft"} <= {pin.split("==")[0] for pin in pins}


def test_an_upper_bound_has_its_reason_beside_it() -> None:
    lines = re.findall(r'^ *"[\w.\[\],-]+>=[^"]*<.*$', PYPROJECT.read_text(), re.MULTILINE)
    assert all(re.search(r'", +# \w', line) for line in lines), lines


def test_a_dependency_without_one_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "pyproject.toml"
    other.write_text(
        '[project]\ndependencies = ["torch"]\n[project.optional-dependencies]\nlora = []'
    )
    with pytest.raises(ValueError, match="torch has no lower bound"):
        lowest(other)
