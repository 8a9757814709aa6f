"""The verb `chat`: a conversation about images or videos, line by line."""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from llava_lab.cli.verb import (
    add_flag,
    add_model,
    add_video_flags,
    one_message,
    positive,
    refuse_idle,
    verb_parser,
)
from llava_lab.data.image_folder import VideoPath


def parser() -> ArgumentParser:
    """The verb's parser."""
    made = verb_parser("chat", "Talk with a model about pictures; an empty line ends it.")
    add_model(made)
    picture = "picture to talk about; may be repeated"
    add_flag(made, "--image", type=Path, action="append", default=[], help=picture)
    add_flag(
        made,
        "--video",
        type=VideoPath,
        action="append",
        default=[],
        help="file or folder of frames; may be repeated",
    )
    add_video_flags(made)
    longest = "tokens that an answer has at most"
    add_flag(made, "--max-new-tokens", type=positive, default=256, help=longest)
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the verb."""
    made = parser()
    options = made.parse_args(arguments)
    if not options.video:
        refuse_idle(made, options, ["--frames", "--stride"], "it is of a --video")
    with one_message():
        from llava_lab.serve.chat import talk
        from llava_lab.serve.models import open_model, show_videos

        model, views = open_model(options.model, options.template, options.trust_code)
        if options.video:
            views = show_videos(model, views, options.frames, options.stride)
        talk(model, views, options.image + options.video, options.max_new_tokens, input)
