"""What a run's options do not do beside one another is said when it starts, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import LLAMA, REPOSITORY, stage_options

from llava_lab.cli import fit as cli
from llava_lab.experiment.experiment import Experiment
from llava_lab.experiment.idle import say_idle
from llava_lab.model.llm import CausalLM
from llava_lab.report.plan import unloaded

LLAVA15 = REPOSITORY / "experiments" / "llava15.yaml"
FROZEN = "stage instruct: lr.encoder does nothing: encoder is frozen; stages.instruct.frozen=[] "


def experiment(name: str, shortened: list[str], *more: str) -> Experiment:
    """An experiment in the small world."""
    options = [each.removeprefix("--") for each in shortened if not each.startswith("--runs=")]
    file = REPOSITORY / "experiments" / f"{name}.yaml"
    return Experiment.read_layers([file, *options, *more])


@pytest.fixture
def said(shortened: list[str], capsys: pytest.CaptureFixture) -> Any:
    """What is said of options that an experiment is given."""

    def lines(name: str, *more: str) -> list[str]:
        found = experiment(name, shortened, *more)
        parts = found.build()
        capsys.readouterr()
        say_idle(found.options, parts, parts.stages)
        return capsys.readouterr().out.splitlines()

    return lines


def test_what_is_shipped_says_what_its_scale_freezes_and_no_more(said: Any) -> None:
    for name in ("llava10", "llava15", "llava15_hd", "llava_next_video_dpo"):
        assert said(name) == [], name
    (line,) = said("llava_next")
    assert line == f"llava_lab: {FROZEN}trains it"


def test_a_newline_that_no_views_end_a_row_with_is_said(said: Any) -> None:
    assert said("llava15", "model.newline=true") == [
        "llava_lab: model.newline: does nothing, as views there end no row with a newline"
    ]
    (line,) = said("llava15", "model.newline=true", "stages.instruct.lr.newline=1e-5")
    assert "model.newline and stages.instruct.lr.newline: does nothing" in line
    (line,) = said("llava15_hd", "stages.align.lr.newline=1e-5")
    assert "llava_lab: stages.align.lr.newline: does nothing" in line


def test_whose_the_weights_are_is_said_whatever_pretrained_says(said: Any, tmp_path: Path) -> None:
    for part in ("llm", "encoder"):
        (line,) = said("llava15", f"model.{part}.pretrained=true")
        assert f"llava_lab: model.{part}: the weights are those of asset:{part}" in line
        assert line.endswith(f"set model.{part}.weights=null model.{part}.pretrained=false")
    assert said("llava15", "model.llm.weights=null") == []


def test_what_is_asked_otherwise_than_it_is_trained_is_said(said: Any) -> None:
    first, second = said(
        "llava15",
        "stages.instruct.data.template=llava_v1",
        "stages.instruct.data.image_position=last",
    )
    assert "stage instruct trains with template llava_v1, and benchmarks are asked with v1" in first
    assert "with image_position last, and benchmarks are asked with first (data.image" in second
    alike = ("data.template=llava_v1", "stages.instruct.data.template=llava_v1")
    assert said("llava15", *alike) == said("llava15", "stages.align.data.template=v1") == []
    assert said("llava15", "stages.instruct.data.template=terse", "data.benchmarks=[]") == []
    alone = ("stages.instruct=null", "data.views=Square", "data.benchmarks.held_out.held_out=0")
    (line,) = said("llava15", *alone)
    assert "stage align trains with template plain, and benchmarks are asked with v1" in line


def test_it_is_said_once_and_before_the_first_step(
    shortened: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = [*shortened, *stage_options(LLAVA15, tmp_path), "--model.newline=true"]
    cli.main(["fit", "-c", str(LLAVA15), *options, "--stage=align"])
    before, line, after = capsys.readouterr().out.partition("model.newline: does nothing")
    assert line and "stage align: training" in after and "does nothing" not in before + after


def test_benchmarks_are_not_asked_in_a_template_without_questions(shortened: list[str]) -> None:
    for option in ("data.template=plain", "model.llm.template=plain"):
        parts = experiment("llava15", shortened, option).build()
        with pytest.raises(ValueError, match=r"template shows .* not what is asked: take one"):
            parts.benchmarks.check(parts.model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["trainer.gradient_clip_val=null"], r"^trainer\.gradient_clip_algorithm: nothing is"),
        (["trainer.gradient_clip_val=0"], r"^trainer\.gradient_clip_algorithm: nothing is clipped"),
        ([], None),
        (
            [
                "trainer.gradient_clip_val=null",
                "stages.align.trainer={gradient_clip_val: 1.0}",
            ],
            None,
        ),
        (
            [
                "trainer.gradient_clip_val=null",
                "trainer.gradient_clip_algorithm=null",
                "stages.align.trainer={gradient_clip_algorithm: value}",
            ],
            r"^stages\.align\.trainer\.gradient_clip_algorithm: .* stages\.align\.trainer\.grad",
        ),
    ],
)
def test_a_way_of_clipping_without_a_norm_to_clip_at_is_refused(
    options: list[str], message: str | None, shortened: list[str]
) -> None:
    given = experiment("llava15", shortened, "trainer.gradient_clip_algorithm=value", *options)
    if message is None:
        given.build()
        return
    with pytest.raises(ValueError, match=message):
        given.build()


def test_an_lm_of_a_folder_is_taken_as_the_refusal_of_its_name_says(
    shortened: list[str], tmp_path: Path
) -> None:
    llm = CausalLM(None, "v1", pretrained=False, config=dict(LLAMA), tokenizer="asset:tokenizer")
    llm.model.save_pretrained(tmp_path / "lm")
    llm.tokenizer.save_pretrained(tmp_path / "lm")
    name = f"model.llm.name={tmp_path / 'lm'}"
    with pytest.raises(ValueError, match=r"model\.llm\.name: nothing of .*") as caught:
        experiment("llava15", shortened, name).build()
    (file,) = [word for word in str(caught.value).split() if word.startswith("model.llm=")]
    whole = [file.rstrip(","), name]
    assert experiment("llava15", shortened, *whole).build().model.llm.width == LLAMA["hidden_size"]
    # A plan draws no weights: the name of an LM that is pretrained is not in vain there.
    stated = [f"model.llm.config={json.dumps(LLAMA)}", "model.llm.tokenizer=asset:tokenizer"]
    unloaded(experiment("llava15", shortened, *whole, *stated)).build()
