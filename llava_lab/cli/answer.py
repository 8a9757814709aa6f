"""The verb `answer`: a question file becomes an answer file."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from llava_lab.cli.verb import (
    ENGINES_MODEL,
    add_engine_flags,
    add_flag,
    add_generation_flags,
    add_model,
    add_question_file,
    add_video_flags,
    one_message,
    refuse_others_flags,
    remote_model,
    verb_parser,
)
from llava_lab.core.atomic import write
from llava_lab.core.journal import Journal
from llava_lab.core.records import check_unwritten

if TYPE_CHECKING:
    from llava_lab.data.questions import Question


def parser() -> ArgumentParser:
    """The verb's parser."""
    made = verb_parser("answer", "Answer a question file in LLaVA's format, greedily.")
    add_model(made, f"; {ENGINES_MODEL}")
    add_question_file(made)
    add_video_flags(made)
    add_flag(made, "--prompt", help="line that is added to every question")
    add_generation_flags(made, max_new_tokens=128)
    add_engine_flags(made)
    add_flag(
        made,
        "--on-bad-row",
        choices=("error", "skip"),
        default="error",
        help="refuse a file with rows that cannot be asked, or leave them out",
    )
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the verb."""
    made = parser()
    options = made.parse_args(arguments)
    refuse_others_flags(made, options)
    with one_message():
        from llava_lab.data.questions import read_questions
        from llava_lab.serve.answer import answer_rows

        check_unwritten(options.out)
        questions = read_questions(options.questions, options.images, on_bad_row=options.on_bad_row)
        journal = None
        if options.engine_url:
            from llava_lab.serve.remote import answer_remotely

            journal = Journal(options.out, _request(options))
            texts = answer_remotely(remote_model(options), questions, options.prompt, journal)
        else:
            questions, texts = _answer(options, questions)
        rows = answer_rows(options.questions, questions, texts, Path(options.model).name)
        write(options.out, "".join(json.dumps(row) + "\n" for row in rows))
        if journal is not None:
            journal.remove()
        print(f"llava_lab: {len(rows)} answers: {options.out}")


def _answer(options: Namespace, questions: list["Question"]) -> tuple[list["Question"], list[str]]:
    """Answer with a model of ours; also returns the questions that were asked."""
    from llava_lab.evaluate.prompts import Sizes
    from llava_lab.serve.answer import answer_questions, find_unanswerable
    from llava_lab.serve.models import have_videos, open_model, show_videos

    model, views = open_model(options.model, options.template, options.trust_code)
    if have_videos(questions):
        views = show_videos(model, views, options.frames, options.stride)
    sizes, prompt, length = Sizes(views), options.prompt, options.max_new_tokens
    if options.on_bad_row == "skip":
        bad = find_unanswerable(model, views, questions, prompt, length, sizes)
        for reason in bad.values():
            print(f"llava_lab: left out: {reason}")
        if len(bad) == len(questions):
            raise ValueError(f"{options.questions}: no question can be asked")
        questions = [each for place, each in enumerate(questions) if place not in bad]
    texts = answer_questions(
        model,
        views,
        questions,
        prompt=prompt,
        max_new_tokens=length,
        images_per_batch=options.images_per_batch,
        sizes=sizes,
    )
    return questions, texts


def _request(options: Namespace) -> str:
    """Everything that decides an engine's answers; a journal of another request is refused."""
    content = sha256(options.questions.read_bytes()).hexdigest()
    decides = [content, options.images, options.model, options.engine_url, options.prompt]
    decides += [options.max_new_tokens, options.stop, options.on_bad_row]
    return json.dumps(decides, default=str)
