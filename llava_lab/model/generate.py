"""9. Generate: batches of questions about images -> answers; a common prefix is computed once."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llava_lab.core.numbers import above
from llava_lab.data.forest import Forest
from llava_lab.data.packing import Batch
from llava_lab.model.attention.cache import KeyValueCache
from llava_lab.model.attention.kernel import send
from llava_lab.model.attention.plan import AttentionPlan
from llava_lab.model.decode import decode, ended

if TYPE_CHECKING:
    from llava_lab.model.llava import Llava


@dataclass(frozen=True)
class Sampling:
    """Random sampling of answers, in place of greedy decoding.

    The samples of a question depend only on the seed and its id, not on the rest of its batch.

    Attributes:
        temperature: Divisor of the logits.
        seed: Seed of all samples.
    """

    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        above(0, temperature=self.temperature)

    def draws(self, question: str) -> random.Random:
        """Make the random number generator of one question."""
        return random.Random(f"{self.seed}/{question}")

    def choose(self, logits: Tensor, drawn: Tensor) -> Tensor:
        """Sample a token [q] from each row of logits [q, v] by a number from 0 to 1 [q]."""
        with _in_any_order():
            shares = (logits.double() / self.temperature).softmax(-1).cumsum(-1)
        # The cumulative sum of the last token is 1 up to rounding.
        chosen = torch.searchsorted(shares, drawn[:, None] * shares[:, -1:], right=True)
        return chosen[:, 0].clamp(max=logits.shape[-1] - 1)


@contextmanager
def _in_any_order() -> Iterator[None]:
    """Let a GPU, whose `cumsum` `trainer.deterministic` refuses, add doubles as it does."""
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode(0)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


@dataclass(frozen=True)
class QuestionBatch:
    """A batch of questions: one tree for each group of images, one leaf for each question.

    Attributes:
        batch: The packed prompts.
        ids: Question ids, in the order of the forest's leaves; they may repeat.
        max_new_tokens: Longest answer.
        stop_ids: Token ids that end an answer.
        stop_string: Text that ends an answer where no single token does.
        sampling: How tokens are sampled; None is greedy.
        places: Index in its file of each question, by tree.
    """

    batch: Batch
    ids: list[str]
    max_new_tokens: int
    stop_ids: frozenset[int]
    stop_string: str | None = None
    sampling: Sampling | None = None
    places: Sequence[Sequence[int]] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device, non_blocking: bool = False) -> "QuestionBatch":
        """Copy the batch to another device."""
        return replace(self, batch=self.batch.to(device, non_blocking))

    def draws(self, device: torch.device) -> Tensor:
        """Random numbers of each question's tokens [q, max_new_tokens]; none if it is greedy."""
        sampling, number = self.sampling, self.max_new_tokens
        if sampling is None:
            return torch.empty(len(self), number, device=device)
        draws = [sampling.draws(name) for name in self.ids]
        drawn = [[each.random() for _ in range(number)] for each in draws]
        return send(torch.tensor(drawn, dtype=torch.double), device)

    def choose(self, logits: Tensor, drawn: Tensor) -> Tensor:
        """Choose the next token [q] of each question from its logits [q, v]."""
        if self.sampling is None:
            return logits.argmax(-1)
        return self.sampling.choose(logits, drawn)


@dataclass(frozen=True)
class Answers:
    """Answers to a batch of questions.

    Attributes:
        ids: Question ids, in the order of the questions.
        texts: Text of each answer, without special tokens and surrounding white space.
        tokens: Token ids of each answer, the stop token included.
        whole: Whether each answer has ended; else it is cut off at `max_new_tokens`.
    """

    ids: list[str]
    texts: list[str]
    tokens: list[list[int]]
    whole: list[bool]


@torch.no_grad()
def answer(model: "Llava", questions: QuestionBatch) -> Answers:
    """Answer all questions of a batch, with one forward pass for each new token."""
    batch, forest = questions.batch, questions.batch.forest
    if model.llm.attention == "padded":
        generated = _without_cache(model, questions)
    else:
        cache = KeyValueCache(forest, questions.max_new_tokens)
        plan = AttentionPlan.whole(forest, batch.ids.device, cache)
        hidden = model.llm(model.embed(batch), forest, plan)
        last = send(torch.tensor([forest.end(leaf) - 1 for leaf in forest.leaves]), hidden.device)
        generated = decode(model, questions, cache, hidden[last])
    texts = [_text(model, tokens, questions) for tokens in generated]
    whole = [ended(model, tokens, questions) for tokens in generated]
    return Answers(questions.ids, texts, generated, whole)


def _without_cache(model: "Llava", questions: QuestionBatch) -> list[list[int]]:
    """Decode without a cache, for LMs with padded attention: every token recomputes all."""
    batch, forest = questions.batch, questions.batch.forest
    embeddings = model.embed(batch)
    paths = [
        torch.cat([torch.arange(forest.starts[s], forest.end(s)) for s in forest.path(leaf)])
        for leaf in forest.leaves
    ]
    generated: list[list[int]] = []
    for path, drawn in zip(paths, questions.draws(embeddings.device), strict=True):
        tokens: list[int] = []
        row = embeddings[path]
        while len(tokens) < questions.max_new_tokens and not ended(model, tokens, questions):
            hidden = model.llm(row, Forest((len(row),), (None,)))
            new = questions.choose(model.llm.head()(hidden[-1:]), drawn[len(tokens)][None])
            tokens += new.tolist()
            row = torch.cat([row, model.llm.embed(new)])
        generated.append(tokens)
    return generated


def _text(model: "Llava", tokens: list[int], questions: QuestionBatch) -> str:
    kept = [token for token in tokens if token not in questions.stop_ids]
    text = str(model.llm.tokenizer.decode(kept, skip_special_tokens=True))
    if questions.stop_string is not None:
        text = text.split(questions.stop_string)[0]
    return text.strip()
