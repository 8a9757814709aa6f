"""4. TimmEncoder: any image model of timm."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from llava_lab.core.numbers import at_least
from llava_lab.data.geometry import ViewSpec
from llava_lab.model.encoder import timm_tower
from llava_lab.model.encoder.base import Encoder
from llava_lab.model.encoder.tower import depth_of, features_of
from llava_lab.model.weights import seeded


class TimmEncoder(Encoder):
    """Any image model of timm that gives intermediate features: ViTs, and ConvNets by stage.

    Args:
        name: timm's name of the model, with its tag: vit_small_patch14_dinov2.lvd142m. Also
            hf-hub:OWNER/NAME and local-dir:FOLDER.
        layer: As in ClipEncoder: -1 is the output of the last block, -2 that of the last but one,
            1 that of the first, without the final norm. Blocks after it are dropped. A ConvNet's
            blocks are timm's feature levels, each at half the resolution of the one before.
        cls: Keep the CLS feature before the patches. Register tokens are always left out.
        pretrained: Load timm's weights; false draws random ones.
        image_size: Side of the view in pixels; null takes the model's own. Position embeddings
            are interpolated when the weights are loaded.
        weights: A .safetensors, .bin, .pt or .pth file to load in place of timm's weights.
        options: Further arguments of timm.create_model, such as depth or embed_dim.
    """

    idle: ClassVar[tuple[str, ...]] = ("weights",)  # they count by what they are

    def __init__(
        self,
        name: str,
        layer: int = -2,
        cls: bool = False,
        pretrained: bool = True,
        image_size: int | None = None,
        weights: str | None = None,
        options: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.cls = cls
        arguments = dict(options or {})
        at_least(1, "model.encoder.", image_size=image_size)
        skeleton, shapes = timm_tower.skeleton_of(name, image_size, arguments)
        self.block = depth_of(layer, len(shapes), 1, name) - 1
        if cls and not timm_tower.has_cls(skeleton):
            raise ValueError(f"timm's {name} gives no CLS feature: set cls to false")
        whole = skeleton.state_dict()
        timm_tower.prune(skeleton, self.block)
        with seeded("encoder"):
            if weights is not None:
                self.tower = timm_tower.with_weights(
                    name, arguments, weights, skeleton.state_dict(), whole
                )
            elif pretrained:
                self.tower = timm_tower.with_timms_weights(name, arguments)
            else:
                self.tower = timm_tower.create(name, arguments)
        timm_tower.prune(self.tower, self.block)
        _, self.width, *grid = shapes[self.block]
        source = skeleton.pretrained_cfg
        self.view_spec = ViewSpec(
            image_size or source["input_size"][-1],
            (grid[0], grid[1]),
            cls,
            tuple(source["mean"]),
            tuple(source["std"]),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Features [n, h, w, d] of views [n, 3, s, s], or one row with the CLS feature."""
        pixels = pixels.to(next(self.tower.parameters()).dtype)
        if not self.cls:
            (grid,) = features_of(self.tower, pixels, indices=[self.block])
            return grid.permute(0, 2, 3, 1)
        ((grid, prefix),) = features_of(
            self.tower, pixels, indices=[self.block], return_prefix_tokens=True
        )
        return torch.cat([prefix[:, :1], grid.flatten(2).mT], dim=1)[:, None]
