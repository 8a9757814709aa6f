"""Instruct: pictures' captions and boxes -> rows of one kind, written by a text-only LM.

Every reply that could be read is in a journal beside the output under a hash of what was asked, and
stays there when the output is written: no request is paid for twice, whatever breaks, and with more
pictures only theirs are sent.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_lab.core.cost import Prices, estimate_tokens
from llava_lab.core.engine import ChatEngine, UnusableReply
from llava_lab.core.journal import Journal
from llava_lab.core.progress import progress
from llava_lab.core.records import check_rows_name, json_sha256
from llava_lab.data.rows import Refused
from llava_lab.make_data.asking import picture_first
from llava_lab.make_data.coco import Picture
from llava_lab.make_data.kinds import Kind, Refusal
from llava_lab.make_data.written import row_of

SHOWN = 20  # failures that a record lists


class Unreadable(ValueError):
    """The LM's reply could not be read after all tries.

    Args:
        why: "refused", "unparsable" or "unusable".
        reply: What was wrong.
    """

    def __init__(self, why: str, reply: str):
        super().__init__(reply)
        self.why = why


@dataclass(frozen=True)
class Estimate:
    """What requests will cost, about.

    Attributes:
        requests: How many there are.
        prompt_tokens: Tokens that the engine reads, at about four characters each.
        completion_tokens: Tokens that it writes, if replies are as long as those of the examples.
        most_prompt_tokens: Tokens that it reads if every reply takes all tries.
        most_tokens: Tokens that it writes at most.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int
    most_prompt_tokens: int
    most_tokens: int

    def text(self, prices: Prices) -> str:
        """The estimate in words."""
        tokens = (
            f"{self.requests:,} requests, about {self.prompt_tokens:,} tokens to read and "
            f"{self.completion_tokens:,} to write (at most {self.most_tokens:,})"
        )
        price = prices.of(self.prompt_tokens, self.completion_tokens)
        most = prices.of(self.most_prompt_tokens, self.most_tokens)
        return (
            tokens if price is None else f"{tokens}: cost about {price:,.4g}, at most {most:,.4g}"
        )


@dataclass
class Made:
    """What came of the requests.

    Attributes:
        rows: Rows, in the order of the pictures.
        failures: How many pictures have no row, by reason.
        examples: The first of these, by picture.
        asked: How many replies were made now, the others were in the journal.
        stopped: Whether the limit of cost was reached before all was asked.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    asked: int = 0
    stopped: bool = False


class Maker:
    """Makes rows of one kind.

    Args:
        pictures: What to make them of.
        kind: The kind.
        engine: The LM.
        out: The output, beside which the journal is.
        seed: Decides where pictures stand, and which requests are drawn.
        tries: Requests before a reply that cannot be read counts as a failure.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        kind: Kind,
        engine: ChatEngine,
        out: Path,
        seed: int = 0,
        tries: int = 2,
    ):
        check_rows_name(out)
        twice = [name for name, n in Counter(each.stem for each in pictures).items() if n > 1]
        if twice:
            raise ValueError(f"{len(twice)} pictures share their name, the first {twice[0]!r}")
        self.pictures, self.kind, self.engine = pictures, kind, engine
        self.seed, self.tries = seed, tries
        self.journal = Journal(out, json.dumps([engine.model, kind.sampling]))
        self.keys = [self._key(picture) for picture in pictures]

    def estimate(self) -> Estimate:
        """What it will cost to ask what the journal does not hold."""
        known = self._kept()
        asked = [p for p, key in zip(self.pictures, self.keys, strict=True) if key not in known]
        read = sum(
            estimate_tokens("".join(message["content"] for message in self.kind.messages(picture)))
            for picture in asked
        )
        lengths = [estimate_tokens(reply) for _, reply in self.kind.examples]
        usual = sum(lengths) / len(lengths) if lengths else self.kind.max_tokens / 2
        most = self.kind.max_tokens * len(asked) * self.tries
        return Estimate(len(asked), read, round(usual * len(asked)), read * self.tries, most)

    def make(self, prices: Prices, max_cost: float | None) -> Made:
        """Ask what the journal does not hold, and make rows of all replies.

        Args:
            prices: Prices of the engine's tokens.
            max_cost: No request is sent once those of this call have cost as much.

        Raises:
            ValueError: If the engine is not reached, or refuses requests; what came is kept.
        """
        made = Made()
        with self.journal:
            replies = self._kept()
            missing = [at for at, key in enumerate(self.keys) if key not in replies]
            with progress(self.kind.name, len(missing)) as bar:
                for at, found in self.engine.each(
                    self._ask, self._until(missing, prices, max_cost)
                ):
                    bar.update()
                    if isinstance(found, Unreadable):
                        made.failures[found.why] += 1
                        if len(made.examples) < SHOWN:
                            made.examples[self.pictures[at].name] = f"{found.why}: {found}"
                    elif isinstance(found, Exception):
                        raise ValueError(f"{self.engine.model}: {found}") from found
                    else:
                        made.asked += 1
                        replies[self.keys[at]] = found
                        self.journal.add(self.keys[at], found)
        for at, picture in enumerate(self.pictures):
            if self.keys[at] in replies:
                made.rows.append(self._row(picture, replies[self.keys[at]]))
        left = len(self.pictures) - len(made.rows) - made.failures.total()
        made.stopped = left > 0 and self._spent(prices, max_cost)
        made.failures["not asked"] += left
        made.failures = +made.failures
        return made

    def _kept(self) -> dict[str, str]:
        """Replies of the journal that can be read as the kind has it now."""
        found, kept = self.journal.read(), {}
        for key, picture in zip(self.keys, self.pictures, strict=True):
            with contextlib.suppress(Unreadable):
                if key in found:
                    self._row(picture, found[key])
                    kept[key] = found[key]
        return kept

    def _until(self, missing: list[int], prices: Prices, max_cost: float | None) -> Iterator[int]:
        """What is still to be asked, until the limit is reached."""
        for at in missing:
            if self._spent(prices, max_cost):
                return
            yield at

    def _spent(self, prices: Prices, max_cost: float | None) -> bool:
        """Whether as much has been spent as may be."""
        if max_cost is None:
            return False
        spent = self.engine.spent
        if spent["unmetered"]:
            raise ValueError(
                f"{self.engine.model} does not say how many tokens a reply cost (`usage`), so that "
                "--max-cost cannot be held; what came is kept"
            )
        cost = prices.of(spent["prompt_tokens"], spent["completion_tokens"])
        return cost is not None and cost >= max_cost

    def _ask(self, at: int) -> str:
        """A reply about a picture that could be read."""
        picture, problem = self.pictures[at], Unreadable("unusable", "")
        for _ in range(self.tries):
            try:
                reply = self.engine.complete(self.kind.messages(picture), **self.kind.sampling)
                self._row(picture, reply)
                return reply
            except UnusableReply as error:
                problem = Unreadable("unusable", str(error))
            except Unreadable as error:
                problem = error
        raise problem

    def _row(self, picture: Picture, reply: str) -> dict[str, Any]:
        """The row of a reply.

        Raises:
            Unreadable: If the reply cannot be read.
        """
        name = picture.stem
        try:
            turns = self.kind.read(reply, name, self.seed)
            return row_of(name, picture.name, turns, picture_first(self.seed, name))
        except Refusal as error:
            raise Unreadable("refused", str(error)) from None
        except (ValueError, Refused) as error:
            raise Unreadable("unparsable", f"{error}: {reply[:120]!r}") from None

    def _key(self, picture: Picture) -> str:
        """Hash of what is asked about a picture."""
        return json_sha256(self.kind.messages(picture))
