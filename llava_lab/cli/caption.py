"""The verb `caption`: images and videos become LLaVA-format rows that describe them."""

import json
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path

from llava_lab.cli.verb import (
    ENGINES_MODEL,
    MODEL_HELP,
    add_engine_flags,
    add_flag,
    add_generation_flags,
    add_model_flags,
    add_price_flags,
    add_video_flags,
    one_message,
    read_prices,
    refuse_others_flags,
    remote_model,
    verb_parser,
)
from llava_lab.core.cost import summary
from llava_lab.serve.caption import caption
from llava_lab.serve.caption_engines import CaptionEngine, LocalEngine, RemoteEngine
from llava_lab.serve.caption_inputs import read_inputs


def parser() -> ArgumentParser:
    """The verb's parser."""
    made = verb_parser(
        "caption", "Caption pictures and videos into a LLaVA-format JSON; the same command goes on."
    )
    made.add_argument(
        "inputs", type=Path, help="folder, or .json/.jsonl rows with `image` or `video`"
    )
    add_flag(made, "--images", type=Path, help="folder that the rows' paths start from")
    add_flag(made, "--out", type=Path, required=True, help=".json or .jsonl to write")
    add_flag(made, "--model", required=True, help=f"{MODEL_HELP}; {ENGINES_MODEL}")
    add_model_flags(made)
    add_flag(made, "--prompt", help="by default 'Describe this image [or video] in detail.'")
    add_video_flags(made)
    add_generation_flags(made, max_new_tokens=256)
    add_engine_flags(made)
    add_price_flags(made)
    shard = "every N-th input from the I-th, from 0"
    add_flag(made, "--shard", type=_shard, default="0/1", metavar="I/N", help=shard)
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the verb."""
    made = parser()
    options = made.parse_args(arguments)
    refuse_others_flags(made, options)
    with one_message():
        index, number = options.shard
        prices = read_prices(options)
        inputs = read_inputs(options.inputs, options.images)[index::number]
        if not inputs:
            raise ValueError(f"--shard {index}/{number}: no input is left for it")
        engine, began = _engine(options), time.monotonic()
        made = caption(inputs, engine, options.prompt, options.out, _request(options))
        seconds = time.monotonic() - began
        print(f"llava_lab: {len(inputs)} captions: {options.out}")
        spent = engine.model.engine.spent if isinstance(engine, RemoteEngine) else {}
        where = options.engine_url or "the local engine"
        print(f"llava_lab: {where}: {summary('captions', made, seconds, spent, prices)}")


def _engine(options: Namespace) -> CaptionEngine:
    if options.engine_url:
        return RemoteEngine(remote_model(options), options.prompt)
    return LocalEngine(
        options.model,
        options.prompt,
        options.max_new_tokens,
        options.images_per_batch,
        options.frames,
        options.stride,
        options.template,
        options.trust_code,
    )


def _request(options: Namespace) -> str:
    """Everything that decides the captions; a journal of another request is refused."""
    # Truncated captions are refused, so the longest caption does not matter: it is null.
    decides = [options.model, options.engine_url, options.prompt, None]
    return json.dumps([*decides, options.template, options.frames, options.stride, options.stop])


def _shard(text: str) -> tuple[int, int]:
    index, _, number = text.partition("/")
    if not (index.isdigit() and number.isdigit() and int(index) < int(number)):
        raise ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N - 1")
    return int(index), int(number)
