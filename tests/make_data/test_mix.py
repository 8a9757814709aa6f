"""LLaVA-1.5's response formats, made of small published-form files by the rules that ship."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from llava_lab.__main__ import main
from llava_lab.data.questions import read_questions
from llava_lab.make_data.mix import Mixer, padded
from llava_lab.make_data.rules import Rule, read_rules
from llava_lab.model.weights import locate

RULES = read_rules(Path(locate("asset:make/llava15_mix.yaml")))
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def write(path: Path, value: object) -> str:
    path.write_text(json.dumps(value))
    return str(path)


def said(row: dict) -> list[str]:
    return [message["value"] for message in row["conversations"]]


def test_questions_of_a_picture_are_one_conversation_with_one_prompt(tmp_path: Path) -> None:
    asked = [(1, 9, "How many?"), (2, 8, "Is it red?"), (3, 9, "What is it?")]
    questions = [{"question_id": q, "image_id": i, "question": text} for q, i, text in asked]
    labels = [
        {"question_id": q, "image_id": 0, "multiple_choice_answer": text, "answers": []}
        for q, text in ((3, "cat"), (1, "2"), (2, "no"))
    ]
    mixer = Mixer(
        "vqav2",
        RULES["vqav2"],
        write(tmp_path / "q.json", {"questions": questions}),
        write(tmp_path / "a.json", {"annotations": labels}),
    )
    first, second = mixer.rows()
    assert first["image"] == "coco/train2017/000000000009.jpg"
    assert said(first) == [f"<image>\nHow many?\n{SHORT}", "2", "What is it?", "cat"]
    assert said(second) == [f"<image>\nIs it red?\n{SHORT}", "no"]
    assert (mixer.counts.read, mixer.counts.made, mixer.counts.turns) == (3, 2, 3)


def test_the_most_frequent_answer_is_taken_and_of_equal_ones_the_first(tmp_path: Path) -> None:
    rows = [{"question_id": q, "image_id": q, "question": "Why?"} for q in (1, 2)]
    answers = [["b", "a", "a", "c"], ["c", "b", "c", "b"]]
    labels = [
        {"question_id": q, "answers": [{"answer": each} for each in found]}
        for q, found in zip((1, 2), answers, strict=True)
    ]
    mixer = Mixer(
        "okvqa",
        RULES["okvqa"],
        write(tmp_path / "q.json", {"questions": rows}),
        write(tmp_path / "a.json", {"annotations": labels}),
    )
    assert [said(row)[1] for row in mixer.rows()] == ["a", "c"]


def test_a_multiple_choice_is_asked_for_each_option_and_every_letter_is_right_once(
    tmp_path: Path,
) -> None:
    rows = [
        {
            "image_id": 5,
            "question": q,
            "choices": ["ox", "ant", "yak", "emu"],
            "correct_choice_idx": c,
        }
        for q, c in (("Which?", 1), ("And which?", 3))
    ]
    made = Mixer("aokvqa", RULES["aokvqa"], write(tmp_path / "a.json", rows)).rows()
    assert len(made) == 4 and {len(said(row)) for row in made} == {4}  # two questions, one picture
    for turn, right in ((1, "ant"), (3, "emu")):
        assert Counter(said(row)[turn] for row in made) == dict.fromkeys("ABCD", 1)
        for row in made:
            asked, letter = said(row)[turn - 1 : turn + 1]
            assert asked.endswith(f"\n{LETTER}") and f"\n{letter}. {right}\n" in asked
    assert said(made[0])[0].startswith("<image>\nWhich?\nA. ox\nB. ant\nC. yak\nD. emu\n")


def test_ocr_comes_from_lists_and_from_a_file_of_its_own(tmp_path: Path) -> None:
    books = {
        "b1": {
            "split": 1,
            "questions": ["Who wrote it?", "What year?"],
            "answers": ["Ann", "1999"],
        },
        "b2": {"split": 3, "questions": ["Who wrote it?"], "answers": ["Bob"]},
    }
    (row,) = Mixer("ocrvqa", RULES["ocrvqa"], write(tmp_path / "o.json", books)).rows()
    assert row["image"] == "ocr_vqa/images/b1.jpg"
    assert said(row) == [f"<image>\nWho wrote it?\n{SHORT}", "Ann", "What year?", "1999"]
    with pytest.raises(ValueError, match=r"rule ocrvqa: .*o.json has no row where {'split': 1}"):
        Mixer("ocrvqa", RULES["ocrvqa"], write(tmp_path / "o.json", {"b2": books["b2"]})).rows()
    captions = [{"image_id": "x", "caption_str": f"A sign, {n}."} for n in range(5)]
    tokens = {"data": [{"image_id": "x", "ocr_tokens": ["STOP", "NOW"]}]}
    (row,) = Mixer(
        "textcaps",
        RULES["textcaps"],
        write(tmp_path / "t.json", {"data": captions}),
        write(tmp_path / "l.json", tokens),
    ).rows()
    asked = "Provide a one-sentence caption for the provided image.\nReference OCR token: STOP, NOW"
    assert said(row)[0] == f"<image>\n{asked}" and re.fullmatch(r"A sign, \d\.", said(row)[1])


def test_boxes_are_text_of_the_padded_square_and_asked_for_both_ways(tmp_path: Path) -> None:
    """A picture of 200 x 100 fills a square of 200 from 50 to 150."""
    assert padded((0.5, 0.0, 1.0, 0.5), (200, 100)) == (0.5, 0.25, 1.0, 0.5)
    assert padded((0.0, 0.0, 1.0, 1.0), (50, 100)) == (0.25, 0.0, 0.75, 1.0)
    rows = [
        {
            "image_id": n // 25,
            "width": 200,
            "height": 100,
            "bbox": [100, 0, 100, 50],
            "sentence": f"cat {n}",
        }
        for n in range(50)
    ]
    made = Mixer("refcoco", RULES["refcoco"], write(tmp_path / "r.json", rows)).rows()
    assert [len(said(row)) // 2 for row in made] == [9, 9, 7, 9, 9, 7]
    pairs = [pair for row in made for pair in zip(said(row)[::2], said(row)[1::2], strict=True)]
    ways = Counter()
    for number, (asked, answer) in enumerate(pairs):
        box, phrase = "[0.5, 0.25, 1.0, 0.5]", f"cat {number}"
        asked = asked.removeprefix("<image>\n")
        if asked == f"Please provide a short description for this region: {box}.":
            assert answer == phrase
            ways["phrase"] += 1
        else:
            end = "the bounding box coordinate of the region this sentence describes: "
            assert asked == f"Please provide {end}{phrase}." and answer == box
            ways["box"] += 1
    assert min(ways.values()) > 10


def test_sizes_are_read_from_pictures_and_ten_regions_are_drawn(tmp_path: Path) -> None:
    (tmp_path / "vg" / "VG_100K").mkdir(parents=True)
    Image.new("RGB", (100, 50)).save(tmp_path / "vg" / "VG_100K" / "4.jpg")
    inside = [
        {"image_id": 4, "x": 50, "y": 0, "width": 80, "height": 50, "phrase": f"a part {n}"}
        for n in range(30)
    ]
    file = write(tmp_path / "v.json", [{"id": 4, "regions": inside}])
    (row,) = Mixer("vg", RULES["vg"], file, images=tmp_path).rows()
    assert len(said(row)) == 20 and "[0.5, 0.25, 1.0, 0.75]" in " ".join(said(row))
    (other,) = Mixer("vg", RULES["vg"], file, images=tmp_path, seed=1).rows()
    assert said(other) != said(row)
    with pytest.raises(ValueError, match="--images names the folder to read it from"):
        Mixer("vg", RULES["vg"], file).rows()
    with pytest.raises(ValueError, match=r"image 'vg/VG_100K/4\.jpg' cannot be read"):
        Mixer("vg", RULES["vg"], file, images=tmp_path / "vg").rows()


def test_bad_rows_are_listed_or_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"imageId": str(n), "question": "What?", "answer": "cat"} for n in range(4)]
    rows[1]["answer"], rows[2]["question"] = " ", "<image> What?"
    del rows[3]["imageId"]
    mixer = Mixer("gqa", RULES["gqa"], write(tmp_path / "g.json", rows))
    with pytest.raises(ValueError, match=r"3 of 4 rows are not usable") as error:
        mixer.rows()
    assert "'{answer}' is empty" in str(error.value) and "has no 'imageId'" in str(error.value)
    skipped = Mixer("gqa", RULES["gqa"], str(tmp_path / "g.json"))
    assert len(skipped.rows("skip")) == 1 and len(skipped.counts.bad) == 3
    with pytest.raises(ValueError, match="rule gqa has no labels"):
        Mixer("gqa", RULES["gqa"], "g.json", "l.json")
    with pytest.raises(ValueError, match="rule vqav2 needs labels: --labels vqav2=FILE"):
        Mixer("vqav2", RULES["vqav2"], "g.json")


ASKED = {"image": "a", "question": "b", "answer": "c"}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"image": "a", "question": "b"}, "either `answer` or `choices`"),
        ({"image": "a"}, "either `question`, or `box`"),
        ({"image": "a", "box": "b"}, "regions need `box`, `phrase`"),
        ({"image": "a", "question": "b", "choices": "c"}, "go together"),
        ({"image": "a", "question": "b", "answer": "c", "rotated": True}, "needs `choices`"),
        ({"image": "a", "question": "b", "answer": "c", "prompt_at": "end"}, "known are 'first'"),
        ({"image": "a", "question": "b", "answer": "c", "most_turns": 0}, "no whole number"),
        (ASKED | {"most_turns": 2}, "`most_turns` needs `merged`"),
        (ASKED | {"prompt_at": "each", "prompt": "P"}, "`prompt_at: each` needs `merged` and"),
        (ASKED | {"prompt_at": "each", "merged": True}, "`prompt_at: each` needs `merged` and"),
        (ASKED | {"decimals": 3}, "`decimals` needs `box`"),
        (ASKED | {"padded": False}, "`padded` needs `box`"),
        (ASKED | {"size": ("w", "h")}, "`size` needs `box`"),
    ],
)
def test_a_rule_that_contradicts_itself_is_refused(options: dict, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Rule(**options)


def test_a_file_of_rules_with_an_unknown_option_names_it(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("own: {image: a, question: b, anwser: c}")
    with pytest.raises(ValueError, match=r"rules\.yaml: own: no option 'anwser'; known are image"):
        read_rules(file)
    file.write_text("own: {question: b}")
    with pytest.raises(ValueError, match="own: needs 'image'"):
        read_rules(file)
    file.write_text("own: {image: a, question: b, answer: c, most_per_picture: 1}")
    with pytest.raises(ValueError, match="own: `most_per_picture` needs `merged`"):
        read_rules(file)
    file.write_text("own: {image: a, question: b, answer: c, labels: {key: d}}")
    with pytest.raises(ValueError, match=r"own\.labels: needs 'of'"):
        read_rules(file)


def test_a_mix_is_one_file_that_training_and_benchmarks_read(tmp_path: Path, capsys) -> None:
    rows = [{"imageId": f"{n % 3}", "question": f"Is it {n}?", "answer": "yes"} for n in range(7)]
    gqa = write(tmp_path / "g.json", rows)
    choice = {"image_id": 1, "question": "Which?", "choices": ["a", "b"], "correct_choice_idx": 0}
    aokvqa = write(tmp_path / "a.json", [choice])
    for name in ("gqa/images/0", "gqa/images/1", "gqa/images/2", f"coco/train2017/{1:012d}"):
        place = tmp_path / "images" / f"{name}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(place)
    out = tmp_path / "mix.json"
    make = ["make", "mix", "asset:make/llava15_mix.yaml", "--out", str(out)]
    main([*make, "--source", f"gqa={gqa}", "--source", f"aokvqa={aokvqa}"])
    assert "gqa: 7 read, 0 left out, 3 conversations, 7 questions" in capsys.readouterr().out
    questions = read_questions(out, tmp_path / "images")
    assert len(questions) == 7 + 2
    assert {question.text.rpartition("\n")[2] for question in questions} == {SHORT, LETTER}
    record = json.loads((tmp_path / "mix.json.made.json").read_text())
    assert record["sources"]["aokvqa"]["conversations"] == 2 and gqa in record["inputs"]
    with pytest.raises(SystemExit):
        main([*make, "--source", "gpa=x"])
    assert "has no rule 'gpa'; it has vqav2, gqa" in capsys.readouterr().err
