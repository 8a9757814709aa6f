"""The three kinds of the 158K, made of COCO's annotations by an LM that this machine plays."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import EngineHandler, EngineServer

from llava_lab.__main__ import main
from llava_lab.core import engine as engine_module
from llava_lab.core.cost import Prices
from llava_lab.core.engine import ChatEngine
from llava_lab.data.rows import BadRows
from llava_lab.make_data.coco import read_coco
from llava_lab.make_data.instruct import Maker
from llava_lab.make_data.kinds import Refusal, read_kind

KINDS = ("conversation", "detailed_description", "complex_reasoning")
PAIR = "Question:\nWhat is it?\n===\nAnswer:\nIt is a {}.\n"


class Writer(EngineServer):
    """An LM that writes what a test says, and how many tokens that took."""

    def __init__(self, say):
        super().__init__(WriterHandler)
        self.say, self.bodies, self.usage = say, [], True


class WriterHandler(EngineHandler):
    server: Writer

    def do_POST(self) -> None:
        body = self.body()
        with self.server.lock:
            self.server.bodies.append(body)
            said = self.server.say(body["messages"][-1]["content"])
        if isinstance(said, int):
            return self.reply("", said)
        message = {"content": said} if said != "declined" else {"refusal": "No."}
        reply = {"choices": [{"message": message, "finish_reason": "stop"}]}
        if self.server.usage:
            reply["usage"] = {"prompt_tokens": 1000, "completion_tokens": 100}
        self.send(reply)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Annotations of five pictures in COCO's form; the last picture has no caption."""
    images = [
        {"id": n, "file_name": f"{n:012d}.jpg", "width": 640, "height": 480} for n in range(1, 6)
    ]
    captions = [
        {"id": 10 * n + k, "image_id": n, "caption": f"Thing {n} \n seen by {who}."}
        for n in range(1, 5)
        for k, who in enumerate(("Ann", "Bob"))
    ]
    boxes = [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [64, 48, 320, 240], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 7, "bbox": [0, 0, 640, 480], "iscrowd": 1},
        {"id": 3, "image_id": 2, "category_id": 7, "bbox": [600, 400, 80.5, 80], "iscrowd": 0},
    ]
    folder = tmp_path / "annotations"
    folder.mkdir()
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    found = {"images": images, "annotations": boxes, "categories": [{"id": 7, "name": "cat"}]}
    (folder / "instances.json").write_text(json.dumps(found))
    return folder


def arguments(coco: Path, out: Path, url: str, kind: str = "conversation") -> list[str]:
    made = ["make", "instruct", str(coco / "captions.json"), "--boxes"]
    made += [str(coco / "instances.json"), "--kind", kind, "--engine-url", url]
    return [*made, "--model", "m", "--out", str(out)]


def test_annotations_are_read_as_published(coco: Path) -> None:
    pictures = read_coco(coco / "captions.json", coco / "instances.json")
    assert [each.stem for each in pictures] == [f"{n:012d}" for n in range(1, 5)]
    assert pictures[0].captions == ["Thing 1 seen by Ann.", "Thing 1 seen by Bob."]
    assert pictures[0].boxes == [("cat", (0.1, 0.1, 0.6, 0.6))]  # no crowds
    shown = read_kind("conversation").messages(pictures[1])[-1]["content"]
    assert shown.endswith(
        "Thing 2 seen by Bob.\n\ncat: [0.938, 0.833, 1.0, 1.0]"
    )  # cut at the edge


def test_wrong_annotations_are_listed(coco: Path) -> None:
    file = coco / "instances.json"
    found = json.loads(file.read_text())
    found["annotations"][0]["category_id"] = 8
    found["annotations"][1]["image_id"] = 9
    found["annotations"][2]["bbox"] = [1, 2, 0, 5]
    file.write_text(json.dumps(found))
    with pytest.raises(BadRows) as error:
        read_coco(coco / "captions.json", file)
    said = str(error.value)
    assert "3 of 3 rows" in said and "`category_id` 8 is of no category" in said
    assert "`image_id` 9 is not among" in said and "shows nothing of a picture of 640x480" in said
    file.write_text("[]")
    with pytest.raises(ValueError, match="not of COCO's form"):
        read_coco(file, None)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"file_name": "OTHER.jpg"}, "is 'OTHER.jpg' of 640x480 pixels"),
        ({"width": 6400}, "is '000000000001.jpg' of 6400x480 pixels"),
        ({"height": 48}, "is '000000000001.jpg' of 640x48 pixels"),
        ({"file_name": None, "width": None, "height": None}, None),
    ],
)
def test_boxes_of_other_pictures_under_the_same_ids_are_refused(
    coco: Path, other: dict[str, Any], said: str | None
) -> None:
    captions, file = coco / "captions.json", coco / "instances.json"
    found = json.loads(file.read_text())
    found["images"][0] |= other
    file.write_text(json.dumps(found))
    if said is None:  # nothing that could differ
        assert read_coco(captions, file)[0].boxes
        return
    with pytest.raises(BadRows) as error:
        read_coco(captions, file)
    message = str(error.value)
    assert f"{file}, images 1 (id 1): {said}, and in {captions} this id is" in message
    assert "'000000000001.jpg' of 640x480; give two files of one release" in message


def test_boxes_of_pictures_without_captions_are_passed_over(coco: Path) -> None:
    captions, file = coco / "captions.json", coco / "instances.json"
    before, found = read_coco(captions, file), json.loads(file.read_text())
    found["images"].append({**found["images"][0], "id": 99, "file_name": "99.jpg"})
    found["annotations"].append({**found["annotations"][0], "image_id": 99})
    file.write_text(json.dumps(found))
    assert read_coco(captions, file) == before


def test_boxes_of_a_picture_that_their_own_file_does_not_list_are_refused(coco: Path) -> None:
    file = coco / "instances.json"
    found = json.loads(file.read_text())
    del found["images"][0]
    file.write_text(json.dumps(found))
    with pytest.raises(BadRows, match="`image_id` 1 is not among the `images`"):
        read_coco(coco / "captions.json", file)


def test_each_kind_is_made_and_what_it_was_made_of_is_written(
    coco: Path, tmp_path: Path, running, capsys
) -> None:
    def say(shown: str) -> str:
        number = re.search(r"Thing (\d)", shown)[1]
        return PAIR.format(number) + "===\n" + PAIR.format("cat")

    replies = {
        "conversation": say,
        "detailed_description": lambda shown: f"A thing.\n\nIt is {shown[6]}.",
        "complex_reasoning": lambda shown: PAIR.format(shown[6]),
    }
    server = Writer(None)
    running(server)
    hashes = set()
    for kind in KINDS:
        server.say, out = replies[kind], tmp_path / f"{kind}.json"
        prices = ["--price-prompt=10", "--price-completion=20"]
        main([*arguments(coco, out, server.url, kind), *prices])
        rows = json.loads(out.read_text())
        assert [row["id"] for row in rows] == [f"{n:012d}" for n in range(1, 5)]
        assert all(row["image"] == f"{row['id']}.jpg" for row in rows)
        turns = 4 if kind == "conversation" else 2
        assert {len(row["conversations"]) for row in rows} == {turns}
        text = rows[2]["conversations"][-1 if kind == "detailed_description" else 1]["value"]
        assert "3" in text and "<image>" in rows[2]["conversations"][0]["value"]
        record = json.loads((tmp_path / f"{kind}.json.made.json").read_text())
        assert record["kind"] == kind and record["model"] == "m" and record["rows"] == 4
        assert record["spent_now"]["prompt_tokens"] == 4000 and record["failures"] == {}
        assert set(record["inputs"]) == {str(coco / f"{f}.json") for f in ("captions", "instances")}
        hashes.add(record["sha256_of_prompts"])
        said = capsys.readouterr().out
        assert "4 requests, about" in said and "4,000 tokens read and 400 written" in said
        assert "cost 0.048, 1.2e+04 a million" in said
    assert len(hashes) == 3
    asked = len(server.bodies)
    first = out.read_bytes()
    main(arguments(coco, out, server.url, kind))
    assert len(server.bodies) == asked and out.read_bytes() == first
    assert "0 requests" in capsys.readouterr().out


def test_replies_that_cannot_be_used_are_counted_and_asked_for_again(
    coco: Path, tmp_path: Path, running, capsys
) -> None:
    bad = {"1": "I'm sorry, I cannot do that.", "2": "Just a text.", "3": "declined"}
    server = Writer(
        lambda shown: bad.get(shown[6], PAIR.format("cat") + "===\n" + PAIR.format("b"))
    )
    running(server)
    out = tmp_path / "conversation.jsonl"
    main(arguments(coco, out, server.url))
    said = capsys.readouterr().out
    failed = re.search(r"4 pictures, without a row: (.*)", said)[1].split(", ")
    assert sorted(failed) == ["1 refused", "1 unparsable", "1 unusable"]
    assert len(out.read_text().splitlines()) == 1
    record = json.loads((tmp_path / "conversation.jsonl.made.json").read_text())
    assert record["failures"] == {"refused": 1, "unparsable": 1, "unusable": 1}
    assert "Just a text." in record["examples_of_failures"]["000000000002.jpg"]
    assert len(server.bodies) == 1 + 3 * 2  # two tries
    bad.clear()
    main(arguments(coco, out, server.url))
    assert len(out.read_text().splitlines()) == 4 and len(server.bodies) == 1 + 3 * 2 + 3


def test_an_engine_that_refuses_ends_it_and_what_came_is_kept(
    coco: Path, tmp_path: Path, running, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(engine_module, "BACKOFF", 0.001)
    good = PAIR.format("cat") + "===\n" + PAIR.format("dog")
    server = Writer(lambda shown: 401 if shown[6] == "3" else good)
    running(server)
    out = tmp_path / "conversation.json"
    with pytest.raises(SystemExit):
        main([*arguments(coco, out, server.url), "--in-flight", "1"])
    assert "m: " in (said := capsys.readouterr().err) and "says 401" in said
    assert not out.exists()
    server.say = lambda shown: good
    main(arguments(coco, out, server.url))
    assert len(json.loads(out.read_text())) == 4
    asked = [body["messages"][-1]["content"][:7] for body in server.bodies]
    assert sorted(asked) == ["Thing 1", "Thing 2", "Thing 3", "Thing 3", "Thing 4"]


def test_cost_is_said_before_it_is_spent_and_held(
    coco: Path, tmp_path: Path, running, capsys
) -> None:
    server = Writer(lambda shown: PAIR.format("cat") + "===\n" + PAIR.format("dog"))
    running(server)
    out = tmp_path / "conversation.json"
    command = [*arguments(coco, out, server.url), "--in-flight", "1"]
    main([*command, "--dry-run"])
    assert "4 requests, about" in capsys.readouterr().out and not server.bodies
    priced = [*command, "--price-prompt=1000", "--price-completion=0"]
    with pytest.raises(SystemExit):
        main([*priced, "--max-cost=0.5"])
    assert "above --max-cost 0.5: nothing was asked" in capsys.readouterr().err
    assert not server.bodies
    with pytest.raises(SystemExit):
        main([*command, "--max-cost=0.5"])
    assert "--max-cost needs --price-prompt" in capsys.readouterr().err
    # The engine counts 1,000 tokens a request, more than the estimate for four of them allows.
    maker = _maker(coco, out, server)
    about = maker.estimate()
    assert 4 * 200 < about.prompt_tokens < 4 * 1000
    limit = about.prompt_tokens / 1000 + 0.01
    with pytest.raises(SystemExit):
        main([*priced, f"--max-cost={limit}"])
    assert "is reached; all replies are kept" in capsys.readouterr().err
    asked = len(server.bodies)
    assert 1 <= asked < 4 and not out.exists()
    main([*priced, "--max-cost=4"])
    assert len(server.bodies) == 4 and len(json.loads(out.read_text())) == 4
    server.usage = False
    out.with_name(f"{out.name}.journal").unlink()
    with pytest.raises(SystemExit):
        main([*priced, "--max-cost=4"])
    assert "--max-cost cannot be held" in capsys.readouterr().err


def test_what_it_costs_at_most_is_every_try_read_and_written(
    coco: Path, tmp_path: Path, running
) -> None:
    server = Writer(None)
    running(server)
    about = _maker(coco, tmp_path / "out.json", server).estimate()
    most = 2 * about.prompt_tokens * 1000 / 1e6
    assert f"at most {most:,.4g}" in about.text(Prices(1000, 0))


def test_a_limit_that_the_last_replies_pass_loses_nothing(
    coco: Path, tmp_path: Path, running, capsys
) -> None:
    """All four are asked at once, so that nothing is left that a higher limit would go on with."""

    def say(shown: str) -> str:
        time.sleep(0.2)
        return PAIR.format("cat") + "===\n" + PAIR.format("dog")

    server = Writer(say)
    running(server)
    out = tmp_path / "conversation.json"
    limit = _maker(coco, out, server).estimate().prompt_tokens / 1000 + 0.01
    command = [*arguments(coco, out, server.url), "--price-prompt=1000", "--price-completion=0"]
    main([*command, f"--max-cost={limit}"])
    assert len(json.loads(out.read_text())) == 4


def _maker(coco: Path, out: Path, server: Writer) -> Maker:
    pictures = read_coco(coco / "captions.json", coco / "instances.json")
    return Maker(pictures, read_kind("conversation"), ChatEngine(server.url, "m", 1), out)


def test_replies_are_read_strictly() -> None:
    kind = read_kind("complex_reasoning")
    assert kind.read("Question: Why?\n===\nAnswer: So.\n===\n", "a", 0) == [("Why?", "So.")]
    for reply, why in {
        "Answer: So.\n===\nQuestion: Why?": "is not `Question:`",
        "Question: Why?": "is not `Question:`",
        f"{PAIR.format('So.')}Question: Who?\nAnswer: He.": "is not `Question:`",
        "Question: Why?\n===\nAnswer:": "is not `Question:`",
        f"{PAIR.format('a')}===\n{PAIR.format('b')}": "has 2 questions; asked for are 1 to 1",
        PAIR.format("cat, as the caption says"): "speaks of its 'caption'",
        PAIR.format("<image>"): "holds a literal <image>",
    }.items():
        with pytest.raises(ValueError, match=re.escape(why)):
            kind.read(reply, "a", 0)
    with pytest.raises(Refusal):
        kind.read("As an AI language model, I", "a", 0)


def test_a_file_of_a_kind_has_what_it_needs(tmp_path: Path) -> None:
    text = (Path(read_kind.__code__.co_filename).parents[1] / "assets/make/kinds").resolve()
    whole = (text / "complex_reasoning.yaml").read_text()
    file = tmp_path / "own.yaml"
    for old, new, why in (
        ("turns: [1, 1]\n", "", "missing or unknown: turns"),
        ("turns: [1, 1]\n", "turns: [1, 1]\nturn: 1\n", "missing or unknown: turn"),
        ("turns: [1, 1]", "turns: [2, 1]", "fewest above most"),
        ("turns: [1, 1]", "turns: null", "either `turns`, or `requests`"),
        ("{captions}", "captions", r"shows no \{captions\}"),
        ("max_tokens: 1024", "max_tokens: many", "no numbers"),
    ):
        file.write_text(whole.replace(old, new, 1))
        with pytest.raises(ValueError, match=why):
            read_kind(str(file))
    file.write_text(whole)
    assert read_kind(str(file)).sha256 == read_kind("complex_reasoning").sha256
    file.write_text(whole.replace("in steps", "step by step"))
    assert read_kind(str(file)).sha256 != read_kind("complex_reasoning").sha256
    with pytest.raises(FileNotFoundError):
        read_kind("poetry")
