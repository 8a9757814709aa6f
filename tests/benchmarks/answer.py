"""Many questions about each picture and video: our engine beside transformers' `generate`.

    python tests/benchmarks/answer.py                          two CPU cores, a few minutes
    python tests/benchmarks/answer.py --size 1b --device cuda  one GPU, about two minutes

18 questions about each picture, 5 about each video of 16 frames, whose features are pooled to a
quarter; at most 16 tokens an answer. Weights, pixels and words are random, in published shapes:
speed does not depend on them. Pixels are there already: reading files is `loader.py`'s.

    ours                   all questions of all pictures in one batch, as `answer` and `caption` do
    ours, one at a time    a batch for each picture
    ..., launched          with `--launch`: a GPU launches every step kernel by kernel, and no graph
    generate, one by one   transformers' `generate` on the same LM, for `--plain` of the questions
    generate, at once      the same for all questions of a picture, padded at the left; as
                           transformers' processors have it, each comes with the picture

All sides take turns. First, each answer of `generate` is compared with ours. Where the first other
token is, the one that we chose must be as good as the best, but for rounding, to a forward pass
without cache or batch; anything else ends the run.
"""

import argparse
import random
from collections.abc import Callable, Iterator
from functools import partial

import torch
from common import SIZES, clock, make_model, medians, options, prepared, report, say
from torch.nn.utils.rnn import pad_sequence
from transformers.utils import logging

from llava_lab.data.packing import Batch, EncodedSample, Segment
from llava_lab.data.tokens import IGNORE, VISUAL
from llava_lab.data.views.pad import Pad
from llava_lab.data.views.video import Frames
from llava_lab.model import decode
from llava_lab.model.attention.forest import ATTENTION
from llava_lab.model.generate import QuestionBatch, answer
from llava_lab.model.llava import Llava

STOP, QUESTIONS = 2, {"pictures": 18, "videos": 5}
Said = dict[str, list[int]]


def make_rows(model: Llava, kind: str, number: int) -> list[EncodedSample]:
    """Pictures or videos, each with its questions as the children of what they have in common."""
    draw, spec = random.Random(0), model.encoder.view_spec
    words = model.llm.model.config.vocab_size

    def segment(length: int, visual: int = 0, parent: int | None = None) -> Segment:
        ids = [draw.randrange(3, words) for _ in range(length)] + [VISUAL] * visual
        return Segment(ids, [IGNORE] * len(ids), parent)

    rows = []
    for name in range(number):
        layout = (
            Pad().layout((640, 480), spec)
            if kind == "pictures"
            else Frames(16).layout((640, 480, 16), spec)
        )
        pixels = torch.randn(layout.views, 3, spec.image_size, spec.image_size)
        asked = [segment(draw.randint(12, 40), parent=0) for _ in range(QUESTIONS[kind])]
        root = segment(30, layout.tokens)
        rows.append(EncodedSample([root, *asked], pixels, [layout], f"{kind} {name}"))
    return rows


@torch.no_grad()
def enliven(llm: torch.nn.Module) -> None:
    """Weights with which answers hang on all that was said; a new LM repeats the last word.

    With larger ones an LM of this depth is chaotic: what bfloat16 rounds off decides its answers.
    """
    for name, weight in llm.named_parameters():
        if weight.ndim == 2:
            weight.normal_(std=0.1 if "embed" in name else weight.shape[1] ** -0.5)


def names(row: EncodedSample) -> list[str]:
    """Names of a row's questions."""
    return [f"{row.source}/{leaf}" for leaf in range(1, len(row.segments))]


def ours(model: Llava, rows: list[EncodedSample], length: int, size: int) -> Said:
    """Answers by our engine, so many pictures at once."""
    model.llm.model.set_attn_implementation(ATTENTION)
    said = {}
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        asked = [name for row in part for name in names(row)]
        batch = QuestionBatch(Batch.pack(part), asked, length, frozenset({STOP}))
        found = answer(model, batch.to(model.device))
        said |= dict(zip(found.ids, found.tokens, strict=True))
    return said


def launched(way: Callable[[], Said]) -> Said:
    """What a side gives where a GPU replays no steps."""
    decode.REPLAYED.discard("cuda")
    try:
        return way()
    finally:
        decode.REPLAYED.add("cuda")


def plainly(row: EncodedSample, question: str) -> EncodedSample:
    """One question with all that is before it, as a row of its own."""
    root, leaf = row.segments[0], row.segments[int(question.rpartition("/")[2])]
    ids = root.ids + leaf.ids
    return EncodedSample([Segment(ids, [IGNORE] * len(ids))], row.views, row.layouts, row.source)


@torch.no_grad()
def theirs(model: Llava, groups: list[list[tuple[str, EncodedSample]]], length: int) -> Said:
    """Answers by transformers' `generate`, one call for each group of questions."""
    model.llm.model.set_attn_implementation("sdpa")
    said = {}
    for group in groups:
        batch = Batch.pack([row for _, row in group]).to(model.device)
        rows = model.embed(batch).split(list(batch.forest.lengths))
        mask = [torch.ones(len(row), dtype=torch.long, device=model.device) for row in rows]
        tokens = model.llm.model.generate(
            inputs_embeds=pad_sequence(list(rows), batch_first=True, padding_side="left"),
            attention_mask=pad_sequence(mask, batch_first=True, padding_side="left"),
            max_new_tokens=length,
            do_sample=False,
            eos_token_id=STOP,
            pad_token_id=0,
        ).tolist()
        for (name, _), ids in zip(group, tokens, strict=True):
            said[name] = ids[: ids.index(STOP) + 1] if STOP in ids else ids
    return said


@torch.no_grad()
def behind(model: Llava, row: EncodedSample, known: list[int], token: int) -> float:
    """How far a token is behind the best after known ones, in deviations of the logits."""
    model.llm.model.set_attn_implementation("sdpa")
    embeddings = model.embed(Batch.pack([row]).to(model.device))
    told = model.llm.embed(torch.tensor(known, dtype=torch.long, device=model.device))
    path = torch.cat([embeddings, told])[None]
    logits = model.llm.model(inputs_embeds=path, logits_to_keep=1).logits[0, -1].float()
    return float((logits.max() - logits[token]) / logits.std())


def compare(
    model: Llava, mine: Said, other: Said, rows: dict[str, EncodedSample]
) -> tuple[str, float]:
    """How many answers are equal, and how far ours are behind; refuses what is not rounding."""
    # In a vocabulary of random logits a word at random is about four deviations behind the best.
    allowed = 0.25 if model.dtype == torch.bfloat16 else 0.01
    worst, unequal = 0.0, [name for name, tokens in other.items() if mine[name] != tokens]
    for name in unequal[:20]:
        pairs = zip(mine[name], other[name], strict=False)
        place = next(i for i, (one, two) in enumerate(pairs) if one != two)
        short = behind(model, rows[name], mine[name][:place], mine[name][place])
        if short > allowed:
            raise SystemExit(f"{name}: token {place} is {short:.2f} deviations behind the best")
        worst = max(worst, short)
    return f"{len(other) - len(unequal)} of {len(other)}", worst


def sides(
    model: Llava, rows: list[EncodedSample], settings: argparse.Namespace
) -> dict[str, Callable[[], Said]]:
    """What takes turns, by name."""
    alone = {name: plainly(row, name) for row in rows for name in names(row)}
    some = random.Random(1).sample(sorted(alone), min(settings.plain, len(alone)))
    groups = [[(name, alone[name]) for name in names(row)] for row in rows[: settings.plain]]
    length = settings.max_new_tokens
    engine = {
        "ours": partial(ours, model, rows, length, len(rows)),
        "ours, one at a time": partial(ours, model, rows, length, 1),
    }
    again = {f"{name}, launched": partial(launched, way) for name, way in engine.items()}
    return {
        **engine,
        **(again if settings.launch else {}),
        "generate, at once": partial(theirs, model, groups, length),
        "generate, one by one": partial(
            theirs, model, [[(name, alone[name])] for name in some], length
        ),
    }


def measured(
    model: Llava, kind: str, number: int, settings: argparse.Namespace
) -> Iterator[tuple[str, dict[str, float | str]]]:
    """A row of the table for each side."""
    rows = make_rows(model, kind, number)
    alone = {name: plainly(row, name) for row in rows for name in names(row)}
    ways = sides(model, rows, settings)
    said = {name: way() for name, way in ways.items()}  # warm, too
    equal = {name: compare(model, said["ours"], each, alone) for name, each in said.items()}
    rounds = []
    for turn in range(settings.rounds):
        rates = {}
        for name, way in ways.items():
            began = clock(settings.device)
            count = len(way())
            rates[name] = count / (clock(settings.device) - began)
        say(f"{kind}, round {turn}: " + ", ".join(f"{n} {r:.2f}/s" for n, r in rates.items()))
        rounds.append(rates)
    rate = medians(rounds)
    ratio = medians([{name: each["ours"] / each[name] for name in each} for each in rounds])
    for name in ways:
        numbers = {"questions/s": rate[name], "ours is faster": ratio[name]}
        answers, worst = equal[name]
        yield (
            f"{number} {kind}: {name}",
            {**numbers, "equal answers": answers, "ours is behind": worst},
        )


def main() -> None:
    """Pictures, then videos; a table of both."""
    parser = options(__doc__)
    parser.add_argument("--pictures", type=int, help="16 on a GPU, 4 on a CPU")
    parser.add_argument("--videos", type=int, help="8 on a GPU, 1 on a CPU")
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument(
        "--plain", type=int, metavar="N", default=4, help="ask `generate` only so much a round"
    )
    parser.add_argument("--launch", action="store_true", help="of a GPU: also without graphs")
    settings = prepared(parser)
    logging.disable_progress_bar()
    many = settings.device.type == "cuda"
    model = make_model(SIZES[settings.size], settings.device, settings.dtype).eval()
    enliven(model.llm.model)
    numbers = {
        "pictures": (16 if many else 4) if settings.pictures is None else settings.pictures,
        "videos": (8 if many else 1) if settings.videos is None else settings.videos,
    }
    table = {}
    for kind, number in numbers.items():
        if number:
            table |= dict(measured(model, kind, number, settings))
    title = f"Questions, {settings.size}, at most {settings.max_new_tokens} tokens an answer"
    report(title, table, settings.json, device=str(settings.device), size=settings.size)


if __name__ == "__main__":
    main()
