"""12. Claims as a table: rule, effect, look and verdict of each finding."""

from collections.abc import Sequence

from llava_lab.report.claims import Claims
from llava_lab.report.estimate import Difference
from llava_lab.report.family import Verdict
from llava_lab.report.finding import Finding, Move
from llava_lab.report.grid import Figure, Grid, figure
from llava_lab.report.rows import NONE
from llava_lab.report.verdict import Moved

LEGEND = (
    "Effects in points, with the interval at the level that a finding has of all (Holm); flipped: "
    "questions of a run that change from right to wrong or back, mean of the seeds. What the rule "
    "asks beside the effect stands in configs/findings."
)


def claims_grid(claims: Claims, ids: Sequence[str]) -> Grid:
    """Rules, effects and verdicts of findings; a row for each score that must move.

    Args:
        claims: All claims.
        ids: The findings that are shown.
    """
    rows: list[list[str | Figure]] = []
    notes = []
    for id in ids:
        verdict, finding = claims.verdicts[id], claims.findings[id]
        moved = verdict.evidence.moved if verdict.evidence else (None,) * len(finding.must_move)
        for place, (move, each) in enumerate(zip(finding.must_move, moved, strict=True)):
            first = place == 0
            rows.append(
                [
                    id,
                    finding.claim if first else "",
                    _rule(finding, move),
                    *_measured(each, verdict),
                    verdict.said if first else "",
                ]
            )
        remarks = [*verdict.lacking, *claims.remarks(id)]
        if remarks:
            notes.append(f"{id}: {'; '.join(each.rstrip('.') for each in remarks)}.")
    headers = ["finding", "claim", "rule", "effect", "flipped", "seeds", "verdict"]
    about = {"table": "claims", "family": len(claims.findings)}
    return Grid("findings", headers, rows, LEGEND, notes, about=about)


def _rule(finding: Finding, move: Move) -> str:
    return f"{finding.effect}: {move.score} {move.asked}"


def _measured(moved: Moved | None, verdict: Verdict) -> list[str | Figure]:
    if moved is None or verdict.evidence is None or verdict.alpha is None:
        return [Figure(NONE, None), Figure(NONE, None), Figure("0", 0)]
    flipped = moved.effect.flipped
    flips = Figure(NONE, None) if flipped is None else figure(flipped, ".1f")
    return [
        effect_figure(moved.effect, 1 - verdict.alpha),
        flips,
        figure(verdict.evidence.look.seeds),
    ]


def effect_figure(difference: Difference, level: float) -> Figure:
    """A difference in points with its interval, as a cell: +37.1 [30.2, 44.0].

    Args:
        difference: The difference.
        level: Level of the interval.
    """
    low, high = difference.interval(level)
    text = f"{100 * difference.value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    return Figure(text, {"value": difference.value, "low": low, "high": high, "level": level})
