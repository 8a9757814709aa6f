"""Records: read as they were written, and refused when they are damaged."""

from pathlib import Path

import pytest

from llava_lab.core.records import read_record, write_record

FIELDS = {"name": str, "steps": int, "loss": (int, float)}
RECORD = {"name": "align", "steps": 3, "loss": 0.5, "held_out": {"1": [2.0, "é"]}}


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    write_record(path, RECORD)
    assert read_record(path, FIELDS, "Delete it.") == RECORD


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("\ud800", "not JSON"),
        ("[]", "holds list, no object"),
        ("{}", "has no 'name'"),
        ('{"name": "a", "steps": "3", "loss": 1}', "'steps' is str, not int"),
        ('{"name": "a", "steps": true, "loss": 1}', "'steps' is bool, not int"),
        ('{"name": "a", "steps": 3, "loss": null}', "'loss' is NoneType, not int or float"),
        ('{"name": "a", "steps": 3, "loss": 1, "sha256": 7}', "checksum is of other contents"),
    ],
)
def test_a_damaged_record_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ValueError, match=message) as caught:
        read_record(path, FIELDS, "Delete it.")
    assert str(path) in str(caught.value) and str(caught.value).endswith("Delete it.")


def test_a_flipped_bit_of_a_record_is_found_out(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    write_record(path, RECORD)
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        try:
            found = read_record(path, FIELDS, "")
        except ValueError:
            continue
        # Blanks between values, and the checksum's own name, may differ; what it says may not.
        assert {key: found[key] for key in RECORD} == RECORD
