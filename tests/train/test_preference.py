import copy
import json
import math
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from llava_lab.data.modules.image import ImageDataModule
from llava_lab.data.modules.preference import (
    Pairs,
    Preference,
    PreferenceDataModule,
    read_preferences,
)
from llava_lab.data.packing import Batch, EncodedSample, Segment
from llava_lab.data.rows import BadRows
from llava_lab.data.source import Source
from llava_lab.data.tokens import IGNORE
from llava_lab.data.views.pad import Pad
from llava_lab.model.connector.mlp import MLP
from llava_lab.model.encoder.timm import TimmEncoder
from llava_lab.model.llava import Llava
from llava_lab.model.llm import CausalLM
from llava_lab.train.answers import answer_logps
from llava_lab.train.preference import DPO, IPO, Hinge, KTOPair, PreferenceLoss
from llava_lab.train.reference import store_references

GAINS = torch.tensor([[1.0, -2.0], [-3.0, 0.5], [0.0, 0.0]])
TOKENS = torch.tensor([[4.0, 2.0], [3.0, 5.0], [1.0, 1.0]])


def row(**changes: object) -> dict:
    values = {
        "id": "a",
        "prompt": "<image>\nWhat is there?",
        "chosen": "A cat.",
        "rejected": "A dog.",
    }
    return {**values, "image": "0.png", **changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(8):
        picture = Image.new("RGB", (40, 30), (number * 30, 90, 200 - number * 20))
        picture.save(tmp_path / "images" / f"{number}.png")
    return tmp_path


def source(folder: Path, rows: list[dict], **options: str) -> Source:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return Source(path, folder / "images", **options)


def tiny(width: int = 32) -> Llava:
    torch.manual_seed(0)
    options = {"embed_dim": 24, "depth": 1, "num_heads": 2, "mlp_ratio": 2}
    encoder = TimmEncoder("xcit_nano_12_p16_224", -1, False, False, 64, None, options)
    config = {
        "model_type": "llama",
        "vocab_size": 1024,
        "hidden_size": width,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
    }
    llm = CausalLM(None, "v1", pretrained=False, config=config, tokenizer="asset:tokenizer")
    return Llava(encoder, MLP, llm)


def test_rows_are_read_as_released(folder: Path) -> None:
    (found,) = read_preferences(source(folder, [row()]), 0)
    assert [turn.text for turn in found.turns] == ["<image>\nWhat is there?", "A cat."]
    assert found.conversations[1][-1].text == "A dog." and found.images == (
        folder / "images" / "0.png",
    )
    (text,) = read_preferences(source(folder, [row(image=None, prompt="Q?")]), 0)
    assert text.turns[0].text == "Q?" and not text.images


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rejected": " A cat. "}, "'chosen' and 'rejected' are the same answer"),
        ({"rejected": ""}, "'rejected' is empty"),
        ({"chosen": "  "}, "'chosen' is empty"),
        ({"prompt": "<image>"}, "'prompt' is empty"),
        ({"chosen": None}, "'chosen' must be text"),
        ({"chosen": "<image> A cat."}, "an answer holds a literal <image>"),
        ({"image": "9.png"}, "'9.png' is not in"),
    ],
)
def test_a_bad_pair_is_refused_with_its_place(folder: Path, changes: dict, message: str) -> None:
    with pytest.raises(BadRows, match=f"line 2.*{message}"):
        read_preferences(source(folder, [row(), row(**changes)]), 0)
    with pytest.warns(UserWarning, match="1 of 2 rows are left out"):
        kept = read_preferences(source(folder, [row(), row(**changes)], on_bad_row="skip"), 0)
    assert len(kept) == 1


def test_losses_are_their_closed_forms() -> None:
    def values(loss: PreferenceLoss) -> list[float]:
        return loss.pair_losses(GAINS, TOKENS).tolist()

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    margins = [3.0, -3.5, 0.0]
    assert values(DPO(0.1)) == pytest.approx([-math.log(sigmoid(0.1 * m)) for m in margins])
    smooth = [
        -0.9 * math.log(sigmoid(0.5 * m)) - 0.1 * math.log(sigmoid(-0.5 * m)) for m in margins
    ]
    assert values(DPO(0.5, label_smoothing=0.1)) == pytest.approx(smooth)
    assert values(Hinge(0.5)) == pytest.approx([0.0, 2.75, 1.0])
    each = [1 / 4 + 2 / 2, -3 / 3 - 0.5 / 5, 0.0]
    assert values(IPO(0.1)) == pytest.approx([(m - 5) ** 2 for m in each])
    # Means of gains: chosen -2/3 -> 0, rejected -0.5 -> 0.
    kto = [1 - sigmoid(0.1 * g) for g in (1, -3, 0)] + [1 - sigmoid(-0.1 * g) for g in (-2, 0.5, 0)]
    assert values(KTOPair(0.1)) == pytest.approx(kto)
    shifted = KTOPair(1.0).pair_losses(GAINS + 2, TOKENS).tolist()
    assert shifted[0] == pytest.approx(1 - sigmoid(3 - 1.5))
    assert shifted[3] == pytest.approx(1 - sigmoid(4 / 3 - 0))


# What TRL's own code made of GAINS and TOKENS. 1.16.0: `DPOTrainer._compute_loss`, one pair at a
# time, with a model that returns fixed log-probabilities and references (-6, -5), (-4.5, -9),
# (-1, -2). 0.8.6: `DPOTrainer.dpo_loss` of the three pairs, as later versions have neither a
# smoothed sigmoid loss nor kto_pair.
TRL = [
    ("1.16.0", DPO(0.1), 0, [0.5543552041, 0.8833820820, 0.6931471825]),
    ("1.16.0", DPO(0.5), 0, [0.2014132887, 1.9102241993, 0.6931471825]),
    ("1.16.0", IPO(0.1), 0, [14.0625, 37.2099990845, 25.0]),
    ("1.16.0", Hinge(0.5), 0, [0.0, 2.75, 1.0]),
    ("0.8.6", DPO(0.5, label_smoothing=0.1), 0, [0.3514132798, 1.7352241277, 0.6931471825]),
    (
        *("0.8.6", KTOPair(0.1), 0),
        [0.4750208259, 0.5744425058, 0.5, 0.4501660466, 0.5124973655, 0.5],
    ),
    (
        *("0.8.6", KTOPair(1.0), 2),  # gains raised by 2, so that the means are above 0
        [0.1824255586, 0.9241418242, 0.3775406480, 0.2086085081, 0.7625419497, 0.6607563496],
    ),
]


@pytest.mark.parametrize(("version", "loss", "shift", "wanted"), TRL)
def test_losses_are_those_of_trl(
    version: str, loss: PreferenceLoss, shift: float, wanted: list[float]
) -> None:
    found = loss.pair_losses(GAINS + shift, TOKENS).tolist()
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("options", "message"), [({"beta": 0}, "beta"), ({"label_smoothing": 0.5}, "0.5")]
)
def test_a_wrong_value_is_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DPO(**options)


def pairs_of(
    model: Llava, folder: Path, number: int = 3, **options: Any
) -> tuple[PreferenceDataModule, Pairs]:
    answers = [("A cat and a dog.", "One dog."), ("Two.", "Three small ones, I think."), ("a", "b")]
    rows = [
        row(id=str(n), image=f"{n}.png", chosen=answers[n % 3][0], rejected=answers[n % 3][1])
        for n in range(number)
    ]
    store = str(folder / "references")
    data = PreferenceDataModule(
        [source(folder, rows)], Pad(), batch_size=2, reference_store=store, **options
    )
    data.name = "dpo"
    data.trainer = SimpleNamespace(
        lightning_module=model,
        world_size=1,
        global_rank=0,
        strategy=SimpleNamespace(root_device="cpu"),
    )
    data.check(model)
    data.setup("fit")
    DPO().prepare(model, data, data.trainer, "fit")
    dataset = data.train_rows()
    return data, Pairs.of([dataset[index] for index in range(len(dataset))])


def test_a_tree_equals_two_sequences(folder: Path) -> None:
    model = tiny().eval()
    model.encoder.requires_grad_(False)  # as published; and torch's own differ at one view
    _, pairs = pairs_of(model, folder)
    assert pairs.forest.parents == (None, 0, 0, None, 3, 3, None, 6, 6)
    logps, tokens = answer_logps(model, pairs)
    logps.sum().backward()
    trained = {n: each for n, each in model.named_parameters() if each.grad is not None}
    ours = {name: weight.grad.clone() for name, weight in trained.items()}
    model.zero_grad()
    total = torch.zeros(())
    ends = torch.tensor([*pairs.forest.starts[1:], pairs.forest.tokens])
    for index in range(3):
        prompt, *answers = (
            pairs.ids[ends[s] - pairs.forest.lengths[s] : ends[s]].tolist()
            for s in range(3 * index, 3 * index + 3)
        )
        for place, answer in enumerate(answers):
            sequence = Segment(prompt + answer, [IGNORE] * len(prompt) + answer)
            alone = EncodedSample(
                [sequence], pairs.views[index : index + 1], [pairs.layouts[index]], "row"
            )
            batch = Batch.pack([alone])
            hidden = model(batch)[batch.predictors]
            said = model.llm.head()(hidden).log_softmax(-1)
            summed = said.gather(1, batch.targets[:, None]).sum()
            total = total + summed
            assert abs(float(logps[index, place] - summed)) <= 1e-5 * abs(float(summed))
            assert tokens[index, place] == len(answer)
    total.backward()
    for name, weight in trained.items():
        scale = float(weight.grad.abs().max())
        assert float((weight.grad - ours[name]).abs().max()) <= 1e-5 * scale, name


def test_the_reference_is_the_model_before_and_computed_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny().eval()
    data, pairs = pairs_of(model, folder)
    with torch.no_grad():
        torch.testing.assert_close(pairs.reference, answer_logps(model, pairs)[0])
        loss, numbers = DPO(0.1)(model, pairs)
    assert float(loss) == pytest.approx(math.log(2), abs=1e-6)
    assert float(numbers["reward_margin"]) == pytest.approx(0, abs=1e-5)
    assert data.references is not None
    first = data.references.folder
    calls = []
    real = answer_logps
    monkeypatch.setattr(
        "llava_lab.train.reference.answer_logps", lambda *each: calls.append(1) or real(*each)
    )
    again, _ = pairs_of(model, folder)
    assert not calls and again.references.folder == first
    with torch.no_grad():
        next(model.llm.parameters()).add_(0.1)
    changed, _ = pairs_of(model, folder)
    assert calls and changed.references.folder != first
    before = len(calls)
    data.views = Pad()
    other = PreferenceDataModule(data.sources, Pad(), 2, str(folder / "references"), max_length=60)
    other.name, other.trainer = "dpo", data.trainer
    other.setup("fit")
    store_references(model, other, data.trainer)
    assert len(calls) > before and other.references.folder != changed.references.folder


def test_a_worker_that_has_copies_of_the_rows_finds_their_numbers(folder: Path) -> None:
    data, _ = pairs_of(tiny(), folder)
    copies = pickle.loads(pickle.dumps(data.samples))
    for row, copied in zip(data.samples, copies, strict=True):
        assert copied is not row
        assert data.references[copied].equal(data.references[row])


def test_a_reference_is_not_that_of_another_model_or_of_another_chat(folder: Path) -> None:
    class Scaled(Llava):
        def __init__(self, model: Llava, by: float):
            super().__init__(model.encoder, lambda *_: model.connector, model.llm)
            self.by = by

        def embed(self, batch: Any) -> torch.Tensor:
            return super().embed(batch) * self.by

    base, folders = tiny().eval(), []
    for model in (base, Scaled(base, 2.0), Scaled(base, 3.0)):
        data, pairs = pairs_of(model.eval(), folder)
        folders.append(data.references.folder)
        with torch.no_grad():
            torch.testing.assert_close(pairs.reference, answer_logps(model, pairs)[0])
    chat = "{% for m in messages %}{{ m.content }}ENDMARK{% endfor %}"
    for mark in ("!", ";"):
        base.llm.tokenizer.chat_template = chat.replace("ENDMARK", mark)
        data, pairs = pairs_of(base, folder, template="tokenizer")
        folders.append(data.references.folder)
        with torch.no_grad():
            torch.testing.assert_close(pairs.reference, answer_logps(base, pairs)[0])
    assert len(set(folders)) == 5


def test_every_loss_prefers_the_chosen_after_a_few_steps(folder: Path) -> None:
    for loss in (DPO(0.5), IPO(0.5), Hinge(0.5), KTOPair(0.5), DPO(0.5, sft_weight=0.2)):
        model = tiny()
        _, pairs = pairs_of(model, folder, 6)
        optimizer = torch.optim.AdamW(model.llm.parameters(), lr=2e-3)
        for _ in range(8):
            value, numbers = loss(model, pairs)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        assert numbers["reward_accuracy"] == 1 and numbers["reward_margin"] > 0, loss


def test_kl_of_held_out_answers_is_that_of_both_models_distributions(folder: Path) -> None:
    model = tiny().eval()
    data, pairs = pairs_of(model, folder, 8, hold_out=0.4)
    assert pairs.before is None and len(pairs) < 8
    held = next(iter(data.val_dataloader())).batch
    assert len(held) + len(pairs) == 8
    before = copy.deepcopy(model)
    with torch.no_grad():
        _, numbers = DPO(0.1)(model, held)
        assert abs(float(numbers["kl"])) < 1e-6
        for weight in model.llm.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
        _, numbers = DPO(0.1)(model, held)
        now, then = (
            each.llm.head()(each(held)[held.predictors]).log_softmax(-1) for each in (model, before)
        )
    each = torch.nn.functional.kl_div(then, now, log_target=True, reduction="none").sum(-1)
    answers = [each[held.owners == segment].mean() for segment in held.answers.flatten()]
    wanted = torch.stack(answers).mean()
    assert wanted > 0.01
    assert float(numbers["kl"]) == pytest.approx(float(wanted), rel=1e-4)


def test_devices_share_the_work_on_the_reference(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava_lab.train.reference.CHUNK", 2)
    model = tiny().eval()
    one, _ = pairs_of(model, folder, 8, hold_out=0.4)
    files = {path.name: path.read_bytes() for path in one.references.folder.iterdir()}
    written: dict[int, set[str]] = {}
    for rank in (0, 1):
        shutil.rmtree(one.references.folder)
        seen: set[str] = set()

        def meet(seen: set[str] = seen) -> None:
            seen |= {path.name for path in one.references.folder.iterdir()}

        strategy = SimpleNamespace(barrier=meet, root_device="cpu")
        one.references.fill(SimpleNamespace(global_rank=rank, world_size=2, strategy=strategy))
        written[rank] = seen - {"head.safetensors"}
    assert len(written[0]) == len(written[1]) == 2
    assert written[0] | written[1] == set(files) - {"head.safetensors"}
    assert {path.name: path.read_bytes() for path in one.references.folder.iterdir()} == files


def test_the_sft_term_is_the_chosen_answers_cross_entropy(folder: Path) -> None:
    model = tiny().eval()
    _, pairs = pairs_of(model, folder)
    with torch.no_grad():
        logps, tokens = answer_logps(model, pairs)
        plain, _ = DPO(0.1)(model, pairs)
        whole, _ = DPO(0.1, sft_weight=2.0)(model, pairs)
    expected = -2.0 * logps[:, 0].sum() / tokens[:, 0].sum()
    assert float(whole - plain) == pytest.approx(float(expected), rel=1e-5)


def test_a_trained_model_is_not_its_own_reference(folder: Path) -> None:
    data, _ = pairs_of(tiny(), folder)
    with pytest.raises(ValueError, match=r"stages\.dpo: `validate` has a model that was trained"):
        DPO().prepare(data.model, data, data.trainer, "validate")


def test_content_tells_answers_apart(folder: Path) -> None:
    data, _ = pairs_of(tiny(), folder)
    sample = data.samples[0]
    assert isinstance(sample, Preference)
    changed = [replace(sample, rejected="Another."), *data.samples[1:]]
    assert data.content_of(changed) != data.content_of(data.samples)


def test_what_a_stage_cannot_train_on_is_refused_before_it_begins(folder: Path) -> None:
    (folder / "images" / "clip").mkdir()
    Image.new("RGB", (20, 20)).save(folder / "images" / "clip" / "0.png")
    for changes, message in (
        ({"image": None, "video": "clip"}, "line 1: a video, which views Pad of stages.dpo.data"),
        ({"rejected": "A </s> dog."}, "1 of 1 rows cannot be trained on"),
    ):
        rows = source(folder, [row(**changes)])
        data = PreferenceDataModule([rows], Pad(), 2, str(folder / "references"))
        data.name = "dpo"
        with pytest.raises(ValueError, match=message):
            data.check(tiny())


def test_a_loss_of_answers_refuses_data_without_answers() -> None:
    data = ImageDataModule([], Pad(), batch_size=2)
    data.name = "dpo"
    with pytest.raises(ValueError, match="dpo: DPO compares answers, which ImageDataModule"):
        DPO().prepare(tiny(), data, None, "fit")
