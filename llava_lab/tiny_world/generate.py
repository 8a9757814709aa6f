"""Generate: a seed -> images, rows and questions on disk."""

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from llava_lab.core.progress import shown
from llava_lab.tiny_world import text
from llava_lab.tiny_world.acts import sample_film
from llava_lab.tiny_world.base import World, json_lines, json_list
from llava_lab.tiny_world.draw import render
from llava_lab.tiny_world.film_rows import film_row
from llava_lab.tiny_world.question import QA, QUESTION_TYPES, ask_several
from llava_lab.tiny_world.reasoning import ask_reasoning
from llava_lab.tiny_world.scene import Scene, listable, sample_scene, simplified
from llava_lab.tiny_world.tiles import tile

# Names of the published files that the generated ones replace, so that an experiment has the same
# paths at every scale.
ALIGN_10 = "LLaVA-CC3M-Pretrain-595K/chat.json"
ALIGN_15 = "LLaVA-Pretrain/blip_laion_cc_sbu_558k.json"
INSTRUCT_10 = "llava_instruct_150k.json"
# The three kinds of which it is made, and how many thousand rows of each there are.
KINDS = {"conversation_58k.json": 58, "detail_23k.json": 23, "complex_reasoning_77k.json": 77}
INSTRUCT_15 = "llava_v1_5_mix665k.json"
INSTRUCT_NEXT = "LLaVA-NeXT-Data/llava_next_raw_format/llava_next_raw_format_processed.json"
LISTS, FACTS = "lists.json", "facts.json"
TEXT, PHRASES, QUESTIONS = "text.json", "phrases.jsonl", "questions.jsonl"
# Asked without a format prompt, as LLaVA-Bench asks; and requests for a description.
OPEN_QUESTIONS, DESCRIPTIONS = "open_questions.jsonl", "descriptions.jsonl"
# Controls: the same rows, each with the picture of another. No published table has such a file.
DEALT_ALIGN, DEALT_INSTRUCT = "dealt_captions.json", "dealt_instruct.json"
# The rows of text and as many about films joined, for longer texts; how many of them are one row.
ALBUMS, JOINED = "albums.json", (1, 2)
# Share of the evaluation images with a question of each type; fewer have signs.
QUESTION_SHARE = 0.74
# Share of the text rows with two objects only: from them an LM learns to look things up.
SIMPLE_SHARE = 0.5
# Candidate questions of an image, from which balanced answers are chosen.
CANDIDATES = 8


@dataclass
class TinyWorld(World):
    """Data of the tiny scale: images, LLaVA-format rows and questions, the same for a seed.

    Args:
        root: Folder to create. A finished world with the same settings is left as it is.
        seed: Seed of every scene and sentence.
        train_images: Number of training images.
        eval_images: Number of images for evaluation questions.
        text_rows: Number of text-only rows about scenes that have no picture of their own; there
            are as many about films, and half as many of lists, and of facts.
        tiles: Number of AnyRes tiles of further images. They are only in the file of phrases, to
            train an encoder on tiles.
    """

    version: ClassVar[int] = 11
    train_images: int = 5000
    eval_images: int = 300
    text_rows: int = 30000
    tiles: int = 0

    def scene(self, split: str, index: int, taken: frozenset[str] = frozenset()) -> Scene:
        """Sample scene `index` of a split, until its signature is not among those taken."""
        rng = self._rng(split, index)
        while True:
            scene = sample_scene(rng)
            if scene.signature not in taken:
                return scene

    def eval_scenes(self) -> list[Scene]:
        """Sample the evaluation scenes, which no other split may contain."""
        return [self.scene("eval", index) for index in range(self.eval_images)]

    def _write(self, folder: Path) -> None:
        eval_scenes = self.eval_scenes()
        taken = frozenset(scene.signature for scene in eval_scenes)
        drawn = shown(range(self.train_images), f"{self.root}: scenes")
        train_scenes = [self.scene("train", index, taken) for index in drawn]
        for split, scenes in (("train", train_scenes), ("eval", eval_scenes)):
            (folder / "images" / split).mkdir(parents=True)
            for index, scene in enumerate(shown(scenes, f"{self.root}: {split} pictures")):
                path = folder / "images" / _image_name(split, index)
                # Takes half the time of the default level; files are a seventh larger.
                render(scene).save(path, format="PNG", optimize=False, compress_level=1)
        files = {
            ALIGN_10: (captions := json_list(self._align_rows(train_scenes))),
            ALIGN_15: captions,
            DEALT_ALIGN: json_list(dealt(self._align_rows(train_scenes))),
            **self._instruct_files(train_scenes),
            INSTRUCT_15: (mix := json_list(self._mix_rows(train_scenes, taken))),
            INSTRUCT_NEXT: mix,
            LISTS: json_list(self._list_rows(taken)),
            FACTS: json_list(self._fact_rows(taken)),
            TEXT: json_list(texts := list(self._text_rows("text", self.text_rows, taken))),
            ALBUMS: json_list(self._albums(texts)),
            PHRASES: json_lines([*_phrase_rows(train_scenes), *self._tile_rows(folder, taken)]),
            QUESTIONS: json_lines(self._question_rows(eval_scenes)),
            OPEN_QUESTIONS: json_lines(self._open_rows(eval_scenes)),
            DESCRIPTIONS: json_lines(self._requests(eval_scenes)),
        }
        self.finish(folder, files)

    def _align_rows(self, scenes: list[Scene]) -> Iterable[dict[str, Any]]:
        for index, scene in enumerate(scenes):
            rng = self._rng("align", index)
            yield text.caption_row(f"{index:06d}", _image_name("train", index), scene, rng)

    def _instruct_files(self, scenes: list[Scene]) -> dict[str, bytes]:
        """LLaVA-Instruct-150K: each kind of rows, all of them, and all with wrong pictures."""
        write = (text.conversation_row, text.detail_row, text.reasoning_row)
        kinds: dict[str, list[dict[str, Any]]] = {name: [] for name in KINDS}
        for index, scene in enumerate(scenes):
            rng = self._rng("conversation", index)
            (kind,) = rng.choices(range(len(KINDS)), weights=list(KINDS.values()))
            row = write[kind](f"{index:06d}", _image_name("train", index), scene, rng)
            list(kinds.values())[kind].append(row)
        rows = sorted(itertools.chain(*kinds.values()), key=lambda row: row["id"])
        every = {**kinds, INSTRUCT_10: rows, DEALT_INSTRUCT: dealt(rows)}
        return {name: json_list(rows) for name, rows in every.items()}

    def _mix_rows(self, scenes: list[Scene], taken: frozenset[str]) -> Iterable[dict[str, Any]]:
        for index, scene in enumerate(scenes):
            rng = self._rng("mix", index)
            name, image = f"{index:06d}", _image_name("train", index)
            number = rng.randint(12, 16)
            yield text.short_answer_row(f"{name}-short", image, scene, rng, number)
            if rng.random() < 0.2:
                yield text.conversation_row(f"{name}-conversation", image, scene, rng)
        yield from self._text_rows("mix-text", len(scenes) // 8, taken)

    def _tile_rows(self, folder: Path, taken: frozenset[str]) -> Iterable[dict[str, Any]]:
        """Write tiles that show something, and yield the phrases about each."""
        (folder / "images" / "tile").mkdir()
        rows = 0
        for index in itertools.count() if self.tiles else ():
            picture, phrases = tile(self.scene("tile", index, taken), self._rng("cut", index))
            if phrases:
                name = _image_name("tile", rows)
                picture.save(folder / "images" / name, optimize=False, compress_level=1)
                yield {"id": f"tile-{rows:06d}", "image": name, "phrases": phrases}
                rows += 1
            if rows == self.tiles:
                return

    def _text_rows(self, split: str, count: int, taken: frozenset[str]) -> Iterator[dict[str, Any]]:
        for index in shown(range(count), f"{self.root}: rows of {split}"):
            rng = self._rng(split, index, "text")
            scene = self._text_scene(split, index, taken, rng)
            yield text.text_row(f"{split}-{index:06d}", scene, rng)

    def _albums(self, rows: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
        """Pictures and films in words, some of them joined."""
        rng = self._rng("albums")
        films = [
            film_row(f"film-{index:06d}", sample_film(self._rng("films", index, "film")), rng)
            for index in range(len(rows))
        ]
        both = iter(rng.sample(every := [*rows, *films], len(every)))
        for first in both:
            more = itertools.islice(both, rng.choice(JOINED) - 1)
            yield text.album(first["id"], [first, *more])

    def _list_rows(self, taken: frozenset[str]) -> Iterable[dict[str, Any]]:
        scenes = (self.scene("lists", index, taken) for index in itertools.count())
        found = filter(None, map(listable, scenes))
        lists = (scene for scene in found if scene.signature not in taken)
        for index, scene in enumerate(itertools.islice(lists, self.text_rows // 2)):
            yield text.list_row(f"lists-{index:06d}", scene, self._rng("lists", index, "text"))

    def _fact_rows(self, taken: frozenset[str]) -> Iterable[dict[str, Any]]:
        for index in range(self.text_rows // 2):
            rng = self._rng("facts", index, "text")
            scene = self._text_scene("facts", index, taken, rng)
            yield text.facts_row(f"facts-{index:06d}", scene, rng)

    def _text_scene(
        self, split: str, index: int, taken: frozenset[str], rng: random.Random
    ) -> Scene:
        scene = self.scene(split, index, taken)
        if rng.random() >= SIMPLE_SHARE:
            return scene
        simple = simplified(scene, rng)
        return scene if simple.signature in taken else simple

    def _question_rows(self, scenes: list[Scene]) -> Iterable[dict[str, Any]]:
        number = 0
        for kind in QUESTION_TYPES:
            used: Counter[object] = Counter()
            count = 0
            for index, scene in enumerate(scenes):
                question = _rarest(kind, scene, self._rng("question", index, kind), used)
                if question and count < QUESTION_SHARE * len(scenes):
                    count += 1
                    yield {
                        "question_id": number,
                        "image": _image_name("eval", index),
                        "text": text.with_format_prompt(question),
                        "category": f"{kind}/{size}"
                        if (size := question.detail.get("size"))
                        else kind,
                        "answer": question.answer,
                        **question.detail,
                    }
                    number += 1

    def _open_rows(self, scenes: list[Scene]) -> Iterable[dict[str, Any]]:
        """Questions that are answered in sentences: of conversations, and of two steps."""
        for index, scene in enumerate(scenes):
            rng = self._rng("open", index)
            for question in (ask_several(scene, rng, 1)[0], ask_reasoning(scene, rng)):
                kind = "reasoning" if question.type == "reasoning" else "conversation"
                yield {
                    "question_id": f"{index:06d}-{kind}",
                    "image": _image_name("eval", index),
                    "text": question.text,
                    "category": kind,
                    "answer": question.sentence,
                }

    def _requests(self, scenes: list[Scene]) -> Iterable[dict[str, Any]]:
        """Requests for a description, with all true sentences as answers."""
        for index, scene in enumerate(scenes):
            rng = self._rng("request", index)
            yield {
                "question_id": f"{index:06d}",
                "image": _image_name("eval", index),
                "text": rng.choice(text.DETAIL_REQUESTS),
                "answers": text.all_true(scene),
                "caption": text.detail(scene, rng),
            }


def dealt(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, each with the picture of the next: a control that has nothing to see."""
    kept = list(rows)
    others = kept[1:] + kept[:1]
    return [row | {"image": other["image"]} for row, other in zip(kept, others, strict=True)]


def _rarest(kind: str, scene: Scene, rng: random.Random, used: Counter[object]) -> QA | None:
    """Choose the candidate whose answer, and then whose detail, was used least so far."""
    drawn = [QUESTION_TYPES[kind](scene, rng) for _ in range(CANDIDATES)]
    candidates = [question for question in drawn if question]
    if not candidates:
        return None

    def keys(question: QA) -> tuple[object, object]:
        return question.answer, (question.answer, *question.detail.values())

    best = min(candidates, key=lambda question: [used[key] for key in keys(question)])
    used.update(keys(best))
    return best


def _phrase_rows(scenes: list[Scene]) -> Iterable[dict[str, Any]]:
    for index, scene in enumerate(scenes):
        image = _image_name("train", index)
        yield {"id": f"{index:06d}", "image": image, "phrases": text.phrases(scene)}


def _image_name(split: str, index: int) -> str:
    return f"{split}/{index:06d}.png"
