"""Videos: a seed -> films as MP4 files, rows and questions on disk."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import av

from llava_lab.core.progress import shown
from llava_lab.data.fields import IMAGE_PLACEHOLDER
from llava_lab.tiny_world.acts import sample_film
from llava_lab.tiny_world.base import World, json_lines, json_list
from llava_lab.tiny_world.film import FPS, SIDE, Film
from llava_lab.tiny_world.film_text import (
    STORY_REQUEST,
    all_true,
    ask_all,
    ask_presence,
    hallucinated,
    story,
)
from llava_lab.tiny_world.text import as_row, with_format_prompt

INSTRUCT_VIDEO, QUESTIONS = "video_conversations.json", "questions.jsonl"
PREFERENCES = "preferences.jsonl"
# Controls: rows with the film of another, pairs with chosen and rejected exchanged, and the chosen
# stories as rows to train on.
DEALT_VIDEO, SWAPPED = "dealt_videos.json", "swapped_preferences.jsonl"
CHOSEN = "chosen_descriptions.json"
# Requests for a description: of training films, from which `prefer` makes pairs, and of the others.
PROMPTS, DESCRIPTIONS, PRESENCE = "prompts.jsonl", "descriptions.jsonl", "presence.jsonl"
PAIRS_A_FILM = 2
PRESENCE_QUESTIONS = 4
# Distance of key frames: most frames that are decoded for one chosen frame.
KEY_FRAMES = 16


@dataclass
class TinyVideos(World):
    """Videos of the tiny scale: films, LLaVA-format rows and questions, the same for a seed.

    Args:
        root: Folder to create. A finished world with the same settings is left as it is.
        seed: Seed of every film and sentence.
        train_videos: Number of training films.
        eval_videos: Number of films for evaluation: questions about acts, about the presence of
            objects, and requests for a description.
    """

    version: ClassVar[int] = 7
    train_videos: int = 1200
    eval_videos: int = 150

    def film(self, split: str, index: int) -> Film:
        """Sample film `index` of a split."""
        return sample_film(self._rng(split, index))

    def _write(self, folder: Path) -> None:
        films = {
            split: [self.film(split, index) for index in range(count)]
            for split, count in (("train", self.train_videos), ("eval", self.eval_videos))
        }
        for split, made in films.items():
            (folder / "videos" / split).mkdir(parents=True)
            for index, film in enumerate(shown(made, f"{self.root}: {split} videos")):
                write_film(film, folder / "videos" / _video_name(split, index))
        names = [_video_name("train", index) for index in range(len(films["train"]))]
        train = list(zip(names, films["train"], strict=True))
        others = zip(names[1:] + names[:1], films["train"], strict=True)
        pairs = list(self._pairs(films["train"]))
        swapped = [{**p, "chosen": p["rejected"], "rejected": p["chosen"]} for p in pairs]
        files = {
            INSTRUCT_VIDEO: json_list(self._rows(train)),
            DEALT_VIDEO: json_list(self._rows(others)),
            CHOSEN: json_list(self._rows(train, ("story",))),
            PREFERENCES: json_lines(pairs),
            SWAPPED: json_lines(swapped),
            PROMPTS: json_lines(_requests("train", films["train"])),
            QUESTIONS: json_lines(_question_rows(films["eval"])),
            DESCRIPTIONS: json_lines(_requests("eval", films["eval"])),
            PRESENCE: json_lines(self._presence(films["eval"])),
        }
        self.finish(folder, files)

    def _rows(
        self, films: Iterable[tuple[str, Film]], kinds: tuple[str, ...] = ("short", "story")
    ) -> Iterable[dict[str, Any]]:
        """Rows of each film under a name: short answers to all questions, and the story."""
        for index, (video, film) in enumerate(films):
            (first, *others) = ask_all(film, self._rng("asked", index))
            turns = [(with_format_prompt(first), first.answer)]
            turns += [(question.text, question.answer) for question in others]
            of_kind = {"short": turns, "story": [(STORY_REQUEST, story(film))]}
            for kind in kinds:
                (question, answer), *more = of_kind[kind]
                shown = [(f"{IMAGE_PLACEHOLDER}\n{question}", answer), *more]
                yield as_row(f"{index:06d}-{kind}", shown, video=video)

    def _pairs(self, films: list[Film]) -> Iterable[dict[str, Any]]:
        """Preference rows: the story, and stories with one false detail."""
        for index, film in enumerate(films):
            rng = self._rng("pair", index)
            lies = dict.fromkeys(hallucinated(film, rng) for _ in range(PAIRS_A_FILM))
            for number, lie in enumerate(lies):
                yield {
                    "id": f"{index:06d}-{number}",
                    "video": _video_name("train", index),
                    "prompt": f"{IMAGE_PLACEHOLDER}\n{STORY_REQUEST}",
                    "chosen": story(film),
                    "rejected": lie,
                }

    def _presence(self, films: list[Film]) -> Iterable[dict[str, Any]]:
        """Questions about the presence of objects, half of which are absent."""
        for index, film in enumerate(films):
            rng = self._rng("presence", index)
            drawn = [ask_presence(film, rng) for _ in range(PRESENCE_QUESTIONS)]
            for number, question in enumerate({each.text: each for each in drawn}.values()):
                yield {
                    "question_id": f"{index:06d}-{number}",
                    "video": _video_name("eval", index),
                    "text": with_format_prompt(question),
                    "category": question.detail["kind"],
                    "answer": question.answer,
                }


def write_film(film: Film, path: Path) -> None:
    """Encode a film as MP4 (H.264)."""
    with av.open(str(path), "w") as container:
        # One thread and no rate control: its floats depend on the processor's denormal mode, which
        # other libraries change. So the bytes are the same everywhere.
        options = {"preset": "ultrafast", "qp": "20", "threads": "1"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.gop_size = KEY_FRAMES
        for picture in film.pictures():
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())


def _requests(split: str, films: list[Film]) -> Iterable[dict[str, Any]]:
    """Requests for a description, with all true sentences as answers and the story as caption."""
    for index, film in enumerate(films):
        yield {
            "question_id": f"{index:06d}",
            "video": _video_name(split, index),
            "text": STORY_REQUEST,
            "answers": all_true(film),
            "caption": story(film),
        }


def _question_rows(films: list[Film]) -> Iterable[dict[str, Any]]:
    number = 0
    for index, film in enumerate(films):
        for question in film.questions:
            yield {
                "question_id": number,
                "video": _video_name("eval", index),
                "text": with_format_prompt(question),
                "category": question.type,
                "answer": question.answer,
                "frames": film.frames,
                **question.detail,
            }
            number += 1


def _video_name(split: str, index: int) -> str:
    return f"{split}/{index:06d}.mp4"
