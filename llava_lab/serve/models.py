"""Models: a run, folder, checkpoint or hub id -> the model, and how it sees images and videos."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from llava_lab.convert.load import is_ours, load_model
from llava_lab.convert.released import import_checkpoint
from llava_lab.data.image_folder import VideoPath
from llava_lab.data.questions import Question
from llava_lab.data.views.base import Views
from llava_lab.data.views.square import Square
from llava_lab.data.views.video import Frames
from llava_lab.model.llava import Llava


def open_model(
    source: str, template: str | None = None, trusted: Sequence[str] = ()
) -> tuple[Llava, Views]:
    """Load a model onto the GPU if there is one, with the views of its images.

    Args:
        source: Run folder, weights that it kept of a stage, imported folder, checkpoint folder or
            hub id.
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


def show_videos(model: Llava, views: Views, frames: int | None, stride: int | None) -> Frames:
    """Return views that take videos too; prints how a video is shown.

    Frames for a model of pictures alone are squares as its views make them, or else as the
    encoder's own processor does.

    Args:
        model: The model that sees them.
        views: Its views, of videos or of images alone.
        frames: Frames of a video; None takes those of training, or else 16.
        stride: Pooling of a frame; None takes that of training, or else 2.

    Raises:
        ValueError: If so many frames are more than the LM can read.
    """
    if isinstance(views, Frames):
        shown = views.with_numbers(frames or views.frames, stride or views.stride)
    else:
        frame = Square(model.encoder.resize, views.upright)
        if isinstance(views, Square):
            frame.resize = views.resize
        shown = Frames(frames or 16, stride=stride or 2, frame=frame, image=views)
    number = f"{shown.frames} frames"
    if shown.fps is not None:
        number = f"{shown.fps:g} frames a second and at most {number}"
    print(f"llava_lab: a video is {number}, pooled by {shown.stride}")
    shown.check(model.view_spec, model.llm.context)
    return shown


def have_videos(questions: Sequence[Question]) -> bool:
    """Whether any of the questions is about a video."""
    return any(isinstance(path, VideoPath) for each in questions for path in each.images)


def device_of(model: Llava) -> torch.device:
    """The device that holds a model's weights."""
    return next(model.parameters()).device
