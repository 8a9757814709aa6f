"""docs/speed.md has what was measured."""

from page import HERE, PAGE, TABLE, table, written


def test_the_tables_of_the_page_are_those_that_the_benchmarks_wrote():
    text = PAGE.read_text(encoding="utf-8")
    assert written(text) == text
    names = {found[3] for found in TABLE.finditer(text)}
    assert names == {file.stem for file in (HERE / "measured").glob("*.json")}


def test_a_table_has_a_row_a_way_and_numbers_of_three_digits():
    rows = {"ours": {"tokens/s": 1234.5, "MFU": 0.4567}, "padded": {"tokens/s": 12.0, "MFU": 0.1}}
    lines = table({"title": "SFT", "torch": "2.14.1", "rows": rows}).splitlines()
    assert lines[0] == "SFT; torch 2.14.1:"
    assert lines[-2:] == ["| ours | 1,234 | 0.457 |", "| padded | 12 | 0.1 |"]
