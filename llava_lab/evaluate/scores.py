"""11. Scores: the callback that keeps answers and points, scores them and shows samples."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from llava_lab.core import ranks
from llava_lab.core.atomic import write
from llava_lab.data.questions import Question
from llava_lab.evaluate.benchmark import Benchmark, BenchmarkDataModule, BenchmarkPass
from llava_lab.evaluate.groups import most_frequent
from llava_lab.evaluate.loggers import log_picture, log_scores
from llava_lab.evaluate.metrics.score import Score
from llava_lab.evaluate.points import BLIND, MOST_FREQUENT, NAME, PointsFile
from llava_lab.evaluate.sheet import SheetItem, sheet
from llava_lab.model.generate import Answers, QuestionBatch

SHOWN = 12
SUBMISSIONS = "submissions"  # folder of the files that servers score
Numbered = dict[int, dict[int, Any]]  # by test loader, then by a question's place in its file


@dataclass
class Answered:
    """Counts of a benchmark's questions and answers.

    Attributes:
        questions: Questions that the benchmark has.
        answered: Questions that were answered; all, unless batches were limited.
        empty: Answers without any text.
        empty_correct: Of these, how many the benchmark's rule accepts, wholly or in part; None
            where nothing was scored.
        no_blind: Whether a blind score was asked for and there is none, since a question could
            only be shown its own images.
    """

    questions: int
    answered: int
    empty: int
    empty_correct: int | None = None
    no_blind: bool = False


class Scores(Callback):
    """Scores `test`, writes predictions and points, logs scores and a sheet of samples.

    A line of a prediction file has a question, the answer to it, and whether that is correct; of
    the blind and the text-only pass the same in fields that begin with `blind_` and `text_only_`.

    Args:
        folder: Where the prediction files go, one a benchmark; points.json goes beside it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.texts: Numbered = {}
        self.shown: Numbered = {}
        self.results: dict[str, dict[str, Score]] = {}
        self.visual_tokens: dict[str, float] = {}
        self.answered: dict[str, Answered] = {}
        self.points = PointsFile()
        self.lines: dict[int, dict[str, Any]] = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: QuestionBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect answers and visual token counts."""
        answers: Answers = outputs
        places = [place for tree in batch.places for place in tree]
        texts = self.texts.setdefault(dataloader_idx, {})
        texts.update(zip(places, answers.texts, strict=True))
        firsts = [tree[0] for tree in batch.places]
        shown = self.shown.setdefault(dataloader_idx, {})
        shown.update(zip(firsts, batch.batch.visual_tokens, strict=True))

    on_predict_batch_end = on_test_batch_end

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Score and write the answers of `test`; write those of `predict`.

        A rank without a batch skips Lightning's hooks for the end of a test, but not this one.
        """
        if stage not in ("test", "predict"):
            return
        data: BenchmarkDataModule = trainer.datamodule  # type: ignore[attr-defined]
        passes = [(n, *pair) for n, of in enumerate(data.loaded(stage)) for pair in enumerate(of)]
        blind = {each.benchmark.name for _, _, each in passes if each.prefix == BLIND}
        texts, shown = of_all_ranks(self.texts), of_all_ranks(self.shown)
        for loader, nth, each in passes:
            count = len(each.benchmark.questions)
            predictions = of_pass(texts.get(loader, {}), nth, count)
            if not each.prefix:
                tokens = [n for n in of_pass(shown.get(loader, {}), nth, count).values() if n]
                self.visual_tokens[each.benchmark.name] = mean(tokens) if tokens else 0.0
                self._begin(trainer, each.benchmark, predictions)
            if stage == "test":
                self._score(trainer, each, predictions)
                no_blind = each.benchmark.blind and each.benchmark.name not in blind
                self.answered[each.benchmark.name].no_blind = no_blind
        if stage == "test" and trainer.is_global_zero:
            self.points.write(self.folder.parent / NAME)
            self._log(trainer)

    def _begin(self, trainer: Trainer, benchmark: Benchmark, predictions: dict[int, str]) -> None:
        """Count and write the answers, so that they are kept if scoring fails."""
        name, questions = benchmark.name, benchmark.questions
        self.results[name] = {}
        empty = sum(not text.strip() for text in predictions.values())
        self.answered[name] = Answered(len(questions), len(predictions), empty)
        self.points.begin(name, questions, benchmark.asked())
        self.lines = {place: _line(questions[place]) for place in predictions}
        self._keep(trainer, benchmark, "", predictions, [{}] * len(predictions))
        if trainer.is_global_zero and len(predictions) == len(questions):
            benchmark.submit(self.folder.parent / SUBMISSIONS, list(predictions.values()))

    def _score(
        self, trainer: Trainer, one_pass: BenchmarkPass, predictions: dict[int, str]
    ) -> None:
        """Score one pass over a benchmark; a pass without answers has no scores."""
        if not predictions:
            return
        benchmark, prefix = one_pass.benchmark, one_pass.prefix
        name, metric = benchmark.name, benchmark.metric
        questions = [benchmark.questions[place] for place in predictions]
        graded = self._grade(benchmark, prefix, predictions)
        self._keep(trainer, benchmark, prefix, predictions, graded)
        if not prefix:
            pairs = zip(predictions.values(), graded, strict=True)
            accepted = [line.get("correct", 0) > 0 for text, line in pairs if not text.strip()]
            self.answered[name].empty_correct = sum(accepted) if any(graded) else None
            if metric.repeats:
                said = most_frequent(benchmark.questions)
                self._grade(benchmark, MOST_FREQUENT, {place: said[place] for place in predictions})
            if trainer.is_global_zero:
                self._show(trainer, name, questions, list(predictions.values()), graded)

    def _grade(
        self, benchmark: Benchmark, prefix: str, predictions: dict[int, str]
    ) -> list[dict[str, Any]]:
        """Score answers, and keep what each question gave; fields of each for predictions."""
        name, metric = benchmark.name, benchmark.metric
        questions = [benchmark.questions[place] for place in predictions]
        graded = metric.grade(questions, list(predictions.values()))
        # An answer that is scored together with another has no line.
        places = [place for place, line in zip(predictions, graded, strict=True) if line]
        clusters = self.points.clusters(name, places)
        self.results[name] |= {
            f"{prefix}{key}": Score.of(ratio, clusters)
            for key, ratio in metric.all_ratios().items()
        }
        self.points.add(
            name, prefix, places, metric.ratios(), split=metric.split, means=metric.means
        )
        return graded

    def _log(self, trainer: Trainer) -> None:
        """Log the scores of all benchmarks."""
        scores = {
            f"{name}/{key}": score.value
            for name, found in self.results.items()
            for key, score in found.items()
        }
        if scores:
            log_scores(trainer.loggers, scores, trainer.global_step)

    def counts(self) -> dict[str, dict[str, Any]]:
        """Number of questions and answers of each benchmark, for results.json."""
        return {name: asdict(counts) for name, counts in self.answered.items()}

    def _keep(
        self,
        trainer: Trainer,
        benchmark: Benchmark,
        prefix: str,
        predictions: dict[int, str],
        graded: list[dict[str, Any]],
    ) -> None:
        """Add a pass to the lines, and write those: one a question, in the order of the file."""
        for (place, text), more in zip(predictions.items(), graded, strict=True):
            fields = {"prediction": text, **more}
            line = self.lines.setdefault(place, _line(benchmark.questions[place]))
            line |= {f"{prefix}{key}": value for key, value in fields.items()}
        if trainer.is_global_zero:
            lines = [json.dumps(each, ensure_ascii=False) for _, each in sorted(self.lines.items())]
            write(self.folder / f"{benchmark.name}.jsonl", "".join(f"{line}\n" for line in lines))

    @staticmethod
    def _show(
        trainer: Trainer,
        name: str,
        questions: list[Question],
        texts: list[str],
        graded: list[dict[str, Any]],
    ) -> None:
        """Log a sheet of questions that are spread over the file."""
        samples = [
            (question, text, line["correct"])
            for question, text, line in zip(questions, texts, graded, strict=True)
            if question.images and line
        ]
        items = [
            SheetItem(
                image=question.images[0],
                question=question.prompt,
                answer=question.answers[0],
                prediction=text,
                correct=right >= 0.5,
                upright=trainer.datamodule.views.upright,  # type: ignore[attr-defined]
            )
            for question, text, right in samples[:: max(1, len(samples) // SHOWN)][:SHOWN]
        ]
        if items and trainer.loggers:
            log_picture(trainer.loggers, f"samples/{name}", sheet(items))


def _line(question: Question) -> dict[str, Any]:
    """What the line of a question begins with in a prediction file."""
    return {
        "id": question.id,
        "question": question.prompt,
        "category": question.category,
        "answer": question.answers[0] if question.answers else None,
    }


def of_pass(found: Mapping[int, Any], nth: int, number: int) -> dict[int, Any]:
    """What belongs to the N-th pass of a loader, by the place in the file.

    Args:
        found: By place, as `groups.of_passes` counts them.
        nth: Number of the pass, from 0.
        number: Questions of the benchmark.
    """
    return {at - nth * number: each for at, each in sorted(found.items()) if at // number == nth}


def of_all_ranks(mine: Numbered) -> Numbered:
    """Merge the answers of all ranks; each question was answered on one of them."""
    if not ranks.several():
        return mine
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    found: Numbered = {}
    for part in every:
        for loader, kept in part.items():
            found.setdefault(loader, {}).update(kept)
    return found
