"""llava_lab: the lab in which the LLaVA family is taken apart.

The folders follow one sample from disk to a row of a table; each module's docstring opens with
its leg of that way. A folder imports those below it in this list of layers, never one above:

    cli/         the command line, one module a verb
    serve/       answers, captions and preference pairs from any model
    report/      12 the row
    convert/     released checkpoints in, ours out
    experiment/  what is asked: an experiment, its runs, its sweeps
    evaluate/    11 questions, answers, metrics
    make_data/   training data of captions, boxes and questions that others published
    tiny_world/  pictures and texts in the official formats, made in seconds
    train/       10 loss, and the stages that minimise it
    model/       4 encoder  5 pool   6 connector  7 layout  8 splice  9 LM on a packed forest
    data/        1 sample   2 chat   3 views, batch, loader
    core/        files, locks, records, fingerprints
"""

from typing import TYPE_CHECKING, Any

from llava_lab.core.version import __version__

if TYPE_CHECKING:
    from llava_lab.experiment.experiment import Experiment

__all__ = ["Experiment", "__version__"]


def __getattr__(name: str) -> Any:
    """Import torch and its like only when an experiment is asked for: `--help` needs none."""
    if name == "Experiment":
        from llava_lab.experiment.experiment import Experiment

        return Experiment
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
