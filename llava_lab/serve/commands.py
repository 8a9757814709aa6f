"""The verbs import, export, answer and chat."""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from llava_lab.convert.load import is_ours, load_model
from llava_lab.convert.released import import_checkpoint
from llava_lab.convert.save import export_model
from llava_lab.core.atomic import write
from llava_lab.core.verbs import (
    MODEL_HELP,
    TEMPLATE_HELP,
    add_model_options,
    one_message,
    verb_parser,
)
from llava_lab.data.chat import IGNORE, get_template
from llava_lab.data.media.clip import VideoPath
from llava_lab.data.modules.encoded import ViewLoader
from llava_lab.data.packing import Batch, EncodedSample, Segment
from llava_lab.data.rows import read_rows
from llava_lab.data.sample import IMAGE_PLACEHOLDER, Question, Turn, read_questions
from llava_lab.data.views.base import Views
from llava_lab.data.views.video import Frames
from llava_lab.evaluate.groups import by_images
from llava_lab.evaluate.prompts import (
    Sizes,
    beyond,
    check_questions,
    question_loader,
    trees_of,
    unaskable,
)
from llava_lab.model.generate import QuestionBatch, answer
from llava_lab.model.llava import Llava


def import_main(arguments: Sequence[str]) -> None:
    """`import`: a released checkpoint becomes a folder of parts."""
    parser = verb_parser(
        "import", "Turn a released checkpoint into parts that an experiment names."
    )
    parser.add_argument(
        "checkpoint", help="folder or hub id, in the layout of transformers or the original"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--template", metavar="NAME", help=TEMPLATE_HELP)
    options = parser.parse_args(arguments)
    with one_message():
        made = import_checkpoint(options.checkpoint, options.out, options.template)
        print(f"llava_lab: {made}")
        print(
            "llava_lab: evaluate it: python -m llava_lab fit -c experiments/llava15.yaml -c "
            f"{made} --stages.align=null --stages.instruct=null"
        )


def export_main(arguments: Sequence[str]) -> None:
    """`export`: a model of ours becomes a folder for transformers."""
    parser = verb_parser("export", "Write a model for transformers, vLLM and SGLang.")
    parser.add_argument("model", help=MODEL_HELP)
    add_model_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument(
        "--no-verify", action="store_true", help="do not load it again and compare its logits"
    )
    parser.add_argument(
        "--nearest",
        action="store_true",
        help="where no class of transformers sees as this model does, write the nearest one",
    )
    options = parser.parse_args(arguments)
    with one_message():
        model, views = open_model(options.model, options.template, options.trust_code)
        departures = export_model(model, views, options.out, not options.no_verify, options.nearest)
        for departure in departures:
            print(f"llava_lab: NOT as it was trained: {departure}")
        print(f"llava_lab: {options.out}")


def answer_main(arguments: Sequence[str]) -> None:
    """`answer`: a question file becomes an answer file."""
    parser = verb_parser("answer", "Answer a question file in LLaVA's format, greedily.")
    parser.add_argument("model", help=MODEL_HELP)
    add_model_options(parser)
    parser.add_argument("questions", type=Path, help="JSONL of {question_id, image or video, text}")
    parser.add_argument("--images", type=Path, help="folder of the images and videos")
    parser.add_argument("--out", type=Path, required=True, help="JSONL to write")
    add_frames(parser)
    parser.add_argument("--prompt", help="line that is added to every question")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--images-per-batch", type=int, default=8)
    parser.add_argument(
        "--on-bad-row",
        choices=("error", "skip"),
        default="error",
        help="refuse a file with rows that cannot be asked, or leave them out",
    )
    options = parser.parse_args(arguments)
    with one_message():
        questions = read_questions(options.questions, options.images, on_bad_row=options.on_bad_row)
        model, views = open_model(options.model, options.template, options.trust_code)
        if any(isinstance(path, VideoPath) for each in questions for path in each.images):
            views = show_videos(model, views, options.frames, options.stride)
        sizes, prompt = Sizes(views), options.prompt
        if options.on_bad_row == "skip":
            trees = trees_of(model, by_images(questions), views, "first", prompt, None)
            bad = unaskable(trees, model.llm.context, options.max_new_tokens, sizes)
            questions = _without(questions, bad, options.questions)
        said = answer_questions(
            model,
            views,
            questions,
            prompt=prompt,
            max_new_tokens=options.max_new_tokens,
            images_per_batch=options.images_per_batch,
            sizes=sizes,
        )
        # As the file has them: the released scorers tell 4 from "4".
        rows = {row.place: row.value for row in read_rows(options.questions)}
        asked_each = "conversations" in rows[questions[0].source]
        keys = [q.id if asked_each else rows[q.source]["question_id"] for q in questions]
        answers = [
            {
                "question_id": key,
                "prompt": question.prompt,
                "text": text,
                "model_id": Path(options.model).name,
                "metadata": {},
            }
            for key, question, text in zip(keys, questions, said, strict=True)
        ]
        write(options.out, "".join(json.dumps(each) + "\n" for each in answers))
        print(f"llava_lab: {len(answers)} answers: {options.out}")


def _without(questions: list[Question], bad: dict[int, str], file: Path) -> list[Question]:
    """The questions that can be asked; says of each other one why it is left out."""
    for fault in bad.values():
        print(f"llava_lab: left out: {fault}")
    if len(bad) == len(questions):
        raise ValueError(f"{file}: no question can be asked")
    return [question for place, question in enumerate(questions) if place not in bad]


def answer_questions(
    model: Llava, views: Views, questions: Sequence[Question], **options: Any
) -> list[str]:
    """One answer a question, in their order, greedy unless `sampling` is given.

    Args:
        model: What answers.
        views: How an image becomes views.
        questions: The questions; their ids may repeat.
        options: Those of `question_loader`.

    Raises:
        ValueError: If a question cannot be asked; nothing is computed then.
    """
    said = [""] * len(questions)
    for batch in question_loader(model, by_images(questions), views, **options):
        places = [place for tree in batch.places for place in tree]
        answers = answer(model, batch.to(_device(model)))
        for place, text in zip(places, answers.texts, strict=True):
            said[place] = text
    return said


def check_answerable(
    model: Llava,
    views: Views,
    questions: Sequence[Question],
    max_new_tokens: int,
    sizes: Sizes | None = None,
) -> None:
    """Refuse what `answer_questions` would refuse of all questions, before any is answered."""
    trees = trees_of(model, by_images(questions), views, "first", None, None)
    check_questions(trees, model.llm.context, max_new_tokens, sizes or Sizes(views))


def chat_main(arguments: Sequence[str]) -> None:
    """`chat`: a conversation about pictures, line by line."""
    parser = verb_parser("chat", "Talk with a model about pictures; an empty line ends it.")
    parser.add_argument("model", help=MODEL_HELP)
    add_model_options(parser)
    parser.add_argument("--image", type=Path, action="append", default=[], help="may be repeated")
    parser.add_argument(
        "--video", type=VideoPath, action="append", default=[], help="file or folder of frames"
    )
    add_frames(parser)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    options = parser.parse_args(arguments)
    with one_message():
        model, views = open_model(options.model, options.template, options.trust_code)
        if options.video:
            views = show_videos(model, views, options.frames, options.stride)
        talk(model, views, options.image + options.video, options.max_new_tokens, input)


def talk(
    model: Llava,
    views: Views,
    images: Sequence[Path],
    max_new_tokens: int,
    ask: Callable[[str], str],
) -> list[Turn]:
    """Take turns until an empty line or the end of input; returns the conversation."""
    show = ViewLoader(views, model.encoder.view_spec)
    pixels, layouts = show(images)
    template, tokenizer = get_template(model.llm.template), model.llm.tokenizer
    turns: list[Turn] = []
    while True:
        try:
            text = ask("user: ").strip()
        except EOFError:
            text = ""
        if not text:
            return turns
        shown = f"{IMAGE_PLACEHOLDER}\n" * len(images) if not turns else ""
        turns.append(Turn("user", shown + text))
        told = show.told(turns, images)
        ids = template.prompt(told, tokenizer, [each.tokens for each in layouts], "the chat")
        if problem := beyond(ids, images, layouts, show, model.llm.context, max_new_tokens):
            raise ValueError(f"the chat, question {len(turns) // 2 + 1}: {problem}")
        row = EncodedSample([Segment(ids, [IGNORE] * len(ids))], pixels, layouts, "the chat")
        stops = frozenset(template.stop_ids(tokenizer))
        batch = Batch.pack([row])
        asked = QuestionBatch(batch, ["chat"], max_new_tokens, stops, template.stop_string)
        turns.append(Turn("assistant", answer(model, asked.to(_device(model))).texts[0]))
        print(f"assistant: {turns[-1].text}")


def add_frames(parser: argparse.ArgumentParser) -> None:
    """The options for videos."""
    parser.add_argument("--frames", type=int, help="frames of a video; as trained, or else 16")
    parser.add_argument("--stride", type=int, help="pooling of a frame; as trained, or else 2")


def show_videos(model: Llava, views: Views, frames: int | None, stride: int | None) -> Frames:
    """The views with other numbers, or one for videos beside the one for pictures.

    Raises:
        ValueError: If so many frames are more than the LM can read.
    """
    if isinstance(views, Frames):
        shown = views.with_numbers(frames or views.frames, stride or views.stride)
    else:
        shown = Frames(frames or 16, stride=stride or 2, image=views)
    print(f"llava_lab: a video is {shown.frames} frames, pooled by {shown.stride}")
    shown.check(model.encoder.view_spec, model.llm.context)
    return shown


def open_model(
    source: str, template: str | None = None, trusted: Sequence[str] = ()
) -> tuple[Llava, Views]:
    """The model of a run, an imported folder, a checkpoint or a hub id, on the device there is.

    Args:
        source: Which.
        template: Chat template in place of the model's own.
        trusted: Modules beside this package whose classes a run or imported folder may name.
    """
    if is_ours(Path(source)):
        model, views = load_model(Path(source), template, trusted)
    else:
        with tempfile.TemporaryDirectory() as folder:
            import_checkpoint(source, Path(folder) / "imported", template)
            model, views = load_model(Path(folder) / "imported")
            assert model.llm.tokenizer  # read while the folder is there
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), views


def _device(model: Llava) -> torch.device:
    return next(model.parameters()).device
