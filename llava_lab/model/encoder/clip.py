"""4. ClipEncoder: a CLIP vision tower of transformers."""

from typing import Any

from llava_lab.model.encoder.transformers import TransformersEncoder


class ClipEncoder(TransformersEncoder):
    """A CLIP vision tower of transformers."""

    family = "clip"
    mean = (0.48145466, 0.4578275, 0.40821073)
    std = (0.26862954, 0.26130258, 0.27577711)
    has_cls = True

    @classmethod
    def _classes(cls) -> tuple[Any, Any]:
        from transformers import CLIPVisionConfig, CLIPVisionModel

        return CLIPVisionConfig, CLIPVisionModel
