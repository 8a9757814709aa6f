"""11. Trajectory: a stage while it trains -> scores on the run's benchmarks, and what was spent.

Questions are asked between two optimizer steps, with their own images alone: a blind pass tells
of the questions, and is part of the evaluation at the end. Nothing of the training moves: neither
weights nor random states nor modes.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from llava_lab.core import signals
from llava_lab.core.modes import evaluating
from llava_lab.core.progress import progress, say
from llava_lab.core.random_state import kept_random_state
from llava_lab.data.modules.stage import limited
from llava_lab.evaluate.benchmark import BenchmarkDataModule, BenchmarkPass
from llava_lab.evaluate.loggers import log_scores
from llava_lab.evaluate.metrics.score import Score
from llava_lab.evaluate.points import clusters_of
from llava_lab.evaluate.scores import of_all_ranks
from llava_lab.model.generate import answer
from llava_lab.train.kept import steps_between
from llava_lab.train.normalize import over_processes
from llava_lab.train.record import Record, part_costs
from llava_lab.train.stage import Stage
from llava_lab.train.turns import ranks_apart

Scored = dict[str, dict[str, dict[str, Any]]]


class Trajectory(Callback):
    """Asks a run's benchmarks while a stage trains; points go on over interruptions.

    A point is `step`, `samples`, `tokens`, `flops` (filled in at the end) and `benchmarks`, as
    results.json has them.

    Args:
        stage: The stage.
        data: The benchmarks.
        fingerprints: The benchmarks' fingerprints.
        record: What the stage has done so far.
    """

    def __init__(
        self,
        stage: Stage,
        data: BenchmarkDataModule,
        fingerprints: Mapping[str, str],
        record: Record,
    ):
        self.stage, self.data, self.fingerprints = stage, data, dict(fingerprints)
        self.record = record
        self.points: list[dict[str, Any]] = []
        self.steps: list[int] = []
        self.loaders: list[tuple[BenchmarkPass, DataLoader]] = []

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"points": json.dumps(self.points), "asked": self.fingerprints}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint.

        Raises:
            ValueError: If its points are of other questions.
        """
        if state_dict["asked"] != self.fingerprints:
            raise ValueError(
                f"stages.{self.stage.name}.evaluate_every: the benchmarks' questions are others "
                "than before the stage was interrupted; put them back, or begin it anew with "
                "--fresh"
            )
        self.points = json.loads(state_dict["points"])

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Ask where an interruption came before the answers."""
        steps = trainer.datamodule.steps()  # type: ignore[attr-defined]
        self.steps = steps_between(self.stage.evaluate_every, steps)
        self._ask_if_due(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask when a step is whole."""
        if "means" in outputs:
            self._ask_if_due(trainer, pl_module)

    def _ask_if_due(self, trainer: Trainer, model: Any) -> None:
        step = trainer.global_step
        if step not in self.steps or any(point["step"] == step for point in self.points):
            return
        self._ask(trainer, model)
        self.record.start()

    def end(self, trainer: Trainer, model: Any) -> None:
        """Ask at the stage's end, where it is not that of the run.

        Args:
            trainer: The stage's, which has ended.
            model: The model, whole.
        """
        with torch.no_grad(), ranks_apart(trainer, model):
            self._ask(trainer, model)

    def _ask(self, trainer: Trainer, model: Any) -> None:
        """Ask, and keep the scores; a signal ends it without, for the step is asked again."""
        precision = trainer.precision_plugin.forward_context()
        kept = kept_random_state(model.device)
        with evaluating(model), kept, scaled(model.llm, self.data.rope_factor):
            with torch.no_grad(), precision:
                texts, stopped = self._answers(trainer, model)
            if any(over_processes([int(stopped)])):
                return
            scored = self._scores(of_all_ranks(texts))
        counts = {key: int(count) for key, count in self.record.counts.items()}
        self.points.append({"step": trainer.global_step, "counts": counts, "benchmarks": scored})
        values = {f"{n}/{k}": s["value"] for n, found in scored.items() for k, s in found.items()}
        log_scores(trainer.loggers, values, trainer.global_step)
        heads = [f"{n}/{next(iter(found))}" for n, found in scored.items()]
        said = ", ".join(f"{name} {values[name]:.3f}" for name in heads)
        say(f"stage {self.stage.name}, step {trainer.global_step}: {said}")

    def _answers(self, trainer: Trainer, model: Any) -> tuple[dict[int, dict[int, str]], bool]:
        """This device's share of the answers, by pass and place; and whether a signal ended it."""
        if not self.loaders:
            self.data.trainer = trainer
            scored = (each for each in self.data.passes if each.benchmark.metric.scored)
            passes = [each for each in scored if not each.prefix]
            self.loaders = [(each, self.data.loader(each)) for each in passes]
        texts: dict[int, dict[int, str]] = {}
        name = f"{self.stage.name}, questions at step {trainer.global_step}"
        with progress(name, sum(len(loader) for _, loader in self.loaders)) as bar:
            for number, (_, loader) in enumerate(self.loaders):
                for batch in islice(loader, limited(len(loader), trainer.limit_test_batches)):
                    if signals.came():
                        return {}, True
                    found = answer(model, batch.to(model.device))
                    places = [place for tree in batch.places for place in tree]
                    texts.setdefault(number, {}).update(zip(places, found.texts, strict=True))
                    bar.update()
        return texts, False

    def _scores(self, texts: dict[int, dict[int, str]]) -> Scored:
        scored: Scored = {}
        for number, (each, _) in enumerate(self.loaders):
            benchmark, answers = each.benchmark, dict(sorted(texts.get(number, {}).items()))
            if not answers:  # the trainer limits batches
                continue
            questions = [benchmark.questions[place] for place in answers]
            graded = benchmark.metric.grade(questions, list(answers.values()))
            # An answer that is scored together with another has no line.
            places = [place for place, line in zip(answers, graded, strict=True) if line]
            every = clusters_of(benchmark.questions)
            clusters = [every[place] for place in places]
            scored[benchmark.name] = {
                key: asdict(Score.of(ratio, clusters))
                for key, ratio in benchmark.metric.all_ratios().items()
            }
        return scored

    def summary(self, model: Any) -> dict[str, Any]:
        """The stage's trajectory for its record: which questions, and the points in order.

        Args:
            model: The model without adapters.
        """
        points = []
        for point in sorted(self.points, key=lambda each: each["step"]):
            counts = point["counts"]
            costs = part_costs(model, self.stage.selection, model.seen(counts))
            spent = {key: counts[key] for key in ("samples", "tokens")}
            spent["flops"] = sum(costs.values())
            points.append({"step": point["step"], **spent, "benchmarks": point["benchmarks"]})
        return {"asked": self.fingerprints, "points": points}


def covers(record: Mapping[str, Any], stage: Stage, fingerprints: Mapping[str, str]) -> bool:
    """Whether a finished stage's record has the scores that the stage asks for now.

    Args:
        record: The record.
        stage: The stage, as it is asked for.
        fingerprints: Fingerprints of the benchmarks.
    """
    wanted = steps_between(stage.evaluate_every, record["steps"])
    if not wanted:
        return True
    found = record.get("trajectory") or {"asked": None, "points": []}
    there = {point["step"] for point in found["points"]}
    return found["asked"] == dict(fingerprints) and there >= set(wanted)


@contextmanager
def scaled(llm: Any, factor: float) -> Iterator[None]:
    """Scale an LM's positions while questions are asked, and put them back.

    Args:
        llm: The LM.
        factor: Factor of linear RoPE scaling.
    """
    config, before = llm.model.config, llm.scaled
    rope = getattr(config, "rope_parameters", None)
    angles = {
        module: module.inv_freq.clone()
        for module in llm.model.modules()
        if isinstance(getattr(module, "inv_freq", None), torch.Tensor)
    }
    llm.scale(factor)
    try:
        yield
    finally:
        if llm.scaled != before:
            config.rope_parameters, llm.scaled = rope, before
            for module, kept in angles.items():
                module.inv_freq.copy_(kept)
