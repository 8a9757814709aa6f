"""Many questions about each picture: our engine against one `generate` a question, side by side.

    python tests/benchmarks/answer.py --llm FOLDER --encoder FILE.safetensors

The small scale's parts (DINOv2-S at 224 px, SmolLM2-135M-Instruct, a random MLP between them), 40
pictures, 18 questions each. Ours is what `answer` and `caption` run: a picture and the prompt up to
it are computed once, and the answers of a batch grow together. Beside it stands the plain loop,
which reads and encodes the picture anew for every question and calls transformers' `generate` on
the same weights. Both take turns, block by block, so that a machine that slows down slows both.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from llava_lab.data.chat import get_template
from llava_lab.data.packing import Batch, EncodedSample, Segment
from llava_lab.data.questions import Question
from llava_lab.data.sample import Turn
from llava_lab.data.tokens import IGNORE
from llava_lab.data.views.pad import Pad
from llava_lab.evaluate.groups import by_images
from llava_lab.evaluate.prompts import question_loader
from llava_lab.model.connector.mlp import MLP
from llava_lab.model.encoder.timm import TimmEncoder
from llava_lab.model.generate import answer
from llava_lab.model.llava import Llava
from llava_lab.model.llm import CausalLM
from llava_lab.tiny_world.draw import render
from llava_lab.tiny_world.scene import sample_scene

COLORS = ("red", "green", "blue", "yellow", "purple", "white")
ASKED = ("How many {} objects are there?", "What is next to the {} one?", "Is there a {} circle?")

Said = dict[str, list[int]]


def ask(folder: Path, images: int) -> list[Question]:
    """Pictures of the tiny world, and the same 18 questions about each."""
    questions = []
    for number in range(images):
        path = folder / f"{number}.png"
        render(sample_scene(random.Random(number))).save(path)
        for index, text in enumerate(text.format(color) for text in ASKED for color in COLORS):
            name = f"{number}/{index}"
            questions.append(Question(name, (path,), f"<image>\n{text}", None, (), name))
    return questions


def ours(model: Llava, questions: Sequence[Question], length: int, at_once: int) -> Said:
    """Answers as the verbs compute them."""
    loader = question_loader(
        model, by_images(questions), Pad(), max_new_tokens=length, images_per_batch=at_once
    )
    found = [answer(model, batch) for batch in loader]
    return {name: ids for each in found for name, ids in zip(each.ids, each.tokens, strict=True)}


@torch.no_grad()
def plain(model: Llava, lm: torch.nn.Module, questions: Sequence[Question], length: int) -> Said:
    """Answers one by one by transformers' `generate`."""
    template, tokenizer = get_template(model.llm.template), model.llm.tokenizer
    views, view_spec, said = Pad(), model.encoder.view_spec, {}
    stops = sorted(template.stop_ids(tokenizer))
    for question in questions:
        image = views.load(question.images[0])
        layout, pixels = views.layout(image.size, view_spec), views.pixels(image, view_spec)
        turns = [Turn("user", question.text)]
        ids = template.prompt(turns, tokenizer, [layout.tokens], question.source)
        row = EncodedSample([Segment(ids, [IGNORE] * len(ids))], pixels, [layout], question.source)
        embeddings = model.embed(Batch.pack([row]))[None]
        said[question.id] = lm.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
            max_new_tokens=length,
            do_sample=False,
            eos_token_id=stops,
            pad_token_id=stops[0],
        )[0].tolist()
    return said


def timed(work: Callable[[], Said]) -> tuple[Said, float, float]:
    """What it gives, its seconds, and the processor's, which other programs do not lengthen."""
    began, spent = time.perf_counter(), time.process_time()
    given = work()
    return given, time.perf_counter() - began, time.process_time() - spent


def main() -> None:
    """Blocks of pictures, both ways in turn; medians of seconds a question and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--llm", required=True, help="folder or hub id of SmolLM2-135M-Instruct")
    parser.add_argument("--encoder", help=".safetensors of DINOv2-S; or else timm's from the hub")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--images-per-batch", type=int, default=8, help="and a block")
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument(
        "--plain", type=int, metavar="N", help="ask plainly only N questions a block, at random"
    )
    options = parser.parse_args()
    length, size = options.max_new_tokens, options.images_per_batch
    logging.disable_progress_bar()
    name = "vit_small_patch14_dinov2.lvd142m"
    encoder = TimmEncoder(name, image_size=224, weights=options.encoder)
    model = Llava(encoder, MLP, CausalLM(options.llm, "tokenizer")).eval()
    lm = AutoModelForCausalLM.from_pretrained(options.llm, dtype=torch.float32).eval()
    draw = random.Random(0)
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    processor: dict[str, list[float]] = {"ours": [], "plain": []}
    asked = equal = 0
    with tempfile.TemporaryDirectory() as folder:
        questions = ask(Path(folder), options.images)
        ours(model, questions[:18], 2, 1)  # warm
        plain(model, lm, questions[:1], 2)
        print(f"{'block':>5} {'questions':>9} {'ours, s':>8} {'plain, s':>17} {'ratio':>6}")
        for number, start in enumerate(range(0, len(questions), 18 * size)):
            block = questions[start : start + 18 * size]
            taken = block if options.plain is None else draw.sample(block, options.plain)
            mine, *ours_took = timed(lambda block=block: ours(model, block, length, size))
            theirs, *plain_took = timed(lambda taken=taken: plain(model, lm, taken, length))
            took = {"ours": (ours_took, block), "plain": (plain_took, taken)}
            for way, (both, answered) in took.items():
                seconds[way].append(both[0] / len(answered))
                processor[way].append(both[1] / len(answered))
            asked += len(taken)
            equal += sum(mine[name] == ids for name, ids in theirs.items())
            print(
                f"{number:5} {len(block):9} {ours_took[0]:8.1f} {plain_took[0]:8.1f} of "
                f"{len(taken):4} {seconds['plain'][-1] / seconds['ours'][-1]:7.2f}",
                flush=True,
            )
    print(
        f"{len(questions)} questions about {options.images} pictures, at most {length} tokens; "
        f"{asked} of them asked plainly"
    )
    for kind, found in (("seconds", seconds), ("processor seconds", processor)):
        mine, theirs = (statistics.median(found[way]) for way in ("ours", "plain"))
        print(
            f"median {kind} a question: ours {mine:.3f}, plain {theirs:.3f}, "
            f"ratio {theirs / mine:.2f}"
        )
    print(f"equal token for token: {equal} of {asked}")


if __name__ == "__main__":
    main()
