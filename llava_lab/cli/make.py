"""The verb `make`: published captions, boxes and questions become instruction data."""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from llava_lab.cli.verb import (
    add_flag,
    add_price_flags,
    one_message,
    positive,
    read_prices,
    verb_parser,
)
from llava_lab.core.cost import summary
from llava_lab.core.numbers import at_least
from llava_lab.report.formats import FORMATS


def parser() -> ArgumentParser:
    """The verb's parser."""
    made = verb_parser(
        "make",
        "Make training data the way LLaVA's was made. Beside every file is a record of how it was "
        "made, FILE.made.json. The same command goes on where it was.",
    )
    kinds = made.add_subparsers(dest="what", required=True, metavar="WHAT", help="kind of data")
    _captions(kinds.add_parser("captions", help="balance captions by their noun phrases (595K)"))
    _instruct(kinds.add_parser("instruct", help="a text-only LM writes about pictures (158K)"))
    _mix(kinds.add_parser("mix", help="academic questions, OCR and regions by rules (665K)"))
    _distinct(kinds.add_parser("distinct", help="leave out rows with pictures of benchmarks"))
    return made


def _captions(made: ArgumentParser) -> None:
    made.description = (
        "Keep captions so that rare noun phrases stay and frequent ones become rarer, and make "
        "each a row that asks for it: CC3M to LLaVA's 595K."
    )
    made.add_argument("captions", type=Path, help="CC3M's .tsv, or rows with `image` and `caption`")
    _add_out(made)
    add_flag(
        made, "--least", type=positive, default=3, help="phrases of fewer captions are skipped"
    )
    add_flag(made, "--most", type=positive, default=100, help="captions that a phrase chooses")
    add_flag(
        made, "--requests", default="asset:make/brief_description.yaml", help="list of requests"
    )
    add_flag(made, "--spacy-model", default="en_core_web_sm", help="pipeline that finds phrases")
    add_flag(made, "--processes", type=positive, default=1, help="that find phrases side by side")
    add_flag(made, "--plot", type=Path, metavar="FILE", help="draw coverage as LLaVA's Figure 7")
    add_flag(made, "--format", choices=FORMATS, default="rich", help="of the table of coverage")


def _instruct(made: ArgumentParser) -> None:
    made.description = (
        "Have a text-only LM behind any OpenAI-compatible endpoint write about pictures, of which "
        "it is shown captions and boxes. The key is read from OPENAI_API_KEY."
    )
    made.add_argument("captions", type=Path, help="COCO's captions_*.json")
    add_flag(made, "--boxes", type=Path, metavar="FILE", help="COCO's instances_*.json")
    kinds = "conversation, detailed_description, complex_reasoning, or a YAML file of your own"
    add_flag(made, "--kind", required=True, help=kinds)
    add_flag(made, "--engine-url", required=True, help="such as http://127.0.0.1:8000/v1")
    add_flag(made, "--model", required=True, help="the engine's name of its model")
    _add_out(made)
    add_flag(made, "--first", type=positive, metavar="N", help="the first N pictures alone")
    add_flag(made, "--in-flight", type=positive, default=16, help="requests at once")
    add_flag(made, "--dry-run", action="store_true", help="say what it would cost, ask nothing")
    add_price_flags(made)
    limit = "no request is sent where the estimate, or what replies cost, is above"
    add_flag(made, "--max-cost", type=float, metavar="PRICE", help=limit)


def _mix(made: ArgumentParser) -> None:
    made.description = (
        "Make rows of published question files by rules, as LLaVA-1.5's mix has them."
    )
    rules = "YAML of rules; asset:make/llava15_mix.yaml has those of LLaVA-1.5"
    made.add_argument("rules", help=rules)
    source = "a file of rows by the name of its rule; repeatable"
    add_flag(made, "--source", action="append", required=True, metavar="NAME=FILE", help=source)
    labels = "a file of labels apart from the rows"
    add_flag(made, "--labels", action="append", default=[], metavar="NAME=FILE", help=labels)
    sizes = "folder of pictures whose sizes rows lack"
    add_flag(made, "--images", type=Path, help=sizes)
    bad = "refuse rows that are not usable, or leave them out, counted"
    add_flag(made, "--on-bad-row", choices=("error", "skip"), default="error", help=bad)
    _add_out(made)


def _distinct(made: ArgumentParser) -> None:
    made.description = (
        "Leave out rows whose picture is one of a benchmark's: the same pixels, or a perceptual "
        "hash (imagehash's phash, 64 bits) that differs in few bits."
    )
    made.add_argument("rows", type=Path, help="LLaVA-format .json or .jsonl")
    add_flag(
        made, "--images", type=Path, required=True, help="folder that the rows' paths start from"
    )
    against = "folder of pictures that must not be among them; repeatable"
    add_flag(made, "--against", type=Path, action="append", required=True, help=against)
    bits = "most differing bits; 0 is equal hashes"
    add_flag(made, "--bits", type=int, default=4, help=bits)
    add_flag(made, "--out", type=Path, required=True, help=".json or .jsonl to write")


def _add_out(made: ArgumentParser) -> None:
    add_flag(made, "--out", type=Path, required=True, help=".json or .jsonl to write")
    add_flag(made, "--seed", type=int, default=0, help="of what is drawn")


def main(arguments: Sequence[str]) -> None:
    """Run the verb."""
    options = parser().parse_args(arguments)
    run = {"captions": captions, "instruct": instruct, "mix": mix, "distinct": distinct}
    with one_message():
        run[options.what](options)


def captions(options: Namespace) -> None:
    """Balance captions and make rows of them."""
    from llava_lab.core.records import check_rows_name
    from llava_lab.make_data.asking import caption_rows, read_requests
    from llava_lab.make_data.balance import balance
    from llava_lab.make_data.captions import read_captions
    from llava_lab.make_data.phrases import NounPhrases, find_phrases, forget_phrases
    from llava_lab.make_data.written import write_made
    from llava_lab.model.weights import locate
    from llava_lab.report.coverage import coverage_grid, plot_coverage
    from llava_lab.report.formats import show

    check_rows_name(options.out)
    file = Path(locate(options.requests))
    requests, find = read_requests(file), NounPhrases(options.spacy_model, options.processes)
    every = read_captions(options.captions)
    phrases = find_phrases([each.text for each in every], find, options.out)
    found = balance(phrases, options.least, options.most, options.seed)
    chosen = (every[number] for number in found.chosen)
    rows = caption_rows(chosen, requests, options.seed)
    how = {key: getattr(options, key) for key in ("least", "most", "seed")}
    counts = {"captions": len(every), "phrases_before": len(found.before)}
    how |= counts | {"phrases": find.name, "phrases_after": len(+found.after)}
    number = write_made(options.out, rows, [options.captions, file], {"make": "captions", **how})
    forget_phrases(options.out)
    show([coverage_grid(found, len(every))], options.format)
    if options.plot:
        plot_coverage(found, options.plot)
    if options.format == "rich":
        print(f"llava_lab: {number:,} of {len(every):,} captions: {options.out}")


def instruct(options: Namespace) -> None:
    """Have an LM write rows of one kind."""
    from llava_lab.core.engine import ChatEngine
    from llava_lab.make_data.coco import read_coco
    from llava_lab.make_data.instruct import Maker
    from llava_lab.make_data.kinds import read_kind
    from llava_lab.make_data.written import write_made

    prices = read_prices(options)
    at_least(0, max_cost=options.max_cost)
    if options.max_cost is not None and prices.prompt is None:
        raise ValueError("--max-cost needs --price-prompt and --price-completion")
    kind, pictures = read_kind(options.kind), read_coco(options.captions, options.boxes)
    engine = ChatEngine(options.engine_url, options.model, options.in_flight)
    maker = Maker(pictures[: options.first], kind, engine, options.out, options.seed)
    estimate = maker.estimate()
    print(f"llava_lab: {kind.name}: {estimate.text(prices)}", flush=True)
    if options.dry_run:
        return
    about = prices.of(estimate.prompt_tokens, estimate.completion_tokens)
    if options.max_cost is not None and about is not None and about > options.max_cost:
        raise ValueError(
            f"it would cost about {about:,.4g}, above --max-cost {options.max_cost:g}: nothing was "
            "asked. Raise it, or take the --first N pictures"
        )
    began = time.monotonic()
    made = maker.make(prices, options.max_cost)
    seconds = time.monotonic() - began
    line = summary("replies", made.asked, seconds, engine.spent, prices)
    print(f"llava_lab: {engine.model}: {line}")
    failed = ", ".join(f"{number} {why}" for why, number in made.failures.items()) or "none"
    print(f"llava_lab: {len(maker.pictures):,} pictures, without a row: {failed}")
    if made.stopped:
        raise ValueError(
            f"--max-cost {options.max_cost:g} is reached; all replies are kept: the same command "
            "with a higher one goes on"
        )
    if not made.rows:
        shown = "; ".join(f"{name}: {why}" for name, why in [*made.examples.items()][:3])
        raise ValueError(f"no reply could be read. {shown}")
    how = {"make": "instruct", "kind": kind.name, "sha256_of_prompts": kind.sha256}
    how |= {"model": engine.model, **kind.sampling, "seed": options.seed}
    counts = {"pictures": len(maker.pictures), "failures": dict(made.failures)}
    how |= counts | {"examples_of_failures": made.examples, "spent_now": dict(engine.spent)}
    inputs = [options.captions, *([options.boxes] if options.boxes else [])]
    print(f"llava_lab: {write_made(options.out, made.rows, inputs, how):,} rows: {options.out}")


def mix(options: Namespace) -> None:
    """Make rows of question files by rules."""
    from llava_lab.core.records import check_rows_name
    from llava_lab.data.official import files_of
    from llava_lab.make_data.mix import Mixer
    from llava_lab.make_data.rules import read_rules
    from llava_lab.make_data.written import write_made
    from llava_lab.model.weights import locate

    check_rows_name(options.out)
    path = Path(locate(options.rules))
    rules, sources, labels = read_rules(path), _named(options.source), _named(options.labels)
    if unknown := [name for name in (*sources, *labels) if name not in rules]:
        raise ValueError(f"{path}: has no rule {unknown[0]!r}; it has {', '.join(rules)}")
    if lost := [name for name in labels if name not in sources]:
        raise ValueError(f"--labels {lost[0]}: name its rows, too: --source {lost[0]}=FILE")
    rows, counts = [], {}
    for name, file in sources.items():
        mixer = Mixer(name, rules[name], file, labels.get(name), options.images, options.seed)
        rows += mixer.rows(options.on_bad_row)
        found = mixer.counts
        counts[name] = {"read": found.read, "left_out": len(found.bad)}
        counts[name] |= {"conversations": found.made, "questions": found.turns}
        line = ", ".join(f"{number:,} {what}" for what, number in counts[name].items())
        print(f"llava_lab: {name}: {line.replace('_', ' ')}")
        if found.bad:
            print(f"llava_lab: {name}: left out first: {found.bad[0]}")
    inputs = [
        path,
        *(file for each in (*sources.values(), *labels.values()) for file in files_of(each)),
    ]
    how = {"make": "mix", "seed": options.seed, "sources": counts}
    print(f"llava_lab: {write_made(options.out, rows, inputs, how):,} rows: {options.out}")


def _named(given: Sequence[str]) -> dict[str, str]:
    """Files by the name of their rule.

    Raises:
        ValueError: If one is not NAME=FILE, or a name is repeated.
    """
    found: dict[str, str] = {}
    for each in given:
        name, equals, file = each.partition("=")
        if not (name and equals and file):
            raise ValueError(f"{each!r} is not NAME=FILE")
        if found.setdefault(name, file) != file:
            raise ValueError(f"{name} has two files, {found[name]} and {file}")
    return found


def distinct(options: Namespace) -> None:
    """Leave out rows with pictures of benchmarks."""
    from dataclasses import asdict

    from llava_lab.core.below import endings
    from llava_lab.core.records import check_rows_name
    from llava_lab.data.rows import read_rows
    from llava_lab.make_data.distinct import Pictures, split
    from llava_lab.make_data.written import write_made

    check_rows_name(options.out)
    pictures = Pictures(options.against, options.bits)
    kept, matches, videos = split(read_rows(options.rows), options.images, pictures)
    if not kept:
        raise ValueError(f"{options.rows}: every row has a picture of {options.against[0]}")
    how = {"make": "distinct", "bits": options.bits, "against": list(map(str, options.against))}
    others = pictures.not_compared
    how |= {"pictures_compared": pictures.compared, "not_compared": list(map(str, others))}
    how |= {"rows_with_videos_not_compared": videos, "left_out": list(map(asdict, matches))}
    number = write_made(options.out, kept, [options.rows], how)
    exact = sum(each.bits is None for each in matches)
    alike = len(matches) - exact
    print(f"llava_lab: compared with {pictures.compared:,} pictures")
    if others:
        named = endings(others)
        print(f"llava_lab: {len(others):,} files are no pictures, and not compared: {named}")
    print(f"llava_lab: left out {exact} pictures with the same pixels, {alike} that look the same")
    for each in matches[:10]:
        why = "same pixels" if each.bits is None else f"{each.bits} bits differ"
        print(f"llava_lab:   {each.place}: {each.image} is {each.other} ({why})")
    if videos:
        print(f"llava_lab: {videos} rows have videos, which are not compared; they stay")
    print(f"llava_lab: {number:,} rows: {options.out}")
