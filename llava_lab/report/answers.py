"""12. Answers: files that `answer` made, scored by a benchmark's rule -> results beside ours."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from inspect import Parameter, isabstract, signature
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from llava_lab.data.questions import Question
from llava_lab.data.rows import read_rows
from llava_lab.report.published import PAPER, columns
from llava_lab.report.runs import RunResults

ORIGIN = "answer"


def read_answers(path: Path, questions: Path, images: Path | None, metric: str) -> RunResults:
    """Score an answer file.

    Args:
        path: JSON lines of `question_id`, `text` and `model_id`.
        questions: The question file that was answered, with the right answers.
        images: Folder of its images, or None where it has none.
        metric: Class of the metric, such as `VQAAccuracy` or `my_package.mine.MyMetric`.

    Raises:
        ValueError: If the file is damaged, answers other questions, or cannot be scored so.
    """
    # Here, since torch takes seconds, and tables of runs need none of it.
    from llava_lab.evaluate.benchmark import Benchmark
    from llava_lab.evaluate.metrics.score import Score
    from llava_lab.evaluate.points import PointsFile

    benchmark = Benchmark(questions.stem, str(questions), _text(images), _metric(metric))
    benchmark.metric.check(benchmark.questions)
    texts, model = _matched(path, benchmark.questions, questions)
    asked = [benchmark.questions[place] for place in texts]
    if secret := [each.source for each in asked if not each.answers]:
        raise ValueError(f"{secret[0]}: no answer to score against")
    graded = benchmark.metric.grade(asked, list(texts.values()))
    places = [place for place, line in zip(texts, graded, strict=True) if line]
    kept = PointsFile()
    kept.begin(benchmark.name, benchmark.questions, benchmark.asked())
    clusters = kept.clusters(benchmark.name, places)
    rule = benchmark.metric
    ratios = rule.ratios()
    kept.add(benchmark.name, "", places, ratios, split=rule.split, means=rule.means)
    scores = {k: asdict(Score.of(r, clusters)) for k, r in rule.all_ratios().items()}
    missing = len(benchmark.questions) - len(texts)
    results = {
        **{"experiment": model, "scale": None, "seed": 0, "stages": []},
        **{"benchmarks": {benchmark.name: scores}, "cost": {"visual_tokens_mean": None}},
        **{"origin": ORIGIN, "columns": _columns(questions, type(rule).__name__, scores)},
        "notes": [f"{benchmark.name}: {missing} questions have no answer, and do not count."]
        if missing
        else [],
    }
    for key, scored in results["columns"].items():
        results["columns"][key] = (benchmark.name, scored)
    return RunResults(path, results, kept={"benchmarks": kept.benchmarks})


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _metric(name: str) -> Any:
    """A metric by its class; those of this package by their name alone."""
    from jsonargparse._util import import_object

    from llava_lab.evaluate import metrics
    from llava_lab.evaluate.metrics.base import BenchmarkMetric

    modules = [
        import_module(f"{metrics.__name__}.{each.name}") for each in iter_modules(metrics.__path__)
    ]
    ours = {
        each.__name__: each
        for module in modules
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, BenchmarkMetric) and not isabstract(each)
    }
    try:
        found = ours[name] if name in ours else import_object(name)
        return found()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        known = ", ".join(sorted(name for name, each in ours.items() if not _needs(each)))
        raise ValueError(f"--metric {name}: no metric ({error}); there are {known}") from error


def _needs(metric: type) -> list[str]:
    """Options of a metric without a default, which a class's name alone does not give."""
    options = signature(metric).parameters.values()
    return [each.name for each in options if each.default is Parameter.empty]


def _matched(path: Path, questions: Sequence[Question], file: Path) -> tuple[dict[int, str], str]:
    """Answers by the place of their questions, and the model's name.

    Both files have one order, and questions that could not be asked are left out. Ids may repeat,
    where all questions of an id have their answers.
    """
    found: dict[int, str] = {}
    models: dict[str, None] = {}
    place = 0
    for row in read_rows(path):
        value = row.value
        if not isinstance(value, Mapping) or not isinstance(value.get("text"), str):
            raise ValueError(f"{row.place}: no row of an answer file, with question_id and text")
        models[str(value.get("model_id") or path.stem)] = None
        name = str(value.get("question_id"))
        while place < len(questions) and questions[place].id != name:
            place += 1
        if place == len(questions):
            raise ValueError(
                f"{row.place}: question {name!r} is not in {file}, or not in the order of its rows"
            )
        found[place] = value["text"]
        place += 1
    asked = Counter(each.id for each in questions)
    for name, number in Counter(questions[each].id for each in found).items():
        if number < asked[name]:
            raise ValueError(
                f"{path}: {number} answers to question {name!r}, which {file} asks {asked[name]} "
                "times: which of them has none cannot be told. `answer` the missing ones again"
            )
    if len(models) != 1:
        raise ValueError(f"{path}: answers of {len(models)} models ({', '.join(models)}), not one")
    return found, next(iter(models))


def _columns(questions: Path, metric: str, scores: Mapping[str, Any]) -> dict[str, Any]:
    """Published columns that this file, scored so, measures."""
    asked = {"questions": str(questions.absolute()), "metric": metric}
    return {
        column.name: column.ours["score"]
        for column in columns(PAPER).values()
        if column.ours is not None and column.asked_by(asked) and column.ours["score"] in scores
    }
