"""The verb prefer: questions -> pairs of a better and a worse answer of one model, for DPO.

Each question is answered several times, each answer is scored, and the best and the worst become a
pair. Questions whose answers are all alike, or all of one score, make none. Answers and scores are
in a journal beside the output before the next questions are asked: a killed command goes on where
it was. The output is written whole when every question is done.
"""

import json
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from llava_lab.core.atomic import write
from llava_lab.core.verbs import (
    MODEL_HELP,
    add_model_options,
    listed,
    one_message,
    positive,
    verb_parser,
)
from llava_lab.data.fields import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, read_text
from llava_lab.data.media.clip import VideoPath
from llava_lab.data.modules.preference import unreadable
from llava_lab.data.rows import Refused
from llava_lab.data.sample import Question, read_questions
from llava_lab.data.views.base import Views
from llava_lab.evaluate.groups import by_images
from llava_lab.evaluate.judge import Judge, Prompt, read_object, read_score
from llava_lab.evaluate.metrics.hallucination import true_and_untrue
from llava_lab.model.generate import Sampling
from llava_lab.model.llava import Llava
from llava_lab.serve.commands import (
    add_frames,
    answer_questions,
    check_answerable,
    open_model,
    show_videos,
)
from llava_lab.serve.journal import Journal

MARKS = (IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER)
Answered = tuple[Question, str]
Scored = list[tuple[str, int]]  # the answers to one question, with their scores
Sampler = Callable[[Sequence[Question]], list[str]]
Scorer = Callable[[Sequence[Answered]], list[int]]


def main(arguments: Sequence[str]) -> None:
    """`prefer`: a model's own answers to a question file become preferences."""
    parser = _parser()
    options = parser.parse_args(arguments)
    with one_message():
        if (options.judge_url is None) != (options.judge_model is None):
            raise ValueError("--judge-url and --judge-model go together")
        if options.samples < 2:
            raise ValueError(f"--samples {options.samples}: a pair takes at least 2")
        if options.out.suffix != ".jsonl":
            raise ValueError(f"--out {options.out}: name it .jsonl, as pairs are read")
        questions = read_questions(options.questions, options.images)
        score: Scorer = by_answers
        told: Any = "answers"
        if options.judge_url:
            judge = Judge(options.judge_url, options.judge_model, options.judge_cache)
            score = ByJudge(judge, options.judge_prompt)
            told = score.settings()
        check(questions, bool(options.judge_url), options.images)
        sampling = Sampling(options.temperature, options.seed)
        sample = LocalSampler(
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
        asked = json.dumps([*shown, options.samples, options.max_new_tokens, told])
        journal = Journal(options.out, asked)
        size = options.images_per_batch
        scored = prefer(questions, sample, score, journal, options.samples, size)
        rows, why = pairs(questions, scored, options.images)
        write(options.out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        journal.path.unlink()
        print(f"llava_lab: {len(rows)} pairs of {len(questions)} questions: {options.out}")
        print(f"llava_lab: no pair: {why['alike']} with answers alike, {why['even']} of one score")


def _parser() -> ArgumentParser:
    parser = verb_parser(
        "prefer",
        "Sample answers to questions, score each, and write the best and the worst as pairs for "
        "DPO. Without a judge, the questions' own answers decide: a candidate's score is its "
        "sentences that are among them less those that are not. The same command goes on.",
    )
    parser.add_argument("model", help=MODEL_HELP)
    add_model_options(parser)
    parser.add_argument("questions", type=Path, help="JSONL of {question_id, image or video, text}")
    parser.add_argument("--images", type=Path, help="folder of the images and videos")
    parser.add_argument("--out", type=Path, required=True, help="JSONL to write")
    parser.add_argument("--samples", type=positive, default=4, help="answers to each question")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    add_frames(parser)
    parser.add_argument("--max-new-tokens", type=positive, default=128)
    parser.add_argument("--images-per-batch", type=positive, default=8)
    parser.add_argument(
        "--judge-url",
        help="any OpenAI-compatible engine, which reads each question's `caption` and gives 1 to 5",
    )
    parser.add_argument("--judge-model", help="the engine's name of its model")
    parser.add_argument(
        "--judge-prompt", default="asset:judge/preference.yaml", help="YAML of `system` and `user`"
    )
    parser.add_argument("--judge-cache", default="judgements", help="folder of its judgements")
    return parser


def check(questions: Sequence[Question], judged: bool, images: Path | None = None) -> None:
    """Refuse questions that could not be scored or make no pair, and ids that stand there twice."""
    twice = [name for name, times in Counter(each.id for each in questions).items() if times > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} question ids stand there twice, the first {twice[0]!r}; "
            "what is done is kept by id, so give each row its own"
        )
    needs = "caption" if judged else "answer"
    lacking = [q.source for q in questions if not (q.caption if judged else q.answers)]
    if lacking:
        raise ValueError(
            f"{len(lacking)} questions have no `{needs}` to score by:\n  {listed(lacking, 10)}"
        )
    trial = ("A.", 1), ("B.", 0)
    found = [(q.source, unreadable(_row(q, images, *trial))) for q in questions]
    if wrong := [f"{source}: {problem}" for source, problem in found if problem]:
        raise ValueError(
            f"{len(wrong)} questions would make pairs that cannot be read:\n  {listed(wrong, 10)}"
        )


def prefer(
    questions: Sequence[Question],
    sample: Sampler,
    score: Scorer,
    journal: Journal,
    samples: int,
    images_at_once: int,
) -> dict[str, Scored]:
    """Answers with their scores by question; what the journal holds is not asked again.

    Args:
        questions: All questions.
        sample: Answers questions.
        score: Scores answers.
        journal: Where each question is noted when it is done.
        samples: Answers to each question.
        images_at_once: Images whose questions are done before they are noted.
    """
    done: dict[str, Scored] = journal.read()
    groups = by_images([question for question in questions if question.id not in done])
    with journal:
        for start in range(0, len(groups), images_at_once):
            asked = [q for each in groups[start : start + images_at_once] for q in each.questions]
            copies = [(question, number) for question in asked for number in range(samples)]
            said = sample([replace(each, id=f"{each.id}#{number}") for each, number in copies])
            answered = [(each, text) for (each, _), text in zip(copies, said, strict=True)]
            scores = zip((text for _, text in answered), score(answered), strict=True)
            for question in asked:
                done[question.id] = [next(scores) for _ in range(samples)]
                journal.add(question.id, done[question.id])
    return done


def pairs(
    questions: Sequence[Question], scored: dict[str, Scored], images: Path | None
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Rows as released preferences have them, and how many questions make none and why.

    Of answers of one score the first is taken; those that no reader of preferences would take,
    because they are empty or hold a placeholder, take no part.

    Raises:
        ValueError: If no question makes a pair.
    """
    rows, why = [], Counter[str]()
    for question in questions:
        told: dict[str, int] = {}
        for text, score in scored[question.id]:
            if usable := _usable(text):
                told.setdefault(usable, score)
        answers, scores = list(told.items()), list(told.values())
        if len(answers) < 2:
            why["alike"] += 1
        elif min(scores) == max(scores):
            why["even"] += 1
        else:
            chosen, rejected = (answers[scores.index(pick(scores))] for pick in (max, min))
            rows.append(_row(question, images, chosen, rejected))
    if not rows:
        raise ValueError(
            f"none of {len(questions)} questions makes a pair: {why['alike']} have answers that "
            f"are alike, {why['even']} answers of one score. Take more --samples, or a higher "
            "--temperature."
        )
    return rows, why


def _usable(text: str) -> str:
    """An answer as a reader of preferences takes it; empty where it takes none."""
    try:
        said = read_text(text, "an answer").strip()
    except Refused:
        return ""
    return "" if any(mark in said for mark in MARKS) else said


def _row(
    question: Question, images: Path | None, chosen: tuple[str, int], rejected: tuple[str, int]
) -> dict[str, Any]:
    names = [str(path.relative_to(images.absolute())) for path in question.images if images]
    video = any(isinstance(path, VideoPath) for path in question.images)
    shown = {"video" if video else "image": names[0] if len(names) == 1 else names}
    text = question.text.replace(IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER) if video else question.text
    return {
        "id": question.id,
        **(shown if names else {}),
        "prompt": text,
        "chosen": chosen[0],
        "rejected": rejected[0],
        "chosen_score": chosen[1],
        "rejected_score": rejected[1],
    }


def by_answers(answered: Sequence[Answered]) -> list[int]:
    """Sentences of each answer that are among the question's own, less those that are not."""
    counts = [true_and_untrue(text, question.answers) for question, text in answered]
    return [true - untrue for true, untrue in counts]


class ByJudge:
    """1 to 5 by a judge that reads the question's caption, as LLaVA-Hound has it.

    Args:
        judge: Who judges.
        prompt: File of what it is told.
    """

    def __init__(self, judge: Judge, prompt: str):
        self.judge, self.prompt = judge, Prompt(prompt, ("caption", "question", "prediction"))

    def settings(self) -> dict[str, Any]:
        """What decides the scores."""
        return self.judge.settings() | self.prompt.settings()

    def __call__(self, answered: Sequence[Answered]) -> list[int]:
        """The score of each answer."""
        cases = {
            f"answer {number} to question {question.id}": self.prompt.messages(
                {
                    "caption": question.caption or "",
                    "question": question.prompt,
                    "answer": question.answers[0] if len(question.answers) == 1 else "none given",
                    "prediction": text,
                }
            )
            for number, (question, text) in enumerate(answered)
        }
        return list(self.judge.judge(cases, read_mark).values())


def read_mark(said: str) -> int:
    """The score of a judgement, from 1 to 5."""
    return read_score(read_object(said), 1, 5)


class LocalSampler:
    """Our own model, opened when something is asked.

    Args:
        model: What `open_model` opens.
        questions: All that will be asked; they are checked before the first is.
        frames: Frames of a video; None takes those of training, or else 16.
        stride: Pooling of a frame; None takes that of training, or else 2.
        template: As for `open_model`.
        trusted: As for `open_model`.
        options: Those of `question_loader`.
    """

    def __init__(
        self,
        model: str,
        questions: Sequence[Question],
        frames: int | None,
        stride: int | None,
        template: str | None = None,
        trusted: Sequence[str] = (),
        **options: Any,
    ):
        self.source, self.questions, self.options = model, questions, options
        self.template, self.trusted = template, trusted
        self.frames, self.stride = frames, stride

    @cached_property
    def opened(self) -> tuple[Llava, Views]:
        """The model, and how images become views."""
        model, views = open_model(self.source, self.template, self.trusted)
        images = [path for question in self.questions for path in question.images]
        if any(isinstance(path, VideoPath) for path in images):
            views = show_videos(model, views, self.frames, self.stride)
        check_answerable(model, views, self.questions, self.options["max_new_tokens"])
        return model, views

    def __call__(self, questions: Sequence[Question]) -> list[str]:
        """One answer a question, in their order."""
        return answer_questions(*self.opened, questions, **self.options)
