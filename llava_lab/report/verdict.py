"""12. Verdict: what was measured for a finding at one look -> what its rule says of the claim.

- reproduced: for every score of must_move, the effect's adjusted interval lies on the claimed side
  of 0, its mean is at least the least that counts, and the adjusted intervals of all controls lie
  on that side, too; and for every score of must_not the 90 % interval lies within its margin.
- contradicted: effect and controls are the same on the other side. What must not move is not asked.
- no effect: for every score of must_move the whole adjusted interval lies within ± the least.
- inconclusive: anything else.

`adjusted` is the level that report.family shares out to the finding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llava_lab.report.estimate import Difference
from llava_lab.report.finding import Contrast, Finding, Look, Move, Stay

REPRODUCED, CONTRADICTED = "reproduced", "contradicted"
NO_EFFECT, INCONCLUSIVE = "no effect", "inconclusive"
NOT_RUN = "not run"
STAY_LEVEL = 0.9  # two one-sided tests at 5 %
HAIR = 1e-9  # by which rounding may lower a mean


Compare = Callable[[Contrast, str, Sequence[int]], Difference]


@dataclass(frozen=True)
class Moved:
    """What was measured of a score that must move.

    Attributes:
        move: The score, its direction and the least that counts.
        effect: Difference of the effect's points.
        controls: Differences of the controls' points, by name.
    """

    move: Move
    effect: Difference
    controls: Mapping[str, Difference]


@dataclass(frozen=True)
class Evidence:
    """What was measured for a finding at one look.

    Attributes:
        look: The look.
        moved: Of the scores that must move.
        stayed: Of the scores that must not.
        described: Of the scores that decide nothing.
    """

    look: Look
    moved: tuple[Moved, ...]
    stayed: tuple[tuple[Stay, Difference], ...]
    described: tuple[tuple[str, Difference], ...]

    @property
    def p(self) -> float:
        """Two-sided p of the claim: of the weakest of all that must be on one side together."""
        return min(1.0, *(2 * max(self._one_sided(side)) for side in (1, -1)))

    def _one_sided(self, side: int) -> list[float]:
        return [
            each.p(0.0, "above" if moved.move.sign * side > 0 else "below")
            for moved in self.moved
            for each in (moved.effect, *moved.controls.values())
        ]


def measure(finding: Finding, look: Look, compare: Compare) -> Evidence:
    """Measure all that a finding names at one look.

    Args:
        finding: The finding.
        look: The look.
        compare: Gives the difference of two points in a score over some seeds.
    """
    seeds = finding.seeds(look)
    moved = tuple(
        Moved(
            move,
            compare(finding.effect, move.score, seeds),
            {name: compare(each, move.score, seeds) for name, each in finding.controls.items()},
        )
        for move in finding.must_move
    )
    stayed = tuple((stay, compare(stay.contrast, stay.score, seeds)) for stay in finding.must_not)
    described = tuple((s, compare(finding.effect, s, seeds)) for s in finding.described)
    return Evidence(look, moved, stayed, described)


def decide(evidence: Evidence, alpha: float) -> tuple[str, list[str]]:
    """What the rule says, and what keeps the claim from being reproduced.

    Args:
        evidence: What was measured.
        alpha: Share of errors that the intervals may have: they have the level 1 - alpha.
    """
    lacking = [*_off_side(evidence, alpha, 1), *_strayed(evidence)]
    if not lacking:
        return REPRODUCED, []
    if not _off_side(evidence, alpha, -1):
        return CONTRADICTED, lacking
    if all(_inside(each.effect, 1 - alpha, each.move.least) for each in evidence.moved):
        return NO_EFFECT, lacking
    return INCONCLUSIVE, lacking


def _off_side(evidence: Evidence, alpha: float, side: int) -> list[str]:
    """What of effect and controls does not lie on a side: 1 for the claimed one, -1 the other."""
    found = []
    for moved in evidence.moved:
        move, sign = moved.move, moved.move.sign * side
        for name, each in (("the effect", moved.effect), *moved.controls.items()):
            low, high = each.interval(1 - alpha)
            if (low if sign > 0 else -high) <= 0:
                found.append(
                    f"{move.score}: the interval of {name} is {_ends(low, high)}, not "
                    f"{'above' if sign > 0 else 'below'} 0"
                )
        if 100 * sign * moved.effect.value < move.least - HAIR:
            found.append(
                f"{move.score}: the effect is {100 * moved.effect.value:+.1f}, not {move.asked}"
            )
    return found


def _strayed(evidence: Evidence) -> list[str]:
    """Scores that must not move, and may have."""
    return [
        f"{stay.score}: {stay.contrast} is {_ends(*each.interval(STAY_LEVEL))}, not within "
        f"±{stay.within:g}"
        for stay, each in evidence.stayed
        if not _inside(each, STAY_LEVEL, stay.within)
    ]


def _inside(difference: Difference, level: float, margin: float) -> bool:
    low, high = difference.interval(level)
    return -margin <= 100 * low and 100 * high <= margin


def _ends(low: float, high: float) -> str:
    return f"[{100 * low:+.1f}, {100 * high:+.1f}]"
