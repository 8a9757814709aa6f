"""KTO: rows of one answer with a label, and their loss against a reference point."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import REPOSITORY
from test_preference import folder, row, source, tiny  # noqa: F401

from llava_lab.cli.fit import main
from llava_lab.data.loader import MicroBatch
from llava_lab.data.packing import StageBatch
from llava_lab.data.rows import BadRows
from llava_lab.data.views.pad import Pad
from llava_lab.model.llava import Llava
from llava_lab.train.answers import answer_logps
from llava_lab.train.kto import KTO, JudgedBatch, KTODataModule
from llava_lab.train.normalize import StepLoss

# Log-ratios of the own and of the mismatched answers; their mean, z0, is 0.75.
RATIOS = torch.tensor([[1.0, 0.5], [-3.0, 2.0], [2.0, -1.0], [0.5, 1.5]])
LABELS = torch.tensor([True, True, False, False])


def said(question: str, answer: str, label: object, **more: object) -> dict:
    """A conversation of one answer."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": "a", "conversations": turns, "label": label, **more}


def unpaired(number: int = 6) -> list[dict]:
    """Rows about pictures, with right and wrong answers in turn."""
    answers = ["A cat and a dog.", "Two small ones, I think.", "Yes."]
    return [
        said("<image>\nWhat?", answers[n % 3], n % 2 == 0, image=f"{n}.png") for n in range(number)
    ]


def data_of(model: Llava, place: Path, rows: list[dict], **options: object) -> KTODataModule:
    store = str(place / "references")
    data = KTODataModule([source(place, rows)], Pad(), 6, reference_store=store, **options)
    data.name = "kto"
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(
        lightning_module=model,
        world_size=1,
        global_rank=0,
        accumulate_grad_batches=1,
        strategy=strategy,
    )
    data.check(model)
    data.setup("fit")
    return data


def batch_of(data: KTODataModule, loss: KTO) -> JudgedBatch:
    loss.prepare(data.model, data, data.trainer, "fit")
    rows = data.train_rows()
    return data.batch.of([rows[index] for index in range(len(rows))])


def test_the_loss_is_its_closed_form() -> None:
    losses, z0 = KTO(0.4, desirable_weight=1.5, undesirable_weight=0.5).row_losses(RATIOS, LABELS)
    assert float(z0) == 0.75

    def value(weight: float, exponent: float) -> float:
        return weight * (1 - 1 / (1 + math.exp(-0.4 * exponent)))

    wanted = [value(1.5, 0.25), value(1.5, -3.75), value(0.5, -1.25), value(0.5, 0.25)]
    assert losses.tolist() == pytest.approx(wanted)


def test_the_reference_point_is_not_negative_and_has_no_gradient() -> None:
    ratios = (RATIOS - 2.0).requires_grad_()
    losses, z0 = KTO(0.4).row_losses(ratios, LABELS)
    assert float(z0) == 0.0
    losses.sum().backward()
    assert ratios.grad[:, 1].tolist() == [0.0] * 4


def test_what_is_desirable_becomes_more_likely_and_weights_scale_it() -> None:
    gradients = []
    for loss in (KTO(0.4), KTO(0.4, desirable_weight=3.0), KTO(0.4, undesirable_weight=3.0)):
        ratios = RATIOS.clone().requires_grad_()
        loss.row_losses(ratios, LABELS)[0].sum().backward()
        gradients.append(ratios.grad[:, 0])
    plain, desirable, undesirable = gradients
    assert (plain[:2] < 0).all() and (plain[2:] > 0).all()
    torch.testing.assert_close(desirable, plain * torch.tensor([3.0, 3.0, 1.0, 1.0]))
    torch.testing.assert_close(undesirable, plain * torch.tensor([1.0, 1.0, 3.0, 3.0]))


def test_a_batch_is_trees_of_an_own_and_a_mismatched_answer(folder: Path) -> None:  # noqa: F811
    model = tiny().eval()
    batch = batch_of(data_of(model, folder, unpaired()), KTO())
    assert isinstance(batch, StageBatch)
    assert batch.forest.parents[:6] == (None, 0, 0, None, 3, 3)
    assert batch.desirable.tolist() == [True, False] * 3
    assert batch.to(torch.device("meta")).desirable.is_meta
    with torch.no_grad():
        torch.testing.assert_close(batch.reference, answer_logps(model, batch)[0])
        loss, numbers = KTO()(model, batch)
    assert float(loss) == pytest.approx(0.5, abs=1e-5)
    assert float(numbers["z0"]) == pytest.approx(0.0, abs=1e-4)


def test_mismatched_answers_are_of_the_nearest_other_prompt_before(folder: Path) -> None:  # noqa: F811
    prompts, answers = ["A?", "B?", "B?", "A?", "A?"], ["1", "2", "3", "4", "5"]
    rows = [said(p, a, True) | {"id": a} for p, a in zip(prompts, answers, strict=True)]
    data = data_of(tiny(), folder, rows)
    assert [sample.mismatched for sample in data.samples] == ["3", "1", "1", "3", "3"]
    with pytest.raises(
        ValueError, match=r"kto\.data: all 2 rows to train on have the prompt of .*line 1"
    ):
        data_of(tiny(), folder, [said("A?", "1", True), said("A?", "2", False)])


def test_three_formats_are_read_alike(folder: Path) -> None:  # noqa: F811
    def read(rows: list[dict]) -> list:
        samples = data_of(tiny(), folder, rows).samples
        return [(s.turns, s.images, s.desirable, s.mismatched) for s in samples]

    about = [{"image": "0.png"}, {"image": "1.png"}]
    pairs = [row(prompt="<image>\nWhat?", chosen="A.", rejected="B.", **each) for each in about]
    answers = [
        (label, text, each) for each in about for label, text in ((True, "A."), (False, "B."))
    ]
    llava = [said("<image>\nWhat?", text, label, **each) for label, text, each in answers]
    trl = [
        {"prompt": "What?", "completion": text, "label": label, "images": [each["image"]]}
        for label, text, each in answers
    ]
    messages = [
        {
            "prompt": [{"role": "user", "content": each["prompt"]}],
            "completion": [{"role": "assistant", "content": each["completion"]}],
        }
        for each in trl
    ]
    wanted = read(pairs)
    assert [each[2:] for each in wanted] == [
        (True, "B."),
        (False, "B."),
        (True, "B."),
        (False, "B."),
    ]
    assert read(llava) == wanted and read(trl) == wanted
    assert read([a | b for a, b in zip(trl, messages, strict=True)]) == wanted


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (said("Q?", "A.", None), r"'label' must be true \(desirable\) or false, not None"),
        (said("Q?", "A.", 1), "'label' must be true"),
        (said("Q?", " ", True), "an answer, is empty"),
        ({"prompt": "Q?", "completion": "", "label": True}, "'completion' is empty"),
        ({"prompt": "", "completion": "A.", "label": True}, "'prompt' is empty"),
        ({"prompt": "Q?", "completion": "A.", "lable": True}, "'lable' is not read.*'label'"),
        (
            {"conversations": [*said("Q?", "A.", 1)["conversations"]] * 2, "label": True},
            "2 answers",
        ),
        (row(rejected="A cat."), "are the same answer"),
    ],
)
def test_a_bad_row_is_refused_with_its_place(folder: Path, bad: dict, message: str) -> None:  # noqa: F811
    with pytest.raises(BadRows, match=f"line 2.*{message}"):
        data_of(tiny(), folder, [said("Q?", "A.", True), bad])


@pytest.mark.parametrize("option", ["beta", "desirable_weight", "undesirable_weight"])
def test_a_wrong_value_is_named(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} is 0"):
        KTO(**{option: 0.0})


def test_a_few_steps_part_the_desirable_from_the_others(folder: Path) -> None:  # noqa: F811
    model, loss = tiny(), KTO(0.5)
    data = data_of(model, folder, unpaired())
    batch = batch_of(data, loss)
    model.loss, model.trainer_of_test = loss, data.trainer
    optimizer = torch.optim.AdamW(model.llm.parameters(), lr=2e-3)
    holder = SimpleNamespace(trainer=data.trainer, parameters=model.parameters)
    for _ in range(8):
        step = StepLoss(loss, "step")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loss, "sums", lambda _, batch, own=loss.sums: own(model, batch))
            found = step.train(holder, MicroBatch(batch, False, (MicroBatch(batch, False),)))
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
    means = found["means"]
    assert means["reward_accuracy"] == 1 and means["loss"] < 0.5
    assert means["reward_desirable"] > means["reward_undesirable"]


def test_held_out_rows_have_an_exact_divergence(folder: Path) -> None:  # noqa: F811
    model = tiny().eval()
    data = data_of(model, folder, unpaired(8), hold_out=0.4)
    batch_of(data, KTO())
    held = next(iter(data.val_dataloader())).batch
    with torch.no_grad():
        _, numbers = KTO()(model, held)
    assert abs(float(numbers["kl"])) < 1e-6
    assert not {s.mismatched for s in data.held} & set() and json.dumps(data.content())


def test_the_stage_comes_behind_those_of_an_experiment(
    shortened: list[str], tmp_path: Path
) -> None:
    stages = ("align", "instruct", "kto")
    short = {"data.max_steps": 2, "data.batch_size": 4}
    options = {f"stages.{stage}.{key}": value for stage in stages for key, value in short.items()}
    options["stages.kto.data.hold_out"] = 0.4
    options["stages.kto.data.reference_store"] = tmp_path / "references"
    for stage in ("align", "instruct"):
        options[f"stages.{stage}.data.feature_store"] = tmp_path / "features"
    files = ("experiments/llava_next_video.yaml", "configs/stage/kto.yaml")
    named = [word for name in files for word in ("-c", str(REPOSITORY / name))]
    given = [f"--{key}={value}" for key, value in options.items()]
    main(["fit", *named, *shortened, *given, "--stage", "kto"])
    (path,) = (tmp_path / "runs").glob("llava_next_video/*/stages/kto/stage.json")
    record = json.loads(path.read_text())
    assert record["steps"] == 2 and record["loss_first"] == pytest.approx(0.5, abs=1e-3)
    assert {"kl", "z0", "reward_desirable", "reward_accuracy"} <= record["held_out"].keys()
