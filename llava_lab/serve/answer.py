"""Answer: questions about images -> one answer each, in the order of the questions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_lab.data.modules.encoded import Position
from llava_lab.data.questions import Question
from llava_lab.data.rows import read_rows
from llava_lab.data.views.base import Views
from llava_lab.evaluate.groups import by_images
from llava_lab.evaluate.prompts import (
    Sizes,
    check_questions,
    question_loader,
    trees_of,
    unaskable,
)
from llava_lab.model.generate import answer
from llava_lab.model.llava import Llava
from llava_lab.serve.models import device_of


def answer_questions(
    model: Llava, views: Views, questions: Sequence[Question], **options: Any
) -> list[str]:
    """Answer questions, as `whole_or_not`; an answer may be cut off at `max_new_tokens`."""
    return [text for text, _ in whole_or_not(model, views, questions, **options)]


def whole_or_not(
    model: Llava,
    views: Views,
    questions: Sequence[Question],
    *,
    position: Position = "first",
    **options: Any,
) -> list[tuple[str, bool]]:
    """Answer questions, greedily unless `sampling` is given; and say which answers are whole.

    Args:
        model: The model.
        views: How an image becomes views.
        questions: The questions; their ids may repeat.
        position: Where the image goes in a question with one.
        options: Those of `question_loader`.

    Returns:
        Text of each answer, and whether it has ended: else it is cut off at `max_new_tokens`.

    Raises:
        ValueError: If a question cannot be asked; nothing is computed then.
    """
    found = [("", False)] * len(questions)
    groups = by_images(questions, position)
    for batch in question_loader(model, groups, views, position=position, **options):
        places = [place for tree in batch.places for place in tree]
        answers = answer(model, batch.to(device_of(model)))
        for place, text, whole in zip(places, answers.texts, answers.whole, strict=True):
            found[place] = text, whole
    return found


def check_answerable(
    model: Llava,
    views: Views,
    questions: Sequence[Question],
    max_new_tokens: int,
    sizes: Sizes | None = None,
    position: Position = "first",
) -> None:
    """Refuse what `answer_questions` would refuse of all questions, before any is answered."""
    trees = trees_of(model, by_images(questions, position), views, position, None, None)
    check_questions(trees, model.llm.context, max_new_tokens, sizes or Sizes(views))


def find_unanswerable(
    model: Llava,
    views: Views,
    questions: Sequence[Question],
    prompt: str | None,
    max_new_tokens: int,
    sizes: Sizes,
) -> dict[int, str]:
    """Row and reason of each question that cannot be asked, by its index.

    Args:
        model: The model.
        views: How an image becomes views.
        questions: The questions.
        prompt: Line that is added to every question.
        max_new_tokens: Longest answer.
        sizes: Sizes of the images, which are decoded once.
    """
    trees = trees_of(model, by_images(questions), views, "first", prompt, None)
    return unaskable(trees, model.llm.context, max_new_tokens, sizes)


def answer_rows(
    file: Path, questions: Sequence[Question], texts: Sequence[str], model_id: str
) -> list[dict[str, Any]]:
    """Rows of an answer file in LLaVA's format.

    Args:
        file: The question file, whose ids are kept as they are: released scorers tell 4 from "4".
        questions: Its questions.
        texts: Their answers.
        model_id: Name of the model.
    """
    rows = {row.place: row.value for row in read_rows(file)}
    conversations = "conversations" in rows[questions[0].source]
    return [
        {
            "question_id": question.id if conversations else rows[question.source]["question_id"],
            "prompt": question.prompt,
            "text": text,
            "model_id": model_id,
            "metadata": {},
        }
        for question, text in zip(questions, texts, strict=True)
    ]
