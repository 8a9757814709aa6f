"""12. Finding: a claim of the papers, and the rule that decides it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from llava_lab.experiment.compose import Tree
from llava_lab.experiment.sweep import Sweep
from llava_lab.experiment.verdict_runs import FIRST_SEED

EFFECT = "effect"


@dataclass(frozen=True)
class Contrast:
    """A comparison of two points of a sweep.

    Attributes:
        treatment: Name of the point with what is claimed to matter.
        against: Name of the point without.
    """

    treatment: str
    against: str

    def __str__(self) -> str:
        return f"{self.treatment} − {self.against}"


@dataclass(frozen=True)
class Move:
    """A score that must move.

    Attributes:
        score: Its name: "questions/accuracy/reading/small".
        direction: Which way.
        least: The smallest effect that counts, in points.
    """

    score: str
    direction: Literal["up", "down"]
    least: float

    @property
    def sign(self) -> int:
        """1 where it must rise, -1 where it must fall."""
        return 1 if self.direction == "up" else -1

    @property
    def asked(self) -> str:
        """The least that counts, in words: "-2 or less"."""
        return f"{self.sign * self.least:+g} or {'more' if self.sign > 0 else 'less'}"


@dataclass(frozen=True)
class Stay:
    """A score that must not move.

    Attributes:
        score: Its name.
        within: How far it may be off, in points.
        contrast: Between which points.
    """

    score: str
    within: float
    contrast: Contrast


@dataclass(frozen=True)
class Look:
    """A look at the runs.

    Attributes:
        seeds: How many seeds' runs there are by then.
        alpha: What it spends of the level.
    """

    seeds: int
    alpha: float


@dataclass(frozen=True)
class Finding:
    """A claim, and the rule that decides it.

    Attributes:
        id: Its id: "F3".
        claim: What is claimed.
        tables: Published tables that it is claimed in, by their ids.
        citation: Document and place, or None.
        sweep: The sweep whose points are compared.
        contrasts: The effect, and the controls by their names.
        must_move: Scores that the effect must move.
        must_not: Scores that must stay.
        described: Scores that are printed beside.
        looks: Looks, in their order.
        level: Share of false claims in all findings together.
        draws: Options that the seeds take in turn, by name.
        notes: What else has to be known of it.
        path: The file.
        sweep_path: The sweep's.
        sha256: Of the file.
    """

    id: str
    claim: str
    tables: tuple[str, ...]
    citation: str | None
    sweep: Sweep
    contrasts: Mapping[str, Contrast]
    must_move: tuple[Move, ...]
    must_not: tuple[Stay, ...]
    described: tuple[str, ...]
    looks: tuple[Look, ...]
    level: float
    draws: Mapping[str, Tree]
    notes: tuple[str, ...]
    path: Path
    sweep_path: Path
    sha256: str

    @property
    def effect(self) -> Contrast:
        """The comparison that the claim is about."""
        return self.contrasts[EFFECT]

    @property
    def controls(self) -> dict[str, Contrast]:
        """The other contrasts."""
        return {name: each for name, each in self.contrasts.items() if name != EFFECT}

    @property
    def points(self) -> list[str]:
        """Names of the points that are compared."""
        pairs = [*self.contrasts.values(), *(stay.contrast for stay in self.must_not)]
        return list(dict.fromkeys(name for c in pairs for name in (c.treatment, c.against)))

    @property
    def scores(self) -> list[str]:
        """Every score that it names."""
        return [each.score for each in (*self.must_move, *self.must_not)] + list(self.described)

    def seeds(self, look: Look) -> list[int]:
        """Seeds of a look's runs."""
        return list(range(FIRST_SEED, FIRST_SEED + look.seeds))

    def draw(self, seed: int) -> Tree:
        """What a seed takes of `draws`."""
        every = list(self.draws.values())
        return every[(seed - FIRST_SEED) % len(every)] if every else {}

    def check_scores(self, known: Collection[str], where: str) -> None:
        """Refuse a score that is not among those that there are.

        Args:
            known: Names of scores, each behind its benchmark's; of a benchmark whose scores are not
                known, its name and a slash.
            where: Whose they are, for the message.
        """
        for score in self.scores:
            if score not in known and f"{score.partition('/')[0]}/" not in known:
                raise ValueError(f"{self.path}: {where} has no score {score!r}{near(score, known)}")


def near(name: str, known: Collection[str]) -> str:
    """End of a message about a name that there is not: the nearest one, or those that there are."""
    found = get_close_matches(name, known, 1, 0.5)
    return f"; did you mean {found[0]!r}?" if found else f"; there are {', '.join(known) or 'none'}"
