"""The verb `answer`: a question file becomes an answer file."""

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from llava_lab.cli.verb import (
    add_flag,
    add_generation_flags,
    add_model,
    add_question_file,
    add_video_flags,
    one_message,
    verb_parser,
)
from llava_lab.core.atomic import write


def parser() -> ArgumentParser:
    """The verb's parser."""
    made = verb_parser("answer", "Answer a question file in LLaVA's format, greedily.")
    add_model(made)
    add_question_file(made)
    add_video_flags(made)
    add_flag(made, "--prompt", help="line that is added to every question")
    add_generation_flags(made, max_new_tokens=128)
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
    options = parser().parse_args(arguments)
    with one_message():
        from llava_lab.data.questions import read_questions
        from llava_lab.evaluate.prompts import Sizes
        from llava_lab.serve.answer import answer_questions, answer_rows, find_unanswerable
        from llava_lab.serve.models import have_videos, open_model, show_videos

        questions = read_questions(options.questions, options.images, on_bad_row=options.on_bad_row)
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
        rows = answer_rows(options.questions, questions, texts, Path(options.model).name)
        write(options.out, "".join(json.dumps(row) + "\n" for row in rows))
        print(f"llava_lab: {len(rows)} answers: {options.out}")
