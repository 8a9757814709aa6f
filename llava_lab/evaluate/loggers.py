"""11. Loggers: scores and sample sheets -> whichever of Lightning's loggers the trainer has."""

from collections.abc import Sequence

import numpy as np
from lightning.pytorch.loggers import Logger
from PIL import Image


def log_scores(loggers: Sequence[Logger], scores: dict[str, float], step: int) -> None:
    """Log numbers to every logger.

    Args:
        loggers: The trainer's.
        scores: Numbers by name: "questions/accuracy/color".
        step: The trainer's step.
    """
    for logger in loggers:
        logger.log_metrics(scores, step)


def log_picture(loggers: Sequence[Logger], name: str, picture: Image.Image) -> None:
    """Log a picture to every logger that takes pictures, by the method that it has for them.

    Args:
        loggers: The trainer's.
        name: Name of the picture: "samples/questions".
        picture: The picture.
    """
    for logger in loggers:
        own = getattr(logger, "experiment", None)
        if hasattr(logger, "log_image"):  # Weights & Biases
            logger.log_image(key=name, images=[picture])
        elif hasattr(own, "add_image"):  # TensorBoard
            own.add_image(name, np.asarray(picture), dataformats="HWC")
        elif hasattr(own, "log_image") and hasattr(logger, "run_id"):  # MLflow
            own.log_image(logger.run_id, picture, f"{name}.png")
