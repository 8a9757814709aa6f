"""Mistakes on the command line end in one message that names what is wrong and the way out."""

import json
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY

from llava_lab.__main__ import main
from llava_lab.cli import fit as cli

LLAVA15 = str(REPOSITORY / "experiments" / "llava15.yaml")


def refused(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", *arguments])
    said = capsys.readouterr().err if isinstance(stop.value.code, int) else str(stop.value.code)
    assert stop.value.code not in (0, None)
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("argument", "messages"),
    [
        ("--trainer.max_step=1", ["max_step", "did you mean 'max_steps'?"]),
        ("--modell.connector=Linear", ["modell", "did you mean 'model'?"]),
        ("--model.connector.dept=3", ["dept", "did you mean 'depth'?"]),
        ("--model.encoder.layr=-1", ["layr"]),
        ("--model.encoder=NoSuchEncoder", ["NoSuchEncoder"]),
        ("--stages.align.data.batch_size=many", ["batch_size", "many"]),
        ("--stages.align.schedule=cosin", ["schedule", "cosin"]),
        ("--stages.align.lr.vision=1e-3", ["unknown part 'vision'", "connector"]),
        ("--stages.align.data.template=v7", ["v7"]),
        ("--paths.questions=[${paths.root}}]", ["--paths.questions", "quote what refers"]),
        ("--stages.align.data.micro_batch_size=0", ["stages.align.data", "micro_batch_size", "0"]),
        ("--stages.align.data.batch_size=-8", ["stages.align.data", "batch_size", "-8"]),
        ("--stages.align.trainer.max_stepz=1", ["stages.align.trainer", "max_stepz"]),
        ("--paths.align=/nowhere/chat.json", ["/nowhere/chat.json"]),
        ("--stage=algin", ["algin", "align"]),
    ],
)
def test_one_message(
    argument: str, messages: list[str], shortened: list[str], capsys: pytest.CaptureFixture
) -> None:
    said = refused(capsys, "-c", LLAVA15, *shortened, argument)
    for message in messages:
        assert message in said
    assert said.count("\n") < 15


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--model.newline=false", "views AnyRes ends rows with a newline; set model.newline=true"),
        (
            "--stages.instruct.data.views=llava_lab.data.views.pad.Pad",
            "stages.instruct.data: views is Pad; AnyResDataModule takes",
        ),
        ("--stages.instruct.data.views.grids=2by2", "grids '2by2': expected such as"),
        ("--stages.instruct.data.views.grids=[[336,672]]", "no multiple of the encoder's 96 px"),
    ],
)
def test_tiles_that_cannot_be_are_refused(
    argument: str,
    message: str,
    shortened: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    experiment = str(REPOSITORY / "experiments" / "llava_next.yaml")
    lr = "--stages.instruct.lr.newline=null"
    assert message in refused(capsys, "-c", experiment, *shortened, lr, argument)
    assert not (tmp_path / "runs").exists(), "refused before any stage is trained"


def test_all_rows_that_a_template_cannot_write_are_refused_before_training(
    shortened: list[str], small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = json.loads((small_world / "llava_v1_5_mix665k.json").read_text())
    for index in (3, 8):
        rows[index]["conversations"][1]["value"] += "</s>"
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    said = refused(capsys, "-c", LLAVA15, *shortened, f"--paths.instruct={tmp_path / 'rows.json'}")
    assert f"2 of {len(rows)} rows cannot be trained on" in said
    assert "row 4" in said and "row 9" in said and "'</s>'" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("${", "paths.align: no viable alternative"),
        ("${a b}", "paths.align: token recognition error"),
        ("${not.there}", "paths.align: ${not.there}: there is no option 'not.there'"),
        ("${oc.env:NOT_THERE}", "paths.align: KeyError raised while resolving"),
        ("${sevenths:many}", "paths.align: ValueError raised while resolving"),
    ],
)
def test_a_reference_that_leads_nowhere_is_one_line(
    value: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    said = refused(capsys, "-c", LLAVA15, f"--paths.align={value}")
    assert message in said and said.strip().endswith("${its.name}") and "fit." not in message


def test_what_is_nested_too_deeply_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text(f"paths: {'[' * 3000}{']' * 3000}")
    assert f"{path}: not YAML: nested too deeply" in refused(capsys, "-c", LLAVA15, "-c", str(path))


@pytest.mark.parametrize("below", ["", "/deeper"])
def test_a_file_where_runs_belong_is_named(
    below: str, shortened: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "file"
    path.write_text("no folder")
    said = refused(capsys, "-c", LLAVA15, *shortened, f"--runs={path}{below}")
    assert f"error: {path} is a file where a folder belongs" in said and path.read_text()


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture) -> None:
    assert "nope.yaml" in refused(capsys, "-c", "nope.yaml")


def test_a_broken_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: {encoder: [")
    assert "broken.yaml" in refused(capsys, "-c", str(broken))


def test_an_unknown_verb_is_refused() -> None:
    with pytest.raises(SystemExit, match="did you mean 'fit'"):
        main(["fitt"])


def test_help_comes_without_torch() -> None:
    code = (
        "import sys; from llava_lab.__main__ import main; main(['--help']); "
        "print('torch' in sys.modules)"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n"), f"torch was imported, {time.monotonic() - began:.1f} s"
    assert "fit -c EXPERIMENT" in done.stdout


def printed(capsys: pytest.CaptureFixture, *arguments: str) -> dict:
    cli.main(["fit", "-c", LLAVA15, *arguments, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


def test_an_option_may_refer_to_another(capsys: pytest.CaptureFixture) -> None:
    sources = '[{path: "${paths.root}/a.json", images: "${paths.align_images}"}]'
    found = printed(
        capsys,
        f"--stages.instruct.data.sources={sources}",
        "--resolution",
        "${data.max_new_tokens}",
        "--data.max_new_tokens=42",
        "--paths.root=elsewhere",
    )
    (source,) = found["stages"]["instruct"]["data"]["sources"]
    assert source["path"] == "elsewhere/a.json"
    assert source["images"] == "elsewhere/images" and found["resolution"] == 42


def test_a_swapped_class_takes_nothing_of_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    overlay = tmp_path / "clip.yaml"
    overlay.write_text(
        "scale: own\nmodel: {encoder: {class_path: llava_lab.model.encoder.timm.TimmEncoder, "
        "init_args: {name: vit_tiny_patch16_224}}}\n"
    )
    encoder = printed(capsys, "-c", str(overlay))["model"]["encoder"]
    assert encoder["class_path"].endswith("TimmEncoder")
    assert encoder["name"] == "vit_tiny_patch16_224"  # not CLIP's
    encoder = printed(capsys, "--model.encoder=ClipEncoder")["model"]["encoder"]
    assert encoder["class_path"].endswith("ClipEncoder")
    assert encoder.get("name") is None  # not the tiny scale's
    assert encoder["pretrained"] is True  # ClipEncoder's own default


def test_a_list_replaces_the_one_before_it_and_nulls_stay_null(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    overlay = tmp_path / "mine.yaml"
    overlay.write_text(
        "stages: {instruct: {data: {sources: [{path: a.json, sampling: 'first:1'}]}}}"
    )
    key = "--stages.instruct.data.sources"
    for options in (
        ("-c", str(overlay)),
        (f"{key}=[{{path: a.json, sampling: 'first:1'}}]",),
        (f"{key}=[{{path: a.json, images: null, sampling: 'first:1'}}]",),
    ):
        data = printed(capsys, *options)["stages"]["instruct"]["data"]
        (source,) = data["sources"]
        assert (source["path"], source["images"], source["sampling"]) == ("a.json", None, "first:1")
    two = "[{path: a.json, images: x}, {path: b.json, images: null}]"
    options = (f"{key}={two}", "--stages.align.data.feature_store=null")
    stages = printed(capsys, *options, "--stages.align.trainer={profiler: null}")["stages"]
    sources = stages["instruct"]["data"]["sources"]
    assert [source["images"] for source in sources] == ["x", None]
    assert stages["align"]["data"]["feature_store"] is None
    assert stages["align"]["trainer"] == {"profiler": None}
    # One option of an entry changes that entry alone.
    (source,) = printed(capsys, "-c", str(overlay), f"{key}.0.sampling=all")["stages"]["instruct"][
        "data"
    ]["sources"]
    assert (source["path"], source["sampling"]) == ("a.json", "all")


def test_interpolation_is_resolved_after_all_files_and_options(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = printed(capsys, "--resolution=224", "--paths.root=elsewhere")
    assert config["model"]["encoder"]["image_size"] == 64
    assert config["paths"]["align"].startswith("elsewhere/")
    source = config["stages"]["align"]["data"]["sources"][0]
    assert source["images"] == "elsewhere/images"


def test_an_experiment_without_a_scale_gets_the_tiny_one(capsys: pytest.CaptureFixture) -> None:
    assert printed(capsys)["scale"] == "tiny"
    paper = str(REPOSITORY / "configs" / "scale" / "paper.yaml")
    assert printed(capsys, "-c", paper)["scale"] == "paper"


def test_a_users_file_stands_above_the_scale(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("stages: {instruct: {lr_scale: 7}}\n")
    for given in (["-c", str(path)], [f"-c{path}"], [f"-c={path}"], [f"--config={path}"]):
        config = printed(capsys, *given)
        assert config["scale"] == "tiny"
        assert config["stages"]["instruct"]["lr_scale"] == 7


def test_files_in_configs_spell_out_every_argument() -> None:
    """So that a swap by file leaves nothing to defaults that a reader cannot see."""
    import importlib
    import inspect

    folders = ("encoder", "lm")
    files = [path for name in folders for path in (REPOSITORY / "configs" / name).glob("*.yaml")]
    assert files
    for path in files:
        config = yaml.safe_load(path.read_text())
        module, name = config["class_path"].rsplit(".", 1)
        wanted = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        # Kernels are the machine's choice, which a swap of the LM leaves as it is.
        assert set(config) - {"class_path"} == set(wanted) - {"kernels"}, path


def test_help_of_a_class_has_its_arguments(capsys: pytest.CaptureFixture) -> None:
    for name, words in (
        ("llava_lab.model.connector.mlp.MLP", "Number of linear layers"),
        ("stages", "What is minimised"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["fit", f"--{name}.help"])
        assert words in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("arguments", [["--model.connector.depth"], ["-c"], ["--runs"]])
def test_an_option_without_its_value_is_one_message(
    arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    said = refused(capsys, *arguments)
    assert arguments[0] in said


def test_nothing_of_lightnings_own_is_said(tmp_path: Path) -> None:
    options = [f"--tiny_world.root={tmp_path / 'world'}", f"--paths.root={tmp_path / 'world'}"]
    options += ["--tiny_world.train_images=24", "--tiny_world.eval_images=4"]
    command = [sys.executable, "-m", "llava_lab", "fit", "-c", LLAVA15, "--dry-run", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "GPU available" not in done.stdout + done.stderr
    assert all(line.startswith("llava_lab: ") for line in done.stdout.splitlines()), done.stdout


def test_a_fresh_fit_says_that_it_begins_anew_when_it_is_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(cli, "say", said.append)
    fitting: Any = SimpleNamespace(fit=lambda last: said.append(f"fitted to {last}"))
    for fresh in (True, False):
        cli.fit(fitting, Namespace(dry_run=False, fresh=fresh, stage="align"))
    assert said == [f"--fresh: {cli.FRESH}", *["fitted to align"] * 2]
