"""Bytes a device by strategy, and hours; docs/plan.md has what `plan` says.

    python tests/report/test_plan_memory.py

writes both tables of docs/plan.md anew.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import pytest

from llava_lab.cli import plan
from llava_lab.data.loader import split_step
from llava_lab.data.modules.image import ImageDataModule
from llava_lab.data.views.square import Square
from llava_lab.report.budget import UTILIZATION, Budget
from llava_lab.report.plan_memory import NF4, Part, bytes_of, strategies
from llava_lab.report.published import published

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "plan.md"
BEGIN, END = "<!-- {} -->\n", "<!-- end of {} -->\n"
LM = "--model.llm=configs/lm/{}.yaml"
VICUNA_13B = LM.format("vicuna_13b_v15")
SHOWN = [
    ("LLaVA-1.5-13B", "llava15", (VICUNA_13B,), (8, 1), "bf16-mixed"),
    ("LLaVA-NeXT-34B", "llava_next", ("-c", "configs/size/next_34b.yaml"), (16, 2), "bf16-mixed"),
    ("LLaVA-NeXT-110B", "llava_next_qwen15_110b", (), (32, 4), "bf16-mixed"),
    ("LLaVA-NeXT-110B", "llava_next_qwen15_110b", (), (32, 4), "bf16-true"),
]
# Rows of `table --paper compute/stages` that an experiment is the recipe of, LM, stage.
HOURS = [
    ("LLaVA-7B, first stage, CC-595K", "llava10", "vicuna_7b_v0", "align"),
    ("LLaVA-13B, first stage, CC-595K", "llava10", "vicuna_13b_v0", "align"),
    ("LLaVA, second stage, Instruct-158K, 3 epochs", "llava10", "vicuna_13b_v0", "instruct"),
    ("LLaVA-1.5-7B, first stage, 558K", "llava15", "vicuna_7b_v15", "align"),
    ("LLaVA-1.5-7B, second stage, 665K", "llava15", "vicuna_7b_v15", "instruct"),
    ("LLaVA-1.5-13B, first stage, 558K", "llava15", "vicuna_13b_v15", "align"),
    ("LLaVA-1.5-13B, second stage, 665K", "llava15", "vicuna_13b_v15", "instruct"),
    ("LLaVA-NeXT-7B, both", "llava_next", "vicuna_7b_v15", "both"),
    ("LLaVA-NeXT-13B, both", "llava_next", "vicuna_13b_v15", "both"),
    ("LLaVA-NeXT-34B, both", "llava_next", "hermes_2_yi_34b", "both"),
    ("LLaMA3-LLaVA-NeXT-8B, both, at most", "llava_next_llama3_8b", "llama_3_8b_instruct", "both"),
    ("LLaVA-NeXT-72B, both", "llava_next_qwen15_72b", "qwen15_72b_chat", "both"),
    ("LLaVA-NeXT-110B, both", "llava_next_qwen15_110b", "qwen15_110b_chat", "both"),
]
STEP_ROWS, STEPS = 16, 3  # what gpu-7b.json measured
LAYER = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096  # Vicuna-7B
CONNECTOR, LLM, ENCODER = 20_979_712, 6_738_415_616, 290_909_184


@cache
def memory(name: str, *options: str) -> dict[str, dict]:
    """Rows of each stage's plan at the paper scale, by what they are of."""
    files = ("-c", f"{REPOSITORY}/experiments/{name}.yaml")
    files += ("-c", f"{REPOSITORY}/configs/scale/paper.yaml")
    given = [re.sub(r"(^|=)configs/", rf"\1{REPOSITORY}/configs/", each) for each in options]
    with redirect_stdout(StringIO()) as said:
        plan.main([*files, *given, "--format=json"])
    grids = json.loads(said.getvalue())
    plans = [grid for grid in grids if grid["table"] == "plan"]
    return {grid["stage"]: {row["what"]: row for row in grid["rows"]} for grid in plans}


def lines() -> Iterator[str]:
    yield "| model | devices | precision | stage | ddp | hsdp | fsdp2 | fsdp2_large | best |"
    yield "| --- | --- | --- | --- | --: | --: | --: | --: | --- |"
    for model, name, options, (devices, nodes), precision in SHOWN:
        where = (f"--devices={devices}", f"--nodes={nodes}", f"--trainer.precision={precision}")
        for stage, rows in memory(name, *options, *where).items():
            cells = []
            for strategy in ("ddp", "hsdp", "fsdp2", "fsdp2_large"):
                found = rows.get(f"GiB a device, {strategy}")
                cells.append(f"{found['value']:,.0f}" if found else "")
            best = (rows["fits 80 GiB"]["value"] or ["none"])[0]
            at = f"{nodes} x {devices // nodes}"
            yield "| " + " | ".join([model, at, precision, stage, *cells, best]) + " |"


def hours() -> Iterator[str]:
    yield "| experiment | LM | stage | device | published, h | planned, h | deviation | implied |"
    yield "| --- | --- | --- | --- | --: | --: | --: | --: |"
    rows = {row.name: row for row in published("compute/stages").rows}
    for name, experiment, lm, stage in HOURS:
        given = ("--text-tokens", "align=24", "instruct=200")
        planned = memory(experiment, LM.format(lm), *given)
        device = "H100" if rows[name].settings["device"].startswith("H800") else "A100"
        theirs = rows[name].values["device-hours"]
        stages = planned if stage == "both" else [stage]
        ours = sum(planned[each][f"{device}-hours"]["value"] for each in stages)
        cells = [f"`{experiment}`", f"`{lm}`", stage, device, f"{theirs:,.0f}", f"{ours:,.0f}"]
        cells += [
            f"{100 * (ours / theirs - 1):+.0f} %",
            f"{100 * UTILIZATION * ours / theirs:.0f} %",
        ]
        yield "| " + " | ".join(cells) + " |"


def measured() -> Iterator[str]:
    """The step of docs/speed.md that was measured on a GPU, as `plan` has it."""
    found = json.loads((REPOSITORY / "tests/benchmarks/measured/gpu-7b.json").read_text())
    tokens = round(found["tokens"] / STEP_ROWS / STEPS)
    options = {"trainer.precision": "bf16-true", "model.llm.dtype": "bfloat16"}
    stage = {"data.batch_size": STEP_ROWS, "gradient_checkpointing": "products"}
    options |= {f"stages.instruct.{key}": value for key, value in stage.items()}
    given = [f"--{key}={value}" for key, value in options.items()]
    given += ["--devices=1", "--text-tokens", "align=24", f"instruct={tokens - 576}"]
    planned = memory("llava15", *given)["instruct"]["GiB a device, alone"]["value"]
    yield "| step | tokens of a row | planned, GiB | measured, GiB |"
    yield "| --- | --: | --: | --: |"
    gib = found["rows"]["ours"]["GiB"]
    yield f"| LLaVA-1.5-7B, {STEP_ROWS} rows | {tokens:,} | {planned:.1f} | {gib:.1f} |"


WRITTEN = {"strategies": lines, "hours": hours, "measured": measured}


@pytest.mark.parametrize(
    "name", ["strategies", "measured", pytest.param("hours", marks=pytest.mark.slow)]
)
def test_the_page_has_what_plan_says(name: str) -> None:
    said = PAGE.read_text().split(BEGIN.format(name))[1].split(END.format(name))[0]
    assert said.splitlines() == list(WRITTEN[name]()), f"run: python {__file__}"


def test_bytes_a_device_are_their_formulas() -> None:
    options = ("--devices=4", "--nodes=2", "--text-tokens=100")
    rows = memory("llava15", *options)["instruct"]
    trained, outside = CONNECTOR + LLM, CONNECTOR + 2 * 32000 * 4096 + 4096
    active = rows["GiB of activations, llm"]["value"] * 2**30
    gathered = 2 * (outside + outside + 2 * LAYER) + 6 * LAYER
    expected = {
        "ddp": (16 + 2 + 4) * trained + 4 * ENCODER,
        "hsdp": 16 * trained / 2 + 4 * ENCODER + gathered + 4 * trained,
        "fsdp2": 16 * trained / 4 + 4 * ENCODER + gathered + 4 * trained,
        "fsdp2_large": 16 * trained / 4 + 4 * ENCODER + gathered,
    }
    for name, size in expected.items():
        found = rows[f"GiB a device, {name}"]["value"]
        assert found == pytest.approx((size + active) / 2**30, abs=0.05), name
    assert rows["GiB a device, fsdp2_large, whole: []"]["value"] < found


@pytest.mark.parametrize(
    ("devices", "micro", "rows", "accumulates"),
    [(64, 16, 2, False), (48, None, 3, False), (1, 48, 43, True)],
)
def test_rows_at_once_are_those_of_the_largest_micro_batch(
    devices: int, micro: int | None, rows: int, accumulates: bool
) -> None:
    """As training splits a step of 128 rows."""
    data = ImageDataModule([], Square(), batch_size=128, micro_batch_size=micro)
    step, split = list(range(128)), data.accumulate(devices)
    parts = split_step(step, [1] * 128, accumulate=split, rank=0, world=devices)
    assert max(len(part.rows) for part in parts) == rows and (split > 1) is accumulates
    options = (f"--devices={devices}", f"--stages.instruct.data.micro_batch_size={micro or 'null'}")
    planned = memory("llava15", *options)["instruct"]
    assert f"{rows} rows at once" in planned["GiB of activations, llm"]["formula"]
    if devices > 1:
        kept = planned["GiB a device, fsdp2"]["formula"].endswith("x trained, kept + activations")
        assert kept is accumulates


def test_where_devices_answer_with_the_whole_model_it_must_fit() -> None:
    row = memory("llava15", VICUNA_13B, "--devices=32")["instruct"]["GiB a device, fsdp2"]
    whole = 4 * (13_015_864_320 + 31_467_520 + ENCODER)
    assert row["value"] == pytest.approx(whole / 2**30, abs=0.05)
    frozen = f"4 x {ENCODER:,} frozen while it answers; a step takes less: ("
    assert row["formula"].startswith(f"4 x 13,047,331,840 trained + {frozen}")


@pytest.mark.parametrize(("memory_of_one", "best"), [(500, "ddp"), (20, None)])
def test_the_best_is_the_first_that_fits(memory_of_one: int, best: str | None) -> None:
    options = (VICUNA_13B, f"--memory={memory_of_one}")
    found = memory("llava15", *options)["instruct"][f"fits {memory_of_one} GiB"]["value"]
    assert (found or [None])[0] == best


def test_a_precision_says_its_bytes() -> None:
    parts = {"llm": Part(10, Counter(), 4, 4, 3), "encoder": Part(0, Counter({4: 1}), 0, 0, 0)}
    sizes = {}
    for precision in ("32-true", "bf16-mixed", "bf16-master", "bf16-true"):
        kind = bytes_of(precision)
        ((_, alone, *_),) = strategies(parts, kind, Budget(devices=1), False)
        _, _, (_, shared, *_), _ = strategies(parts, kind, Budget(devices=2), False)
        sizes[precision] = alone, shared
    # What is gathered: 4 + 4 + 2 x 3, and gradients of 3 twice, at last as they are summed.
    mixed = (18 * 10 + 4, 16 * 10 // 2 + 4 + 2 * 14 + (2 + 4) * 3)
    assert sizes == {
        "32-true": (16 * 10 + 4, 16 * 10 // 2 + 4 + 4 * 14 + (4 + 4) * 3),
        "bf16-mixed": mixed,
        "bf16-master": (16 * 10 + 2, mixed[1]),
        "bf16-true": (8 * 10 + 2, 8 * 10 // 2 + 2 + 2 * 14 + (2 + 2) * 3),
    }


def test_a_frozen_lm_takes_the_bytes_that_it_was_made_with() -> None:
    options = ("--trainer.precision=bf16-mixed", "--devices=1")
    wide, narrow = (
        memory("llava15", *options, f"--model.llm.dtype={kind}")["align"]["GiB a device, alone"]
        for kind in ("float32", "bfloat16")
    )
    assert f"4 x {LLM + ENCODER:,} frozen" in wide["formula"]
    assert f"4 x {ENCODER:,} frozen + 2 x {LLM:,} frozen" in narrow["formula"]
    assert wide["value"] - narrow["value"] == pytest.approx(2 * LLM / 2**30, abs=0.05)


def test_weights_beside_adapters_take_four_bits_where_they_are_quantized() -> None:
    """Until the adapters are merged: answers are given with the weights in full."""
    lora = ("-c", "configs/stage/lora.yaml", "--stages.instruct.lora.quantize=4bit")
    rows = memory("llava15", *lora, "--devices=8")["instruct"]
    assert "GiB a device, fsdp2" not in rows and "GiB a device, ddp" in rows
    # Embeddings, output layer and norms stay as they are; 64 weights share a scale.
    quantized = 32 * (LAYER - 2 * 4096)
    adapters = 128 * 32 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    found = rows["GiB a device, ddp"]["formula"]
    assert f"0.516 x {quantized:,} frozen" in found
    assert f"4 x {LLM - quantized + ENCODER:,} frozen" in found
    assert f"16 x {CONNECTOR + adapters:,} trained" in found
    value = rows["GiB a device, ddp"]["value"]
    assert value == pytest.approx(4 * (CONNECTOR + LLM + ENCODER) / 2**30, abs=0.05)
    parts = {"llm": Part(0, Counter({NF4: 64 * 256, 4: 10}), 0, 0, 0)}
    ((_, step, whole, _),) = strategies(parts, bytes_of("bf16-mixed"), Budget(devices=1), False)
    assert (step, whole) == (64 * 256 // 2 + 256 + 4 + 4 * 10, 4 * (64 * 256 + 10))


def test_what_is_not_planned_is_refused() -> None:
    with pytest.raises(SystemExit, match="8 devices do not stand in 3 nodes"):
        memory("llava15", "--nodes=3")
    with pytest.raises(ValueError, match="'64-true' is not planned"):
        bytes_of("64-true")


if __name__ == "__main__":
    for name, written in WRITTEN.items():
        before, rest = PAGE.read_text().split(begin := BEGIN.format(name))
        text = "".join(f"{line}\n" for line in written())
        PAGE.write_text(before + begin + text + (end := END.format(name)) + rest.split(end)[1])
