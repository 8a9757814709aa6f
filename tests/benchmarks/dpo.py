"""A step of preference tuning against TRL's DPOTrainer: pairs a second, memory, loss, gradients.

    python tests/benchmarks/dpo.py [--lm FOLDER] [--pairs 2] [--rounds 3] [--ways WAY ...]

Needs the extra `bench` (TRL). Same weights, same pairs, fp32, one thread of a CPU; a prompt is 10
to 16 frames of 144 visual tokens, an answer 60 to 150 tokens, as in the published recipe. The
encoder and the connector are frozen there, so that what is trained is the LM; TRL's trainer has no
way for videos. So random ids stand for visual tokens on both sides, the very same ones.

TRL runs with its defaults, which recompute activations, but for: fp32 in place of bf16, no
max_length (1,024 would cut every prompt), `--batch` pairs a step in place of 8 (the recipe has 1 a
device), the order of the file, and no clipping, which the recipe has not.

    TRL                 a reference model in memory, which sees every batch
    ..., precomputed    its `precompute_ref_log_probs`, done before the clock starts, as is ours
    ..., keeping        everything is kept for the backward pass
    ..., answers        TRL with logits of answers alone. On a GPU it does so itself; where there
                        is no Triton, such as here, it computes those of all tokens
    ours                keeps what matrix products and attention gave
    ours, recomputing   keeps each layer's input, as TRL does

Every (round, way) is a process of its own, in turn. Its first step, on a short pair at rate 0, is
not counted. Seconds are those that the process had of a core, so that other work on the machine
does not count. Memory is the peak of the process less what it had before the model was loaded;
glibc is told to give freed blocks of a MiB back at once (`MALLOC`), for else the peak counts the
holes of its heap, which depend on the order in which a step frees.
"""

import argparse
import importlib.util
import json
import logging
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WAYS = ["ours", "ours, recomputing", "TRL", "TRL, precomputed"]
MORE = [
    *("ours, keeping", "TRL, keeping", "TRL, precomputed, keeping"),
    *("TRL, answers", "TRL, precomputed, answers"),
]
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}
RATE, BETA, VOCABULARY = 1e-5, 0.1, 49152


def draw(steps: int, batch: int) -> list[dict[str, list[int]]]:
    """Pairs of a prompt, a chosen and a rejected answer, as ids; those of the first step short."""
    rng = random.Random(0)

    def ids(length: int) -> list[int]:
        return [rng.randrange(3, VOCABULARY) for _ in range(length)]

    return [
        {
            "prompt_ids": ids(64 if number < batch else 144 * rng.randint(10, 16)),
            "chosen_ids": ids(rng.randint(60, 150)),
            "rejected_ids": ids(rng.randint(60, 150)),
        }
        for number in range(steps * batch)
    ]


def make_lm(folder: Path, width: int, layers: int) -> None:
    """A random LM in SmolLM2's proportions, where no folder with a real one is given."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 192),
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


class Watch:
    """What is measured of a run: seconds and loss of every step, gradients of the second."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.gradients: dict[str, Any] = {}
        self.baseline = peak()

    def keep(self, model: Any) -> None:
        """Gradients of the first step that counts."""
        if len(self.ends) == 1:
            self.gradients = {n: weight.grad.clone() for n, weight in model.named_parameters()}

    def end(self) -> None:
        """A step is over."""
        self.ends.append(time.process_time())

    def summary(self, batch: int) -> dict[str, Any]:
        """Pairs a second, losses, memory."""
        rate = batch * (len(self.ends) - 1) / (self.ends[-1] - self.ends[0])
        return {"rate": rate, "losses": self.losses[1:], "memory": peak() - self.baseline}


def ours(options: argparse.Namespace) -> Watch:
    """The stage under Lightning's trainer, as `fit` runs it."""
    import torch
    from lightning.pytorch import Callback, Trainer

    from llava_lab.data.modules.answers import AnswerRow
    from llava_lab.data.modules.preference import Pairs
    from llava_lab.data.modules.stage import StageDataModule
    from llava_lab.data.packing import EncodedSample, Segment
    from llava_lab.data.tokens import IGNORE
    from llava_lab.model.connector.mlp import MLP
    from llava_lab.model.encoder.timm import TimmEncoder
    from llava_lab.model.llava import Llava
    from llava_lab.model.llm import CausalLM
    from llava_lab.train.answers import answer_logps
    from llava_lab.train.preference import DPO
    from llava_lab.train.stage import Stage

    watch = Watch()
    # Nothing is shown, so that the encoder and the connector are never computed.
    small = {"embed_dim": 24, "depth": 1, "num_heads": 2, "mlp_ratio": 2}
    encoder = TimmEncoder("xcit_nano_12_p16_224", -1, False, False, 64, None, small)
    model = Llava(encoder, MLP, CausalLM(options.lm, "chatml"))
    loss = DPO(BETA)
    loss.prepare = lambda *_: None  # the rows below have the reference's numbers
    rows = []
    for pair in draw(options.steps, options.batch):
        prompt, *answers = pair.values()
        segments = [Segment(answer, answer, 0) for answer in answers]
        row = EncodedSample([Segment(prompt, [IGNORE] * len(prompt)), *segments], None, [], "pair")
        with torch.no_grad():
            logps = answer_logps(model, Pairs.of([AnswerRow(row)]))[0][0]
            rows.append(AnswerRow(row, None, logps))

    class Data(StageDataModule):
        def lengths(self) -> tuple[list[int], list[int]]:
            return [1] * len(rows), [0] * len(rows)

        def order(self) -> list[list[int]]:
            size = options.batch
            return [list(range(size * n, size * (n + 1))) for n in range(options.steps)]

        def train_rows(self) -> Any:
            return rows

        def content(self) -> str:
            return ""

        def collate(self, rows: list[Any], part: Any) -> Pairs:
            return Pairs.of(rows)

    kept: Any = {"ours": "products", "ours, keeping": False, "ours, recomputing": True}
    stage = Stage(
        Data(options.batch),
        loss,
        {"llm": RATE},
        schedule="constant",
        warmup_ratio=1 / options.steps,
        gradient_checkpointing=kept[options.way],
    )

    class Watcher(Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            watch.keep(module.llm.model)

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            watch.losses.append(float(outputs["loss"]))
            watch.end()

    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    callbacks = [stage, Watcher()]
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", callbacks=callbacks, **dict.fromkeys(quiet, False)
    )
    trainer.fit(model, datamodule=stage.data)
    return watch


def theirs(options: argparse.Namespace) -> Watch:
    """TRL's trainer; the ids take the place of its tokenisation, and nothing else is changed."""
    import datasets
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer
    from trl.trainer import utils

    if options.way.endswith("answers"):
        utils._use_triton = lambda device: True  # asked there for this alone; the kernels ask again
    watch = Watch()

    class OnIds(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def compute_loss(self, *arguments: Any, **options: Any) -> Any:
            loss = super().compute_loss(*arguments, **options)
            watch.losses.append(float(loss))
            return loss

    class Watcher(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **others: Any) -> None:
            watch.keep(others["model"])

        def on_step_end(self, *_: Any, **others: Any) -> None:
            watch.end()

    names = {"<pad>": 0, **{str(number): number for number in range(1, VOCABULARY)}}
    words = Tokenizer(models.WordLevel(names, "<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="2")
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            folder,
            use_cpu=True,
            bf16=False,
            max_length=None,
            per_device_train_batch_size=options.batch,
            max_steps=options.steps,
            beta=BETA,
            learning_rate=RATE,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=1,
            max_grad_norm=0.0,
            precompute_ref_log_probs="precomputed" in options.way,
            gradient_checkpointing="keeping" not in options.way,
            train_sampling_strategy="sequential",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = OnIds(
            options.lm,
            args=config,
            train_dataset=datasets.Dataset.from_list(draw(options.steps, options.batch)),
            processing_class=tokenizer,
            callbacks=[Watcher()],
        )
        trainer.train()
    return watch


def peak() -> int:
    """Peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(options: argparse.Namespace) -> None:
    """One way, once; its numbers are the last line of its output."""
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    watch = theirs(options) if options.way.startswith("TRL") else ours(options)
    found = watch.summary(options.batch)
    save_file(watch.gradients, options.gradients)
    print(json.dumps(found))


def measure(options: argparse.Namespace, way: str, gradients: Path) -> dict[str, Any]:
    """One way in a process of its own."""
    numbers = ("--batch", str(options.batch), "--steps", str(1 + options.pairs // options.batch))
    command = [sys.executable, __file__, "--way", way, "--lm", options.lm, *numbers]
    command += ["--gradients", str(gradients)]
    environment = {**MALLOC, **os.environ}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{way}: {done.stderr[-3000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"  {way:26} {found['rate']:.4f} pairs/s {found['losses']}", file=sys.stderr, flush=True)
    return found


def difference(ours: Path, theirs: Path) -> float:
    """Largest difference of gradients, over the largest gradient of the same tensor."""
    from safetensors.torch import load_file

    mine, other = load_file(ours), load_file(theirs)
    assert mine.keys() == other.keys()
    return max(float((mine[n] - other[n]).abs().max() / other[n].abs().max()) for n in other)


def main(options: argparse.Namespace, folder: Path) -> None:
    """All ways in turn, round after round; medians."""
    if options.lm is None:
        options.lm = str(folder / "lm")
        make_lm(Path(options.lm), options.width, options.layers)
    files = {way: folder / f"{number}.safetensors" for number, way in enumerate(options.ways)}
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in options.ways}
    for _ in range(options.rounds):
        for way, file in files.items():
            found[way].append(measure(options, way, file))
    first = options.ways[0]
    print(f"over {first}:")
    heads = ("pairs/s", "ratio", "MiB", "ratio", "loss differs", "gradients differ")
    print(f"{'way':26} " + " ".join(f"{head:>16}" for head in heads))
    numbers = {
        way: [statistics.median(each[key] for each in rounds) for key in ("rate", "memory")]
        for way, rounds in found.items()
    }
    for way, (rate, memory) in numbers.items():
        losses = zip(found[way][0]["losses"], found[first][0]["losses"], strict=True)
        values = [
            f"{rate:.4f}",
            f"{numbers[first][0] / rate:.2f}",
            f"{memory / 2**20:,.0f}",
            f"{numbers[first][1] / memory:.2f}",
            f"{max(abs(a - b) / abs(b) for a, b in losses):.1e}",
            f"{difference(files[first], files[way]):.1e}",
        ]
        print(f"{way:26} " + " ".join(f"{value:>16}" for value in values))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--lm", help="folder of an LM; a random one without it")
    parser.add_argument("--width", type=int, default=576, help="of the random LM")
    parser.add_argument("--layers", type=int, default=10, help="of the random LM")
    parser.add_argument("--batch", type=int, default=1, help="pairs a step")
    parser.add_argument("--pairs", type=int, default=2, help="pairs that are timed in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=[*WAYS, *MORE], metavar="WAY")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--gradients", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if importlib.util.find_spec("trl") is None:
        sys.exit("TRL is not installed: pip install -e '.[bench]'")
    if options.way:
        child(options)
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(options, Path(folder))
