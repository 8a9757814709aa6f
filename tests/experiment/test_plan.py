"""The plan of every version at paper scale: published sizes and the golden token counts."""

import json
import re

import pytest
from conftest import REPOSITORY
from test_anyres import GOLDEN

from llava_lab.cli import plan

# Weights of the LMs (hub), and of the whole models as the model cards print them, in billions.
LMS = {
    "vicuna_7b_v15": 6_738_415_616,
    "vicuna_13b_v15": 13_015_864_320,
    "llama_3_8b_instruct": 8_030_261_248,
    "mistral_7b_instruct_v02": 7_241_732_096,
    "hermes_2_yi_34b": 34_388_917_248,
    "qwen15_72b_chat": 72_287_920_128,
    "qwen15_110b_chat": 111_209_914_368,
}
CARDS = {
    ("llava_next", "vicuna_7b_v15"): 7.06,
    ("llava_next", "vicuna_13b_v15"): 13.35,
    ("llava_next", "hermes_2_yi_34b"): 34.75,
    ("llava_next_llama3_8b", "llama_3_8b_instruct"): 8.35,
    ("llava_next_qwen15_72b", "qwen15_72b_chat"): 72.7,
    ("llava_next_qwen15_110b", "qwen15_110b_chat"): 111.5,
}


def planned(capsys: pytest.CaptureFixture, name: str, *options: str) -> str:
    files = (f"experiments/{name}.yaml", "configs/scale/paper.yaml")
    files_options = [part for file in files for part in ("-c", str(REPOSITORY / file))]
    plan.main([*files_options, *options, "--format=md"])
    return capsys.readouterr().out


def parameters(said: str) -> dict[str, int]:
    rows = re.findall(r"\| (encoder|connector|llm|newline|all) +\| +([\d,]+) \|", said)
    return {part: int(number.replace(",", "")) for part, number in rows}


@pytest.mark.parametrize(("name", "lm"), CARDS)
def test_sizes_are_the_published_ones(name: str, lm: str, capsys: pytest.CaptureFixture) -> None:
    found = parameters(planned(capsys, name, f"--model.llm={REPOSITORY}/configs/lm/{lm}.yaml"))
    assert found["llm"] == LMS[lm]
    # The cards count CLIP's last block, which is neither built nor run.
    assert abs(found["all"] / 1e9 - CARDS[name, lm]) <= 0.004 * CARDS[name, lm]


@pytest.mark.parametrize(
    ("size", "lm", "length"),
    [
        ("7b_32k", "mistral_7b_instruct_v02", 32768),
        ("34b", "hermes_2_yi_34b", 8192),
        ("72b", "qwen15_72b_chat", 32768),
    ],
)
def test_larger_video_models_are_planned(
    size: str, lm: str, length: int, capsys: pytest.CaptureFixture
) -> None:
    overlay = str(REPOSITORY / "configs" / "size" / f"video_{size}.yaml")
    said = planned(capsys, "llava_next_video", "-c", overlay)
    assert parameters(said)["llm"] == LMS[lm]
    for part in ("stages.instruct.data", "data"):
        with pytest.raises(SystemExit, match=f"a row has {length:,}"):
            frames = f"--{part}.views.frames=999"
            planned(capsys, "llava_next_video", "-c", overlay, frames)


def test_trace_has_the_golden_counts(capsys: pytest.CaptureFixture) -> None:
    sizes = {f"{width}x{height}": tokens for (width, height), _, _, tokens in GOLDEN}
    said = planned(capsys, "llava_next", "--trace", *sizes)
    for size, tokens in sizes.items():
        assert re.search(rf"\| {size} .*\| +{tokens:,} \|", said), size
    assert "[5, 3, 336, 336]" in said and "[5, 576, 1024]" in said


def test_costs_are_their_formulas(capsys: pytest.CaptureFixture) -> None:
    said = planned(capsys, "llava15", "--text-tokens", "100", "--devices", "4")
    # Connector and LM train, the encoder does not: 2 + 6 + 6 per weight and token.
    tokens, total = 576 + 100, 290_909_184 * 2 * 576 + 20_979_712 * 6 * 576
    total += 6_738_415_616 * 6 * tokens
    instruct = said[said.index("Stage instruct") :]
    assert "| FLOPs of a row " in instruct and f"{total:.3g}" in instruct
    # Held, its gradient, two moments, a copy in 16 bits, and the gradient in DDP's buckets.
    states = ((16 + 2 + 4) * (20_979_712 + 6_738_415_616) + 4 * 290_909_184) / 2**30
    # 16 rows at once, 32 blocks of width 4096 whose inputs are kept, and one block's all.
    kept = 16 * tokens * 4096 * (2 * 32 + 32) / 2**30
    assert "16 rows at once x 676 tokens x 4,096 x (2 x 32 blocks + 32)" in instruct
    for value in (kept, states + kept):
        assert f"{value:,.1f} |" in instruct, value


@pytest.mark.parametrize(("kept", "bytes_"), [("false", 34 * 32), ("products", 20 * 32 + 14)])
def test_activations_by_what_is_recomputed_and_of_a_trained_encoder(
    kept: str, bytes_: int, capsys: pytest.CaptureFixture
) -> None:
    options = (f"--stages.instruct.gradient_checkpointing={kept}", "--trace", "640x480")
    said = planned(capsys, "llava_next", "--text-tokens", "100", *options)
    instruct = said[said.index("Stage instruct") :]
    llm = 8 * (2340 + 100) * 4096 * bytes_
    encoder = 8 * 5 * 576 * 1024 * 34 * 23
    states = (16 + 2 + 4) * parameters(said)["all"]
    for value in (llm, encoder, states + llm + encoder):
        assert f"{value / 2**30:,.1f} |" in instruct
    assert llm > 2 * states / 8  # which is why the recipe recomputes


def test_hours_are_their_formula_beside_the_published_ones(
    capsys: pytest.CaptureFixture, tmp_path
) -> None:
    options = ("--text-tokens", "align=24", "100", "--utilization", "0.5")
    said = planned(capsys, "llava15", *options)
    rows, tokens = 558_128, 576 + 24
    flops = 290_909_184 * 2 * 576 + 20_979_712 * 6 * 576 + 6_738_415_616 * 4 * tokens
    align, instruct = said.split("Stage instruct")
    assert "558,128 rows x 1 epoch; blip_laion_cc_sbu_558k.json as published" in align
    for device, peak in (("A100", 312e12), ("H100", 989e12)):
        hours = flops * rows / (peak * 0.5) / 3600
        assert re.search(rf"\| {device}-hours +\| +{hours:,.1f} \|", align)
    assert "and 100 text tokens" in instruct and "| samples " in instruct and "665,298" in instruct
    assert "compute/stages: Device-hours of training" in instruct
    assert re.search(r"LLaVA-1.5-13B, second stage, 665K .* 20 .* 160", instruct)
    assert "LLaVA-NeXT" not in instruct.partition("compute/stages")[2].partition("Source:")[0]

    # Rows of a file that is here are counted; those of one that nobody knows are not made up.
    mine = tmp_path / "mine.jsonl"
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    mine.write_text("".join(f'{{"id": {i}, "conversations": {json.dumps(turns)}}}\n' for i in "12"))
    said = planned(capsys, "llava15", f"--paths.align={mine}", "--paths.instruct=none/mine.json")
    align, instruct = said.split("Stage instruct")
    assert "| 2 rows x 1 epoch |" in re.sub(" +", " ", align) and "as published" not in align
    assert "none/mine.json is not here" in instruct and "A100-hours  " not in instruct.split("└")[0]


def test_rows_that_are_held_out_are_not_trained_on(capsys: pytest.CaptureFixture) -> None:
    said = planned(capsys, "llava15", "--stages.instruct.data.hold_out=0.1")
    line = next(each for each in said.splitlines() if " of 665,298 rows" in each)
    assert "| 598,768 |" in line and "about 598,768 of 665,298 rows (0.1 held out) x 1" in line


@pytest.mark.parametrize(
    ("given", "message"), [("x", "'x' is neither N nor STAGE=N"), ("aling=3", "no stage 'aling'")]
)
def test_text_tokens_of_nothing_are_refused(
    given: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stop:
        planned(capsys, "llava15", "--text-tokens", given)
    assert message in f"{stop.value}{capsys.readouterr().err}"


def test_a_size_that_is_none_is_refused(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        planned(capsys, "llava_next", "--trace", "640")
    assert "'640' is no size; write width x height" in capsys.readouterr().err


def test_tiny_scale_is_planned_without_a_world(capsys: pytest.CaptureFixture, tmp_path) -> None:
    experiment = REPOSITORY / "experiments" / "llava_next.yaml"
    none = [f"--{key}.root={tmp_path / 'none'}" for key in ("tiny_world", "paths")]
    plan.main(["-c", str(experiment), *none, "--trace", "--format=md"])
    assert "| 1,944 |" not in capsys.readouterr().out and not (tmp_path / "none").exists()


def test_a_preference_stage_says_what_a_reference_in_memory_would_take(
    capsys: pytest.CaptureFixture,
) -> None:
    size = str(REPOSITORY / "configs" / "size" / "video_72b.yaml")
    said = planned(capsys, "llava_next_video_dpo", "-c", size)
    (found,) = re.findall(r"GiB more with a reference in memory +\| +([\d,.]+) \|", said)
    assert float(found) == round(4 * LMS["qwen15_72b_chat"] / 2**30, 1)


def test_of_an_lm_with_adapters_the_adapters_alone_have_moments(
    capsys: pytest.CaptureFixture,
) -> None:
    said = planned(capsys, "llava15", "-c", str(REPOSITORY / "configs" / "stage" / "lora.yaml"))
    adapters = 32 * (4 * (4096 + 4096) + 3 * (4096 + 11008)) * 128  # q k v o, gate up down
    connector = parameters(said)["connector"]
    assert f"16 x {adapters + connector:,} trained" in said
    assert f"4 x {LMS['vicuna_7b_v15']:,} x" in said  # no gradients of its own weights


def test_a_plan_for_scripts_has_numbers(capsys: pytest.CaptureFixture) -> None:
    files = (f"{REPOSITORY}/experiments/llava15.yaml", f"{REPOSITORY}/configs/scale/paper.yaml")
    plan.main(["-c", files[0], "-c", files[1], "--trace=640x480", "--format=json"])
    parts, align, *_, trace = json.loads(capsys.readouterr().out)
    assert (parts["table"], align["table"], trace["table"]) == ("parts", "plan", "trace")
    sizes = {row["part"]: row["parameters"] for row in parts["rows"]}
    assert sizes["llm"] == LMS["vicuna_7b_v15"] and sizes["all"] > sizes["llm"]
    values = {row["what"]: row["value"] for row in align["rows"]}
    assert values["visual tokens"] == 576 and values["FLOPs of a row"] > 1e12
    assert isinstance(values["A100-hours"], float)
    assert trace["rows"][0]["visual tokens"] == 576
