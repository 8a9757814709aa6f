"""The command line: `python -m llava_lab VERB`; a verb's modules are imported when it is named."""

import importlib
import io
import os
import sys

from llava_lab.cli.verb import Stop, one_message
from llava_lab.core.shipped import with_shipped
from llava_lab.core.signals import AGAIN, PARENT, end_with

HELP = """usage: python -m llava_lab VERB [options]

Trains and evaluates every version of the LLaVA family from one YAML file each.

  fit -c EXPERIMENT [-c OVERLAY ...] [--a.b=c ...]
                     train the stages, evaluate, write the run; again: finish or reuse it
  validate -c ...    held-out loss of a finished run
  test -c ...        the benchmarks of a finished run, again
  predict -c ...     answers of a finished run, without scores
  plan -c ...        parts, tokens, FLOPs and memory of an experiment, without running it
  check -c ...       every bad row of an experiment's data, cuts, lengths, before anything is spent
  diff A B           options in which two experiments, runs or sweep points differ
  sweep FILE         fit every point of a sweep that has no results yet
  look -c EXPERIMENT a training row as the model gets it: tiles, tokens, labels; or --run A --run B:
                     questions that flipped, and where answers look
  table RUN ...      runs, or a sweep, as tables: results, cost, seeds with intervals, a plot
  report [RUN ...]   a page of runs, or of what those under results/ say of the papers' claims;
                     --run [ID ...] makes what findings lack, --plan [ID ...] says how much that is
  benchmark --list   the published benchmarks: files, prompts, rules, published numbers
  import CHECKPOINT  a released checkpoint as parts that an experiment names
  export MODEL       a model for transformers, vLLM and SGLang
  answer MODEL FILE  answers to a question file in LLaVA's format
  caption INPUTS     captions of pictures as LLaVA-format rows, by a model or an engine
  make WHAT ...      training data as LLaVA's was made: from captions, boxes, questions, regions
  prefer MODEL FILE  pairs for DPO from a model's own answers, scored by a judge or by the file
  chat MODEL         a conversation about pictures

  VERB --help        all options of a verb

examples:
  python -m llava_lab fit -c experiments/llava15.yaml
  python -m llava_lab fit -c experiments/llava15.yaml --model.connector.depth=1
  python -m llava_lab fit -c experiments/llava15.yaml -c configs/scale/paper.yaml
"""

LIGHTNING = ("fit", "validate", "test", "predict")
TOOLS = {
    "plan": "llava_lab.cli.plan:main",
    "check": "llava_lab.cli.check:main",
    "diff": "llava_lab.cli.diff:main",
    "sweep": "llava_lab.cli.sweep:main",
    "look": "llava_lab.cli.look:main",
    "table": "llava_lab.cli.table:main",
    "report": "llava_lab.cli.report:main",
    "benchmark": "llava_lab.cli.benchmark:main",
    "import": "llava_lab.cli.import_:main",
    "export": "llava_lab.cli.export:main",
    "answer": "llava_lab.cli.answer:main",
    "caption": "llava_lab.cli.caption:main",
    "make": "llava_lab.cli.make:main",
    "prefer": "llava_lab.cli.prefer:main",
    "chat": "llava_lab.cli.chat:main",
}


def main(arguments: list[str] | None = None) -> None:
    """Run one verb."""
    arguments = sys.argv[1:] if arguments is None else arguments
    verb = arguments[0] if arguments else "--help"
    with one_message():
        try:
            os.getcwd()
        except FileNotFoundError as error:  # some libraries would not say so, but abort
            raise ValueError("the folder that you are in is gone; go to another") from error
        _run(verb, with_shipped(arguments))


def _run(verb: str, arguments: list[str]) -> None:
    if verb in ("-h", "--help"):
        print(HELP, end="")
    elif verb in TOOLS:
        module, name = TOOLS[verb].split(":")
        getattr(importlib.import_module(module), name)(arguments[1:])
    elif verb in LIGHTNING:
        importlib.import_module("llava_lab.cli.fit").main(arguments)
    else:
        import difflib

        known = [*LIGHTNING, *TOOLS]
        near = difflib.get_close_matches(verb, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"verbs are {', '.join(known)}"
        raise ValueError(f"there is no verb {verb!r}: {hint}")


def run() -> None:
    """Run one verb as a process of its own, by `python -m llava_lab` or the script `llava-lab`."""
    if __name__ != "__main__" and not sys.flags.safe_path:
        sys.path.insert(0, "")  # as -m does it: parts of the user's own are found from here
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a table has lines that some locales lack
            stream.reconfigure(errors="replace")
    if os.environ.get(PARENT) == "stdin":
        end_with(sys.stdin.fileno())
    try:
        main()
    except Stop as stop:
        if stop.code == AGAIN:  # threads may still wait for an engine's answers
            os._exit(AGAIN)
        raise


if __name__ == "__main__":
    run()
