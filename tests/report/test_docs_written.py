"""Docs that are written from results: blocks between markers, and their plots."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import REPOSITORY
from test_running import rule

from llava_lab.cli.report import page as report_page
from llava_lab.report.claim_text import effects
from llava_lab.report.claims import Claims, read_claims
from llava_lab.report.docs import differing, write_docs, written
from llava_lab.report.finding_file import read_findings
from llava_lab.report.forest_plot import forest_svg
from llava_lab.report.history import history_of

END = "<!-- end of results -->"
SVG = "{http://www.w3.org/2000/svg}"


def block(what: str, body: str = "") -> str:
    return f"<!-- results: {what} -->\n{body}{END}\n"


@pytest.fixture
def claims(tmp_path: Path) -> Claims:
    """Two findings that have not been run."""
    rule(tmp_path)
    return read_claims(read_findings(tmp_path / "findings"), tmp_path / "results")


def page(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "docs" / "page.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_what_stands_between_markers_is_written_and_nothing_else(
    tmp_path: Path, run_findings: Callable[[], Claims]
) -> None:
    rule(tmp_path)
    found = run_findings()
    path = page(tmp_path, f"Before.\n\n{block('finding T1', 'old')}\nAfter.\n")
    plot = path.parent / "results" / "T1.svg"
    assert write_docs(path.parent, found) == [path, plot]
    text = path.read_text()
    assert text.startswith("Before.\n\n<!-- results: finding T1 -->\n\n**T1. More depth helps: re")
    assert text.endswith(f"\n\n{END}\n\nAfter.\n") and "old" not in text
    assert "| effect | 2 − 1 | questions/accuracy/count | +5 or more, above 0 | +5" in text
    assert "![T1: effects with their intervals](results/T1.svg)" in text
    assert differing(path.parent, found) == {} and write_docs(path.parent, found) == []
    path.write_text(text.replace("reproduced", "contradicted"))
    plot.write_text(plot.read_text().replace("circle", "rect"))
    assert set(differing(path.parent, found)) == {path, plot}


def test_a_verdict_changes_with_the_results_alone(
    tmp_path: Path, run_findings: Callable[[], Claims]
) -> None:
    rule(tmp_path)
    findings = read_findings(tmp_path / "findings")
    path = page(tmp_path, block("finding T1"))
    write_docs(path.parent, read_claims(findings, tmp_path / "results"))
    assert "not run.** No verdict yet" in path.read_text()
    assert "report --run T1" in path.read_text() and "![" not in path.read_text()
    run_findings()
    write_docs(path.parent, read_claims(findings, tmp_path / "results"))
    assert "reproduced.**" in path.read_text()


def test_a_plot_that_no_page_shows_is_removed_and_no_picture_of_others(
    tmp_path: Path, run_findings: Callable[[], Claims], capsys: pytest.CaptureFixture[str]
) -> None:
    rule(tmp_path)
    found = run_findings()
    path = page(tmp_path, block("finding T1"))
    _, plot = write_docs(path.parent, found)
    theirs = {"my_figure.svg": b"<svg/>", "photo.svg": b"\xff\xfe", "copy.svg": plot.read_bytes()}
    for name, content in theirs.items():
        plot.with_name(name).write_bytes(content)
    path.write_text("Nothing here: ![mine](results/my_figure.svg)\n")
    assert differing(path.parent, found) == {plot: None}
    report_page(Namespace(docs=path.parent, format="json"), found)
    assert capsys.readouterr().err == f"removed: {plot}\n"
    left = {file.name: file.read_bytes() for file in plot.parent.iterdir()}
    assert left == theirs


def test_a_picture_of_others_is_not_written_over(
    tmp_path: Path, run_findings: Callable[[], Claims]
) -> None:
    rule(tmp_path)
    found = run_findings()
    path = page(tmp_path, block("finding T1"))
    theirs = path.parent / "results" / "T1.svg"
    theirs.parent.mkdir()
    theirs.write_text("<svg/>")
    with pytest.raises(ValueError, match=r"T1\.svg: not drawn by `report --docs`.* another name"):
        write_docs(path.parent, found)
    assert theirs.read_text() == "<svg/>" and path.read_text() == block("finding T1")


def test_all_findings_are_written_where_all_are_asked_for(claims: Claims) -> None:
    text = written(block("findings") + block("every finding"), "page.md", claims)
    assert text.count("More depth helps") == 4
    assert "\n## T1\n" in text and "\n## T2\n" in text


def test_a_published_table_is_a_block_too(claims: Claims) -> None:
    text = written(block("published llava15/table2"), "page.md", claims)
    assert "| 3 + MLP connector | 7B | 224 | 47.3 | 1355.2 | 27.8 |" in text


def test_runs_under_results_stand_in_the_rows_of_a_published_table() -> None:
    """With usual scores and those that a claim from this table names, and with directions."""
    claims = read_claims(read_findings(), REPOSITORY / "results")
    text = written(block("published llava10/table4"), "page.md", claims)
    head, _, full, *_ = (line for line in text.splitlines() if line.startswith("|"))
    assert "| tiny: open/accuracy | " in head and "| tiny: open/accuracy/conversation | " in head
    assert full.startswith("| Full data | 83.1 | 75.3 | 96.5 | 85.1 | ") and full.endswith("| 8 |")
    assert "| Full data → " in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (block("finding T9"), "page.md: <!-- results: finding T9 --> names nothing; there are"),
        (block("finding"), "results: finding --> names nothing"),
        (block("verdict T1"), "results: verdict T1 --> names nothing"),
        (block("published llava15/table99"), "no published table is called 'llava15/table99'"),
        ("<!-- results: findings -->\n", "findings --> has no <!-- end of results --> behind it"),
        ("<!-- results: findings -->\n" + block("finding T1"), "findings --> has no <!-- end"),
    ],
)
def test_a_marker_that_names_nothing_or_has_no_end_is_refused(
    text: str, message: str, claims: Claims
) -> None:
    with pytest.raises(ValueError, match=message):
        written(text, "page.md", claims)


def test_every_earlier_verdict_stays_on_the_page(
    tmp_path: Path, run_findings: Callable[[], Claims]
) -> None:
    rule(tmp_path)
    typed = {"event": "typed", "date": "2026-01-02", "verdict": "not reproduced", "git": None}
    numbers = [{"score": "descriptions/untrue", "points": 10.7, "half": 6.7}]
    typed |= {
        "numbers": numbers,
        "file": "docs/video.md",
        "why": "They rose.",
        "changed": ["films"],
    }
    history_of(tmp_path / "results", "T1").added([typed])
    run_findings()
    rule(tmp_path, {"looks": {2: 0.02, 3: 0.03}})
    found = read_claims(read_findings(tmp_path / "findings"), tmp_path / "results")
    text = written(block("finding T1"), "page.md", found)
    assert "not reproduced (docs/video.md): descriptions/untrue +10.7 ± 6.7. They rose." in text
    assert "Changed since the verdict before: films." in text
    assert "typed by hand" in text and "The rule was changed after its last run." in text
    assert "| verdict |" in text


def test_a_plot_is_drawn_to_scale(tmp_path: Path, run_findings: Callable[[], Claims]) -> None:
    rule(tmp_path)
    found = list(effects(run_findings().verdicts["T1"]))
    root = ElementTree.fromstring(forest_svg("T1: <effects>", found))
    assert root.find(f"{SVG}title").text == "T1: <effects>"
    ticks = {
        float(each.text): float(each.get("x"))
        for each in root.findall(f"{SVG}text")
        if each.text.lstrip("+-").replace(".", "").isdigit()
    }
    (low, left), (high, right) = min(ticks.items()), max(ticks.items())
    for group, effect in zip(root.findall(f"{SVG}g"), found, strict=True):
        x = float(group.find(f"{SVG}circle").get("cx"))
        share = (100 * effect.difference.value - low) / (high - low)
        assert x == pytest.approx(left + share * (right - left), abs=0.2)
    with pytest.raises(ValueError, match="nothing to draw"):
        forest_svg("none", [])
