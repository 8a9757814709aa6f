"""The verb `prefer`: a model's own answers to a question file become pairs for DPO."""

import json
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from llava_lab.cli.verb import (
    PRICES,
    add_flag,
    add_generation_flags,
    add_model,
    add_price_flags,
    add_question_file,
    add_video_flags,
    one_message,
    positive,
    read_prices,
    refuse_idle,
    verb_parser,
)
from llava_lab.core.atomic import write
from llava_lab.core.cost import summary
from llava_lab.core.records import check_unwritten, file_sha256


def parser() -> ArgumentParser:
    """The verb's parser."""
    made = verb_parser(
        "prefer",
        "Sample answers to questions, score each, and write the best and the worst as pairs for "
        "DPO. Without a judge, the questions' own answers decide: a candidate's score is its "
        "sentences that are among them less those that are not. The same command goes on.",
    )
    add_model(made)
    add_question_file(made)
    add_flag(made, "--samples", type=positive, default=4, help="answers to each question")
    warmth = "of the samples: the higher, the more they differ"
    add_flag(made, "--temperature", type=float, default=1.0, help=warmth)
    add_flag(made, "--seed", type=int, default=0, help="of the samples")
    add_video_flags(made)
    add_generation_flags(made, max_new_tokens=128)
    judge = "any OpenAI-compatible engine, which reads each question's `caption` and gives 1 to 5"
    add_flag(made, "--judge-url", help=judge)
    add_flag(made, "--judge-model", help="the engine's name of its model")
    rows = "rows as `caption` writes, a file a shard: the judge reads these for what is shown"
    add_flag(made, "--captions", type=Path, nargs="+", metavar="FILE", help=rows)
    prompt = "YAML of `system` and `user`"
    add_flag(made, "--judge-prompt", default="asset:judge/preference.yaml", help=prompt)
    add_flag(made, "--judge-cache", default="judgements", help="folder of its judgements")
    add_price_flags(made)
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the verb."""
    options = (made := parser()).parse_args(arguments)
    with one_message():
        from llava_lab.core.journal import Journal
        from llava_lab.data.questions import read_questions
        from llava_lab.evaluate.judge import Judge
        from llava_lab.model.generate import Sampling
        from llava_lab.serve.evidence import with_captions
        from llava_lab.serve.prefer import LocalSampler, check, pairs, prefer
        from llava_lab.serve.scorers import JudgeScorer, Scorer, score_by_answers

        _check(made, options)
        questions = read_questions(options.questions, options.images)
        scorer: Scorer = score_by_answers
        decides: object = "answers"
        judge, prices = None, read_prices(options)
        if options.judge_url:
            judge = Judge(options.judge_url, options.judge_model, options.judge_cache)
            scorer = JudgeScorer(judge, options.judge_prompt)
            decides = scorer.settings()
        if options.captions:
            questions = with_captions(questions, options.captions, options.images)
            decides = [decides, *map(file_sha256, options.captions)]
        check(questions, bool(options.judge_url), options.images)
        sampling = Sampling(options.temperature, options.seed)
        sampler = LocalSampler(
            options.model,
            questions,
            options.frames,
            options.stride,
            options.template,
            options.trust_code,
            sampling=sampling,
            max_new_tokens=options.max_new_tokens,
            images_per_batch=options.images_per_batch,
        )
        shown = [options.model, options.template, options.frames, options.stride, asdict(sampling)]
        request = json.dumps([*shown, options.samples, options.max_new_tokens, decides, "whole"])
        journal, began = Journal(options.out, request), time.monotonic()
        scored = prefer(
            questions, sampler, scorer, journal, options.samples, options.images_per_batch
        )
        rows, without = pairs(questions, scored, options.images)
        write(options.out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        journal.remove()
        print(f"llava_lab: {len(rows)} pairs of {len(questions)} questions: {options.out}")
        print(
            f"llava_lab: no pair: {without['alike']} with answers alike, "
            f"{without['even']} of one score, {without['cut']} with answers cut off"
        )
        if cut := sum(each is None for found in scored.values() for each in found):
            print(
                f"llava_lab: left out: {cut} of {len(questions) * options.samples} answers, cut "
                f"off at {options.max_new_tokens} tokens; raise --max-new-tokens to have them"
            )
        if judge is not None:
            seconds, replies = time.monotonic() - began, judge.spent["replies"]
            line = summary("judgements", replies, seconds, judge.spent, prices)
            print(f"llava_lab: {options.judge_url}, answers sampled beside: {line}")


def _check(made: ArgumentParser, options: Namespace) -> None:
    if not (options.judge_url or options.judge_model):
        judges = ["--judge-prompt", "--judge-cache", *PRICES]
        refuse_idle(made, options, judges, "it is a judge's, and --judge-url is not given")
    if (options.judge_url is None) != (options.judge_model is None):
        raise ValueError("--judge-url and --judge-model go together")
    if options.captions and not (options.judge_url and options.images):
        raise ValueError("--captions are a judge's evidence: it needs --judge-url and --images")
    if options.samples < 2:
        raise ValueError(f"--samples {options.samples}: a pair takes at least 2")
    if options.out.suffix != ".jsonl":
        raise ValueError(f"--out {options.out}: name it .jsonl, as pairs are read")
    check_unwritten(options.out)
