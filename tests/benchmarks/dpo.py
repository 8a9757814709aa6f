"""A step of preference tuning beside a padded loop and TRL: pairs a second, memory, gradients.

    python tests/benchmarks/dpo.py                          a CPU core, minutes; with TRL if there
    python tests/benchmarks/dpo.py --size 1b --device cuda  one GPU, minutes

Same weights, same pairs; fp32 on a CPU, bf16 on a GPU. A prompt is 10 to 16 frames of 144 visual
tokens, an answer 60 to 150 tokens, as in the published recipe. The encoder and the connector are
frozen there, so that what is trained is the LM, and TRL's trainer has no way for videos. So random
ids stand for visual tokens on all sides, the very same ones.

    ours                     keeps what matrix products and attention gave
    ours, keeping            keeps everything for the backward pass
    ours, recomputing        keeps each layer's input, as TRL does
    padded                   transformers on two padded rows a pair, with logits of answers alone
                             and a reference model in memory, which sees every batch
    padded, known            the same, what the reference says being known, as to ours
    TRL                      a reference model in memory, which sees every batch
    TRL, precomputed         its `precompute_ref_log_probs`, done before the clock starts
    TRL..., keeping          everything is kept for the backward pass
    TRL..., answers          logits of answers alone. On a GPU it does so itself; where there is no
                             Triton, such as here, it computes those of all tokens

TRL (the extra `bench`) runs on CPUs here, with its defaults, which recompute activations, but for:
fp32 in place of bf16, no max_length (1,024 would cut every prompt), `--batch` pairs a step in place
of 8 (the recipe has 1 a device), the order of the file, and no clipping, which the recipe has not.

Every (round, way) is a process of its own, in turn. Its first step, on a short pair at rate 0, is
not counted. On a CPU, seconds are those that the process had of a core, so that other work on the
machine does not count, and memory is the peak of the process less what it had before the model was
loaded; glibc is told to give freed blocks of a MiB back at once (`MALLOC`), for else the peak
counts the holes of its heap, which depend on the order in which a step frees.
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
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from common import SIZES, clock, dtype_of, precision, report, say
from common import options as parser_of

WAYS = ["ours", "ours, recomputing", "ours, keeping", "padded", "padded, known"]
TRL = [
    *("TRL", "TRL, precomputed", "TRL, keeping", "TRL, precomputed, keeping"),
    *("TRL, answers", "TRL, precomputed, answers"),
]
ANSWERS = ("chosen_ids", "rejected_ids")
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}
RATE, BETA = 1e-5, 0.1


def draw(options: argparse.Namespace) -> list[dict[str, list[int]]]:
    """Pairs of a prompt, a chosen and a rejected answer, as ids; those of the first step short."""
    rng, most = random.Random(0), words(options)

    def ids(length: int) -> list[int]:
        return [rng.randrange(3, most) for _ in range(length)]

    return [
        {
            "prompt_ids": ids(64 if number < options.batch else 144 * rng.randint(10, 16)),
            "chosen_ids": ids(rng.randint(60, 150)),
            "rejected_ids": ids(rng.randint(60, 150)),
        }
        for number in range(options.steps * options.batch)
    ]


def words(options: argparse.Namespace) -> int:
    """Words of the LM."""
    return json.loads((Path(options.lm) / "config.json").read_text())["vocab_size"]


def make_lm(folder: Path, options: argparse.Namespace) -> None:
    """A random LM, where no folder with a real one is given."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    values = dict(SIZES[options.size].lm)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device(options.device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype_of(options))
    model.save_pretrained(folder)


class Watch:
    """What is measured of a run: seconds and loss of every step, gradients of the second."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.gradients: dict[str, torch.Tensor] = {}
        self.baseline = peak(self.device)

    def keep(self, model: Any) -> None:
        """Gradients of the first step that counts, of large matrices their beginning."""
        if len(self.ends) == 1:
            weights = model.named_parameters()
            self.gradients = {n: w.grad.flatten()[:100_000].clone() for n, w in weights}

    def end(self, loss: Any) -> None:
        """A step is over."""
        self.losses.append(float(loss))
        self.ends.append(clock(self.device))

    def summary(self, batch: int) -> dict[str, Any]:
        """Pairs a second, losses, memory."""
        rate = batch * (len(self.ends) - 1) / (self.ends[-1] - self.ends[0])
        memory = peak(self.device) - self.baseline
        return {"rate": rate, "losses": self.losses[1:], "memory": memory}


def ours(options: argparse.Namespace) -> Watch:
    """The stage under Lightning's trainer, as `fit` runs it."""
    from lightning.pytorch import Callback

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
    from llava_lab.train.trainer import make_trainer

    watch, place = Watch(options.device), torch.device(options.device)
    # Nothing is shown, so that the encoder and the connector are never computed.
    small = {"embed_dim": 24, "depth": 1, "num_heads": 2, "mlp_ratio": 2}
    encoder = TimmEncoder("xcit_nano_12_p16_224", -1, False, False, 64, None, small)
    name = str(dtype_of(options)).removeprefix("torch.")
    model = Llava(encoder, MLP, CausalLM(options.lm, "chatml", dtype=name)).to(place)
    loss = DPO(BETA)
    loss.prepare = lambda *_: None  # the rows below have the reference's numbers
    rows = []
    for pair in draw(options):
        prompt, *answers = pair.values()
        segments = [Segment(answer, answer, 0) for answer in answers]
        row = EncodedSample([Segment(prompt, [IGNORE] * len(prompt)), *segments], None, [], "pair")
        with torch.no_grad():
            logps = answer_logps(model, Pairs.of([AnswerRow(row)]).to(place))[0][0]
            rows.append(AnswerRow(row, None, logps.cpu()))

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
            watch.end(outputs["loss"])

    given = {
        "accelerator": "cpu" if options.device == "cpu" else "gpu",
        "devices": 1,
        "precision": precision(dtype_of(options)),
        "logger": False,
        "enable_progress_bar": False,
    }
    folder = Path(options.gradients).parent
    trainer = make_trainer(given, folder, "dpo", [stage, Watcher()], Callback())
    trainer.fit(model, datamodule=stage.data)
    return watch


def padded(options: argparse.Namespace) -> Watch:
    """A plain loop: transformers on a padded row for each answer, with its prompt before it."""
    from torch.nn.functional import cross_entropy, logsigmoid
    from torch.nn.utils.rnn import pad_sequence
    from transformers import AutoModelForCausalLM

    watch, place = Watch(options.device), torch.device(options.device)
    model = AutoModelForCausalLM.from_pretrained(
        options.lm, dtype=dtype_of(options), attn_implementation="sdpa"
    )
    model.to(place).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0, fused=place.type == "cuda")

    def logps(model: Any, pairs: list[dict[str, list[int]]]) -> torch.Tensor:
        """Log-probabilities of chosen and rejected answers [n, 2]."""
        answers = [(each["prompt_ids"], each[a]) for each in pairs for a in ANSWERS]
        rows = [torch.tensor(prompt + answer) for prompt, answer in answers]
        ids = pad_sequence(rows, batch_first=True).to(place)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(place)
        hidden = model.model(ids, attention_mask=mask, use_cache=False).last_hidden_state
        spans = [slice(len(prompt) - 1, len(prompt + answer) - 1) for prompt, answer in answers]
        before = [each[span] for each, span in zip(hidden, spans, strict=True)]
        logits = model.lm_head(torch.cat(before)).float()
        targets = torch.tensor([token for _, answer in answers for token in answer], device=place)
        losses = cross_entropy(logits, targets, reduction="none")
        sums = [each.sum() for each in losses.split([len(answer) for _, answer in answers])]
        return -torch.stack(sums).view(-1, 2)

    def reference(model: Any, pairs: list[dict[str, list[int]]]) -> torch.Tensor:
        with torch.no_grad():
            return logps(model, pairs)

    drawn = draw(options)
    steps = [drawn[i : i + options.batch] for i in range(0, len(drawn), options.batch)]
    known = [reference(model, pairs) for pairs in steps] if "known" in options.way else []
    first = None if known else deepcopy(model).requires_grad_(False)
    for number, pairs in enumerate(steps):
        before = known[number] if first is None else reference(first, pairs)
        ratios = logps(model, pairs) - before
        loss = -logsigmoid(BETA * (ratios[:, 0] - ratios[:, 1])).mean()
        loss.backward()
        watch.keep(model)
        for group in optimizer.param_groups:
            group["lr"] = RATE if number else 0.0
        optimizer.step()
        optimizer.zero_grad()
        watch.end(loss.detach())
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
    watch, losses = Watch(options.device), []

    class OnIds(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def compute_loss(self, *arguments: Any, **options: Any) -> Any:
            loss = super().compute_loss(*arguments, **options)
            losses.append(loss.detach())
            return loss

    class Watcher(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **others: Any) -> None:
            watch.keep(others["model"])

        def on_step_end(self, *_: Any, **others: Any) -> None:
            watch.end(losses[-1])

    names = {"<pad>": 0, **{str(number): number for number in range(1, words(options))}}
    known = Tokenizer(models.WordLevel(names, "<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=known, pad_token="<pad>", eos_token="2")
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
            train_dataset=datasets.Dataset.from_list(draw(options)),
            processing_class=tokenizer,
            callbacks=[Watcher()],
        )
        trainer.train()
    return watch


def peak(device: torch.device) -> int:
    """Peak of memory in bytes: the device's, or this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(options: argparse.Namespace) -> None:
    """One way, once; its numbers are the last line of its output."""
    from safetensors.torch import save_file

    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)
    sides = {"ours": ours, "padded": padded, "TRL": theirs}
    watch = sides[options.way.partition(",")[0]](options)
    found = watch.summary(options.batch)
    save_file({name: each.cpu() for name, each in watch.gradients.items()}, options.gradients)
    print(json.dumps(found))


def measure(options: argparse.Namespace, way: str, gradients: Path) -> dict[str, Any]:
    """One way in a process of its own."""
    numbers = ("--batch", str(options.batch), "--steps", str(1 + options.pairs // options.batch))
    command = [sys.executable, __file__, "--way", way, "--lm", options.lm, *numbers]
    command += ["--gradients", str(gradients), "--device", options.device]
    command += ["--threads", str(options.threads)]
    command += ["--dtype", options.dtype] if options.dtype else []
    environment = {**MALLOC, **os.environ}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{way}: {done.stderr[-3000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    say(f"  {way:26} {found['rate']:.4f} pairs/s, losses {found['losses']}")
    return found


def difference(ours: Path, theirs: Path) -> float:
    """Largest difference of a tensor's gradient, as a share of its length."""
    from safetensors.torch import load_file

    mine, other = load_file(ours), load_file(theirs)
    assert mine.keys() == other.keys()
    pairs = [(mine[name].double(), each.double()) for name, each in other.items()]
    return max(float((one - two).norm() / (two.norm() or 1)) for one, two in pairs)


def main(options: argparse.Namespace, folder: Path) -> None:
    """All ways in turn, round after round; medians."""
    if options.lm is None:
        options.lm = str(folder / "lm")
        make_lm(Path(options.lm), options)
    files = {way: folder / f"{number}.safetensors" for number, way in enumerate(options.ways)}
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in options.ways}
    for _ in range(options.rounds):
        for way, file in files.items():
            found[way].append(measure(options, way, file))
    first = options.ways[0]
    numbers = {
        way: [statistics.median(each[key] for each in rounds) for key in ("rate", "memory")]
        for way, rounds in found.items()
    }
    table, allowed = {}, 0.3 if dtype_of(options) == torch.bfloat16 else 1e-3
    for way, (rate, memory) in numbers.items():
        losses = zip(found[way][0]["losses"], found[first][0]["losses"], strict=True)
        table[way] = {
            "pairs/s": rate,
            f"{first} is faster": numbers[first][0] / rate,
            "MiB": memory / 2**20,
            f"{first} takes": f"{numbers[first][1] / memory:.0%}",
            "loss differs": max(abs(a - b) / abs(b) for a, b in losses),
            "gradients differ": difference(files[first], files[way]),
        }
        if table[way]["gradients differ"] > allowed:
            sys.exit(f"{way} computes something else: {table[way]}")
    title = f"Preference tuning, {options.batch} pairs a step, {options.device}"
    report(title, table, options.json, size=options.size)


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("--lm", help="folder of an LM; a random one without it")
    parser.add_argument("--batch", type=int, help="pairs a step: 1 on a CPU, 2 on a GPU")
    parser.add_argument("--pairs", type=int, help="timed in a round: 2 on a CPU, 32 on a GPU")
    parser.add_argument("--ways", nargs="+", choices=[*WAYS, *TRL], metavar="WAY")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--gradients", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        child(options)
        sys.exit()
    many = options.device == "cuda"
    options.batch = options.batch or (2 if many else 1)
    options.pairs = options.pairs or (32 if many else 2)
    there = not many and importlib.util.find_spec("trl") is not None
    options.ways = options.ways or [*WAYS, *(TRL[:2] if there else [])]
    if set(TRL) & set(options.ways) and not there:
        sys.exit("TRL runs on a CPU here, and is the extra bench: pip install -e '.[bench]'")
    with tempfile.TemporaryDirectory() as folder:
        main(options, Path(folder))
