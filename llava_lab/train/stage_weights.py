"""Stage weights: what a finished stage has trained, on disk."""

from pathlib import Path

from torch import Tensor, nn

from llava_lab.core.tensors import Damaged, not_finite, read_tensors, write_tensors
from llava_lab.model.weights import misfit


def stage_file(folder: Path) -> Path:
    """Where a finished stage keeps the weights that it trained."""
    return folder / "weights.safetensors"


def save_trained(weights: dict[str, Tensor], path: Path, fingerprint: str) -> None:
    """Write a finished stage's weights, whole or not at all.

    Raises:
        ValueError: If they are no numbers any more: a stage that diverged is not finished.
    """
    if broken := not_finite(weights):
        raise ValueError(
            f"{path.parent}: the stage diverged: {len(broken)} of {len(weights)} tensors hold NaN "
            f"or infinity, the first {broken[0]!r}. Lower its lr, or clip its gradients with "
            "trainer.gradient_clip_val"
        )
    write_tensors(path, weights, fingerprint)


def load_trained(model: nn.Module, path: Path, fingerprint: str) -> None:
    """Load what a stage has trained over the model's weights.

    Args:
        model: The model that the stage began with.
        path: The stage's weights.
        fingerprint: The stage's, as its record has it.

    Raises:
        ValueError: If the weights are damaged, another stage's or another model's.
    """
    try:
        found = read_tensors(path, fingerprint)
    except (Damaged, FileNotFoundError) as error:
        raise ValueError(f"{error}. Delete {path.parent}; `fit` trains the stage again") from error
    own = model.state_dict()
    if problem := misfit(found, {key: own[key] for key in found if key in own}, own):
        raise ValueError(f"{path} does not fit the model: {problem}")
    model.load_state_dict(found, strict=False)
