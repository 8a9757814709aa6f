"""7. Layout: the features of an image's views [n, p, d] -> one visual sequence [v, d]."""

from torch import Tensor

from llava_lab.data.image import Layout


def arrange(features: Tensor, layouts: list[Layout]) -> Tensor:
    """Concatenate the views of all images in order; counts are those of the layouts.

    Args:
        features: [n, p, d] of all images' views.
        layouts: One for each image.

    Raises:
        ValueError: If views or features are not as many as the layouts say.
    """
    views = sum(layout.views for layout in layouts)
    if views != len(features):
        raise ValueError(f"the layouts name {views} views, the encoder saw {len(features)}")
    for layout in layouts:
        if layout.tokens != layout.views * features.shape[1]:
            raise ValueError(
                f"{layout} has {layout.tokens} tokens, the encoder gives {features.shape[1]} a view"
            )
    return features.flatten(0, 1)
