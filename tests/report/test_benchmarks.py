"""What `benchmark --list` says of the published benchmarks."""

import pytest
import yaml
from conftest import REPOSITORY

from llava_lab.__main__ import main
from llava_lab.report.benchmarks import asked_otherwise, benchmark_grids, listed
from llava_lab.report.published import PAPER, columns


def test_each_benchmark_says_where_it_is_from_and_has_published_numbers_of_ours() -> None:
    without = {
        each.name
        for each in listed()
        if not any(row[0] == each.name for row in benchmark_grids([each])[2].rows)
    }
    # Videos, and sets that no table of our versions has.
    assert {name for name in without if "qa" in name and "hub" not in name} <= {
        *("vqav2_val", "vizwiz_val", "textvqa_no_ocr", "okvqa", "infovqa"),
        *("nextqa_mc", "nextqa_oe_test", "scienceqa_qcm_lea"),
        *("msvd_qa", "msrvtt_qa", "tgif_qa", "activitynet_qa"),
    }
    assert not {"mme", "pope", "gqa", "mmbench", "mmmu", "scienceqa", "docvqa"} & without
    assert all(each.title and each.notes for each in listed())


def test_every_column_that_is_measured_has_its_benchmark() -> None:
    asked = {name for each in listed() for name in each.published_as()}
    assert asked == {each.name for each in columns(PAPER).values() if each.ours}
    assert {"DocVQA"} == set(listed(["docvqa"])[0].published_as())


def test_a_judged_column_names_the_judge_of_its_benchmark() -> None:
    known, judged = columns(PAPER), {}
    for each in listed():
        metric = each.options["metric"]
        judge = metric.get("judge") if isinstance(metric, dict) else None
        for name in each.published_as():
            judged[name] = (known[name].ours or {}).get("judge")
            default = f"${{oc.env:JUDGE_MODEL,{judged[name]}}}" if judge else None
            assert default == (judge and judge["model"]), name
    assert judged["VDD"] == judged["MSVD"] == "gpt-3.5-turbo-0613"
    assert judged["GQA"] is None


def test_the_list_has_files_prompts_and_published_numbers(capsys: pytest.CaptureFixture) -> None:
    main(["benchmark", "--list", "mme", "vizwiz_val", "--format", "csv"])
    text = capsys.readouterr().out
    assert "mme,mme,PairedYesNo,128," in text
    assert "respond with 'Unanswerable'" in text
    assert "$LLAVA_DATA/eval/MME/llava_mme.jsonl" in text and "2,374 questions" in text
    assert "mme,MME,LLaVA-1.5-7B,1510.7,points" in text


def test_a_benchmark_that_is_not_there_is_one_message(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["benchmark", "mmes"])
    assert caught.value.code == 2 and "near it are mme" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["benchmark"])
    assert "--list lists all" in capsys.readouterr().err


def test_every_file_can_stand_behind_an_experiment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_URL", "http://127.0.0.1:1")
    files = sorted((REPOSITORY / "configs" / "benchmarks").rglob("*.yaml"))
    more = [file for file in files if "benchmarks+" in file.read_text("utf-8")]
    options = [part for file in more for part in ("-c", str(file))]
    experiment = REPOSITORY / "experiments" / "llava_next_video.yaml"
    main(["fit", "-c", str(experiment), *options, "--print_config"])
    asked = yaml.safe_load(capsys.readouterr().out.partition("\n")[2])["data"]["benchmarks"]
    assert {each["name"] for each in asked} >= {each.name for each in listed()}
    # A run's configuration is that of the file, so that its scores stand beside published ones.
    found = {each["name"]: each for each in asked}
    for each in listed():
        for column in columns(PAPER).values():
            if column.asked_by(each.options):
                assert asked_otherwise(column, found[each.name]) is None, each.name


def test_files_of_benchmarks_spell_out_every_option() -> None:
    """So that what decides a published number stands in its file."""
    import inspect
    from dataclasses import fields

    from llava_lab.evaluate.metrics.open_ended import OpenEnded
    from llava_lab.evaluate.official import Columns, Labels, Official

    wanted = set(inspect.signature(Official).parameters)
    open_ended = set(inspect.signature(OpenEnded).parameters)
    for path in sorted((REPOSITORY / "configs" / "benchmarks").rglob("*.yaml")):
        for given in yaml.safe_load(path.read_text("utf-8"))["data"].get("benchmarks+", []):
            if given["class_path"].endswith(".OpenEnded"):
                assert set(given) - {"class_path"} == open_ended, path
            if given["class_path"].endswith(".Official"):
                assert set(given) - {"class_path"} == wanted, path
                assert set(given["columns"]) == {each.name for each in fields(Columns)}, path
                labels = given["labels"] or {each.name: None for each in fields(Labels)}
                assert set(labels) == {each.name for each in fields(Labels)}, path
