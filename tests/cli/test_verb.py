"""Flags have one documented spelling each; a verb ends with one message, whatever goes wrong."""

import errno
import importlib
import io
import os
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser as ConfigParser

from llava_lab.__main__ import main
from llava_lab.cli import verb
from llava_lab.cli.verb import Stop, add_flag, one_message
from llava_lab.core import atomic as disk

ROOT = Path(__file__).resolve().parents[2]
VERBS = ("answer", "caption", "chat", "export", "import_", "prefer")


def parser_of(verb: str) -> ArgumentParser:
    return importlib.import_module(f"llava_lab.cli.{verb}").parser()


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_is_read_with_underscores_and_shown_with_dashes(verb: str) -> None:
    parser = parser_of(verb)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    assert flags and not any("_" in flag for flag in flags)
    dashed = {flag for flag in flags if "-" in flag[2:]}
    for flag in dashed:
        (action,) = [each for each in parser._actions if flag in each.option_strings]
        other = "--" + flag[2:].replace("-", "_")
        assert parser._option_string_actions[other] is action
        assert other not in parser.format_help()


@pytest.mark.parametrize("kind", [ArgumentParser, ConfigParser])
def test_both_spellings_of_a_flag_mean_the_same(kind: Any) -> None:
    parser = kind()
    add_flag(parser, "--dry-run", action="store_true")
    add_flag(parser, "--image-size", type=int, default=1)
    for arguments in (["--dry-run", "--image-size=3"], ["--dry_run", "--image_size", "3"]):
        found = parser.parse_args(arguments)
        assert found.dry_run is True and found.image_size == 3
    assert parser.parse_args([]).image_size == 1
    assert "_run" not in parser.format_help() and "--dry-run" in parser.format_help()


ANSWER = ["answer", "m", "q.jsonl", "--out=a.jsonl"]
ENGINE = [*ANSWER, "--engine-url=http://127.0.0.1:1/v1"]
CAPTION = ["caption", "folder", "--out=a.json", "--model=m"]
PREFER = ["prefer", "m", "q.jsonl", "--out=a.jsonl"]
SWEEP, PAPER = "sweeps/connector.yaml", ["table", "--paper", "llava15/table2"]


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["report", "--plan", "F3", "--run", "F3"], "--run"),
        (["report", "--plan", "--docs"], "--docs"),
        (["report", "--plan", "--out=page.html"], "--out"),
        (["report", "--plan", "--one-look"], "--one-look"),
        (["report", "--docs", "--out=page.html"], "--out"),
        (["report", "--docs", "--trust-code=mine"], "--trust-code"),
        (["report", "--every-point"], "--every-point"),
        (["report", "--jobs=2"], "--jobs"),
        (["report", "--runs=elsewhere"], "--runs"),
        (["report", "runs/one", "--docs"], "--docs"),
        (["report", "runs/one", "--run"], "--run"),
        (["table", SWEEP, "--scores", "scenes/f1"], "--scores"),
        (["table", SWEEP, "--x=dpo/kl"], "--x"),
        (["table", SWEEP, "--at=flops", "--plot=p.png", "--x=dpo/kl"], "--x"),
        (["table", SWEEP, "--at=flops", "--against=mlp"], "--against"),
        (["table", SWEEP, "--questions=q.jsonl"], "--questions"),
        (["table", "runs/one", "--plot=p.png"], "--plot"),
        (["table", "runs/one", "--against=mlp"], "--against"),
        (["table", "runs/one", "--runs=elsewhere"], "--runs"),
        (["table", "runs/one", "--images=pictures"], "--images"),
        (["table", "runs/one", "--metric=YesNo"], "--metric"),
        ([*PAPER, "--at=flops"], "--at"),
        ([*PAPER, "runs/one", "--at=flops"], "--at"),
        ([*PAPER, SWEEP, "--plot=p.png"], "--plot"),
        (["table", "--paper", "--against=mlp"], "--against"),
        (["sweep", SWEEP, "--format=json"], "--format"),
        (["look", "--run=runs/one", "--row=2"], "--row"),
        (["look", "--run=runs/one", "--stage=align"], "--stage"),
        (["look", "-c", "experiments/llava15.yaml", "--flipped=lost"], "--flipped"),
        (["look", "-c", "experiments/llava15.yaml", "--trust-code=mine"], "--trust-code"),
        (["look", "--run=runs/one", "--question=a1", "--questions=3"], "--questions"),
        ([*ANSWER, "--in-flight=2"], "--in-flight"),
        ([*ANSWER, "--stop=###"], "--stop"),
        ([*ENGINE, "--images-per-batch=2"], "--images-per-batch"),
        ([*ENGINE, "--frames=2"], "--frames"),
        ([*ENGINE, "--trust-code=mine"], "--trust-code"),
        ([*CAPTION, "--price-prompt=1"], "--price-prompt"),
        ([*CAPTION, "--in-flight=2"], "--in-flight"),
        ([*PREFER, "--price-completion=1"], "--price-completion"),
        ([*PREFER, "--judge-cache=mine"], "--judge-cache"),
        ([*PREFER, "--judge-prompt=mine.yaml"], "--judge-prompt"),
        (["chat", "m", "--image=a.png", "--frames=2"], "--frames"),
        (["chat", "m", "--stride=2"], "--stride"),
    ],
)
def test_a_flag_that_would_change_nothing_is_refused(
    arguments: list[str], flag: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert f"error: {flag} changes nothing here: " in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--max-new-tokens", "--images-per-batch", "--frames", "--stride"])
def test_a_number_below_one_is_refused(flag: str, capsys: pytest.CaptureFixture) -> None:
    for value in ("0", "-1", "2.5", "many"):
        with pytest.raises(SystemExit) as stop:
            parser_of("answer").parse_args(["m", "q.jsonl", "--out", "a.jsonl", f"{flag}={value}"])
        assert stop.value.code == 2
        message = f"argument {flag}: {value!r} is not a whole number from 1 on"
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 2, "a/b: No space left"),
        (OSError(errno.EROFS, "Read-only file system", "a"), 2, "Choose a place that can be"),
        (ValueError("row 3 is no row"), 2, "error: row 3 is no row"),
        (RecursionError("maximum"), 2, "nested too deeply"),
        (MemoryError(), 2, "out of memory. Choose a smaller"),
        (
            RuntimeError("pool_cuda does not have a deterministic implementation, but you set"),
            2,
            "trainer.deterministic is true, and this device has no such pool_cuda. Set it to warn",
        ),
        (TypeError("unhashable"), 70, "a fault of llava_lab, not of yours (TypeError: unhashable)"),
        (KeyError("x"), 70, "The traceback is in "),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_every_error_is_one_message(
    error: Exception, status: int, message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(Stop) as stop, one_message():
        raise error
    said = capsys.readouterr().err
    assert stop.value.code == status and message in said and said.count("\n") == 1
    assert "Traceback" not in said
    if status == 70 and "traceback is in" in said:
        path = Path(said.split("traceback is in ")[1].split(";")[0])
        assert type(error).__name__ in path.read_text()
        path.unlink()


def test_a_fault_is_shown_whole_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_LAB_DEBUG", "1")
    with pytest.raises(KeyError), one_message():
        raise KeyError("x")


def test_a_file_where_a_folder_belongs_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "runs").write_text("no folder")
    said = f"{tmp_path / 'runs'} is a file where a folder belongs"
    for name in ("a/b.json", "b.json"):
        with pytest.raises(Stop, match=said), one_message():
            disk.write(tmp_path / "runs" / name, "{}")


def test_a_folder_that_is_gone_and_a_locale_without_our_signs_are_no_fault(tmp_path: Path) -> None:
    code = """
import os, sys
sys.path.insert(0, os.getcwd())
from llava_lab import __main__ as lab
lab._run = lambda verb, arguments: print("\u2500 \u2013")
sys.argv = ["llava_lab", "plan"]
if os.environ.get("GONE"):
    os.chdir(os.environ["GONE"])
    os.rmdir(os.environ["GONE"])
lab.run()
"""
    plain = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=plain, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "? ?\n")
    env = {**plain, "GONE": str(tmp_path)}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: the folder that you are in is")


def test_an_unknown_verb_is_a_mistake() -> None:
    with pytest.raises(Stop) as stop:
        main(["fitt"])
    assert stop.value.code == verb.MISTAKE


def test_the_script_finds_parts_in_the_present_folder_as_the_module_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from llava_lab import __main__ as lab

    monkeypatch.setattr(lab, "main", lambda: None)
    monkeypatch.setattr(sys, "path", ["/environment/bin"])
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.delenv(lab.PARENT, raising=False)
    lab.run()
    assert sys.path == ["", "/environment/bin"]
