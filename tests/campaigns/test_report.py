"""The page of counts is changed only between the markers of a campaign."""

from pathlib import Path

import pytest
import report


def test_a_campaign_replaces_its_own_table_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "top\n<!-- campaign a -->\nold\n<!-- end a -->\n"
        "middle\n<!-- campaign b -->\n<!-- end b -->\n"
    )
    monkeypatch.setattr(report, "PAGE", page)
    rows = [{"kind": "cut", "right": 2, "seconds": 0.5}, {"kind": r"\1", "right": 3, "seconds": 1}]
    report.put("a", "python a.py", rows)
    text = page.read_text()
    assert "old" not in text and "| cut | 2 | 0.5 |" in text and r"| \1 | 3 | 1 |" in text
    assert "| **all** | **5** |  |" in text
    assert text.startswith("top\n<!-- campaign a -->\n\n`python a.py`\n")
    assert text.endswith("<!-- end a -->\nmiddle\n<!-- campaign b -->\n<!-- end b -->\n")
    report.put("a", "python a.py", rows)
    assert page.read_text() == text, "putting the same again changes nothing"
    with pytest.raises(ValueError, match="0 places for the campaign 'c'"):
        report.put("c", "python c.py", rows)


def test_the_page_has_a_place_for_every_campaign() -> None:
    text = report.PAGE.read_text()
    for name in ("mutations", "kills", "faults", "ranks"):
        assert text.count(f"<!-- campaign {name} -->\n") == 1
        assert text.count(f"<!-- end {name} -->\n") == 1
