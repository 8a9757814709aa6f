"""4. SiglipEncoder: a SigLIP vision tower of transformers."""

from typing import Any

from llava_lab.model.encoder.transformers import TransformersEncoder


class SiglipEncoder(TransformersEncoder):
    """A SigLIP vision tower of transformers; it has no CLS feature.

    LLaVA-NeXT deletes the last of SigLIP's 27 blocks and takes what is then the last hidden state
    (siglip_encoder.py), which is layer -2 here.
    """

    family = "siglip"
    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)
    has_cls = False
    resize = "squash"

    @classmethod
    def _classes(cls) -> tuple[Any, Any]:
        from transformers import SiglipVisionConfig, SiglipVisionModel

        return SiglipVisionConfig, SiglipVisionModel
