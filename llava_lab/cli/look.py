"""look: a training row as the model gets it, and questions with the answers of two runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from llava_lab.cli.arguments import experiment_parser, read_experiment, split
from llava_lab.cli.fit import quiet
from llava_lab.cli.verb import add_flag, add_trust_flag, one_message, positive, refuse_idle

FLIPPED = ("flipped", "gained", "lost", "all")


def main(arguments: Sequence[str]) -> None:
    """Write the page."""
    with one_message():
        parser = _parser()
        options, layers = split(parser, arguments)
        if len(options.run) > 2:
            raise ValueError(f"--run: {len(options.run)} runs; name one, or two to compare")
        if not layers and not options.run:
            raise ValueError(
                "what to look at? A training row: -c experiments/llava15.yaml; answers: --run RUN"
            )
        _refuse_idle(parser, options, layers)
        quiet()
        _write(options, layers)


def _refuse_idle(
    parser: argparse.ArgumentParser, options: argparse.Namespace, layers: list[Path | str]
) -> None:
    if not layers:
        why = "it is of a training row: name an experiment with -c"
        refuse_idle(parser, options, ["--row", "--stage"], why)
    if not options.run:
        answers = ["--question", "--layer", "--flipped", "--questions", "--trust-code"]
        refuse_idle(parser, options, answers, "it is about answers: name a run with --run")
    if options.question:
        chosen = ["--flipped", "--questions"]
        refuse_idle(parser, options, chosen, "the questions are named with --question")
    else:
        why = "it is of attention, which is drawn of a --question"
        refuse_idle(parser, options, ["--layer"], why)


def _write(options: argparse.Namespace, layers: list[Path | str]) -> None:
    from llava_lab.report.look import write_look
    from llava_lab.report.look.asked import questions_of
    from llava_lab.report.look.rows import rows_of
    from llava_lab.report.runs import find, read

    rows, title = [], []
    if layers:
        experiment = read_experiment(layers)
        rows = rows_of(experiment, options.stage, options.row)
        title.append(f"{experiment.name}, row {options.row}")
    questions = None
    if options.run:
        runs = [read(path) for each in options.run for path in find([each])]
        if len(runs) > 2:
            raise ValueError(f"--run: {len(runs)} runs lie below; name the folder of one run")
        trusted = options.trust_code
        chosen = (options.question, options.flipped, options.questions, options.layer, trusted)
        questions = questions_of(runs, *chosen)
        title.append(" against ".join(questions.labels))
    write_look("; ".join(title), rows, questions, options.out)
    print(f"llava_lab: {options.out}")


def _parser() -> argparse.ArgumentParser:
    parser = experiment_parser(
        "look",
        "Write a page: a training row with its tiles, tokens and labels as the model gets them; or "
        "the answers of a run, or of two side by side, with what flipped and where answers look.",
    )
    parser.add_argument(
        "--row",
        type=positive,
        default=1,
        metavar="N",
        help="the Nth row that a stage trains on, of every stage of -c EXPERIMENT",
    )
    parser.add_argument("--stage", metavar="NAME", help="of this stage alone")
    parser.add_argument(
        "--run",
        type=Path,
        action="append",
        default=[],
        metavar="RUN",
        help="finished run whose answers to show; twice to compare two",
    )
    parser.add_argument(
        "--question",
        action="append",
        default=[],
        metavar="ID",
        help="show this question (ID or BENCHMARK/ID), and draw where its answers look; repeatable",
    )
    parser.add_argument(
        "--flipped",
        choices=FLIPPED,
        default="flipped",
        help="without --question: questions that one run alone has right; gained: the second one; "
        "lost: the first one; all. Of a single run: the wrong ones (flipped, lost), or the right "
        "ones (gained)",
    )
    add_flag(parser, "--questions", type=positive, default=24, metavar="N", help="most to show")
    parser.add_argument(
        "--layer",
        type=positive,
        metavar="N",
        help="tell the heads of this layer of the LM apart; else each layer's mean over its heads",
    )
    parser.add_argument("--out", type=Path, default=Path("look.html"), help="page to write")
    add_trust_flag(parser, "a run")
    return parser
