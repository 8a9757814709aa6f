"""check: 30 planted faults are all found, each with its place, and nothing else is."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from PIL import Image
from test_preference import tiny

from llava_lab.cli.check import main
from llava_lab.data.modules.image import ImageDataModule
from llava_lab.data.modules.preference import PreferenceDataModule
from llava_lab.data.source import Source
from llava_lab.data.views.pad import Pad
from llava_lab.report.check import bad_grids, histogram, sources_grid
from llava_lab.report.check_rows import look_at

LONG = "word " * 400


def row(name: Any, image: Any = "a.png", **changes: Any) -> dict[str, Any]:
    shown = {} if image is None else {"image": image}
    return {"id": name, **shown, "conversations": talk("<image>\nWhat?", "A dog."), **changes}


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


def pair(name: str, **changes: Any) -> dict[str, Any]:
    answers = {"chosen": "A dog.", "rejected": "No."}
    return {"id": name, "image": "a.png", "prompt": "What?", **answers, **changes}


# A row, and what is said of it.
ROWS: list[tuple[Any, str]] = [
    ('{"id": 1', "not JSON"),
    ('{"id": 1, "id": 2}', "'id' is repeated in one object"),
    ('{"id": NaN}', "NaN is no JSON number"),
    (["a"], "a row must be an object, not list"),
    (row([1]), "'id' must be text or a whole number"),
    (row("x", "gone.png"), "'gone.png' is not in"),
    (row("x", "../a.png"), "is not a path inside of"),
    (row("x", "cut.png"), "cut.png: "),
    (row("x", "text.png"), "text.png: not an image"),
    (row("x", "empty.png"), "empty.png: "),
    (row("x", 7), "'image' must be a path or a list of paths"),
    (row("x", []), "'image' must be a path or a list of paths"),
    (row("x", ["a.png", "b.png"]), "1 <image> placeholders for 2 image"),
    (row("x", None), "no 'image', but a literal <image>"),
    (row("x", conversations=talk("What?", "A dog.")), "but no <image> placeholder"),
    (row("x", conversations="none"), "'conversations' must be a list"),
    (row("x", conversations=talk("<image>\nWhat?")), "ends without an answer"),
    (row("x", conversations=talk("<image>\nWhat?", " ")), "message 2, an answer, is empty"),
    (row("x", conversations=talk("<image>?", "See <image>")), "holds a literal <image>"),
    (row("x", conversations=[{"from": "human", "value": "<image>"}] * 2), "second one in a row"),
    (row("x", conversations=[{"from": "me", "value": "?"}]), "is from 'me'"),
    (row("x", imgae="b.png"), "key 'imgae' is not read; did you mean 'image'"),
    (row("x", conversations=talk("<image>\nIs </s> it?", "No.")), "contains '</s>', a mark"),
    (row("x", conversations=talk(f"<image>\n{LONG}", "No.")), "no token to train on in the first"),
    (row("x", ["a.png"] * 9, conversations=talk("<image>" * 9, "No.")), "visual tokens reach to"),
    (row("x", None, video="a.mp4"), "video rows need VideoDataModule"),
]
PAIRS: list[tuple[Any, str]] = [
    (pair("x", chosen="No."), "are the same answer"),
    (pair("x", rejected=" "), "'rejected' is empty"),
    (pair("x", chosen=f"{LONG} yes", rejected=f"{LONG} no"), "are the same 60 tokens"),
    (pair("x", prompt=""), "'prompt' is empty"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    for name, mode in (("a.png", "RGB"), ("b.png", "L"), ("odd.png", "RGBA"), ("cut.png", "RGB")):
        Image.effect_noise((40, 30), 9).convert(mode).save(images / name)
    whole = (images / "cut.png").read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "text.png").write_bytes(b"no picture")
    (images / "empty.png").write_bytes(b"")
    return tmp_path


def planted(
    path: Path, faults: list[tuple[Any, str]], good: Callable[[str], Any]
) -> dict[int, str]:
    """Write faults among good rows; what is said of each line that is bad."""
    lines, wanted = [json.dumps(good("0"))], {}
    for number, (value, reason) in enumerate(faults):
        lines.append(value if isinstance(value, str) else json.dumps(value))
        wanted[len(lines)] = reason
        lines.append(json.dumps(good(str(number))))
    path.write_text("\n".join(lines) + "\n")
    return wanted


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_all_planted_faults_are_found_and_nothing_else(on_bad_row: Any, folder: Path) -> None:
    assert len(ROWS) + len(PAIRS) == 30
    model, looked = tiny(), []
    for kind, faults, good in (
        (ImageDataModule, ROWS, row),
        (PreferenceDataModule, PAIRS, pair),
    ):
        path = folder / f"{kind.__name__}.jsonl"
        wanted = planted(path, faults, good)
        source = Source(path, folder / "images", on_bad_row=on_bad_row)
        data = kind([source], Pad(), 2, max_length=60)
        found = look_at(data, model, source)
        lines = {int(bad.source.rpartition(" ")[2]): bad.reason for bad in found.bad}
        assert lines.keys() == wanted.keys()
        for line, reason in wanted.items():
            assert reason in lines[line], line
        assert len(found.lengths) == found.total - len(faults) == len(faults) + 1
        assert found.refused == (len(faults) if on_bad_row == "error" else 0)
        looked.append(found)
    (grid,) = bad_grids(looked, [])
    assert len(grid.rows) == 30
    assert {line[-1] for line in grid.texts} == {"refused" if on_bad_row == "error" else "left out"}


def test_what_is_cut_and_where_repeated_ids_and_odd_pictures_are_said(folder: Path) -> None:
    short, path = talk("<image>\nWhat?", "A dog."), folder / "rows.jsonl"
    rows = [
        row("one"),
        row("two", conversations=[*short, *talk("And?", "No."), *talk("And?", LONG)]),
        row("one", "odd.png"),
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    source = Source(path, folder / "images")
    found = look_at(ImageDataModule([source], Pad(), 2, max_length=300), tiny(), source)
    (cut,) = found.cut
    assert cut.id == "two" and cut.source.endswith("line 2")
    assert re.fullmatch(
        r"[\d,]+ tokens, cut at 300: in message 5 or 6 of 6; [\d,]+ tokens less to train on",
        cut.reason,
    )
    lost = found.lengths[1].tokens - 300
    assert 0 < found.lengths[1].lost <= lost and not found.lengths[0].lost
    assert [each.messages for each in found.lengths] == [2, 6, 2]
    assert found.repeated == {"one": 2} and not found.refused
    assert found.modes == {"RGBA": [folder / "images" / "odd.png"]}
    grid = sources_grid([found])
    assert grid.texts[0][2:7] == ["3", "0", "1", "1", "1"]
    assert any("2 rows have the id one" in note for note in grid.notes)


def test_a_histogram_counts_every_value_once() -> None:
    values = [1, 1, 1, 5, 90, 100]
    grid = histogram(values, "tokens")
    assert sum(line[2].value for line in grid.rows) == len(values)
    assert len(grid.rows) <= 12 and grid.texts[0][0] == "1 to 9" and grid.texts[0][2] == "4"
    assert len(grid.texts[0][1]) == 40 and grid.texts[1][1] == ""
    assert grid.notes == ["median 1, 95 % up to 90, longest 100, sum 198"]
    assert histogram([7], "x").texts == [["7", "█" * 40, "1"]]


def test_a_file_that_is_not_there_is_one_fault(folder: Path) -> None:
    source = Source(folder / "rows.jsonl", folder / "images")
    found = look_at(ImageDataModule([source], Pad(), 2), tiny(), source)
    assert [bad.reason for bad in found.bad] == ["no such file"] and found.refused == 1


def test_the_verb_looks_at_all_stages_and_refuses_what_fit_would(
    shortened: list[str], small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    experiment = ["-c", str(REPOSITORY / "experiments" / "llava15.yaml")]
    experiment += [option for option in shortened if not option.startswith("--runs")]
    main([*experiment, "--format=json"])
    found = {each["title"].split(" (")[0] for each in json.loads(capsys.readouterr().out)}
    assert {"check: sources", "check: tokens a row", "check: messages"} <= found
    assert not any("bad rows" in title for title in found)
    rows = json.loads((small_world / "llava_v1_5_mix665k.json").read_text())
    rows[3]["conversations"][1]["value"] += "</s>"
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    with pytest.raises(SystemExit) as stopped:
        main([*experiment, f"--paths.instruct={tmp_path / 'rows.json'}"])
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert "rows.json, row 4" in said.out.replace("\n", " ") and "1 rows or files" in said.err
