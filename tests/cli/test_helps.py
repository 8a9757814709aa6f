"""Help says what works: every flag, its default, and the classes that a configuration may name."""

import subprocess
import sys
from argparse import SUPPRESS, ArgumentParser
from pathlib import Path

import pytest

from llava_lab.__main__ import LIGHTNING, TOOLS, main

MAKE = [["make", what] for what in ("captions", "instruct", "mix", "distinct")]
VERBS = [*([verb] for verb in (*LIGHTNING, *TOOLS)), *MAKE]


def parser_of(verb: list[str], monkeypatch: pytest.MonkeyPatch) -> ArgumentParser:
    """The parser that prints the help of a verb."""
    found: list[ArgumentParser] = []
    monkeypatch.setattr(ArgumentParser, "print_help", lambda parser, _=None: found.append(parser))
    with pytest.raises(SystemExit) as stop:
        main([*verb, "--help"])
    assert stop.value.code == 0
    return found[0]


def said(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """What is printed, in one line, by a command that ends."""
    with pytest.raises(SystemExit):
        main([*arguments])
    return " ".join("".join(capsys.readouterr()).split())


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_flag_has_a_text_and_says_its_default_once(
    verb: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = parser_of(verb, monkeypatch)
    assert [each.dest for each in parser._actions if not each.help] == []
    for action in parser._actions:
        text = parser._get_formatter()._get_help_string(action) or ""
        empty = action.default in (None, []) or action.default is False
        has = not empty and action.default != SUPPRESS
        assert ("%(default)s" in text) == has and not (has and "by default" in text), text


@pytest.mark.parametrize(
    ("verb", "defaults"),
    [
        ("prefer", ["(default: 1.0)", "(default: 128)", "(default: 8)", "(default: 4)"]),
        ("plan", ["(default: 640x480)", "(default: 0.3)", "(default: 80)"]),
        ("caption", ["(default: 32)", "(default: 256)", "(default: 0/1)"]),
        ("report", ["the page (default: report.html)", "--results has to name a folder"]),
    ],
)
def test_defaults_are_read_by_people(
    verb: str, defaults: list[str], capsys: pytest.CaptureFixture
) -> None:
    found = said(capsys, verb, "--help")
    assert [each for each in defaults if each not in found] == []


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict", "plan", "check", "sweep"])
def test_all_options_are_printed_by_verbs_that_say_so(
    verb: str, capsys: pytest.CaptureFixture
) -> None:
    assert ("--print_config" in said(capsys, verb, "--help")) == (verb in LIGHTNING)


def test_the_main_help_names_what_report_takes(capsys: pytest.CaptureFixture) -> None:
    main(["--help"])
    assert "report [RUN ...]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("MLP", ["Number of linear layers"]),
        ("trainer", ["--max_steps", "bf16-true"]),
        ("tiny_world", ["--train_images"]),
        ("paths", ["--instruct_images"]),
        ("stages", ["contrastive.SigmoidContrast", "kto.KTO", "preference.DPO", "PhraseData"]),
        ("model", ["ClipEncoder", "resampler.Resampler"]),
        ("Benchmark", ["paired.PairedYesNo", "captions.Captions", "wups.Wups"]),
    ],
)
def test_class_help_lists_all_classes_and_nothing_that_fails(
    name: str, words: list[str], capsys: pytest.CaptureFixture
) -> None:
    found = said(capsys, "fit", f"--{name}.help")
    assert [word for word in words if word not in found.replace("llava _lab", "llava_lab")] == []
    assert ".help" not in found


@pytest.mark.parametrize("name", ["loss", "model.connector", "stages.instruct", "not.a.Class"])
def test_another_help_is_refused_with_those_that_there_are(
    name: str, capsys: pytest.CaptureFixture
) -> None:
    found = said(capsys, "fit", f"--{name}.help")
    assert found.startswith(f"error: --{name}.help: there is no such help. There are --model.help")
    assert "--trainer.help" in found and "--MLP.help" in found
    takes = said(capsys, "fit", "--data.help", "ImageDataModule")
    assert takes.startswith("error: --data.help takes no value; --ImageDataModule.help has what")


@pytest.mark.parametrize("module", ["photos", "writer", "annotations"])
@pytest.mark.parametrize("argument", ["--help", "-x"])
def test_modules_of_the_tiny_world_take_no_flag_for_a_folder(
    module: str, argument: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", f"llava_lab.tiny_world.{module}", argument]
    command += ["-y"] if module == "annotations" else []
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    printed = done.stdout + done.stderr
    assert done.returncode == (0 if argument == "--help" else 2)
    assert printed.startswith("usage: ") and f"llava_lab.tiny_world.{module}" in printed
    assert not list(tmp_path.iterdir())
