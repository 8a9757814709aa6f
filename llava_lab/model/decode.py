"""9. Decode: hidden states of prompts and their cache -> the tokens of all answers, in steps."""

import warnings
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from weakref import WeakSet

import torch
from torch import Tensor

from llava_lab.model.attention.cache import KeyValueCache
from llava_lab.model.attention.kernel import send

if TYPE_CHECKING:
    from llava_lab.model.generate import QuestionBatch
    from llava_lab.model.llava import Llava

# Tokens that are computed before the last one is read, by the kind of device.
AHEAD = {"cuda": 1}
REPLAYED = {"cuda"}  # kinds of devices where steps are replayed from a graph
UNFIT: WeakSet["Llava"] = WeakSet()  # models whose steps cannot be
# Of a device, the stream that captures graphs and the last graph, which keeps their memory.
_CAPTURES: dict[int, tuple[torch.cuda.Stream, torch.cuda.CUDAGraph | None]] = {}


def decode(
    model: "Llava", questions: "QuestionBatch", cache: KeyValueCache, hidden: Tensor
) -> list[list[int]]:
    """Decode token by token with the cache.

    On a CPU an answer that has ended drops out at once. A GPU computes a token while the one before
    is read, so that neither waits; an answer that has ended goes on, unread, until half of them
    have ended, for their number decides the shapes of a step.
    """
    forest, device = questions.batch.forest, hidden.device
    said, ahead = _Transcript(model, questions), AHEAD.get(device.type, 0)
    rows, drawn = list(range(len(questions))), questions.draws(device)
    unread: deque[tuple[list[int], _Reading]] = deque()
    step = _Steps(model, cache, forest.leaves, 0, device)
    for count in range(questions.max_new_tokens):
        chosen = questions.choose(model.llm.head()(hidden), drawn[:, count])
        unread.append((rows, _Reading(chosen)))
        if len(unread) > ahead:
            said.note(*unread.popleft())
        kept = [i for i, row in enumerate(rows) if row not in said.ended]
        if not kept or count + 1 == questions.max_new_tokens:
            break
        if len(kept) < len(rows) and len(kept) <= len(rows) // (1 + ahead):
            index = send(torch.tensor(kept), device)
            rows, chosen, drawn = [rows[i] for i in kept], chosen[index], drawn[index]
            step = _Steps(model, cache, [forest.leaves[row] for row in rows], count, device)
        hidden = step(chosen)
    for each in unread:
        said.note(*each)
    return said.tokens


class _Steps:
    """Passes of one more token of each of some answers [q] -> hidden states [q, d].

    Where it can, a GPU replays them from a graph that it launches at once: a pass of so few tokens
    takes it less time than Python takes to launch its thousand kernels one by one.
    """

    def __init__(
        self,
        model: "Llava",
        cache: KeyValueCache,
        leaves: Sequence[int],
        count: int,
        device: torch.device,
    ):
        self.model, self.forest = model, cache.forest
        self.plan = cache.step(leaves, count - 1, device)
        self.replays = device.type in REPLAYED and model not in UNFIT and self.plan.fixed()
        self.replay: Callable[[], None] | None = None

    def __call__(self, tokens: Tensor) -> Tensor:
        """Hidden states of these tokens, the next of every answer; another call overwrites."""
        if not self.replays:
            self.tokens = tokens
            self._next()
        elif self.replay is None:
            self.tokens = tokens.clone()
            self.replay = self._captured()
            self.replay()
        else:
            self.tokens.copy_(tokens)
            self.replay()
        return self.hidden

    def _next(self) -> None:
        self.plan.advance()
        self.hidden = self.model.llm(self.model.llm.embed(self.tokens), self.forest, self.plan)

    def _captured(self) -> Callable[[], None]:
        try:
            return capture(self._next)
        except RuntimeError as error:  # as many as there are ways to ask a GPU something
            UNFIT.add(self.model)
            self.replays = False
            self.plan.count -= 1  # nothing was computed
            warnings.warn(
                f"{type(self.model.llm.model).__name__} asks the GPU something in every step, so "
                "that its steps are launched kernel by kernel; answers are the same, and take "
                f"longer ({str(error).splitlines()[0]})",
                stacklevel=2,
            )
            return self._next


def capture(work: Callable[[], None]) -> Callable[[], None]:
    """Work of a GPU as a graph of all its kernels; calling it does the work, and this does not.

    Graphs take their memory from one pool, so that one is to be replayed no more when the next has
    been captured.
    """
    device = torch.cuda.current_device()
    stream, last = _CAPTURES.get(device) or (torch.cuda.Stream(device), None)
    graph = torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        pool = None if last is None else last.pool()
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")  # loaders pin memory
        try:
            work()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    _CAPTURES[device] = stream, graph
    return graph.replay


class _Reading:
    """Tokens on their way from the device."""

    def __init__(self, tokens: Tensor):
        self.tokens = tokens.to("cpu", non_blocking=True)
        self.copied = torch.cuda.Event() if tokens.is_cuda else None
        if self.copied is not None:
            self.copied.record()

    def done(self) -> list[int]:
        """The tokens, once they are there."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.tokens.tolist()


class _Transcript:
    """The answers so far, and which of them have ended."""

    def __init__(self, model: "Llava", questions: "QuestionBatch"):
        self.model, self.questions = model, questions
        self.tokens: list[list[int]] = [[] for _ in questions.ids]
        self.ended: set[int] = set()

    def note(self, rows: Sequence[int], reading: _Reading) -> None:
        """Add a token to each of these answers that has not ended."""
        for row, token in zip(rows, reading.done(), strict=True):
            if row not in self.ended:
                self.tokens[row].append(token)
                if ended(self.model, self.tokens[row], self.questions):
                    self.ended.add(row)


def ended(model: "Llava", tokens: list[int], questions: "QuestionBatch") -> bool:
    """Whether an answer ends with these tokens."""
    if not tokens:
        return False
    if tokens[-1] in questions.stop_ids:
        return True
    text = questions.stop_string
    return text is not None and text in model.llm.tokenizer.decode(tokens)
