"""10. Sharded: FSDP2, under which devices share weights, gradients and optimizer states.

Only what every device computes equally often is gathered while a step runs: the layers of the LM
and the blocks of a trained encoder. All else - embeddings, head, connector, newline, the loss - is
gathered at a step's beginning. So batches may mix modalities at will.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from llava_lab.train.checkpoint_files import load_any, save_shards
from llava_lab.train.doubles import Steps, double, layers
from llava_lab.train.turns import Turns, idle_encoder

LAYERED = ("llm", "encoder")  # parts whose layers are gathered one by one


class Sharded(ModelParallelStrategy):
    """FSDP2: every device holds a share of the weights, gradients and optimizer states.

    It is `trainer.strategy: fsdp2`, or `hsdp` with a copy on each node. Under bf16-mixed weights
    are gathered in bfloat16 and gradients are summed in float32. Between stages each process holds
    the whole model in the machine's memory, as it did when it read it.

    Args:
        copies: How many copies of the model the devices hold together: each is shared out over
            `devices / copies` of them, and copies exchange gradients alone (HSDP). `nodes` is one
            a node.
        whole: Parts that each device holds whole while none of their weights trains.
        whole_gradients: Whether a device holds the gradients of all weights while it accumulates
            micro-batches, so that they are reduced once a step; false reduces them after each
            micro-batch, for models of which it cannot.
        whole_answers: Whether a device holds the whole model while it answers benchmarks or
            computes a stage's reference, which is many times faster; false keeps it shared out,
            for models that a device cannot hold.
    """

    def __init__(
        self,
        copies: int | Literal["nodes"] = 1,
        whole: tuple[str, ...] = ("encoder",),
        whole_gradients: bool = True,
        whole_answers: bool = True,
    ):
        super().__init__()
        self.copies, self.whole = copies, tuple(whole)
        self.whole_gradients, self.whole_answers = whole_gradients, whole_answers
        self.steps: Any = None  # the root of what is shared out
        self.kept: dict[str, nn.Module] = {}  # parts in the machine's memory, while it is
        self.turns: Turns | None = None
        self.hook: Any = None
        self.failed = self.last = self.blind = False

    @property
    def module(self) -> Any:
        """The model."""
        return self.lightning_module

    def check(self, place: str, quantize: str | None) -> None:
        """Refuse what cannot be shared out, before anything is spent.

        Args:
            place: The stage, for messages.
            quantize: How the stage quantizes weights beside adapters.

        Raises:
            ValueError: Names the option, and what to set instead.
        """
        copies = self.num_nodes if self.copies == "nodes" else self.copies
        if copies < 1 or self.world_size % copies:
            raise ValueError(
                f"trainer.strategy: {copies} copies of the model are not shared out over "
                f"{self.world_size} devices alike; set copies to a divisor of it"
            )
        if quantize:
            raise ValueError(
                f"stages.{place}.lora.quantize: weights in {quantize} are not shared out; use "
                "trainer.strategy=ddp, under which each device holds them whole"
            )
        if self.precision_plugin.precision == "bf16-master":
            raise ValueError(
                "trainer.precision=bf16-master: a sharded strategy gathers weights in bfloat16 and "
                "keeps their shares and states in float32 under bf16-mixed; set that"
            )
        if getattr(self.precision_plugin, "scaler", None) is not None:
            raise ValueError(
                "trainer.precision=16-mixed scales its loss, which a sharded strategy does not "
                "do; use bf16-mixed"
            )

    def setup_environment(self) -> None:
        """Lay out the devices: copies x shares of a copy."""
        self._data_parallel_size = self.num_nodes if self.copies == "nodes" else self.copies
        self._tensor_parallel_size = self.world_size // self._data_parallel_size
        self.failed = False
        super().setup_environment()

    def setup(self, trainer: Any) -> None:
        """Move what is not shared out; let devices answer at their own pace."""
        super().setup(trainer)
        if self.steps is not None and trainer.state.fn in (TrainerFn.TESTING, TrainerFn.PREDICTING):
            self._begin_turns()

    def shard(self, model: Any) -> None:
        """Share the model's weights out, unless they are, or are to stay whole.

        The parts themselves stay as they are, in the machine's memory; the model computes with
        others of the same structure until it is whole again.

        Args:
            model: The model, as the stage has prepared it.
        """
        answers = model.trainer.state.fn in (TrainerFn.TESTING, TrainerFn.PREDICTING)
        if self.steps is not None or (answers and self.whole_answers):
            return
        self.precision_plugin.convert_module(model)
        ignored = set()
        for name, part in list(model.named_children()):
            weights = list(part.parameters())
            if name in self.whole and not any(weight.requires_grad for weight in weights):
                ignored |= set(weights)
            elif weights:
                self.kept[name] = part.cpu()
                setattr(model, name, double(part))
        self._bind_loss(model)
        self.hook = model.llm.register_forward_pre_hook(self._in_step)
        mixed = isinstance(self.precision_plugin, MixedPrecision)
        mesh = self.device_mesh
        options: dict[str, Any] = {
            "mesh": mesh if mesh["data_parallel"].size() > 1 else mesh["tensor_parallel"],
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=torch.bfloat16 if mixed else None,
                reduce_dtype=torch.float32 if mixed else None,
                cast_forward_inputs=False,  # autocast does, in the backward pass as well
            ),
        }
        for name in LAYERED:
            for layer in layers(model.part(name)) if name in self.kept else ():
                fully_shard(layer, **options)
        self.steps = fully_shard(
            Steps(model), reshard_after_forward=False, ignored_params=ignored, **options
        )

    def _bind_loss(self, model: Any) -> None:
        if model.step_loss is not None:
            model.step_loss.loss = model.loss

    def training_step(self, micro: Any, index: int) -> Any:
        """Compute one micro-batch; gradients are reduced after the last one of a step."""
        self.steps.set_requires_gradient_sync(micro.last or not self.whole_gradients)
        self.last, self.blind = micro.last, self._blind(micro)
        with self.precision_plugin.train_step_context():
            return self.steps(partial(self.module.training_step, micro, index))

    def validation_step(self, micro: Any, index: int) -> Any:
        """Compute a batch of held-out rows, of which each device has as many."""
        self.blind = self._blind(micro)
        # Weights that are gathered in inference mode could not be trained with after.
        context = self.precision_plugin.val_step_context()
        with torch.inference_mode(False), torch.no_grad(), context:
            return self.steps(partial(self.module.validation_step, micro, index))

    def test_step(self, *arguments: Any) -> Any:
        """Answer a batch of questions, of which each device may have another number."""
        with torch.inference_mode(False), torch.no_grad():
            return super().test_step(*arguments)

    def predict_step(self, *arguments: Any) -> Any:
        """The same."""
        with torch.inference_mode(False), torch.no_grad():
            return super().predict_step(*arguments)

    def _blind(self, micro: Any) -> bool:
        """Whether a batch has no pictures, while other devices may encode theirs."""
        encoded = "encoder" in self.kept and self.module.trainer.datamodule.features is None
        return encoded and getattr(micro.batch, "views", micro) is None

    def _in_step(self, llm: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """Have all devices gather and reduce in one order, whatever their rows are.

        The layers of an encoder that is shared out are gathered on all devices or on none: a batch
        without a picture encodes an empty view. And gradients of the LM's first layer are reduced
        when those of its input are there, which text beside frozen embeddings would not have.
        """
        embeddings, blind, self.blind = given[0], self.blind, False
        if blind:
            embeddings = embeddings + 0.0 * idle_encoder(self.module).mean()
        if torch.is_grad_enabled():
            embeddings.requires_grad_()
        return embeddings, *given[1:]

    def post_backward(self, closure_loss: Tensor) -> None:
        """Give weights that no device has used a gradient of zero, as one device alone would."""
        super().post_backward(closure_loss)
        for weight in self.steps.parameters() if self.last else ():
            if weight.requires_grad and weight.grad is None:
                weight.grad = torch.zeros_like(weight)

    @contextmanager
    def apart(self, model: Any) -> Iterator[None]:
        """Let each device compute without gradients, as often as it needs to.

        Args:
            model: The model, which is whole before.
        """
        if self.whole_answers:
            model.to(self.root_device)
            yield
            return
        self.shard(model)
        self._begin_turns()
        yield
        self._end_turns()

    def _begin_turns(self) -> None:
        """Gather what is gathered for a whole step; from here on devices take turns."""
        with torch.no_grad():
            self.steps(lambda: None)
        parts = LAYERED if "encoder" in self.kept else ("llm",)
        self.turns = Turns(self.module, parts, self.steps, self.precision_plugin)

    def _end_turns(self) -> None:
        assert self.turns is not None
        self.turns.end()
        self.turns = None
        self.steps.reshard()

    def on_exception(self, exception: BaseException) -> None:
        """Other devices may have ended: nothing more is asked of them."""
        self.failed = True
        super().on_exception(exception)

    def teardown(self) -> None:
        """Make the model whole again, with what was trained."""
        if self.steps is not None:
            if self.turns and not self.failed:
                self._end_turns()
            self._make_whole(self.module)
        super().teardown()

    @torch.no_grad()
    def _make_whole(self, model: Any) -> None:
        self.hook.remove()
        if not self.failed:
            self.steps.reshard()
        for name, part in self.kept.items():
            other = getattr(model, name)
            setattr(model, name, part)
            if self.failed:
                continue
            for own, its in zip(part.parameters(), other.parameters(), strict=True):
                if its.requires_grad:
                    own.copy_(its.full_tensor())
            for own, its in zip(part.buffers(), other.buffers(), strict=True):
                own.copy_(its)
        self._bind_loss(model)
        self.steps, self.kept, self.turns = None, {}, None

    # Weights and states are those of this device's share; `checkpoint_files` knows the whole.
    lightning_restore_optimizer = True
    load_model_state_dict = Strategy.load_model_state_dict
    load_optimizer_state_dict = Strategy.load_optimizer_state_dict
    optimizer_state = Strategy.optimizer_state

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """This device's share of the weights."""
        return self.module.state_dict()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        """Write a folder, of which each device writes its share."""
        save_shards(checkpoint, Path(filepath))

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read this device's share of a checkpoint, whatever strategy wrote it."""
        named = self.module.named_parameters(remove_duplicate=False)
        return load_any(Path(checkpoint_path), dict(named))


StrategyRegistry.register("fsdp2", Sharded, description="weights shared out over all devices")
StrategyRegistry.register("hsdp", Sharded, description="and a copy on each node", copies="nodes")
