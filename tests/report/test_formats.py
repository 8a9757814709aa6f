"""Formats: every published table in every one of them, and figures as numbers for scripts."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console
from test_table import results, write

from llava_lab.cli.table import main
from llava_lab.report.formats import FORMATS, show, to_csv, to_html, to_json, to_latex, to_markdown
from llava_lab.report.grid import Figure, Grid
from llava_lab.report.published import every

SCORE = {"value": 0.6, "low": 0.55, "high": 0.65}
GRID = Grid(
    "A & B",
    ["name", "score"],
    [["a|b", Figure("60.0 ± 5.0", SCORE)], ["[red]_x", Figure("–", None)]],
    "50% <more>",
    ["two"],
)


def test_a_grid_in_every_format() -> None:
    assert to_markdown(GRID).splitlines() == [
        *("### A & B", "", "| name | score |", "| --- | --: |", "| a\\|b | 60.0 ± 5.0 |"),
        *("| [red]_x | – |", "", "50% <more>  ", "two"),
    ]
    assert to_latex(GRID).splitlines() == [
        *(r"\begin{table}", r"\centering", r"\caption{A \& B}"),
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        r"\begin{tabular}{lr}",
        *(r"\toprule", r"name & score \\", r"\midrule", r"a\textbar{}b & 60.0 $\pm$ 5.0 \\"),
        *(r"[red]\_x & -- \\", r"\bottomrule", r"\end{tabular}}", r"\par\smallskip"),
        r"\begin{minipage}{\linewidth}\footnotesize",
        *(r"50\% \textless{}more\textgreater{}\par", r"two\par", r"\end{minipage}", r"\end{table}"),
    ]
    assert list(csv.reader(io.StringIO(to_csv(GRID)))) == [
        ["name", "score", "score, low", "score, high"],
        ["a|b", "0.6", "0.55", "0.65"],
        ["[red]_x", "", "", ""],
    ]
    assert json.loads(to_json([GRID]))[0]["rows"][0] == {"name": "a|b", "score": SCORE}
    console = Console(width=60, file=io.StringIO(), record=True)
    console.print(GRID)
    drawn = console.export_text()
    assert "[red]_x" in drawn and "A & B" in drawn


def test_a_plain_number_beside_an_interval_has_no_ends() -> None:
    """It was written as its own ends; and a column of which nothing is known is one column."""
    rows = [["printed", Figure("62.0", 62.0), Figure("–", None)], ["ours", Figure("", SCORE), ""]]
    grid = Grid("t", ["row", "GQA", "MME"], rows)
    assert to_csv(grid).splitlines() == [
        *('row,GQA,"GQA, low","GQA, high",MME', "printed,62.0,,,", "ours,0.6,0.55,0.65,")
    ]
    loss = Figure("4 → 1", {"first": 4, "last": 1})
    grid = Grid("t", ["stage", "loss"], [["a", Figure("–", None)], ["b", loss]])
    assert to_csv(grid).splitlines() == ['stage,"loss, first","loss, last"', "a,,", "b,4,1"]


class Cells(HTMLParser):
    """Texts of cells, and what a page asks for from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.open: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.outside += [value for key, value in attrs if key in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def test_a_page_is_whole_and_asks_nothing_of_others() -> None:
    page = to_html([GRID, GRID])
    found = Cells()
    found.feed(page)
    assert found.cells == ["name", "score", "a|b", "60.0 ± 5.0", "[red]_x", "–"] * 2
    assert found.open == [] and found.outside == []
    assert "<title>A &amp; B</title>" in page and "50% &lt;more&gt;" in page
    assert "prefers-color-scheme: dark" in page and "url(" not in page and "@import" not in page


@pytest.mark.parametrize("format", FORMATS)
def test_every_published_table_is_printed_in_every_format(
    format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for table in every():
        main(["--paper", table.id, "--format", format])
        said = capsys.readouterr().out
        numbers = [value for row in table.rows for value in row.values.values()]
        if format == "csv":
            lines = list(csv.DictReader(io.StringIO(said)))
            read = [
                float(line[name])
                for line, row in zip(lines, table.rows, strict=True)
                for name in row.values
            ]
            assert read == numbers and [line["row"] for line in lines] == [
                r.name for r in table.rows
            ]
        elif format == "json":
            (found,) = json.loads(said)
            rows = [{k: v for k, v in line.items() if v is not None} for line in found["rows"]]
            assert [r["row"] for r in rows] == [r.name for r in table.rows]
            assert all(
                row.values.items() <= r.items() for row, r in zip(table.rows, rows, strict=True)
            )
            assert found["id"] == table.id and found["source"] == table.source
        else:
            words = " ".join(said.split())
            assert all(str(number) in words for number in numbers), table.id
            assert table.id in said.replace(r"\_", "_")
        if format == "latex":
            assert said.isascii(), (table.id, re.findall(r"[^\x00-\x7f]", said))
            plain = re.sub(r"\\[{}]", "", said)
            assert plain.count("{") == plain.count("}")
            body = said.partition("\\midrule\n")[2].partition("\\bottomrule")[0].splitlines()
            sides = re.search(r"tabular}{(\w+)}", said.replace("{20em}", ""))
            cells = {len(re.split(r"(?<!\\)&", line)) for line in body}
            assert sides and cells == {len(sides[1])} and len(body) == len(table.rows)


def test_runs_in_every_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(write(tmp_path / "run", results()))
    for format, sign in (("html", "<td>60.0 [55.0, 65.0]</td>"), ("latex", "60.0 [55.0, 65.0] &")):
        main([run, "--format", format])
        assert sign in capsys.readouterr().out
    main([run, "--format", "json"])
    scores, stages, cost, _ = json.loads(capsys.readouterr().out)
    about = {key: scores[key] for key in ("table", "experiment", "scale", "seeds", "interval")}
    assert about == {
        **{"table": "scores", "experiment": "llava15", "scale": "tiny"},
        **{"seeds": [0], "interval": "results"},
    }
    first = scores["rows"][0]
    assert list(first) == scores["columns"]
    assert (first["benchmark"], first["score"], first["questions"]) == ("scenes", "accuracy", 100)
    assert first["value"] == {"value": 0.6, "low": 0.6 - 0.05, "high": 0.6 + 0.05}
    assert scores["rows"][2]["blind"] is None
    assert stages["rows"][0]["tokens"] == 1234567
    assert stages["rows"][0]["loss, first → last"] == {"first": 4.5, "last": 1.25}
    assert cost["rows"][-1] == {"cost": "peak memory, bytes", "value": None}


def test_json_of_seeds_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, value in enumerate([0.5, 0.6, 0.7]):
        write(tmp_path / "llava15" / f"{seed}", results(seed, value))
    main([str(tmp_path / "llava15"), "--format", "json"])
    scores = json.loads(capsys.readouterr().out)[0]
    assert (scores["interval"], scores["seeds"]) == ("seeds", [0, 1, 2])
    assert scores["rows"][0]["value"]["value"] == pytest.approx(0.6)


def test_two_columns_of_one_name_are_refused_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    grid = Grid("Twice", ["seeds", "seeds"], [["0", Figure("3", 3)]])
    show([grid], "csv")
    assert capsys.readouterr().out == "seeds,seeds\n0,3\n"
    with pytest.raises(ValueError, match="Twice: two columns are called 'seeds'"):
        show([grid], "json")
