"""Every experiment is parsed at every scale and fitted for two steps at the tiny one."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from conftest import REPOSITORY, stage_options
from safetensors.torch import load_file

from llava_lab.__main__ import main
from llava_lab.cli import fit as cli
from llava_lab.convert.load import load_model
from llava_lab.experiment.compose import differences
from llava_lab.experiment.experiment import Experiment
from llava_lab.tiny_world import photos

EXPERIMENTS = sorted((REPOSITORY / "experiments").glob("*.yaml"))
VERSIONS = [path for path in EXPERIMENTS if path.stem != "tiny_parts"]
SCALES = sorted((REPOSITORY / "configs" / "scale").glob("*.yaml"))


def results(folder: Path) -> dict:
    (path,) = folder.glob("runs/*/*/results.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("scale", SCALES, ids=lambda path: path.stem)
@pytest.mark.parametrize("experiment", VERSIONS, ids=lambda path: path.stem)
def test_is_parsed(experiment: Path, scale: Path, capsys: pytest.CaptureFixture) -> None:
    cli.main(["fit", "-c", str(experiment), "-c", str(scale), "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["scale"] == scale.stem
    assert list(config["stages"])[:2] == ["align", "instruct"]


def test_what_is_made_up_is_asked_before_and_after_the_preferences(capsys) -> None:
    asked = []
    for name in ("llava_next_video", "llava_next_video_dpo"):
        cli.main(["fit", "-c", f"{REPOSITORY}/experiments/{name}.yaml", "--print_config"])
        out = capsys.readouterr().out
        config = yaml.safe_load(out)
        asked.append(config["data"])
    assert asked[0] == asked[1]
    names = [each["name"] for each in asked[0]["benchmarks"]]
    assert names == ["questions", "held_out", "presence", "descriptions"]


@pytest.mark.parametrize("experiment", VERSIONS, ids=lambda path: path.stem)
def test_is_fitted(experiment: Path, shortened: list[str], tmp_path: Path) -> None:
    cli.main(["fit", "-c", str(experiment), *shortened, *stage_options(experiment, tmp_path)])
    found = results(tmp_path)
    assert found["experiment"] == experiment.stem
    assert found["scale"] == "tiny"
    stages = Experiment.read(experiment).config["stages"]
    assert [stage["steps"] for stage in found["stages"]] == [2] * len(stages)
    assert found["stages"][-1]["held_out"]["loss"] > 0
    scores = found["benchmarks"]["questions"]
    for name in ("accuracy", "blind_accuracy", "accuracy/count"):
        assert 0 <= scores[name]["value"] <= 1
        assert scores[name]["n"] > 0
    assert found["cost"]["trainable_parameters"] < found["cost"]["parameters"]
    (predictions,) = tmp_path.glob("runs/*/*/predictions/questions.jsonl")
    lines = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert len(lines) == scores["accuracy"]["n"]
    assert sum(line["correct"] for line in lines) / len(lines) == scores["accuracy"]["value"]


def test_stages_change_only_what_they_train(shortened: list[str], tmp_path: Path) -> None:
    experiment = REPOSITORY / "experiments" / "llava15.yaml"
    cli.main(["fit", "-c", str(experiment), *shortened, *stage_options(experiment, tmp_path)])
    align, instruct = (
        load_file(next(tmp_path.glob(f"runs/*/*/stages/{stage}/weights.safetensors")))
        for stage in ("align", "instruct")
    )
    assert {name.split(".")[0] for name in align} == {"connector"}
    assert {name.split(".")[0] for name in instruct} == {"connector", "llm"}
    assert not torch.equal(align["connector.0.weight"], instruct["connector.0.weight"])


def test_answer_says_of_a_run_what_its_evaluation_did(
    shortened: list[str], small_world: Path, tmp_path: Path
) -> None:
    experiment = REPOSITORY / "experiments" / "llava15.yaml"
    cli.main(["fit", "-c", str(experiment), *shortened, *stage_options(experiment, tmp_path)])
    (predictions,) = tmp_path.glob("runs/*/*/predictions/questions.jsonl")
    predicted = [json.loads(line) for line in predictions.read_text().splitlines()]
    (questions,) = small_world.rglob("questions.jsonl")
    run, out = predictions.parents[1], tmp_path / "answers.jsonl"
    arguments = ["--images", str(small_world / "images"), "--max-new-tokens", "3"]
    main(["answer", str(run), str(questions), "--out", str(out), *arguments])
    said = {str(row["question_id"]): row["text"] for row in map(json.loads, out.open())}
    assert said == {str(row["id"]): row["prediction"] for row in predicted}


def test_a_second_experiment_reuses_what_it_shares(
    shortened: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    experiment = REPOSITORY / "experiments" / "llava15.yaml"
    command = ["fit", "-c", str(experiment), *shortened, *stage_options(experiment, tmp_path)]
    cli.main(command)
    capsys.readouterr()
    cli.main([*command, "--stages.instruct.lr.llm=5e-4"])
    said = capsys.readouterr().out
    assert "stage align: finished in" in said
    assert "stage instruct: training" in said
    found = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/*/results.json")]
    reused = sorted(tuple(stage["reused"] for stage in each["stages"]) for each in found)
    assert reused == [(False, False), (True, False)]


def test_what_decides_a_stages_outcome_decides_whether_it_is_reused(
    shortened: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    first = REPOSITORY / "experiments" / "llava15.yaml"
    options = [*shortened, *stage_options(first, tmp_path)]
    cli.main(["fit", "-c", str(first), *options])

    def said(experiment: str, *more: str) -> list[bool]:
        capsys.readouterr()
        path = REPOSITORY / "experiments" / f"{experiment}.yaml"
        cli.main(["fit", "-c", str(path), *options, *more, "--dry_run"])
        lines = [line for line in capsys.readouterr().out.splitlines() if ": stage" in line]
        return ["reused" in line for line in lines]

    assert said("llava15") == [True, True]
    assert said("llava_next") == [True, False]
    for change in (
        "model.llm.max_length=1000",
        "model.encoder.layer=-1",
        "seed_everything=1",
    ):
        assert said("llava15", f"--{change}") == [False, False], change
    # The first stage has a template of its own, so that LMs of other templates share it.
    assert said("llava15", "--model.llm.template=v0") == [True, False]
    assert said("llava_next_qwen15_72b") == [True, False]
    assert said("llava15", "--stages.instruct.data.num_workers=2") == [True, True]


def test_an_encoder_that_trains_is_not_stored(shortened: list[str], tmp_path: Path) -> None:
    experiment = REPOSITORY / "experiments" / "llava_next.yaml"
    options = [*shortened, *stage_options(experiment, tmp_path)]
    cli.main(["fit", "-c", str(experiment), *options, "--stages.instruct.frozen=[]"])
    assert len(list((tmp_path / "features").iterdir())) == 1  # the first stage's
    (path,) = tmp_path.glob("runs/*/*/stages/instruct/weights.safetensors")
    parts = {name.split(".")[0] for name in load_file(path)}
    assert parts == {"encoder", "connector", "llm", "newline"}


def test_the_parts_of_the_tiny_scale_are_fitted(
    shortened: list[str], small_world: Path, tmp_path: Path
) -> None:
    experiment = REPOSITORY / "experiments" / "tiny_parts.yaml"
    options = [
        *("fit", "-c", str(experiment), *shortened, *stage_options(experiment, tmp_path)),
        "--model.llm.tokenizer=asset:tokenizer",
    ]
    cli.main(options)
    found = results(tmp_path)
    names = [stage["name"] for stage in found["stages"]]
    assert names == ["contrast", "lists", "facts", "language", "length"]
    assert all(stage["loss_last"] > 0 for stage in found["stages"])


def test_the_versions_differ_only_in_what_the_papers_changed() -> None:
    """LLaVA-1.5 changed resolution, connector, LM, data, views, prompts, batches and one rate.

    Its DeepSpeed files clip no gradients, and its scripts ask with the picture first, greedily.
    """
    paper = REPOSITORY / "configs" / "scale" / "paper.yaml"
    ours = [
        Experiment.read(REPOSITORY / "experiments" / f"{name}.yaml", paper).config
        for name in ("llava10", "llava15")
    ]
    differing = {key for key, _, _ in differences(*ours)}
    data = "stages.{}.data."
    parts = {key for key in differing if key.startswith(("model.encoder.", "model.llm."))}
    assert {"model.encoder.config.image_size", "model.llm.template"} <= parts
    assert differing - parts == {
        "experiment",
        "resolution",
        "paths.align",
        "paths.align_images",
        "paths.instruct",
        "paths.instruct_images",
        "model.connector.class_path",
        "model.connector.depth",
        "stages.align.lr.connector",
        data.format("align") + "sources[0].path",
        data.format("align") + "sources[0].images",
        data.format("align") + "template",
        data.format("align") + "image_position",
        data.format("align") + "batch_size",
        data.format("align") + "micro_batch_size",
        data.format("instruct") + "sources[0].path",
        data.format("instruct") + "sources[0].images",
        data.format("instruct") + "views.class_path",
        data.format("instruct") + "views.resize",
        data.format("instruct") + "image_position",
        data.format("instruct") + "batch_size",
        data.format("instruct") + "micro_batch_size",
        data.format("instruct") + "epochs",
        data.format("instruct") + "group_by_modality",
        "data.views.class_path",
        "data.views.resize",
        "data.image_position",
        "data.max_new_tokens",
        "data.temperature",
        "trainer.gradient_clip_val",
    }


def test_a_finished_run_is_tested_validated_and_predicted_again(
    shortened: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    experiment = REPOSITORY / "experiments" / "llava15.yaml"
    options = ["-c", str(experiment), *shortened, *stage_options(experiment, tmp_path)]
    with pytest.raises(SystemExit, match=r"stage align is not finished\. Run fit"):
        cli.main(["test", *options])
    cli.main(["fit", *options])
    before = results(tmp_path)
    cli.main(["test", *options])
    after = results(tmp_path)
    assert after["benchmarks"] == before["benchmarks"]
    (run,) = tmp_path.glob("runs/[!.]*/*")
    scored = (run / "predictions" / "questions.jsonl").read_text()
    cli.main(["predict", *options])
    lines = (run / "predictions" / "questions.jsonl").read_text().splitlines()
    assert [json.loads(line)["prediction"] for line in lines] == [
        json.loads(line)["prediction"] for line in scored.splitlines()
    ]
    cli.main(["validate", *options])
    assert "held-out loss of stage instruct: " in capsys.readouterr().out


def test_a_stage_that_began_with_another_one_is_not_read_behind_it(
    shortened: list[str], small_world: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "align.json"
    rows.write_text(next(small_world.rglob("blip_laion_cc_sbu_558k.json")).read_text())
    experiment = REPOSITORY / "experiments" / "llava15.yaml"
    options = ["-c", str(experiment), *shortened, *stage_options(experiment, tmp_path)]
    options.append(f"--paths.align={rows}")
    cli.main(["fit", *options])
    rows.write_text(rows.read_text().replace("a ", "one ", 1))
    cli.main(["fit", *options, "--stage=align"])  # as a fit that was killed behind it
    message = "stage instruct began with another stage than the one that stands before it"
    with pytest.raises(SystemExit, match=message):
        cli.main(["test", *options])
    (run,) = tmp_path.glob("runs/llava15/*")
    with pytest.raises(ValueError, match=message):
        load_model(run)


def test_a_runs_own_configuration_is_the_same_run(
    shortened: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    experiment = REPOSITORY / "experiments" / "llava15.yaml"
    cli.main(["fit", "-c", str(experiment), *shortened, *stage_options(experiment, tmp_path)])
    (config,) = tmp_path.glob("runs/*/*/config.yaml")
    capsys.readouterr()
    cli.main(["fit", "-c", str(config), f"--runs={tmp_path / 'runs'}"])
    said = capsys.readouterr().out
    assert "finished before" in said
    assert ": training\n" not in said
    assert len(list(tmp_path.glob("runs/[!.]*/*"))) == 1


def test_photographs_of_others_train_and_are_asked_about_by_two_paths(
    shortened: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("skimage", reason="scikit-image brings the photographs")
    photos.main(tmp_path / "photos")
    experiment = REPOSITORY / "experiments" / "llava15.yaml"
    options = [
        f"--paths.instruct={tmp_path / 'photos' / 'rows.json'}",
        f"--paths.instruct_images={tmp_path / 'photos' / 'images'}",
    ]
    command = ["fit", "-c", str(experiment), *shortened, *stage_options(experiment, tmp_path)]
    cli.main([*command, *options])
    scores = results(tmp_path)["benchmarks"]["held_out"]
    assert scores["accuracy"]["n"] >= 3
    (predictions,) = tmp_path.glob("runs/*/*/predictions/held_out.jsonl")
    asked = {json.loads(line)["question"] for line in predictions.read_text().splitlines()}
    assert any("Describe the picture briefly." in question for question in asked)


def test_every_stage_with_a_frozen_encoder_reads_stored_features(
    shortened: list[str], tmp_path: Path
) -> None:
    experiment = REPOSITORY / "experiments" / "llava15.yaml"
    command = ["fit", "-c", str(experiment), *shortened, *stage_options(experiment, tmp_path)]
    cli.main([*command, "--stage=align"])
    assert len(list((tmp_path / "features").iterdir())) == 1
    cli.main(command)
    assert len(list((tmp_path / "features").iterdir())) == 2  # Square, then Pad
