"""The LightningModule: legs 4 to 9 in `forward`; a stage brings the loss, rates and data."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from llava_lab.data.geometry import ViewSpec
from llava_lab.data.loader import MicroBatch
from llava_lab.data.packing import Batch
from llava_lab.data.views.base import Views
from llava_lab.model.arrange import Newline, arrange
from llava_lab.model.connector.base import Connector
from llava_lab.model.encoder.base import Encoder
from llava_lab.model.generate import Answers, QuestionBatch, answer
from llava_lab.model.llm import CausalLM
from llava_lab.model.pool import connect
from llava_lab.model.splice import splice
from llava_lab.model.weights import load_part, seeded


class Llava(LightningModule):
    """A LLaVA model: an encoder, a connector and a causal LM.

    Args:
        encoder: Images to patch features.
        connector: Encoder's width to the LM's width; both are injected, so they never stand in
            a configuration.
        llm: The causal LM with its tokenizer and template.
        connector_weights: A file with the connector's weights, such as a released
            `mm_projector` file; null starts from random weights.
        newline: Whether a learned vector ends the rows of tiles that are put together, as
            views that drop padding want it; or a .safetensors file with it.
    """

    def __init__(
        self,
        encoder: Encoder,
        connector: Callable[[int, int], Connector],
        llm: CausalLM,
        connector_weights: str | None = None,
        newline: bool | str = False,
    ):
        super().__init__()
        self.encoder, self.llm = encoder, llm
        with seeded("connector"):
            self.connector = connector(encoder.width, llm.width)
        if connector_weights is not None:
            load_part(self.connector, connector_weights, "model.mm_projector.")
        with seeded("newline"):
            self.newline = Newline(llm.width, bool(newline))
        if isinstance(newline, str):
            load_part(self.newline, newline, "newline.")
        self.loss: nn.Module | None = None
        self.step_loss: Any = None
        self.optimizers_of_stage: Callable[[], Any] | None = None

    @property
    def view_spec(self) -> ViewSpec:
        """What the encoder wants to see, and what encoder and connector make of a view."""
        return replace(self.encoder.view_spec, connector=self.connector)

    def part(self, name: str) -> nn.Module:
        """The part of that name, or the stage's loss."""
        return getattr(self, name)

    def size(self, name: str) -> int:
        """Weights of a part."""
        return sum(weight.numel() for weight in self.part(name).parameters())

    def seen(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Tokens that each part computes, in their order; a model with more parts adds them.

        Args:
            counts: What batches compute, as `llava_lab.data.packing.work` counts it.
        """
        return {
            "encoder": counts["encoded_tokens"],
            "connector": counts["connected_tokens"],
            "llm": counts["lm_tokens"],
        }

    def check_views(self, views: Views, max_length: int) -> None:
        """Refuse views that this model cannot follow.

        Args:
            views: How an image becomes views.
            max_length: Longest row in tokens.

        Raises:
            ValueError: If its layouts have newlines and the model has none, its geometry does not
                fit encoder and connector, or a video has more tokens than a row may.
        """
        views.check(self.view_spec, max_length)
        if views.newline and self.newline.weight is None:
            name = type(views).__name__
            raise ValueError(f"views {name} ends rows with a newline; set model.newline=true")

    def encode(self, pixels: Tensor) -> Tensor:
        """Features [n, h, w, d] of views [n, 3, s, s]; a frozen encoder keeps no graph."""
        trains = any(weight.requires_grad for weight in self.encoder.parameters())
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            return self.encoder(pixels)

    def embed(self, batch: Batch) -> Tensor:
        """Embeddings [t, d] of a batch, visual features at their placeholders."""
        embeddings = self.llm.embed(batch.ids)
        if batch.views is None:
            return embeddings
        if batch.views.ndim == 3:  # from a feature store
            features = batch.views.unflatten(1, self.encoder.view_spec.encoded)
            kind = next((weight.dtype for weight in self.connector.parameters()), features.dtype)
            features = features.to(kind)
        else:
            features = self.encode(batch.views)
        pieces = connect(features, batch.layouts, self.connector)
        visual = arrange(pieces, batch.layouts, self.newline.weight)
        return splice(embeddings, visual, batch)

    def forward(self, batch: Batch) -> Tensor:
        """Last hidden states [t, d] of a packed batch."""
        return self.llm(self.embed(batch), batch.forest)

    def training_step(self, micro: MicroBatch, index: int) -> dict[str, Any]:
        """The stage's loss of one micro-batch; logs that of a step when it is whole."""
        assert self.step_loss is not None, "a stage sets the loss"
        found = self.step_loss.train(self, micro)
        for name, value in found.get("means", {}).items():
            # Not for the bar: Lightning would read it in every step, and the device would wait.
            self.log(name, value, batch_size=len(micro.batch))
        return found

    def validation_step(self, micro: MicroBatch, index: int) -> None:
        """The stage's loss on held-out rows."""
        assert self.step_loss is not None, "a stage sets the loss"
        self.step_loss.watch(self, micro)

    def on_validation_epoch_end(self) -> None:
        """The means over all held-out rows of all devices."""
        for name, value in self.step_loss.watched().items():
            # Alike on all devices already; Lightning warns where it is not to gather, too.
            self.log(f"held_out_{name}", value, prog_bar=name == "loss", sync_dist=True)

    def configure_model(self) -> None:
        """Share the weights out over the devices, where the strategy does."""
        shard = getattr(self.trainer.strategy, "shard", None)
        if shard is not None:
            shard(self)

    def configure_optimizers(self) -> Any:
        """The stage's optimizer and schedule."""
        assert self.optimizers_of_stage is not None, "a stage sets the optimizer"
        return self.optimizers_of_stage()

    def predict_step(self, batch: QuestionBatch, index: int, dataloader_idx: int = 0) -> Answers:
        """Greedy answers to a batch of questions."""
        return answer(self, batch)

    def test_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> Any:
        """The same; the scores are kept by the callback `Scores`."""
        return answer(self, batch)
