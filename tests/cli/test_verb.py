"""Flags: one documented spelling each; underscores are read too, and wrong numbers are refused."""

import importlib
from argparse import ArgumentParser
from typing import Any

import pytest
from jsonargparse import ArgumentParser as ConfigParser

from llava_lab.cli.verb import add_flag

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


@pytest.mark.parametrize("flag", ["--max-new-tokens", "--images-per-batch", "--frames", "--stride"])
def test_a_number_below_one_is_refused(flag: str, capsys: pytest.CaptureFixture) -> None:
    for value in ("0", "-1", "2.5", "many"):
        with pytest.raises(SystemExit) as stop:
            parser_of("answer").parse_args(["m", "q.jsonl", "--out", "a.jsonl", f"{flag}={value}"])
        assert stop.value.code == 2
        message = f"argument {flag}: {value!r} is not a whole number from 1 on"
        assert message in capsys.readouterr().err
