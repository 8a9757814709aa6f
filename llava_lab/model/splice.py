"""8. Splice: visual features [v, d] into the embeddings [t, d] at their placeholders."""

from torch import Tensor

from llava_lab.data.packing import Batch


def splice(embeddings: Tensor, visual: Tensor, batch: Batch) -> Tensor:
    """Put each visual feature where its placeholder stands.

    Args:
        embeddings: [t, d].
        visual: [v, d], in the order of the placeholders.
        batch: Whose `places` are those of the placeholders.

    Raises:
        ValueError: If the features are not as many as the placeholders; names the samples.
    """
    if len(batch.places) != len(visual):
        promised = zip(batch.sources, batch.visual_tokens, strict=True)
        rows = ", ".join(f"{source} ({tokens})" for source, tokens in promised if tokens)
        raise ValueError(
            f"{len(batch.places)} visual placeholders, but the images gave {len(visual)} features. "
            f"Tokens that their layouts promise: {rows}"
        )
    return embeddings.index_copy(0, batch.places, visual.to(embeddings.dtype))
