"""0. World: pictures, texts and answers agree; a seed fixes every byte; nothing is half-written."""

import json
import os
import random
import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_lab.core import atomic as disk
from llava_lab.tiny_world import text, tiles
from llava_lab.tiny_world.acts import sample_film
from llava_lab.tiny_world.draw import RGB, render
from llava_lab.tiny_world.film_rows import film_row
from llava_lab.tiny_world.generate import (
    ALBUMS,
    ALIGN_15,
    DEALT_ALIGN,
    DEALT_INSTRUCT,
    DESCRIPTIONS,
    FACTS,
    INSTRUCT_10,
    INSTRUCT_15,
    KINDS,
    LISTS,
    OPEN_QUESTIONS,
    PHRASES,
    QUESTIONS,
    TEXT,
    TinyWorld,
)
from llava_lab.tiny_world.question import QUESTION_TYPES, TRAINING_TYPES
from llava_lab.tiny_world.reasoning import ask_reasoning
from llava_lab.tiny_world.scene import (
    BACKGROUNDS,
    COLORS,
    GLYPHS,
    PICTURE_SIZES,
    POPULAR_SHAPES,
    POSITIONS,
    SCALES,
    SHAPES,
    Scene,
    SceneObject,
    Sign,
    listable,
    sample_scene,
    simplified,
)
from llava_lab.tiny_world.tiles import SIDE
from llava_lab.tiny_world.tokenizer import PROMPTS, train_tokenizer, world_texts

FORMAT = "Answer the question using a single word or phrase."
SCENES = [sample_scene(random.Random(f"test/{index}")) for index in range(200)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    world = TinyWorld(tmp_path_factory.mktemp("world") / "tiny", 3, 60, 40, 200)
    world.generate()
    return world


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def all_bytes(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def position_words(cell: int) -> str:
    rows, columns = ("top", "", "bottom"), ("left", "", "right")
    words = "-".join(filter(None, (rows[cell // 3], columns[cell % 3])))
    return f"at the {words}" if words else "in the middle"


def means(color_and_shape: tuple[str, str], name: str) -> bool:
    """Whether a name, "star" or "red star", is one of this object."""
    return name in (color_and_shape[1], " ".join(color_and_shape))


def true_answer(scene: Scene, question: str) -> str:
    """Answer from the scene record by reading the question, independently of the asking code."""
    objects = [(item.color, item.shape, item.cell % 3, item.cell // 3) for item in scene.items]
    if question == "What does the sign say?":
        assert scene.sign is not None
        return scene.sign.glyph
    if found := re.fullmatch(r"What color is the object (.+)\?", question):
        (color,) = [item.color for item in scene.items if position_words(item.cell) == found[1]]
        return color
    if found := re.fullmatch(r"What color is the (\w+)\?", question):
        (color,) = [color for color, shape, *_ in objects if shape == found[1]]
        return color
    if found := re.fullmatch(r"How many (?:(\w+) )?(\w+) are there\?", question):
        shape = None if found[2] == "objects" else re.sub("(?<=ss)es$|s$", "", found[2])
        assert shape is None or shape in SHAPES
        return str(sum(found[1] in (None, o[0]) and shape in (None, o[1]) for o in objects))
    if found := re.fullmatch(r"Is there an? ([\w ]+) in the picture\?", question):
        return "yes" if any(means(o[:2], found[1]) for o in objects) else "no"
    found = re.fullmatch(
        r"Is the ([\w ]+) left of, right of, above or below the ([\w ]+)\?", question
    )
    assert found, question
    ((_, _, x, y),) = [o for o in objects if means(o[:2], found[1])]
    ((_, _, other_x, other_y),) = [o for o in objects if means(o[:2], found[2])]
    assert (x == other_x) != (y == other_y)
    if y == other_y:
        return "left" if x < other_x else "right"
    return "above" if y < other_y else "below"


@pytest.mark.parametrize("kind", QUESTION_TYPES)
def test_answers_are_true(kind: str) -> None:
    asked = 0
    for index, scene in enumerate(SCENES):
        for attempt in range(5):
            question = QUESTION_TYPES[kind](scene, random.Random(f"{index}/{attempt}"))
            if question:
                asked += 1
                assert question.answer == true_answer(scene, question.text), question
                if kind in ("color", "relation", "reading"):
                    assert re.search(rf"\b{question.answer}\b", question.sentence)
    assert asked > 500


NUMBERS = ("no", "one", "two", "three", "four", "five")


def reasoned_answer(scene: Scene, question: str) -> tuple[str, str]:
    """Answer a question of two steps from the scene record: what each step finds."""
    objects = [(item.color, item.shape, item.cell % 3, item.cell // 3) for item in scene.items]
    if found := re.fullmatch(r"How many objects have the color of the (\w+)\?", question):
        ((color, *_),) = [o for o in objects if o[1] == found[1]]
        return color, str(sum(o[0] == color for o in objects))
    if found := re.fullmatch(r"Are there more (\w+) than (\w+)\?", question):
        first, second = (
            sum(o[1] in (name.removesuffix("s"), name.removesuffix("es")) for o in objects)
            for name in found.groups()
        )
        return f"{NUMBERS[first]} {NUMBERS[second]}", "yes" if first > second else "no"
    found = re.fullmatch(
        r"What color is the object (left|right|above|below)(?: of)? the ([\w ]+)\?", question
    )
    assert found, question
    ((_, _, x, y),) = [o for o in objects if means(o[:2], found[2])]
    step = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}[found[1]]
    beside = [o for o in objects if ((o[2] > x) - (o[2] < x), (o[3] > y) - (o[3] < y)) == step]
    ((color, _, x, y),) = beside
    return position_words(3 * y + x), color


def test_reasoning_is_right_in_both_steps() -> None:
    kinds: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    for index, scene in enumerate(SCENES):
        for attempt in range(4):
            question = ask_reasoning(scene, random.Random(f"{index}/{attempt}"))
            kinds[question.detail["by"]] += 1
            first, last = reasoned_answer(scene, question.text)
            assert question.answer == last
            *steps, end = re.findall(r"[^.]+\.", question.sentence)
            if question.detail["by"] == "more":
                answers[last] += 1
                said = [re.search(r"There (?:is|are) (\w+) ", step)[1] for step in steps]
                assert " ".join(said) == first and end.strip() == f"So the answer is {last}."
            elif question.detail["by"] == "same color":
                assert first in steps[0] and NUMBERS[int(last)] in end
            else:
                assert steps[-1].endswith(f"{first}.") and end.strip() == f"It is {last}."
    assert min(kinds.values()) > 150 and len(kinds) == 3
    assert 0.3 < answers["yes"] / answers.total() < 0.5


def test_instruction_data_has_three_kinds_as_often_as_the_published(tmp_path: Path) -> None:
    made = TinyWorld(tmp_path / "none")
    scenes = [made.scene("train", index) for index in range(500)]
    files = {name: json.loads(content) for name, content in made._instruct_files(scenes).items()}
    for name, share in KINDS.items():
        assert abs(len(files[name]) / 500 - share / 158) < 0.06
    every = sorted((row for name in KINDS for row in files[name]), key=lambda row: row["id"])
    assert every == files[INSTRUCT_10] and len(every) == 500
    assert all("<image>" in row["conversations"][0]["value"] for row in every)


def test_dealt_rows_have_the_picture_of_another(world: TinyWorld) -> None:
    for name, other in ((ALIGN_15, DEALT_ALIGN), (INSTRUCT_10, DEALT_INSTRUCT)):
        rows, dealt = (json.loads((world.root / n).read_text()) for n in (name, other))
        assert [row["conversations"] for row in rows] == [row["conversations"] for row in dealt]
        assert not any(a["image"] == b["image"] for a, b in zip(rows, dealt, strict=True))
        assert {row["image"] for row in rows} == {row["image"] for row in dealt}


def test_open_questions_and_descriptions_are_true(world: TinyWorld) -> None:
    scenes = world.eval_scenes()
    rows = read_lines(world.root / OPEN_QUESTIONS)
    assert Counter(row["category"] for row in rows) == {"conversation": 40, "reasoning": 40}
    for row in rows:
        assert FORMAT not in row["text"] and row["answer"].endswith(".")
        if row["category"] == "reasoning":
            _, last = reasoned_answer(scenes[int(Path(row["image"]).stem)], row["text"])
            number = last.isdecimal() and NUMBERS[int(last)]
            assert re.search(rf"\b{number or last}\b", row["answer"])
    for row, scene in zip(read_lines(world.root / DESCRIPTIONS), scenes, strict=True):
        said = re.findall(r"[A-Z][^.]*\.", row["caption"])
        assert set(said) <= set(row["answers"])
        for item in scene.items:
            name = f"{item.size} {item.name} is {position_words(item.cell)}."
            assert any(name in each for each in row["answers"])
        for each in row["answers"]:
            if found := re.match(
                r"One can see the (\w+) (\w+) (\w+)(?: of)? the (\w+) (\w+)", each
            ):
                assert holds(scene, found.groups()[:2], found[3], found.groups()[3:])


def test_films_in_words_say_what_is_asked() -> None:
    kinds: Counter[str] = Counter()
    for number in range(200):
        film = sample_film(random.Random(number))
        asked = {question.key: question.answer for question in film.questions}
        turns = film_row("x", film, random.Random(number))["conversations"]
        told, _, request = turns[0]["value"].partition("\n")
        assert all(question.sentence in told for question in film.questions)
        if request != text.NOTES_REQUEST:
            continue
        for note in turns[1]["value"].split("; "):
            key, _, answer = note.rpartition(": ")
            kinds[key.split()[0]] += 1
            if key in asked and not key.startswith("first"):
                assert answer == asked[key]
            elif found := re.fullmatch(r"color of (\w+)", key):
                assert f"{answer} {found[1]}" in told
    assert {"move", "first", "times", "color", "sign"} <= set(kinds)


def test_albums_are_of_one_description_or_two_of_a_picture_or_a_film(world: TinyWorld) -> None:
    def turns_of(rows: list[dict]) -> Counter[str]:
        return Counter(turn["value"] for row in rows for turn in row["conversations"])

    rows, texts = (json.loads((world.root / name).read_text()) for name in (ALBUMS, TEXT))
    told = [
        sum("\n" in turn["value"] for turn in row["conversations"][::2] if "Answer" not in turn)
        for row in rows
    ]
    assert set(told) == {1, 2}
    assert sum(told) == 2 * len(texts) == 400
    assert turns_of(texts) <= turns_of(rows)
    films = [row for row in rows if row["id"].startswith("film-")]
    assert 50 < len(films) < 250


def test_adversarial_negatives_mix_what_is_there() -> None:
    kinds: Counter[str] = Counter()
    for index, scene in enumerate(SCENES):
        question = QUESTION_TYPES["existence"](scene, random.Random(index))
        assert question is not None
        kind = question.detail["kind"]
        kinds[kind] += 1
        if kind == "adversarial":
            _, _, _, color, shape, *_ = question.text.split()
            assert any(item.color == color for item in scene.items)
            assert any(item.shape == shape for item in scene.items)
        elif kind in ("random", "popular"):
            shape = question.text.split()[3]
            assert shape in (POPULAR_SHAPES if kind == "popular" else SHAPES)
            assert all(item.shape != shape for item in scene.items)
    assert set(kinds) == {"positive", "random", "popular", "adversarial"}
    assert 75 <= kinds["positive"] <= 125


def test_caption_and_detail_name_everything_once() -> None:
    for scene in SCENES:
        expected = Counter(
            f"{'large' if i.large else 'small'} {i.color} {i.shape} {position_words(i.cell)}"
            for i in scene.items
        )
        written = text.caption(scene, random.Random(0))
        named = re.findall(r"((?:large|small) \w+ \w+ (?:at|in) the [\w-]+)(?=,| and |\.)", written)
        assert Counter(named) == expected, written
        assert (scene.sign is None) == ("sign" not in written)
        described = text.detail(scene, random.Random(0)).replace(" is ", " ")
        for phrase in expected:
            assert phrase in described
        if scene.sign:
            where = position_words(scene.sign.cell)
            assert f"a sign that reads {scene.sign.glyph} {where}" in written
            assert f"The sign {where} reads {scene.sign.glyph}." in described or "middle" in where


def test_simple_text_rows_speak_of_two_objects() -> None:
    for index, scene in enumerate(SCENES):
        simple = simplified(scene, random.Random(index))
        assert simple.items == scene.items[:2]
        assert simple.sign in (None, scene.sign)
    world = TinyWorld(Path("unused"), text_rows=100)
    said = [row["conversations"][0]["value"] for row in world._text_rows("text", 100, frozenset())]
    objects = Counter(len(re.findall("large|small", first)) for first in said)
    assert objects[2] >= 30 and max(objects) == 5


def test_relations_in_texts_are_true() -> None:
    for scene in SCENES:
        for stated in re.findall(
            r"One can see the (\w+) (\w+) (left|right|above|below)(?: of)? the (\w+) (\w+)\.",
            text.detail(scene, random.Random(1)),
        ):
            assert holds(scene, stated[:2], stated[2], stated[3:])
        for phrase in text.phrases(scene):
            found = re.fullmatch(r"(\w+) (left|above)(?: of)? (\w+)", phrase)
            if found:
                assert holds(scene, (None, found[1]), found[2], (None, found[3]))


def holds(scene: Scene, first: tuple, relation: str, second: tuple) -> bool:
    def matching(name: tuple) -> list[SceneObject]:
        return [i for i in scene.items if name[0] in (None, i.color) and name[1] == i.shape]

    step = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}[relation]
    for one in matching(first):
        for two in matching(second):
            down, across = one.cell // 3 - two.cell // 3, one.cell % 3 - two.cell % 3
            if (np.sign(down), np.sign(across)) == step:
                return True
    return False


def test_eval_answers_are_balanced(tmp_path: Path) -> None:
    world = TinyWorld(tmp_path / "none", eval_images=300)
    rows = list(world._question_rows(world.eval_scenes()))
    assert 1000 <= len(rows) <= 1500
    assert [row["question_id"] for row in rows] == list(range(len(rows)))
    chance = {"color": 0.16, "count": 0.22, "existence": 0.51, "relation": 0.27, "reading": 0.13}
    for kind, most in chance.items():
        answers = Counter(row["answer"] for row in rows if kind in row["category"])
        assert answers.total() >= 180
        assert max(answers.values()) / answers.total() <= most, (kind, answers)
    for by in ("shape", "color", "all"):
        counts = Counter(
            row["answer"] for row in rows if row.get("by") == by and "count" in row["category"]
        )
        assert max(counts.values()) / counts.total() <= 0.45, (by, counts)
    kinds = Counter(row["category"] for row in rows)
    assert (
        min(kinds[f"{kind}/{size}"] for kind in ("reading", "color") for size in ("small", "large"))
        >= 50
    )


def test_training_answers_are_balanced(tmp_path: Path) -> None:
    found: dict[str, Counter[str]] = {kind: Counter() for kind in QUESTION_TYPES}
    world = TinyWorld(tmp_path / "none")
    for index in range(800):
        scene = world.scene("train", index)
        for kind, ask in QUESTION_TYPES.items():
            question = ask(scene, random.Random(index))
            if question:
                found[kind][question.answer] += 1
    most = {"color": 0.18, "count": 0.4, "existence": 0.55, "relation": 0.3, "reading": 0.12}
    for kind, answers in found.items():
        assert max(answers.values()) / answers.total() <= most[kind], (kind, answers)


def test_same_seed_same_bytes_and_no_dependence_on_size(world: TinyWorld, tmp_path: Path) -> None:
    again = replace(world, root=tmp_path / "again")
    again.generate()
    assert all_bytes(again.root) == all_bytes(world.root)
    other = replace(world, root=tmp_path / "other", seed=4)
    assert other.scene("train", 0) != world.scene("train", 0)
    more = replace(world, root=tmp_path / "more", train_images=70)
    more.generate()
    name = "images/train/000059.png"
    assert (more.root / name).read_bytes() == (world.root / name).read_bytes()


def test_splits_share_no_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = TinyWorld(tmp_path / "none")
    taken = frozenset(scene.signature for scene in world.eval_scenes())
    assert len(taken) == world.eval_images
    for split in ("train", "text"):
        shown = {world.scene(split, index, taken).signature for index in range(2000)}
        assert not shown & taken
    clash = world.scene("train", 7)
    assert world.scene("train", 7, frozenset([clash.signature])).signature != clash.signature
    resized = replace(clash, items=tuple(replace(i, large=not i.large) for i in clash.items))
    assert resized.signature == clash.signature


def test_written_train_rows_avoid_eval_scenes(world: TinyWorld, tmp_path: Path) -> None:
    # The eval split is given the scene of train row 5, which must then move on to another.
    class Clashing(TinyWorld):
        def eval_scenes(self) -> list[Scene]:
            return [self.scene("train", 5)]

    clashing = Clashing(tmp_path / "clash", 3, 60, 1, 200)
    clashing.generate()
    before = json.loads((world.root / ALIGN_15).read_text())
    after = json.loads((clashing.root / ALIGN_15).read_text())
    assert [i for i in range(60) if before[i] != after[i]] == [5]


def test_rows_are_llava_format(world: TinyWorld) -> None:
    formats = 0
    for name in (ALIGN_15, INSTRUCT_10, INSTRUCT_15, TEXT, LISTS, FACTS):
        rows = json.loads((world.root / name).read_text())
        assert len({row["id"] for row in rows}) == len(rows)
        for row in rows:
            turns = row["conversations"]
            assert [t["from"] for t in turns] == ["human", "gpt"] * (len(turns) // 2)
            first, rest = turns[0]["value"], "".join(t["value"] for t in turns[1:])
            assert first.count("<image>") == ("image" in row)
            assert "<image>" not in rest and FORMAT not in rest
            formats += FORMAT in first
            if "image" in row:
                assert (world.root / "images" / row["image"]).is_file()
                assert first.startswith("<image>\n") != first.endswith("\n<image>")
            if FORMAT in first:
                assert all(len(turn["value"].split()) <= 2 for turn in turns[1::2])
    assert formats > 60
    mix = json.loads((world.root / INSTRUCT_15).read_text())
    assert any("image" not in row for row in mix)
    for name, number in ((TEXT, 200), (LISTS, 100), (FACTS, 100)):
        assert len(json.loads((world.root / name).read_text())) == number


def test_what_and_where_agree_with_the_scene(world: TinyWorld) -> None:
    for index in range(60):
        scene = world.scene("train", index)
        what = TRAINING_TYPES["what"](scene, random.Random(index))
        where = TRAINING_TYPES["where"](scene, random.Random(index))
        assert what is not None
        place = re.fullmatch(r"What is (?:in|at) the (.+)\?", what.text)[1]
        (item,) = [item for item in scene.items if POSITIONS[item.cell] == place]
        assert what.answer == f"{item.color} {item.shape}"
        if where is not None:
            name = re.fullmatch(r"Where is the (.+)\?", where.text)[1]
            (item,) = [item for item in scene.items if means((item.color, item.shape), name)]
            assert where.answer == POSITIONS[item.cell]


KEY_QUESTIONS = (
    (r"color of (.+)", "What color is the {}?"),
    (r"color at (?:the )?middle", "What color is the object in the middle?"),
    (r"color at (.+)", "What color is the object at the {}?"),
    (r"(sign)", "What does the {} say?"),
    (r"(.+) and (.+)", "Is the {} left of, right of, above or below the {}?"),
    (r"((?:\w+ )?(?:objects|crosses|\w+s(?<!cross)))", "How many {} are there?"),
    (r"([\w ]+)", "Is there a {} in the picture?"),
)


def assert_fact(scene: Scene, key: str, answer: str) -> None:
    """Check an answer to a question in key words."""
    if found := re.fullmatch(r"place of (.+)", key):
        (item,) = [i for i in scene.items if means((i.color, i.shape), found[1])]
        assert answer == POSITIONS[item.cell]
    elif found := re.fullmatch(r"at (.+)", key):
        (item,) = [i for i in scene.items if POSITIONS[i.cell] == found[1]]
        assert answer in (item.name, item.shape)
    else:
        form, question = next(
            (found, ask) for mark, ask in KEY_QUESTIONS if (found := re.fullmatch(mark, key))
        )
        assert answer == true_answer(scene, question.format(*form.groups())), (key, answer)


def test_notes_are_true() -> None:
    kinds: Counter[str] = Counter()
    for index, scene in enumerate(SCENES[:100]):
        for line in text.notes(scene, random.Random(index)).split("; "):
            key, answer = line.split(": ")
            assert_fact(scene, key, answer)
            kinds[key.split()[0]] += 1
    assert {"color", "place", "at", "sign", "star", "stars"} <= set(kinds)


def test_facts_are_true_and_said_before() -> None:
    for write in (text.list_row, text.facts_row):
        kinds: Counter[str] = Counter()
        for index, scene in enumerate(SCENES):
            shown = listable(scene) if write is text.list_row else scene
            if shown is None:
                continue
            said = [t["value"] for t in write("x", shown, random.Random(index))["conversations"]]
            described, _, said[0] = said[0].rpartition("\n ")
            assert len(said) == 32
            for item in shown.items:
                assert item.name in described and POSITIONS[item.cell] in described
            for key, answer in zip(said[::2], said[1::2], strict=True):
                assert_fact(shown, key, answer)
                kinds[key.split()[0]] += 1
        assert {"color", "place", "at"} <= set(kinds) and kinds.total() > 500


def test_lists_have_three_objects_of_different_shapes() -> None:
    lists = [each for scene in SCENES if (each := listable(scene))]
    assert len(lists) > 30 and all(each.sign is None for each in lists)
    assert all(len({i.shape for i in each.items}) == len(each.items) == 3 for each in lists)


def test_questions_on_disk_are_true(world: TinyWorld) -> None:
    scenes = world.eval_scenes()
    rows = read_lines(world.root / QUESTIONS)
    assert {row["category"].split("/")[0] for row in rows} == set(QUESTION_TYPES)
    assert all(row["category"].endswith(f"/{row['size']}") for row in rows if "size" in row)
    for row in rows:
        question, prompt = row["text"].split("\n")
        assert prompt == FORMAT
        scene = scenes[int(Path(row["image"]).stem)]
        assert row["answer"] == true_answer(scene, question)
        with Image.open(world.root / "images" / row["image"]) as picture:
            assert picture.size == (scene.width, scene.height)


def test_phrases_are_true_and_complete(world: TinyWorld) -> None:
    for row in read_lines(world.root / PHRASES):
        scene = world.scene("train", int(row["id"]))
        phrases = set(row["phrases"])
        assert f"{len(scene.items)} objects" in phrases
        for color in COLORS:
            assert (color in phrases) == any(item.color == color for item in scene.items)
            for shape in SHAPES:
                there = any((i.color, i.shape) == (color, shape) for i in scene.items)
                assert (f"{color} {shape}" in phrases) == there
        glyphs = {phrase for phrase in phrases if phrase in GLYPHS}
        assert glyphs == ({scene.sign.glyph} if scene.sign else set())


def test_tiles_say_what_they_show(tmp_path: Path) -> None:
    world = TinyWorld(tmp_path / "tiles", 0, 2, 2, 2, tiles=12)
    world.generate()
    rows = [row for row in read_lines(world.root / PHRASES) if row["id"].startswith("tile")]
    assert len(rows) == 12 and all(row["phrases"] for row in rows)
    for row in rows:
        with Image.open(world.root / "images" / row["image"]) as picture:
            assert picture.size == (SIDE, SIDE)


def test_phrases_of_a_view_are_those_of_what_lies_in_it() -> None:
    left = SceneObject("star", "red", True, 0, (20, 20), 30)
    cut = SceneObject("ring", "blue", True, 2, (100, 20), 30)
    sign = Sign("A", True, 3, (30, 70), 20)
    scene = Scene(160, 128, (9, 9, 9), 0, (left, cut), sign)
    seen = set(tiles.phrases(scene, 1.0, (0.0, 0.0)))
    assert seen == {"red", "star", "red star", "A", "sign", "sign reads A"}
    # Twice as large, from (180, 0): the ring alone, its middle at (20, 40).
    assert set(tiles.phrases(scene, 2.0, (180.0, 0.0))) == {"blue", "ring", "blue ring"}


def test_a_tile_shows_the_scene_where_its_phrases_say() -> None:
    """Red things are named exactly in tiles that have red pixels enough."""
    told = 0
    for scene in SCENES[:80]:
        picture, said = tiles.tile(scene, random.Random(scene.grain))
        pixels = np.asarray(picture.convert("RGB"), int)
        red = (abs(pixels - np.array(RGB["red"])).sum(-1) < 60).sum()
        told += "red" in said
        assert "red" not in said or red > 15
        assert "red" in said or red < 2500
    assert told > 5


def test_finished_world_is_left_alone(world: TinyWorld) -> None:
    before = {path: path.stat().st_mtime_ns for path in world.root.rglob("*")}
    TinyWorld(**vars(world)).generate()
    assert {path: path.stat().st_mtime_ns for path in world.root.rglob("*")} == before


def test_other_settings_are_refused(world: TinyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"tiny holds a world of seed=3, not seed=5\. Delete"):
        replace(world, seed=5).generate()
    version = TinyWorld.version
    monkeypatch.setattr(TinyWorld, "version", 99)
    with pytest.raises(ValueError, match=rf"generator_version={version}, not generator_version=99"):
        world.generate()


def test_foreign_folder_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is no tiny world"):
        TinyWorld(tmp_path, 0, 1, 1, 1).generate()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match=r"TinyWorld: eval_images is 0; it is 1 or more"):
        TinyWorld(tmp_path, 0, 1, 0)


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> list[str]:
        assert any(tmp_path.rglob("*.png"))
        raise KeyboardInterrupt

    monkeypatch.setattr(text, "phrases", fail)
    with pytest.raises(KeyboardInterrupt):
        TinyWorld(tmp_path / "tiny", 0, 2, 2, 2).generate()
    assert not any(tmp_path.iterdir())


def test_leftovers_of_killed_runs_go_after_a_day(tmp_path: Path) -> None:
    """Of another machine's processes, whose end is not known here, that is."""
    for name, age in (("old", 2 * disk.LEFTOVER_SECONDS), ("new", 60)):
        left = tmp_path / f".another-1-{name}{disk.DRAFT}"
        left.mkdir()
        os.utime(left, (time.time() - age,) * 2)
    TinyWorld(tmp_path / "tiny", 0, 2, 2, 2).generate()
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", f".another-1-new{disk.DRAFT}"}


@pytest.mark.parametrize("name", ["images/train/000001.png", "llava_v1_5_mix665k.json"])
def test_a_world_with_a_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    world = TinyWorld(tmp_path / "tiny", 0, 2, 2, 2)
    world.generate()
    path = world.root / name
    whole = path.read_bytes()
    said = rf"{path}: missing or damaged, one of 1 of the world's \d+ files\. Delete {world.root}"
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(ValueError, match=said):
        world.generate()
    path.unlink()
    with pytest.raises(ValueError, match=said):
        world.generate()
    path.write_bytes(whole)
    world.generate()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"settings": 3}',
        '{"settings": SETTINGS}',
        '{"settings": SETTINGS, "files": {}, "sha256": "0"}',
    ],
)
def test_a_damaged_manifest_is_refused(text: str, tmp_path: Path) -> None:
    world = TinyWorld(tmp_path / "tiny", 0, 2, 2, 2)
    world.generate()
    path = world.root / "manifest.json"
    settings = json.dumps(json.loads(path.read_text())["settings"])
    path.write_text(text.replace("SETTINGS", settings))
    with pytest.raises(ValueError, match=rf"{path}: damaged.*Delete the folder"):
        world.generate()


def test_slower_of_two_runs_keeps_the_first(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = all_bytes(world.root)
    answers = iter([False, True])
    monkeypatch.setattr(TinyWorld, "_finished", lambda self: next(answers))
    world.generate()
    assert all_bytes(world.root) == before
    assert [path.name for path in world.root.parent.iterdir()] == ["tiny"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("large", [True, False])
def test_object_has_its_color_where_it_stands(shape: str, large: bool) -> None:
    pixels = 38 if large else 15
    for color in COLORS:
        item = SceneObject(shape, color, large, 5, (130, 80), pixels)
        scene = Scene(160, 128, (150, 150, 150), 7, (item,), None)
        picture = np.asarray(render(scene)).astype(int)
        blank = np.asarray(render(replace(scene, items=()))).astype(int)
        y, x = 80, 130 - (round(0.38 * pixels) if shape == "ring" else 0)
        assert np.abs(picture[y, x] - RGB[color]).max() <= 3
        changed = np.argwhere((picture != blank).any(-1))
        low, high = changed.min(0), changed.max(0)
        assert (low >= (80 - pixels // 2 - 1, 130 - pixels // 2 - 1)).all()
        assert (high <= (80 + pixels // 2 + 1, 130 + pixels // 2 + 1)).all()
        assert (high - low).max() >= pixels * 0.85


def test_things_stay_in_their_cells() -> None:
    seen: set[int] = set()
    for scene in SCENES:
        things: list[SceneObject | Sign] = [*scene.items, *([scene.sign] if scene.sign else [])]
        cells = [thing.cell for thing in things]
        assert len(set(cells)) == len(cells) and 2 <= len(scene.items) <= 5
        for thing in things:
            side = thing.pixels + (2 * thing.margin if isinstance(thing, Sign) else 0)
            row, column = divmod(thing.cell, 3)
            x, y = thing.center
            assert column * scene.width / 3 <= x - side / 2 + 0.5
            assert x + side / 2 - 0.5 <= (column + 1) * scene.width / 3
            assert row * scene.height / 3 <= y - side / 2 + 0.5
            assert y + side / 2 - 0.5 <= (row + 1) * scene.height / 3
        seen.update(cells)
    assert seen == set(range(len(POSITIONS)))
    sizes = {(k * width, k * height) for k in SCALES for width, height in PICTURE_SIZES}
    assert {(scene.width, scene.height) for scene in SCENES} == sizes


def test_pictures_and_glyphs_differ(world: TinyWorld) -> None:
    images = [data for name, data in all_bytes(world.root).items() if name.endswith(".png")]
    assert len(images) == 100 and len(set(images)) == 100
    for pixels, distance in ((26, 20), (9, 2.5)):
        signs = [Sign(glyph, pixels > 20, 4, (64, 64), pixels) for glyph in GLYPHS]
        plates = [
            np.asarray(render(Scene(128, 128, (150, 150, 150), 1, (), sign))).astype(float) / 255
            for sign in signs
        ]
        for index, plate in enumerate(plates):
            for other in plates[:index]:
                assert np.abs(plate - other).sum() / 3 > distance


def test_colors_stand_out() -> None:
    values = [np.array(value) for value in RGB.values()]
    for index, value in enumerate(values):
        for other in values[:index]:
            assert np.linalg.norm(value - other) > 80
        for background in BACKGROUNDS:
            assert np.linalg.norm(value - background) > 80


def test_tokenizer(world: TinyWorld) -> None:
    texts = list(world_texts(world.root))
    tokenizer = train_tokenizer(texts)
    assert tokenizer.get_vocab() == train_tokenizer(texts).get_vocab()
    assert len(tokenizer) <= 1024
    words = "a large red circle at the top-left and a sign that reads N in the middle."
    ids = tokenizer(words).input_ids
    assert ids[0] == tokenizer.bos_token_id and tokenizer.eos_token_id not in ids
    assert len(ids) <= len(words.split()) + 3
    assert any(prompt.startswith("A chat between a curious user") for prompt in PROMPTS)
    for prompt in PROMPTS:
        pieces = re.findall(r"<\|\w+\|>|\w+|[^\w ]", prompt)
        assert len(tokenizer(prompt).input_ids) <= 1.1 * len(pieces) + 3, prompt
    for strange in ("Größe ☃\n\t  x", " leading", "12345", words):
        plain = tokenizer(strange, add_special_tokens=False).input_ids
        assert tokenizer.decode(plain) == strange
        assert tokenizer.unk_token_id not in plain
    assert tokenizer.convert_ids_to_tokens(tokenizer("2048").input_ids)[1:] == list("2048")
    assert len({tokenizer(t).input_ids[1] for t in ("<|im_start|>", "<|im_end|>", "</s>")}) == 3
    with pytest.raises(ValueError, match=r"at least \d+, got 100"):
        train_tokenizer(texts, 100)
