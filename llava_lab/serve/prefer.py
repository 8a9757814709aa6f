"""Prefer: questions -> pairs of a better and a worse answer of one model, for DPO.

Each question is answered several times, each answer is scored, and the best and the worst become a
pair. Questions whose answers are all alike, or all of one score, make none. An answer that is cut
off is left out. Answers and scores are in a journal beside the output before the next questions are
asked: a killed command goes on where it was.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from llava_lab.core.journal import Journal
from llava_lab.core.messages import listed
from llava_lab.core.progress import progress
from llava_lab.core.records import json_sha256
from llava_lab.data.fields import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, read_text
from llava_lab.data.image_folder import VideoPath
from llava_lab.data.modules.preference import unreadable
from llava_lab.data.questions import Question
from llava_lab.data.rows import Refused
from llava_lab.data.views.base import Views
from llava_lab.evaluate.groups import by_images
from llava_lab.model.llava import Llava
from llava_lab.serve.answer import check_answerable, whole_or_not
from llava_lab.serve.models import have_videos, open_model, show_videos
from llava_lab.serve.scorers import Scorer

PLACEHOLDERS = (IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER)
# The answers to one question, with their scores; None for one that is cut off.
ScoredAnswers = list[tuple[str, int] | None]
Sampler = Callable[[Sequence[Question]], Sequence[str | None]]


def check(questions: Sequence[Question], judged: bool, images: Path | None = None) -> None:
    """Refuse repeated ids, and questions that could not be scored or whose pairs could not be read.

    Args:
        questions: All questions.
        judged: Whether a judge scores their answers.
        images: Folder of their images.
    """
    twice = [name for name, times in Counter(each.id for each in questions).items() if times > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} question ids are repeated, the first {twice[0]!r}; "
            "results are kept by id, so give each row its own"
        )
    needs = "caption" if judged else "answer"
    lacking = [q.source for q in questions if not (q.caption if judged else q.answers)]
    if lacking:
        raise ValueError(
            f"{len(lacking)} questions have no `{needs}` to score by:\n  {listed(lacking, 10)}"
        )
    trial = ("A.", 1), ("B.", 0)
    found = [(q.source, unreadable(_row(q, images, *trial))) for q in questions]
    if wrong := [f"{source}: {problem}" for source, problem in found if problem]:
        raise ValueError(
            f"{len(wrong)} questions would make pairs that cannot be read:\n  {listed(wrong, 10)}"
        )


def prefer(
    questions: Sequence[Question],
    sample: Sampler,
    score: Scorer,
    journal: Journal,
    samples: int,
    images_at_once: int,
) -> dict[str, ScoredAnswers]:
    """Sample and score answers to each question; those in the journal are not asked again.

    Args:
        questions: All questions.
        sample: Answers questions; None for an answer that is cut off.
        score: Scores answers.
        journal: Keeps the scored answers of each question, by all that it asks.
        samples: Answers to each question.
        images_at_once: Images whose questions are answered between two entries of the journal.

    Raises:
        ValueError: If the journal is of other questions.
    """
    with journal, progress("questions", len(questions)) as bar:
        kept: dict[str, ScoredAnswers] = journal.read([_key(each) for each in questions])
        done = {each.id: kept[_key(each)] for each in questions if _key(each) in kept}
        groups = by_images([question for question in questions if question.id not in done])
        bar.update(len(questions) - sum(len(each.questions) for each in groups))
        for start in range(0, len(groups), images_at_once):
            batch = [q for each in groups[start : start + images_at_once] for q in each.questions]
            copies = [(question, number) for question in batch for number in range(samples)]
            texts = sample([replace(each, id=f"{each.id}#{number}") for each, number in copies])
            said = [(each, text) for (each, _), text in zip(copies, texts, strict=True)]
            scores = iter(score([(each, text) for each, text in said if text is not None]))
            scored = [None if text is None else (text, next(scores)) for _, text in said]
            for number, question in enumerate(batch):
                done[question.id] = scored[number * samples : (number + 1) * samples]
                journal.add(_key(question), done[question.id])
            bar.update(len(batch))
    return done


def _key(question: Question) -> str:
    """Name of a question in the journal: all that it asks, shows, and is scored by."""
    shown = [str(path) for path in question.images]
    return json_sha256([question.id, question.text, shown, question.answers, question.caption])


def pairs(
    questions: Sequence[Question], scored: dict[str, ScoredAnswers], images: Path | None
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Rows in the format of released preferences, and how many questions make none, by reason.

    Of answers with the same score the first is taken. Answers that are cut off are left out, and
    those that are empty or hold a placeholder: they could not be read as preferences.

    Raises:
        ValueError: If no question makes a pair.
    """
    rows, without = [], Counter[str]()
    for question in questions:
        score_of: dict[str, int] = {}
        whole = [each for each in scored[question.id] if each is not None]
        for text, score in whole:
            if usable := _usable(text):
                score_of.setdefault(usable, score)
        answers, scores = list(score_of.items()), list(score_of.values())
        if len(answers) < 2:
            without["alike" if len(whole) == len(scored[question.id]) else "cut"] += 1
        elif min(scores) == max(scores):
            without["even"] += 1
        else:
            chosen, rejected = (answers[scores.index(pick(scores))] for pick in (max, min))
            rows.append(_row(question, images, chosen, rejected))
    if not rows:
        raise ValueError(
            f"none of {len(questions)} questions makes a pair: {without['alike']} have answers "
            f"that are alike, {without['even']} answers of one score, {without['cut']} answers "
            "that are cut off. Take more --samples, a higher --temperature, or, for the last, more "
            "--max-new-tokens"
        )
    return rows, without


def _usable(text: str) -> str:
    """The answer as preferences are read; empty if it could not be."""
    try:
        answer = read_text(text, "an answer").strip()
    except Refused:
        return ""
    return "" if any(each in answer for each in PLACEHOLDERS) else answer


def _row(
    question: Question, images: Path | None, chosen: tuple[str, int], rejected: tuple[str, int]
) -> dict[str, Any]:
    names = [str(path.relative_to(images.absolute())) for path in question.images if images]
    video = any(isinstance(path, VideoPath) for path in question.images)
    shown = {"video" if video else "image": names[0] if len(names) == 1 else names}
    text = question.text.replace(IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER) if video else question.text
    return {
        "id": question.id,
        **(shown if names else {}),
        "prompt": text,
        "chosen": chosen[0],
        "rejected": rejected[0],
        "chosen_score": chosen[1],
        "rejected_score": rejected[1],
    }


class LocalSampler:
    """Samples answers with a model of ours, which is loaded at the first question.

    Args:
        model: Run folder, imported folder, checkpoint folder or hub id.
        questions: All questions; they are checked before the first is asked.
        frames: Frames of a video; None takes those of training, or else 16.
        stride: Pooling of a frame; None takes that of training, or else 2.
        template: As for `open_model`.
        trusted: As for `open_model`.
        options: Those of `question_loader`.
    """

    def __init__(
        self,
        model: str,
        questions: Sequence[Question],
        frames: int | None,
        stride: int | None,
        template: str | None = None,
        trusted: Sequence[str] = (),
        **options: Any,
    ):
        self.source, self.questions, self.options = model, questions, options
        self.template, self.trusted = template, trusted
        self.frames, self.stride = frames, stride

    @cached_property
    def opened(self) -> tuple[Llava, Views]:
        """The model, and its views."""
        model, views = open_model(self.source, self.template, self.trusted)
        if have_videos(self.questions):
            views = show_videos(model, views, self.frames, self.stride)
        check_answerable(model, views, self.questions, self.options["max_new_tokens"])
        return model, views

    def __call__(self, questions: Sequence[Question]) -> list[str | None]:
        """Sample one answer to each question, in their order; None for one that is cut off."""
        found = whole_or_not(*self.opened, questions, **self.options)
        return [text if whole else None for text, whole in found]
