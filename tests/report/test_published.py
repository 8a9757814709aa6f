"""Published tables: all of them, whole, each with its source; what is none is refused by name."""

from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

from llava_lab.cli.table import main
from llava_lab.report.published import every, published

COLUMNS = "percent: {unit: '%', better: higher, columns: [A, B]}\n"
TABLE = {
    **{"title": "T", "source": "a paper, Table 1", "source_kind": "retrieved"},
    **{"provenance": "primary", "columns": ["A"], "rows": [{"name": "r", "values": {"A": 1.5}}]},
}


def folder_of(path: Path, table: dict) -> Path:
    path.mkdir(parents=True)
    (path / "columns.yaml").write_text(COLUMNS)
    (path / "recipes.yaml").write_text("llava15: {every: {resolution: 336}}\n")
    (path / "some.yaml").write_text(yaml.safe_dump({"table1": table}))
    return path


def test_there_are_71_tables_each_with_rows_units_and_a_source() -> None:
    tables = list(every())
    assert len(tables) == len({table.id for table in tables}) == 71
    for table in tables:
        assert table.id.count("/") == 1 and table.source and table.provenance
        assert all(column.unit for column in table.columns)
        there = {name for row in table.rows for name in row.values}
        assert there == {column.name for column in table.columns}, table.id
        assert set(table.derived) <= there


def test_facts_that_tables_hold_twice_agree() -> None:
    """Where two tables print one number, a slip in either would show."""

    def values(id: str, row: str) -> dict[str, float]:
        (found,) = (each for each in published(id).rows if each.name == row)
        return dict(found.values)

    for model in ("LLaVA-1.5-7B", "LLaVA-1.5-13B"):
        zoo = values("llava15/model_zoo", model)
        table4 = values("llava15/table4", model)
        mean = sum(table4[f"POPE {kind}"] for kind in ("random", "popular", "adversarial")) / 3
        assert zoo["POPE"] == pytest.approx(mean, abs=0.06)
        both = {**values("llava15/table3", model), **table4}
        assert {k: both[k] for k in zoo if k in both} == {k: zoo[k] for k in zoo if k in both}
    ours = values("llava15/table2", "8 + ShareGPT")
    assert ours == {k: values("llava15/model_zoo", "LLaVA-1.5-7B")[k] for k in ours}
    for table in every():
        for row in table.rows:
            if {"devices", "hours", "device-hours"} <= row.values.keys():
                product = row.values["devices"] * row.values["hours"]
                assert row.values["device-hours"] == product, (table.id, row.name)


def test_all_points_of_frames_against_tokens_are_there() -> None:
    found = {
        row.name: row.values["VDD"] for row in published("llava_next_video/representation").rows
    }
    assert len(found) == 8
    assert found["6x6 x 32 frames"] == 2.73 > found["24x24 x 4 frames"] == 2.71
    assert found["6x6 x 64 frames"] == 2.24


def test_the_row_that_utilization_was_fitted_to_is_not_among_those_that_agree() -> None:
    page = (REPOSITORY / "docs" / "plan.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:] for line in page.splitlines() if line.startswith("| `llava")]
    deviations = {
        tuple(cell.strip(" `") for cell in row[:3]): int(row[6].strip(" %")) for row in rows
    }
    fitted = deviations.pop(("llava15", "vicuna_7b_v15", "align"))
    near = sum(abs(each) <= 15 for each in deviations.values())
    assert abs(fitted) <= 15 and len(deviations) == 12
    assert near == 2 and "two of twelve are within 15 %" in page


def test_an_unknown_id_is_refused_with_those_that_are_near(capsys: pytest.CaptureFixture) -> None:
    for id, near in (
        ("llava15/table22", "near it are llava15/table2, llava15/table3"),
        ("lava15/table2", "near it are llava15/table2"),
        ("llava15", "near it are llava15/table2"),
        ("xyz", "there are compute/stages"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["--paper", id])
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and said.startswith("error: no published table is called")
        assert near in said and "`table --paper` lists all 71" in said, said


def test_all_ids_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--paper", "--format", "md"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + 71
    assert any(line.startswith("| llava15/table2 | From LLaVA to LLaVA-1.5") for line in lines)


def test_one_table_is_printed_without_reading_the_others(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "paper", TABLE)
    (folder / "broken.yaml").write_text("[")
    assert published("some/table1", folder).rows[0].values == {"A": 1.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": None}, "table 'table1' lacks source"),
        ({"source_kind": "heard"}, "source_kind is 'heard'; it is one of retrieved, memory"),
        ({"provenance": "?"}, "provenance is '?'; it is one of primary"),
        ({"kind": "x"}, "kind is 'x'; it is one of results"),
        ({"notes": [{"a": "b"}]}, "notes are texts; quote one that has a colon"),
        ({"columns": ["A", "C"]}, "column 'C' has no unit in"),
        ({"note": []}, "'note' is unknown; there are columns, derived"),
        ({"rows": [{"name": "r", "values": {"B": 1}}]}, "row 'r': 'B' is no column of the table"),
        ({"rows": [{"name": "r", "values": {"A": "1"}}]}, "row 'r': A is '1', which is no number"),
        ({"rows": [{"name": "r", "values": {}}] * 2}, "two rows are called 'r'"),
        ({"rows": [{"name": "r"}]}, "a row lacks values"),
        ({"rows": [{"name": "r", "values": {}, "paper": {}}]}, "row 'r': paper without matches"),
        (
            {"rows": [{"name": "r", "values": {}, "matches": {"recipe": "llava51"}}]},
            "there is no recipe 'llava51' in recipes.yaml; there are llava15",
        ),
    ],
)
def test_what_is_no_table_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    table = {key: value for key, value in {**TABLE, **change}.items() if value is not None}
    folder = folder_of(tmp_path / "paper", table)
    with pytest.raises(ValueError, match=r"some\.yaml: table 'table1'") as refused:
        published("some/table1", folder)
    assert message in str(refused.value)


def test_a_column_has_one_unit(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "paper", TABLE)
    (folder / "columns.yaml").write_text(COLUMNS + "hours: {unit: h, columns: [A]}\n")
    with pytest.raises(ValueError, match=r"columns\.yaml: hours: 'A' has a unit already"):
        published("some/table1", folder)
    with pytest.raises(FileNotFoundError, match="should hold the published numbers"):
        published("some/table1", tmp_path / "nowhere")
