from pathlib import Path

import pytest
from PIL import Image, ImageFont

from llava_lab.evaluate.sheet import FRAME, RIGHT, WRONG, SheetItem, sheet, wrap

FONT = ImageFont.load_default(15)


def item(correct: bool = True, question: str = "What is it?", color: str = "#123456") -> SheetItem:
    return SheetItem(Image.new("RGB", (60, 30), color), question, "cat", "dog", correct)


def colors(picture: Image.Image) -> set[str]:
    counted = picture.getcolors(picture.width * picture.height) or []
    return {"#" + "".join(f"{value:02x}" for value in color) for _, color in counted}


def test_wrap_keeps_words_and_width() -> None:
    text = "How many small squares are left of the yellow triangle\nthat overlaps the star?"
    lines = wrap(text, FONT, 150, max_lines=9)
    assert " ".join(lines) == " ".join(text.split())
    assert all(FONT.getlength(line) <= 150 for line in lines)
    assert len(lines) > 2


def test_wrap_cuts_words_that_are_wider_than_a_line() -> None:
    lines = wrap("x " + "m" * 60, FONT, 150, max_lines=99)
    assert lines[0] == "x"
    assert "".join(lines[1:]) == "m" * 60
    assert all(FONT.getlength(line) <= 150 for line in lines)


def test_wrap_marks_what_was_left_out() -> None:
    lines = wrap("one two three four five six seven eight nine ten " * 5, FONT, 120, max_lines=2)
    assert len(lines) == 2
    assert lines[1].endswith("...")
    assert FONT.getlength(lines[1]) <= 120
    assert wrap("fits", FONT, 120, max_lines=1) == ["fits"]
    assert wrap(" \n", FONT, 120, max_lines=1) == ["(empty)"]


def test_sheet_geometry() -> None:
    items = [item() for _ in range(5)]
    margin = 10  # a twentieth of a card
    three = sheet(items, columns=3, cell_pixels=200)
    assert three.width == 3 * 200 + 4 * margin
    one_row = sheet(items[:3], columns=3, cell_pixels=200)
    assert three.height == 2 * one_row.height - margin
    assert sheet(items[:2], columns=3, cell_pixels=200).width == 2 * 200 + 3 * margin


def test_long_questions_make_the_row_higher_and_no_wider() -> None:
    short, long = item(), item(question="word " * 200)
    usual, higher = sheet([short, short]), sheet([short, long])
    assert higher.width == usual.width
    assert usual.height < higher.height < 2 * usual.height


def test_nothing_is_drawn_on_the_margins() -> None:
    wide = SheetItem(Image.new("RGB", (60, 30), "black"), "W" * 400, "W" * 400, "W" * 400, False)
    picture = sheet([wide], cell_pixels=200)
    left, right = (
        picture.crop((10, 10, 19, picture.height - 10)),
        picture.crop((202, 10, 210, picture.height - 10)),
    )
    below = picture.crop((10, picture.height - 20, 210, picture.height - 10))
    assert colors(left) == colors(right) == colors(below) == {"#ffffff"}


def test_picture_is_whole_and_framed() -> None:
    picture = sheet([item(color="#123456")], cell_pixels=200)
    box = picture.crop((20, 20, 200, 200))
    assert colors(box) == {"#123456", FRAME}
    assert box.crop((0, 46, 180, 134)).getcolors() == [(180 * 88, (0x12, 0x34, 0x56))]


def test_right_and_wrong_have_their_colors() -> None:
    assert RIGHT in colors(sheet([item(True)]))
    assert WRONG not in colors(sheet([item(True)]))
    assert WRONG in colors(sheet([item(False)]))


def test_images_are_read_from_files(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("RGBA", (60, 30), "#123456").save(path)
    from_file = SheetItem(path, "What is it?", "cat", "dog", True)
    assert sheet([from_file]).tobytes() == sheet([item()]).tobytes()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        sheet([])
    with pytest.raises(ValueError, match="0 columns of 256 pixels"):
        sheet([item()], columns=0)
