"""YAML is read as whoever writes it means it, and what is written is read again as it was."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_lab.core.yaml_file import parse_value, read_mapping, to_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("5e-4", 5e-4), ("1e5", 1e5), ("-1.5E3", -1500.0), (".5", 0.5), ("1.", 1.0)),
        *(("010", 10), ("-09", -9), ("1_000", 1000), ("0x1F", 31), ("0o17", 15), ("0b11", 3)),
        *(("1:30", "1:30"), ("24:00:00", "24:00:00"), ("12:30:45.5", "12:30:45.5")),
        *(("2026-11-27", "2026-11-27"), ("1e", "1e"), ("1.2.3", "1.2.3"), ("0x", "0x"), ("+", "+")),
        *((".inf", math.inf), ("-.inf", -math.inf), ("true", True), ("~", None)),
    ],
)
def test_numbers_are_those_that_are_meant(text: str, value: object) -> None:
    """YAML 1.1 reads 010 as eight, 1:30 as ninety and 1e5 as a text."""
    found = parse_value(text)
    assert found == value and type(found) is type(value)


numeric = st.text("0123456789+-_.:eExobinfaINFA~ #'\"", max_size=8)
texts = st.one_of(numeric, st.text(max_size=8), st.sampled_from(["yes", "NO", "null", "<<", "="]))
scalars = st.one_of(texts, st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False))
plain = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)


@given(st.dictionaries(texts, plain, max_size=3))
def test_what_is_written_is_read_as_it_was(tmp_path_factory, found: dict) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_text(to_yaml(found), encoding="utf-8")
    assert repr(read_mapping(path)) == repr(found)
