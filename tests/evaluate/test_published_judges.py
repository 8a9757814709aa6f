"""Published prompts of judges word by word, and their replies as each script reads them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from llava_lab.data.questions import Question
from llava_lab.evaluate.judge import Judge, JudgePrompt
from llava_lab.evaluate.metrics.extracted import ExtractedMathVista
from llava_lab.evaluate.metrics.judged import Aspects, Relative, RightAnswer
from llava_lab.evaluate.metrics.mm_vet import MMVet

ROWS = yaml.safe_load((Path(__file__).parent / "official" / "judged.yaml").read_text("utf-8"))
# Of the messages as the scripts that each file names send them, with the names of values as here.
PUBLISHED = {
    "video_qa": "5731a8d72201df86b8a2c6964290808c99a86f2e40b5d0a95b111e79511e8295",
    "correctness": "6583ed954d92421a8da19b4db26e5818b725e2bc762a8d207fbd9a45600c6f8a",
    "detail": "05b3c77197a4a0a86bfe8d152809a50d8b72c1cb6f65abb409fd18d2c78d3cac",
    "context": "97590d6054fbdcf5619b81acaf463dbfbb5c99a9fc7804dc2fd42c7be466a7b4",
    "temporal": "d6fe6f285cfb7866f64b71737cbe25fb2c3158f09c7b771c8a4dc7d7bd7e4f1a",
    "consistency": "1c5435f975cdc20b6c7bca0072541468cf77b4032941aeaf3914ff5a27362a51",
    "mm_vet": "8e2d8627d28fb99c47e029d110898f4c59f50f2dae60fda3719873a858e471b9",
    "mathvista": "84804e8a9d7836192085d368fa62a92e36925a2bada59e3212cd51457413d630",
}


def question(id: str = "1", answer: str = "A", **more: Any) -> Question:
    return Question(id, (), "What?", more.pop("category", None), (answer,), f"row {id}", **more)


@pytest.fixture
def judge(judge_server, tmp_path: Path) -> Any:
    """Makes a judge whose replies are fixed, one after another."""

    def make(replies: Sequence[Any], on_unread: Any = "worst") -> tuple[Judge, Any]:
        said = iter(replies)
        server = judge_server(lambda body: next(said))
        kept = str(tmp_path / "kept")
        return Judge(server.url, "j", kept, tries=1, in_flight=1, on_unread=on_unread), server

    return make


def test_prompts_are_the_published_ones_word_by_word() -> None:
    found = {name: JudgePrompt(f"asset:judge/{name}.yaml", ()).sha256 for name in PUBLISHED}
    assert found == PUBLISHED


def test_each_table_of_replies_has_twenty_rows() -> None:
    assert {name: len(rows) for name, rows in ROWS.items() if len(rows) < 20} == {}


@pytest.mark.parametrize(("name", "scale"), [("video_qa", 5), ("aspects", 5), ("mm_vet", 1)])
def test_replies_are_read_as_the_published_scripts_read_them(name: str, scale: int) -> None:
    silent = Judge("http://127.0.0.1:9/v1", "j")
    metric = {
        "video_qa": RightAnswer(silent, "asset:judge/video_qa.yaml"),
        "aspects": Aspects(silent, {"detail": "asset:judge/detail.yaml"}),
        "mm_vet": MMVet(silent, "asset:judge/mm_vet.yaml"),
    }[name]
    found: dict[str, Any] = {}
    for reply, expected in ROWS[name]:
        try:
            *first, last = metric.read(reply)
            ours = [*first, round(last * scale, 6)]
        except ValueError:
            ours = None
        if ours != expected:
            found[reply] = ours, expected
    assert not found


def test_mathvista_asks_for_what_is_no_option_and_no_number(judge) -> None:
    rows = ROWS["mathvista"]
    replies = [cut for *_, cut, _ in rows if cut is not None]
    client, server = judge(replies)
    metric = ExtractedMathVista(client, "asset:judge/mathvista.yaml")
    asked = [
        question(str(n), answer, choices=tuple(options), kind=kind, caption=f"Question: {n}?")
        for n, (_, kind, options, answer, _, _) in enumerate(rows)
    ]
    metric.check(asked)
    lines = metric.grade(asked, [said for said, *_ in rows])
    wrong = {
        row[0]: line
        for row, line in zip(rows, lines, strict=True)
        if line["correct"] != row[-1] or line["extracted"] != (row[0] if row[4] is None else row[4])
    }
    assert not wrong
    found = {name: (score.value, score.n) for name, score in metric.compute().items()}
    right = sum(score for *_, score in rows)
    assert found["accuracy"] == (pytest.approx(right / len(rows)), len(rows))
    assert found["extracted"] == (pytest.approx(len(replies) / len(rows)), len(rows))
    assert found["unread"] == (pytest.approx(1 / len(rows)), len(rows))
    first = server.bodies[0]["messages"][0]["content"]
    assert first.endswith("Question: 1?\n\nThe number is 14.\n\nExtracted answer: ")
    before = len(server.bodies)
    client, server = judge([""])  # all that could be read is kept
    again = ExtractedMathVista(client, "asset:judge/mathvista.yaml")
    assert again.grade(asked, [said for said, *_ in rows]) == lines
    assert (before, len(server.bodies)) == (len(replies), 1)
    with pytest.raises(ValueError, match=r"row 1: no query for the LM; set columns\.caption"):
        again.check([question(kind="free_form text ")])


def test_mm_vet_is_scored_by_capability(judge) -> None:
    client, server = judge(["1.0", "0.5", "0.2 so", "none", "0.9"])
    metric = MMVet(client, "asset:judge/mm_vet.yaml")
    needs = ["ocr_spat", "ocr", "ocr_spat", "know", "spat"]
    asked = [question(f"v1_{n}", "-1<AND>-5<OR>x", category=each) for n, each in enumerate(needs)]
    lines = metric.grade(asked, ["a", "b", "c", "d", "e"])
    assert [line["correct"] for line in lines] == [1.0, 0.5, 0.2, 0.0, 0.9]
    assert [line.get("unread", False) for line in lines] == [False] * 3 + [True, False]
    assert server.bodies[0]["messages"] == [
        {"role": "user", "content": server.bodies[0]["messages"][0]["content"]}
    ]
    text = server.bodies[0]["messages"][0]["content"]
    assert text.endswith("\n\nWhat? | -1 <AND> -5 <OR> x | a | ")
    found = {name: (round(score.value, 6), score.n) for name, score in metric.compute().items()}
    assert found["score"] == (0.52, 5) and found["unread"] == (0.2, 5)
    assert found["score/ocr_spat"] == (0.6, 2) and found["score/ocr"] == (0.5, 1)
    assert found["with_ocr"] == (pytest.approx(1.7 / 3, abs=1e-6), 3)
    assert found["with_spat"] == (0.7, 3) and found["with_know"] == (0.0, 1)


def test_a_reply_that_no_rule_reads_is_an_error_or_the_worst_and_is_counted(judge) -> None:
    asked = [question(str(n), answer=f"answer {n}") for n in range(3)]
    replies = ["{'pred': 'yes', 'score': 5}", "so it is", "{'pred': 'yes', 'score': 3}"]
    client, _ = judge(replies, "error")
    strict = RightAnswer(client, "asset:judge/video_qa.yaml")
    with pytest.raises(ValueError, match=r"1 of 3 judgements of j cannot be read(.|\n)*question 2"):
        strict.grade(asked, ["a", "b", "c"])
    client, server = judge(["still not"])
    metric = RightAnswer(client, "asset:judge/video_qa.yaml")
    lines = metric.grade(asked, ["a", "b", "c"])
    assert len(server.bodies) == 1  # the two others are kept
    assert [line["correct"] for line in lines] == [1, 0, 1] and lines[1]["unread"]
    found = {name: score.value for name, score in metric.compute().items()}
    assert found == pytest.approx({"accuracy": 2 / 3, "score": 8 / 15, "unread": 1 / 3})
    with pytest.raises(ValueError, match=r"Relative has no worst score: judge\.on_unread is error"):
        Relative(client, "asset:judge/relative.yaml")
    with pytest.raises(ValueError, match=r"judge\.on_unread is 'skip'; it is error or worst"):
        Judge(client.url, "j", on_unread="skip")  # pyrefly: ignore


def test_one_unread_aspect_of_three_leaves_the_others(judge) -> None:
    client, _ = judge(["{'score': 4}", "?", "{'score': 2}"])
    prompts = {name: f"asset:judge/{name}.yaml" for name in ("correctness", "detail", "context")}
    metric = Aspects(client, prompts)
    (line,) = metric.grade([question()], ["an answer"])
    assert line == {
        "correct": pytest.approx(0.4),
        **{"correctness": 4, "detail": 0, "context": 2, "unread": True},
    }
    assert json.loads(json.dumps(line)) == line
    assert metric.compute()["unread"].value == 1
