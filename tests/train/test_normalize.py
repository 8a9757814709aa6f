"""The loss of a step does not depend on how the step is split, and every part takes part in it."""

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from conftest import LLAMA
from torch import nn

from llava_lab.data.loader import MicroBatch, StageLoader, split_step
from llava_lab.data.modules.phrases import PhraseDataModule
from llava_lab.data.packing import Batch, EncodedSample, Segment
from llava_lab.data.tokens import IGNORE
from llava_lab.model.connector.mlp import MLP
from llava_lab.model.encoder.timm import TimmEncoder
from llava_lab.model.llava import Llava
from llava_lab.model.llm import CausalLM
from llava_lab.train.contrastive import SigmoidContrast
from llava_lab.train.loss import Loss, NextToken
from llava_lab.train.normalize import StepLoss, nothing, reached
from llava_lab.train.preference import DPO, KTOPair
from llava_lab.train.stage import Stage

CONFIG = {**LLAMA, "num_hidden_layers": 1}
LENGTHS = [9, 3, 14, 5, 21, 4, 7]  # tokens of rows that are put together in one step


@pytest.fixture
def model() -> Llava:
    torch.manual_seed(0)
    options = {"embed_dim": 32, "depth": 1, "num_heads": 4, "mlp_ratio": 2}
    encoder = TimmEncoder("vit_tiny_patch16_224", -1, False, False, 64, None, options)
    llm = CausalLM(None, "v1", pretrained=False, config=CONFIG, tokenizer="asset:tokenizer")
    model = Llava(encoder, MLP, llm, newline=True).eval()
    Stage(None, NextToken(), {"connector": 1.0, "llm": 1.0, "newline": 1.0}).prepare(model)
    return model


def row(index: int) -> EncodedSample:
    ids = torch.arange(LENGTHS[index]).add(17 * index).remainder(700).add(10).tolist()
    labels = [IGNORE] * (index % 3 + 1) + ids[index % 3 + 1 :]
    return EncodedSample([Segment(ids, labels)], None, [], f"row {index}")


def micro_batches(world: int, accumulate: int, rows: int = len(LENGTHS)) -> list[MicroBatch]:
    """The micro-batches of all devices, one device after another."""
    found: list[MicroBatch] = []
    for rank in range(world):
        step = split_step(list(range(rows)), LENGTHS, accumulate=accumulate, rank=rank, world=world)
        found += StageLoader(
            [row(i) for i in range(len(LENGTHS))], [step], lambda rows, part: Batch.pack(rows)
        )
    return found


def one_step(
    model: Llava, loss: Loss, micro: Sequence[MicroBatch], normalization: str = "step"
) -> tuple[float, dict[str, torch.Tensor], dict[str, int]]:
    """Loss, gradients and work of a step, its micro-batches computed one after another."""
    model.zero_grad()
    step = StepLoss(loss, normalization)
    device = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(accumulate_grad_batches=len(micro), world_size=1, strategy=device)
    holder = SimpleNamespace(trainer=trainer, parameters=model.parameters)
    whole = tuple(each for m in micro if m.first for each in m.step)
    found = {}
    for number, each in enumerate(micro):
        each = MicroBatch(each.batch, each.filler, whole, number == 0, number + 1 == len(micro))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loss, "sums", lambda _, batch, own=loss.sums: own(model, batch))
            found = step.train(holder, each)
        (found["loss"] / len(micro)).backward()  # as Lightning divides it
    gradients = {name: w.grad.clone() for name, w in model.named_parameters() if w.requires_grad}
    return float(found["means"]["loss"]), gradients, found["work"]


@pytest.mark.parametrize(("world", "accumulate"), [(1, 2), (2, 1), (3, 1), (2, 2), (3, 3), (1, 7)])
def test_a_step_has_one_loss_and_one_gradient_however_it_is_split(
    model: Llava, world: int, accumulate: int
) -> None:
    loss, gradients, work = one_step(model, NextToken(), micro_batches(1, 1))
    split = micro_batches(world, accumulate)
    assert any(micro.filler for micro in split) == (world * accumulate > len(LENGTHS))
    again, theirs, same = one_step(model, NextToken(), split)
    assert again == pytest.approx(loss, rel=1e-6)
    assert same == work and work["samples"] == 7 and work["tokens"] == sum(LENGTHS)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, theirs[name], atol=1e-6 * float(gradient.abs().max())), name


def test_one_micro_batch_has_the_plain_mean_bit_for_bit(model: Llava) -> None:
    (micro,) = micro_batches(1, 1)
    _, gradients, _ = one_step(model, NextToken(), [micro])
    model.zero_grad()
    plain, _ = NextToken()(model, micro.batch)
    plain.backward()
    for name, weight in model.named_parameters():
        if name.startswith("llm.") and weight.requires_grad:
            assert torch.equal(gradients[name], weight.grad), name


def test_the_released_way_is_the_mean_of_means_of_micro_batches(model: Llava) -> None:
    split = micro_batches(1, 3)
    found, _, _ = one_step(model, NextToken(), split, "micro_batch")
    with torch.no_grad():
        means = [float(NextToken()(model, micro.batch)[0]) for micro in split]
    assert found == pytest.approx(sum(means) / 3, rel=1e-6)
    by_step, _, _ = one_step(model, NextToken(), split)
    assert abs(found - by_step) > 1e-5  # the rows are of unlike lengths


def test_a_filler_counts_for_nothing(model: Llava) -> None:
    two, gradients, work = one_step(model, NextToken(), micro_batches(1, 1, rows=2))
    split = micro_batches(2, 2, rows=2)
    assert sum(micro.filler for micro in split) == 2
    again, theirs, same = one_step(model, NextToken(), split)
    assert again == pytest.approx(two, rel=1e-6) and same == work
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, theirs[name], atol=1e-6), name
    released, _, _ = one_step(model, NextToken(), split, "micro_batch")
    assert released == pytest.approx(
        sum(float(NextToken()(model, m.batch)[0]) for m in split if not m.filler) / 2, rel=1e-6
    )


def test_every_weight_that_trains_has_a_gradient_of_a_batch_of_text(model: Llava) -> None:
    _, gradients, _ = one_step(model, NextToken(), micro_batches(1, 1))
    for name, gradient in gradients.items():
        assert bool(gradient.any()) != name.startswith(("connector.", "newline.")), name
    assert any(name.startswith("connector.") for name in gradients)
    assert "newline.weight" in gradients


def test_weights_with_a_gradient_are_not_asked_to_take_part(model: Llava) -> None:
    loss, _ = NextToken()(model, next(iter(micro_batches(1, 1))).batch)
    trained = {weight for weight in model.parameters() if weight.requires_grad}
    others = {*model.connector.parameters(), *model.newline.parameters()}
    assert reached(loss) == trained - others


def test_taking_part_lets_neither_nan_nor_infinity_through() -> None:
    good, bad, frozen = (nn.Parameter(torch.ones(3, 2)) for _ in range(3))
    bad.data[0, 0], bad.data[1, 1] = float("nan"), float("inf")
    frozen.requires_grad_(False)
    ((good * 2).sum() + nothing([good, bad, frozen])).backward()
    assert torch.equal(good.grad, torch.full((3, 2), 2.0))
    assert torch.equal(bad.grad, torch.zeros(3, 2)) and frozen.grad is None


def test_a_step_without_anything_to_learn_from_names_its_rows(model: Llava) -> None:
    rows = [EncodedSample([Segment([5, 6, 7], [IGNORE] * 3)], None, [], f"row {n}") for n in (3, 4)]
    batch = Batch.pack(rows)
    with pytest.raises(ValueError, match="no token to learn from in row 3, row 4"):
        one_step(model, NextToken(), [MicroBatch(batch, False, (MicroBatch(batch, False),))])


def test_contrast_compares_a_picture_with_the_phrases_of_the_whole_step(model: Llava) -> None:
    said = [("a red cube", "a dog"), ("a dog",), ("two birds", "a tree", "a red cube"), ("a cat",)]
    data = PhraseDataModule("rows", "images", None, batch_size=4)
    data.rows = [(SimpleNamespace(name=f"{n}.png"), phrases) for n, phrases in enumerate(said)]
    data.trainer = SimpleNamespace(lightning_module=model)
    torch.manual_seed(1)
    pixels = torch.randn(4, 1, 3, 64, 64)
    pictures = list(zip(pixels, said, strict=True))
    loss = SigmoidContrast(model.encoder.width, 768, width=16, heads=2)
    Stage(None, loss, {"encoder": 1.0, "loss": 1.0}).prepare(model)

    def micro(world: int) -> list[MicroBatch]:
        return [
            each
            for rank in range(world)
            for each in StageLoader(
                pictures,
                [split_step([0, 1, 2, 3], [1] * 4, accumulate=1, rank=rank, world=world)],
                data.collate,
            )
        ]

    whole, gradients, work = one_step(model, loss, micro(1))
    for world in (2, 3, 4, 6):
        again, theirs, same = one_step(model, loss, micro(world))
        assert again == pytest.approx(whole, rel=1e-5) and same == work, world
        for name, gradient in gradients.items():
            scale = max(1e-3, float(gradient.abs().max()))
            assert torch.allclose(gradient, theirs[name], atol=1e-5 * scale), name


def split(world: int, synced: bool = False) -> SimpleNamespace:
    """A trainer of so many devices."""
    strategy = SimpleNamespace(_layer_sync=object() if synced else None)
    return SimpleNamespace(world_size=world, strategy=strategy)


def test_a_loss_that_compares_rows_is_not_split_and_uneven_means_are_refused(model: Llava) -> None:
    data = SimpleNamespace(name="dpo", batch_size=6, accumulate=lambda world: 4 // world)
    Stage(data, DPO(), {"llm": 1.0}).check_split(model, split(2))
    with pytest.raises(ValueError, match=r"KTOPair compares the rows.*4 micro-batches \(2 devices"):
        Stage(data, KTOPair(), {"llm": 1.0}).check_split(model, split(2))
    released = {"normalization": "micro_batch"}
    with pytest.raises(ValueError, match="6 is not a multiple of the 4 micro-batches"):
        Stage(data, DPO(), {"llm": 1.0}, **released).check_split(model, split(1))
    data.batch_size = 8
    Stage(data, KTOPair(), {"llm": 1.0}, **released).check_split(model, split(1))


def test_means_of_micro_batches_are_refused_where_a_step_is_one(
    model: Llava, capsys: pytest.CaptureFixture
) -> None:
    data = SimpleNamespace(name="s", batch_size=8, micro_batch_size=None)
    data.accumulate = lambda world: -(-8 // (world * (data.micro_batch_size or 8)))
    stage = Stage(data, NextToken(), {"llm": 1.0}, normalization="micro_batch")
    with pytest.raises(ValueError, match=r"stages\.s\.normalization: .*s\.data\.micro_batch_size"):
        stage.check_split(model, split(1))
    stage.check_split(model, split(2))
    Stage(data, NextToken(), {"llm": 1.0}).check_split(model, split(1))
    # KTO's message says to set it, as docs/preferences.md does.
    Stage(data, KTOPair(), {"llm": 1.0}, normalization="micro_batch").check_split(model, split(1))
    for size, lines in ((4, 0), (8, 1)):  # as a sweep of sizes has it
        data.micro_batch_size = size
        stage.check_split(model, split(1))
        said = capsys.readouterr().out
        assert said.count("stage s: normalization=micro_batch does nothing") == lines


def test_batch_norm_that_trains_is_not_split_unless_devices_share_its_statistics() -> None:
    options = {"embed_dim": 32, "depth": 1, "num_heads": 4, "mlp_ratio": 2}
    encoder = TimmEncoder("xcit_nano_12_p16_224", -1, False, False, 64, None, options)
    llm = CausalLM(None, "v1", pretrained=False, config=CONFIG, tokenizer="asset:tokenizer")
    model = Llava(encoder, MLP, llm)
    data = SimpleNamespace(name="align", batch_size=4, accumulate=lambda world: 4 // world)
    trained = Stage(data, NextToken(), {"encoder": 1.0})
    with pytest.raises(ValueError, match="encoder has batch norm"):
        trained.check_split(model, split(4))
    trained.check_split(model, split(4, synced=True))
    with pytest.raises(ValueError, match="encoder has batch norm"):
        trained.check_split(model, split(2, synced=True))
    Stage(data, NextToken(), {"connector": 1.0}).check_split(model, split(2))
