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
from llava_lab.tiny_world.film_text import all_true, ask_all, ask_presence, hallucinated, story
from llava_lab.tiny_world.text import as_row, with_format_prompt

INSTRUCT_VIDEO, QUESTIONS = "video_conversations.json", "questions.jsonl"
PREFERENCES = "preferences.jsonl"
# Requests for a description: of training films, from which `prefer` makes pairs, and of the others.
PROMPTS, DESCRIPTIONS, PRESENCE = "prompts.jsonl", "descriptions.jsonl", "presence.jsonl"
PAIRS_A_FILM = 4
PRESENCE_QUESTIONS = 4
STORY_REQUEST = "Describe the video."
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

    version: ClassVar[int] = 6
    train_videos: int = 600
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
        rows = (row for index, film in enumerate(films["train"]) for row in self._rows(index, film))
        files = {
            INSTRUCT_VIDEO: json_list(rows),
            PREFERENCES: json_lines(self._pairs(films["train"])),
            PROMPTS: json_lines(_requests("train", films["train"])),
            QUESTIONS: json_lines(_question_rows(films["eval"])),
            DESCRIPTIONS: json_lines(_requests("eval", films["eval"])),
            PRESENCE: json_lines(self._presence(films["eval"])),
        }
        self.finish(folder, files)

    def _rows(self, index: int, film: Film) -> Iterable[dict[str, Any]]:
        """Rows of a film: short answers to all questions, and the story."""
        name, video = f"{index:06d}", _video_name("train", index)
        (first, *others) = ask_all(film, self._rng("asked", index))
        turns = [(with_format_prompt(first), first.answer)]
        turns += [(question.text, question.answer) for question in others]
        for kind, pairs in (("short", turns), ("story", [(STORY_REQUEST, story(film))])):
            (question, answer), *more = pairs
            shown = [(f"{IMAGE_PLACEHOLDER}\n{question}", answer), *more]
            yield as_row(f"{name}-{kind}", shown, video=video)

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
