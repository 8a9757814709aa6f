"""Names: tensors of a released checkpoint -> tensors of our model."""

import re
from collections.abc import Iterable

from llava_lab.core.messages import listed

# Four layouts of the same model: transformers before and since version 5, the original of
# haotian-liu/LLaVA, and its files that hold a projector alone. First match wins.
RULES = (
    (r"(?:model\.)?(?:vision_tower\.)+(?:vision_model\.)?(.+)", r"encoder.tower.\1"),
    (r"(?:model\.)?multi_modal_projector\.linear_1\.(.+)", r"connector.0.\1"),
    (r"(?:model\.)?multi_modal_projector\.linear_2\.(.+)", r"connector.2.\1"),
    (r"(?:model\.)?mm_projector\.(.+)", r"connector.\1"),
    (r"(?:model\.)?image_newline", r"newline.weight"),
    (r"language_model\.(lm_head\..+)", r"llm.model.\1"),
    (r"language_model\.model\.(.+)", r"llm.model.model.\1"),
    (r"model\.language_model\.(.+)", r"llm.model.model.\1"),
    (r"(lm_head\..+)", r"llm.model.\1"),
    (r"(model\.(?:embed_tokens|layers|norm)\..+)", r"llm.model.\1"),
)
# Constants that old versions saved and new ones compute.
CONSTANTS = re.compile(r".*(rotary_emb\.inv_freq|embeddings\.position_ids)")

# Names of tensors in transformers 5 -> names in checkpoints on the hub, the only ones that engines
# of before and after version 5 read.
HUB = (
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.language_model.", "language_model.model."),
    ("model.", ""),
    ("lm_head.", "language_model.lm_head."),
)


def hub_name(name: str) -> str:
    """Name on the hub of a tensor of transformers' LLaVA classes."""
    begins, becomes = next(rule for rule in HUB if name.startswith(rule[0]))
    return becomes + name.removeprefix(begins)


def our_name(name: str) -> str | None:
    """Name in our model of a released tensor; None for a constant that is computed.

    Raises:
        ValueError: If no known layout has such a name.
    """
    if CONSTANTS.fullmatch(name):
        return None
    for pattern, replacement in RULES:
        if found := re.fullmatch(pattern, name):
            return found.expand(replacement)
    raise ValueError(name)


def our_names(names: Iterable[str], source: str) -> dict[str, str]:
    """Map released names to ours, without constants; unknown names are listed.

    Args:
        names: Names in the checkpoint.
        source: The checkpoint, for the message.
    """
    known: dict[str, str] = {}
    unknown: list[str] = []
    for name in names:
        try:
            ours = our_name(name)
        except ValueError:
            unknown.append(name)
        else:
            if ours is not None:
                known[name] = ours
    placed = {ours: name for name, ours in known.items()}
    if unknown:
        shown = listed(sorted(unknown), 20)
        raise ValueError(f"{source}: {len(unknown)} tensors belong to no part of ours:\n  {shown}")
    if twice := [name for name, ours in known.items() if placed[ours] != name]:
        raise ValueError(
            f"{source}: {twice[0]} and {placed[known[twice[0]]]} are one tensor of ours"
        )
    return known
