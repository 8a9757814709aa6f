"""Rows of LLaVA-format files: what is read, what is refused and in which words."""

import json
import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import pytest

from llava_lab.data.questions import Question, read_questions
from llava_lab.data.rows import BadRows, read_rows
from llava_lab.data.sample import Sample, Turn, read_samples
from llava_lab.data.source import Source

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "coco").mkdir(parents=True)
    for name in ("a.png", "b.png", "coco/c.png"):
        (folder / name).touch()
    return folder


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if n % 2 else "human", "value": text} for n, text in enumerate(texts)]


def row(**fields: Any) -> dict[str, Any]:
    """A good row with an image; a field that is None is left out."""
    whole = {"id": "x", "image": "a.png", "conversations": talk("<image>\nWhat?", "A dog.")}
    return {key: value for key, value in (whole | fields).items() if value is not None}


def write(folder: Path, rows: Any, name: str = "mix.json") -> Path:
    path = folder / name
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    else:
        path.write_text(json.dumps(rows))
    return path


def read(folder: Path, rows: Any, name: str = "mix.json", **options: Any) -> list[Sample]:
    return read_samples(Source(write(folder, rows, name), folder / "images", **options), seed=0)


def test_rows_become_samples(tmp_path: Path, images: Path) -> None:
    rows = [
        row(),
        row(id=7, image="./coco/c.png", model="extra keys are ignored"),
        row(id=None, image=["a.png", "b.png"], conversations=talk("<image> or <image>?", "One.")),
        row(id="x", image=None, conversations=talk("Hi", "Hello", "Bye", "See you")),
    ]
    samples = read(tmp_path, rows)
    path = tmp_path / "mix.json"
    assert samples[0] == Sample(
        "x",
        (Turn("user", "<image>\nWhat?"), Turn("assistant", "A dog.")),
        (images / "a.png",),
        f"{path}, row 1",
    )
    assert (samples[1].id, samples[1].images) == ("7", (images / "coco" / "c.png",))
    assert (samples[2].id, samples[2].images) == ("3", (images / "a.png", images / "b.png"))
    assert [turn.role for turn in samples[3].turns] == ["user", "assistant"] * 2
    assert samples[3].images == ()


def test_jsonl_counts_lines_and_a_null_image_is_none(tmp_path: Path, images: Path) -> None:
    path = tmp_path / "mix.jsonl"
    text_only = json.dumps(row(id=None, conversations=talk("Hi", "Hello")) | {"image": None})
    path.write_text(f"{json.dumps(row())}\n\n{text_only}\n", encoding="utf-8-sig")
    samples = read_samples(Source(path, images), seed=0)
    assert [sample.source for sample in samples] == [f"{path}, line 1", f"{path}, line 3"]
    assert (samples[1].id, samples[1].images) == ("3", ())


def test_first_message_from_gpt_is_left_out(tmp_path: Path, images: Path) -> None:
    turns = [{"from": "gpt", "value": ""}, *talk("<image>\nWhat?", "A dog.")]
    assert read(tmp_path, [row(conversations=turns)])[0].turns == read(tmp_path, [row()])[0].turns


def test_noise_of_released_video_rows_is_removed(tmp_path: Path, images: Path) -> None:
    turns = talk("<image>\nWhat? QA_GT_caption_based_noisy", "A dog.QA_GT_caption_based_noisy")
    sample = read(tmp_path, [row(conversations=turns)])[0]
    assert [turn.text for turn in sample.turns] == ["<image>\nWhat? ", "A dog."]


def test_texts_may_tell_of_htmls_video(tmp_path: Path, images: Path) -> None:
    turns = talk("What is the <video> element?", "<video> shows films.")
    assert read(tmp_path, [row(image=None, conversations=turns)])[0].messages == [
        ["user", "What is the <video> element?"],
        ["assistant", "<video> shows films."],
    ]


TEXT = {"image": None}
REFUSED = {
    "not an object": ("text", "a row must be an object, not str"),
    "id": (row(id=[1]), "'id' must be text or a whole number, not [1]"),
    "id is true": (row(id=True), "'id' must be text or a whole number, not True"),
    "no conversations": (
        row(conversations=None, messages=[]),
        "'conversations' must be a list of messages; the row has id, image, messages",
    ),
    "empty conversations": (row(conversations=[]), "'conversations' must be a list of messages"),
    "message": (row(conversations=["Hi"]), "message 1 must be an object with 'from' and 'value'"),
    "value": (
        row(conversations=[{"from": "human", "value": 3}]),
        "message 1: 'value' must be text, not int",
    ),
    "no value": (row(conversations=[{"from": "human"}]), "message 1: 'value' must be text"),
    "surrogate": (
        row(conversations=talk("<image> \ud83d", "A dog.")),
        "message 1: 'value' holds half a surrogate pair",
    ),
    "from": (
        row(conversations=[{"from": "user", "value": "Hi"}]),
        "message 1 is from 'user'; known are 'human' and 'gpt'",
    ),
    "order": (
        row(conversations=talk("<image>", "A dog.") + talk("So?", "Yes.")[1:]),
        "message 3 is a second one in a row from gpt",
    ),
    "order after a dropped message": (
        row(conversations=talk("So?", "Yes.")[1:] + talk("<image>", "A dog.")[:1] * 2),
        "message 3 is a second one in a row from human",
    ),
    "two from gpt first": (
        row(conversations=talk("", "Yes.")[1:] * 2 + talk("<image>", "A dog.")),
        "message 2 is a second one in a row from gpt",
    ),
    "last": (row(conversations=talk("<image>")), "the conversation ends without an answer"),
    "only gpt": (
        row(conversations=talk("", "Yes.")[1:]),
        "the conversation ends without an answer",
    ),
    "empty answer": (row(conversations=talk("<image>", " \n")), "message 2, an answer, is empty"),
    "image in an answer": (
        row(conversations=talk("<image>", "Look: <image>")),
        "message 2, an answer, holds a literal <image>",
    ),
    "no placeholder": (
        row(conversations=talk("What?", "A dog.")),
        "1 image(s), but no <image> placeholder; start the first human message with '<image>\\n'",
    ),
    "too many": (
        row(conversations=talk("<image> <image>", "A dog.")),
        "2 <image> placeholders for 1 image(s)",
    ),
    "too few": (row(image=["a.png", "b.png"]), "1 <image> placeholders for 2 image(s)"),
    "no list": ({"images": 5, "texts": [{}]}, "'images' must be a list of pictures, not 5"),
    "text with a placeholder": (row(**TEXT), "no 'image', but a literal <image> in the text"),
    "image": (row(image=3), "'image' must be a path or a list of paths, not 3"),
    "empty list": (row(image=[]), "not []; leave it out of a text-only row"),
    "empty name": (row(image=""), "'image' must be a path or a list of paths, not ''"),
    "missing": (row(image="coco/z.png"), "image 'coco/z.png' is not in "),
    "missing folder": (row(image="gqa/z.png"), "image 'gqa/z.png' is not in "),
    "file as folder": (row(image="a.png/z.png"), "image 'a.png/z.png' is not in "),
    "folder": (row(image="coco"), "image 'coco' is not in "),
    "absolute": (row(image="/etc/passwd"), "image '/etc/passwd' is not a path inside of "),
    "escape": (row(image="coco/../../x.png"), "image 'coco/../../x.png' is not a path inside"),
    "null byte": (row(image="a\0.png"), "image 'a\\x00.png' is not the name of a file"),
    "surrogate in a name": (row(image="\ud83d/a.png"), "'image' holds half a surrogate pair"),
    "slash": (row(image="coco/"), "image 'coco/' is not the name of a file"),
    "video": (
        row(image=None, video="clip.mp4"),
        "video 'clip.mp4': video rows need VideoDataModule",
    ),
    "video name": (row(image=None, video=3), "'video' must be a path, not 3"),
    "a video's placeholder": (
        row(image=None, video=None, conversations=talk("<video>\nWhat?", "A man runs.")),
        "no 'video', but a literal <video> in the text; name the video or reword",
    ),
    "a video's placeholder at the end": (
        row(conversations=talk("<image>\nWhat?", "A dog.", "And here?\n<video>", "A cat.")),
        "no 'video', but a literal <video> in the text",
    ),
    "both": (row(video="clip.mp4"), "has both 'image' and 'video'; make it two rows"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_row_is_refused_with_its_place_and_reason(
    case: str, tmp_path: Path, images: Path
) -> None:
    bad, reason = REFUSED[case]
    with pytest.raises(BadRows) as caught:
        read(tmp_path, [row(), bad, row()])
    path = tmp_path / "mix.json"
    shown = bad.get("id", 2) if isinstance(bad, dict) else 2
    assert [each.source for each in caught.value.rows] == [f"{path}, row 2"]
    assert f"{path}, row 2 (id {shown}): " in str(caught.value)
    assert reason in caught.value.rows[0].reason
    assert f"{path}: 1 of 3 rows are not usable; mend them, or set on_bad_row: skip" in str(
        caught.value
    )


def test_image_without_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BadRows, match=r"image 'a\.png', but no folder of images is given"):
        read_samples(Source(write(tmp_path, [row()])), seed=0)


def test_symbolic_links_stay_inside(tmp_path: Path, images: Path) -> None:
    outside = tmp_path / "images of others"
    outside.mkdir()
    (outside / "o.png").touch()
    (images / "out.png").symlink_to(outside / "o.png")
    (images / "far").symlink_to(outside)
    (images / "dead.png").symlink_to(images / "gone.png")
    (images / "in.png").symlink_to(images / "a.png")
    (images / "near").symlink_to(images / "coco")
    for name, way in (("out.png", "out.png"), ("far/o.png", "far")):
        with pytest.raises(BadRows, match=f"path '{way}' is a link out of {images}"):
            read(tmp_path, [row(image=name)])
    with pytest.raises(BadRows, match=r"image 'dead\.png' is not in"):
        read(tmp_path, [row(image="dead.png")])
    found = read(tmp_path, [row(image="in.png"), row(image="near/c.png")])
    assert [sample.images[0].name for sample in found] == ["in.png", "c.png"]


def test_linked_root_is_allowed(tmp_path: Path, images: Path) -> None:
    (tmp_path / "link").symlink_to(images)
    source = Source(write(tmp_path, [row()]), tmp_path / "link")
    assert read_samples(source, 0)[0].images == (tmp_path / "link" / "a.png",)


def test_all_bad_rows_are_kept_and_ten_are_shown(tmp_path: Path, images: Path) -> None:
    rows = [row(id=n, image=None if n % 2 else "a.png") for n in range(1, 25)]
    with pytest.raises(BadRows) as caught:
        read(tmp_path, rows, "mix.jsonl")
    message = str(caught.value)
    assert len(caught.value.rows) == 12 and "12 of 24 rows are not usable" in message
    assert "line 19 (id 19)" in message and "line 21 (id 21)" not in message
    assert message.endswith("and 2 more")
    assert isinstance(caught.value, ValueError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == message


def test_bad_rows_are_skipped_with_one_warning(tmp_path: Path, images: Path) -> None:
    rows = [row(id=n, image="z.png" if n in (2, 3) else "a.png") for n in (1, 2, 3, 4)]
    with pytest.warns(UserWarning) as caught:
        samples = read(tmp_path, rows, on_bad_row="skip")
    assert [sample.id for sample in samples] == ["1", "4"]
    path = tmp_path / "mix.json"
    assert len(caught) == 1
    start = f"{path}: 2 of 4 rows are left out; the first: {path}, row 2 (id 2): image 'z.png'"
    assert str(caught[0].message).startswith(start)
    assert caught[0].filename == __file__


def test_skipping_every_row_is_an_error_and_none_no_warning(tmp_path: Path, images: Path) -> None:
    with pytest.raises(BadRows, match="1 of 1 rows are not usable\n"):
        read(tmp_path, [row(image="z.png")], on_bad_row="skip")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(tmp_path, [row()], on_bad_row="skip")


def test_files_that_are_no_list_of_rows(tmp_path: Path) -> None:
    def refused(name: str, text: bytes, reason: str) -> None:
        (tmp_path / name).write_bytes(text)
        with pytest.raises(ValueError, match="^" + str(tmp_path / name) + reason):
            read_rows(tmp_path / name)

    refused("a.json", b'[\n{"id": 1},\n{"id" 2}]', r", line 3, column 7: not JSON \(Expecting ':'")
    refused("a.json", b'{"id": 1}\n{"id": 2}', r", line 2, column 1: .*name it \.jsonl")
    refused("a.json", b'{"id": 1}', ": holds a JSON dict, not a list of rows")
    refused("a.json", b"[]", ": holds no rows")
    refused("a.json", b"[\xff]", ": not UTF-8 text")
    refused("a.jsonl", b'{"id": 1}\n\n{"id": ', ", line 3, column 8: not JSON")
    refused("a.jsonl", b"\n", ": holds no rows")
    refused("a.csv", b"id", r": name it \.json .* or \.jsonl")


def test_missing_files_name_the_nearest(tmp_path: Path, images: Path) -> None:
    write(tmp_path, [row()])
    with pytest.raises(
        FileNotFoundError, match=r"mxi.json: no such file; did you mean .*/mix.json"
    ):
        read_samples(Source(tmp_path / "mxi.json", images), 0)
    with pytest.raises(FileNotFoundError, match=r"its folder .*/gone is missing too"):
        read_samples(Source(tmp_path / "gone" / "mix.json", images), 0)
    with pytest.raises(
        FileNotFoundError, match=r"no such folder of images; did you mean .*/images"
    ):
        read_samples(Source(tmp_path / "mix.json", tmp_path / "image"), 0)


def sampled(folder: Path, sampling: str, seed: int = 0, name: str = "mix.json") -> list[int]:
    path = write(folder, [row(id=n, image=None, conversations=talk("Hi", "Ho")) for n in range(31)])
    source = Source(path.rename(folder / name), sampling=sampling)
    return [int(sample.id) for sample in read_samples(source, seed)]


def test_sampling_takes_the_rows_it_names(tmp_path: Path) -> None:
    assert sampled(tmp_path, "all") == list(range(31))
    assert sampled(tmp_path, "first:3") == [0, 1, 2]
    assert sampled(tmp_path, "end:3") == [28, 29, 30]
    assert sampled(tmp_path, "first:10%") == [0, 1, 2, 3]
    assert sampled(tmp_path, "end:100%") == list(range(31))
    assert sampled(tmp_path, "end:0.1%") == [30]
    assert sampled(tmp_path, "first:31") == list(range(31))


def test_random_sampling_follows_seed_and_file(tmp_path: Path) -> None:
    random.seed(1)
    taken = sampled(tmp_path, "random:10%")
    random.seed(2)
    assert taken == sampled(tmp_path, "random:10%") == sorted(set(taken))
    assert taken == [1, 15, 23, 27]
    assert taken != sampled(tmp_path, "random:10%", seed=1)
    assert taken != sampled(tmp_path, "random:10%", name="other.json")


@pytest.mark.parametrize(
    "sampling", ["last:3", "first", "first:", "first:-1", "first:x", "FIRST:3", "10%", ""]
)
def test_unknown_sampling_is_refused(sampling: str) -> None:
    with pytest.raises(
        ValueError, match=f"^mix.json: sampling '{sampling}' is none of all, first:N"
    ):
        Source(Path("mix.json"), sampling=sampling)


@pytest.mark.parametrize("sampling", ["first:0", "end:0%", "random:101%", "first:2.5"])
def test_impossible_sampling_is_refused(sampling: str) -> None:
    with pytest.raises(ValueError, match=f"^mix.json: sampling '{sampling}': N is a whole number"):
        Source(Path("mix.json"), sampling=sampling)


def test_sampling_more_rows_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mix.json: sampling 'first:32' asks for 32 of 31 rows"):
        sampled(tmp_path, "first:32")


def test_source_is_reached_from_yaml(tmp_path: Path) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_argument("--sources", type=list[Source])
    config = tmp_path / "config.yaml"
    config.write_text("sources:\n- {path: mix.json, images: pictures, sampling: 'random:10%'}\n")
    parser.add_argument("--config", action="config")
    sources = parser.instantiate(parser.parse_args(["--config", str(config)])).sources
    assert sources == [Source(Path("mix.json"), Path("pictures"), "random:10%")]


def ask(folder: Path, rows: Any, name: str = "questions.jsonl") -> list[Question]:
    return read_questions(write(folder, rows, name), folder / "images")


def question(**fields: Any) -> dict[str, Any]:
    whole = {"question_id": 1, "image": "a.png", "text": "What?"}
    return {key: value for key, value in (whole | fields).items() if value is not None}


def test_question_file(tmp_path: Path, images: Path) -> None:
    rows = [
        question(category="popular", answer="yes"),
        question(question_id="q", image=["a.png", "b.png"], answers=["one", "1"]),
        question(image=["a.png", "b.png"], text="Is <image> or <image> red?"),
        question(image=None, text="Hi?"),
    ]
    asked = ask(tmp_path, rows)
    place = f"{tmp_path / 'questions.jsonl'}, line 1"
    pictures = (images / "a.png", images / "b.png")
    assert asked[0] == Question("1", pictures[:1], "<image>\nWhat?", "popular", ("yes",), place)
    assert asked[1] == Question(
        "q", pictures, "<image>\n<image>\nWhat?", None, ("one", "1"), place[:-1] + "2"
    )
    assert (asked[2].text, asked[2].answers) == ("Is <image> or <image> red?", ())
    assert (asked[3].text, asked[3].images) == ("Hi?", ())
    assert asked[1].prompt == "What?"
    assert ask(tmp_path, rows, "questions.json")[1].text == asked[1].text


BAD_QUESTIONS = {
    "no id": (question(question_id=None), "'question_id' must be text or a whole number, not None"),
    "no text": (question(text=None), "'text' must be text, not NoneType"),
    "empty text": (question(text="<image>\n "), "'text' is empty"),
    "count": (question(text="<image> <image>?"), "2 <image> placeholders for 1 image(s)"),
    "literal": (question(image=None, text="<image>?"), "no 'image', but a literal <image>"),
    "no video": (question(text="<video>\nWhat?"), "no 'video', but a literal <video> in the text"),
    "missing": (question(image="z.png"), "image 'z.png' is not in "),
    "category": (question(category=3), "'category' must be text, not int"),
    "answer": (question(answer=3), "'answer' must be text, not int"),
    "answers": (question(answers=["a", {}]), "'answers' must be text, not dict"),
    "both": (question(answers=["a"], answer="a"), "has both 'answer' and 'answers'"),
    "no answers": (question(answers=[]), "'answers' is empty; leave it out"),
    "empty answer": (question(answer=""), "'answer' is empty; leave it out"),
    "video": (question(image=None, video="c.mp4"), "video 'c.mp4' is not in"),
    "conversation": (row(), "'question_id' must be text or a whole number, not None"),
    "not an object": (3, "a row must be an object, not int"),
}


@pytest.mark.parametrize("case", BAD_QUESTIONS)
def test_bad_question_is_refused_with_its_place_and_reason(
    case: str, tmp_path: Path, images: Path
) -> None:
    bad, reason = BAD_QUESTIONS[case]
    with pytest.raises(BadRows) as caught:
        ask(tmp_path, [question(), bad])
    assert f"{tmp_path / 'questions.jsonl'}, line 2 (id " in str(caught.value)
    assert "1 of 2 rows are not usable\n" in str(caught.value)
    assert reason in caught.value.rows[0].reason


def test_conversation_becomes_single_questions(tmp_path: Path, images: Path) -> None:
    turns = talk(f"What?\n{SHORT}\n<image>", "Dog\n", "Where?", "Left", f"Who?\n{LETTER}", "A")
    rows = [
        row(id="r", conversations=turns),
        row(image=None, conversations=talk("Hi", "Ho")),
        row(id=9, conversations=talk("<image>\nDescribe it.", "A dog.", "Why?", "It is.")),
    ]
    asked = ask(tmp_path, rows, "mix.json")
    assert [(each.id, each.text, each.answers) for each in asked] == [
        ("r/1", f"What?\n{SHORT}\n<image>", ("Dog",)),
        ("r/2", f"<image>\nWhere?\n{SHORT}", ("Left",)),
        ("r/3", f"<image>\nWho?\n{LETTER}", ("A",)),
        ("9/1", "<image>\nDescribe it.", ("A dog.",)),
        ("9/2", "<image>\nWhy?", ("It is.",)),
    ]
    assert {each.category for each in asked} == {"conversation"}
    assert {each.images for each in asked} == {(images / "a.png",)}
    assert asked[4].source == f"{tmp_path / 'mix.json'}, row 3"


def test_question_about_the_images_shown_so_far(tmp_path: Path, images: Path) -> None:
    turns = talk("Hi", "Ho", "<image>\nWhat?", "A dog.", "And <image>?", "A cat.", "So?", "Yes.")
    asked = ask(tmp_path, [row(image=["a.png", "b.png"], conversations=turns)], "mix.json")
    assert [(each.id, each.text, len(each.images)) for each in asked] == [
        ("x/2", "<image>\nWhat?", 1),
        ("x/3", "<image>\nAnd <image>?", 2),
        ("x/4", "<image>\n<image>\nSo?", 2),
    ]


def test_bad_conversations_are_no_questions(tmp_path: Path, images: Path) -> None:
    with pytest.raises(BadRows, match=r"mix.json, row 2 \(id x\): message 2, an answer, is empty"):
        ask(tmp_path, [row(), row(conversations=talk("<image>", ""))], "mix.json")
    with pytest.raises(ValueError, match="none of its 1 conversations has an image to ask about"):
        ask(tmp_path, [row(image=None, conversations=talk("Hi", "Ho"))], "mix.json")
