"""11e. Scores: the callback that keeps answers, scores them and shows a sheet of samples."""

import json
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from llava_lab.disk import write
from llava_lab.evaluate.benchmark import Benchmark, BenchmarkDataModule
from llava_lab.evaluate.generate import Answers, Questions
from llava_lab.evaluate.metric import Score
from llava_lab.evaluate.sheet import SheetItem, sheet

SHOWN = 12


class Scores(Callback):
    """Scores `test`, writes one prediction file a benchmark, and logs a sheet of samples.

    Args:
        folder: Where the prediction files go.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.answers: dict[int, dict[str, str]] = {}
        self.shown: dict[int, dict[str, int]] = {}
        self.results: dict[str, dict[str, Score]] = {}
        self.visual_tokens: dict[str, float] = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Questions,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the answers, and how many visual tokens stood before them."""
        answers: Answers = outputs
        self.answers.setdefault(dataloader_idx, {}).update(
            zip(answers.ids, answers.texts, strict=True)
        )
        self.shown.setdefault(dataloader_idx, {}).update(
            zip(batch.batch.sources, batch.batch.visual_tokens, strict=True)
        )

    on_predict_batch_end = on_test_batch_end

    @staticmethod
    def _gathered(mine: dict[str, Any]) -> dict[str, Any]:
        """What all ranks kept; a sampler that pads repeats a question, a name keeps it once."""
        if not (dist.is_available() and dist.is_initialized()):
            return mine
        every: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(every, mine)
        return {name: each for part in every for name, each in part.items()}

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score every benchmark, seeing and blind."""
        data: BenchmarkDataModule = trainer.datamodule  # type: ignore[attr-defined]
        for loader, (benchmark, blind) in enumerate(data.passes):
            answers = self._gathered(self.answers.get(loader, {}))
            if not blind:
                shown = self._gathered(self.shown.get(loader, {}))
                counts = [count for count in shown.values() if count]
                self.visual_tokens[benchmark.name] = mean(counts) if counts else 0.0
            if not blind and trainer.is_global_zero:
                self._write(benchmark, answers, None)  # there even if a judge is not
            predictions = [answers[question.id] for question in benchmark.questions]
            lines = benchmark.metric.grade(benchmark.questions, predictions)
            # Every rank has gathered all answers already: the metric is not to gather again.
            benchmark.metric.sync_on_compute = False
            scores: dict[str, Score] = benchmark.metric.compute()
            kept = self.results.setdefault(benchmark.name, {})
            kept.update({f"blind_{key}" if blind else key: s for key, s in scores.items()})
            if not blind and trainer.is_global_zero:
                self._write(benchmark, answers, lines)
                self._show(trainer, benchmark, answers, lines)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the answers, without scores."""
        data: BenchmarkDataModule = trainer.datamodule  # type: ignore[attr-defined]
        for loader, benchmark in enumerate(data.benchmarks):
            answers = self._gathered(self.answers.get(loader, {}))
            if trainer.is_global_zero:
                self._write(benchmark, answers, None)

    def _write(
        self, benchmark: Benchmark, answers: dict[str, str], graded: list[dict[str, Any]] | None
    ) -> None:
        """One JSON line a question, in the order of the file."""
        lines = []
        for index, question in enumerate(benchmark.questions):
            line: dict[str, Any] = {
                "id": question.id,
                "question": question.prompt,
                "category": question.category,
                "answer": question.answers[0] if question.answers else None,
                "prediction": answers[question.id],
            }
            more = graded[index] if graded is not None else {}
            lines.append(json.dumps(line | more, ensure_ascii=False))
        write(self.folder / f"{benchmark.name}.jsonl", "\n".join(lines) + "\n")

    @staticmethod
    def _show(
        trainer: Trainer,
        benchmark: Benchmark,
        answers: dict[str, str],
        graded: list[dict[str, Any]],
    ) -> None:
        """A sheet of questions spread over the file, to the loggers that take pictures."""
        pairs = [
            (question, line["correct"])
            for question, line in zip(benchmark.questions, graded, strict=True)
            if question.images and line
        ]
        items = [
            SheetItem(
                image=question.images[0],
                question=question.prompt,
                answer=question.answers[0],
                prediction=answers[question.id],
                correct=right >= 0.5,
            )
            for question, right in pairs[:: max(1, len(pairs) // SHOWN)][:SHOWN]
        ]
        for logger in trainer.loggers:
            writer = getattr(logger, "experiment", None)
            if items and hasattr(writer, "add_image"):
                picture = np.asarray(sheet(items))
                writer.add_image(f"samples/{benchmark.name}", picture, dataformats="HWC")
