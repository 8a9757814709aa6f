"""12. Claim text: rule, effects, verdict and history of a finding -> sentences and tables."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llava_lab.report.claims import Claims
from llava_lab.report.claims_grid import effect_figure
from llava_lab.report.estimate import Difference, mean_of
from llava_lab.report.family import Verdict
from llava_lab.report.grid import Figure, Grid, figure
from llava_lab.report.history import RULE, VERDICT
from llava_lab.report.rows import NONE
from llava_lab.report.runs import tokens
from llava_lab.report.verdict import STAY_LEVEL

LEVEL = 0.95  # of what decides nothing


@dataclass(frozen=True)
class Effect:
    """A difference of two points in a score, beside what the rule asks of it.

    Attributes:
        role: effect, the name of a control, "must not move", or "described".
        points: The two points: "2x2 − 1x1".
        score: Name of the score.
        asked: What the rule asks, in words.
        margin: The least that counts, or the most that does not, in points; None where neither.
        difference: What was measured, or None.
        level: Level of its interval.
    """

    role: str
    points: str
    score: str
    asked: str
    margin: float | None
    difference: Difference | None
    level: float


def effects(verdict: Verdict) -> Iterator[Effect]:
    """Everything that a rule looks at, in its order; without differences before there are runs."""
    finding, there = verdict.finding, verdict.evidence
    level = 1 - (verdict.alpha or 1 - LEVEL)
    for place, move in enumerate(finding.must_move):
        moved = there.moved[place] if there else None
        way = "above" if move.sign > 0 else "below"
        asked = f"{move.asked}, {way} 0"
        measured = moved.effect if moved else None
        known = (move.score, asked, move.least, measured, level)
        yield Effect("effect", str(finding.effect), *known)
        for name, contrast in finding.controls.items():
            measured = moved.controls[name] if moved else None
            yield Effect(name, str(contrast), move.score, f"{way} 0", None, measured, level)
    for place, stay in enumerate(finding.must_not):
        measured = there.stayed[place][1] if there else None
        known = (f"within ±{stay.within:g}", stay.within, measured, STAY_LEVEL)
        yield Effect("must not move", str(stay.contrast), stay.score, *known)
    for place, score in enumerate(finding.described):
        measured = there.described[place][1] if there else None
        yield Effect("described", str(finding.effect), score, "", None, measured, LEVEL)


def effects_grid(verdict: Verdict) -> Grid:
    """The rule of a finding, and what was measured."""
    rows: list[list[str | Figure]] = []
    for each in effects(verdict):
        measured, flipped = Figure(NONE, None), Figure(NONE, None)
        if each.difference is not None:
            measured = effect_figure(each.difference, each.level)
            if each.difference.flipped is not None:
                flipped = figure(each.difference.flipped, ".1f")
        rows.append([each.role, each.points, each.score, each.asked or NONE, measured, flipped])
    legend = (
        "Differences in points. Intervals: of effect and controls at the level that Holm's "
        "procedure gives this finding of all, of what must not move at 90 %, else at 95 %. "
        "Flipped: questions of a run that change from right to wrong or back, mean of the seeds."
    )
    heads = ["", "points", "score", "asked", "measured", "flipped"]
    title = f"{verdict.finding.id}: rule and effects"
    return Grid(title, heads, rows, legend, names=4, about={"table": "effects"})


def sentence(claims: Claims, id: str) -> str:
    """What the rule says of a claim, and what has to be known beside it."""
    verdict, finding = claims.verdicts[id], claims.findings[id]
    command = f"`python -m llava_lab report --run {id}`"
    if verdict.evidence is None:
        said = [f"No verdict yet: its runs are still to come ({command})."]
    else:
        look = verdict.evidence.look
        number = finding.looks.index(look) + 1
        said = [
            f"Look {number} of {len(finding.looks)}: {look.seeds} seeds, each trained "
            f"and asked in a world of its own."
        ]
        if verdict.lacking:
            said.append(f"Against the claim: {'; '.join(verdict.lacking)}.")
        if verdict.next:
            said.append(f"The next look is at {verdict.next.seeds} seeds ({command}).")
    return " ".join([*said, *claims.remarks(id)])


def scores_grid(claims: Claims, id: str) -> Grid | None:
    """Scores of the points that a finding compares, means over the seeds of its last look.

    Points of its sweep that it does not compare follow, where there are runs of them.
    """
    finding, used, beside = claims.findings[id], claims.used(id), claims.beside(id)
    if not used:
        return None
    scores = list(dict.fromkeys(finding.scores))
    rows: list[list[str | Figure]] = []
    for point in (*finding.points, *dict.fromkeys(run.point for run in beside)):
        runs = [run for run in (*used, *beside) if run.point == point]
        mean = tokens([run.run for run in runs], scores[0].partition("/")[0])
        shown = Figure(NONE, None) if mean is None else figure(mean, ".0f")
        cells = [_mean(runs, score) for score in scores]
        rows.append([point, figure(len(runs)), shown, *cells])
    legend = "In %, ± half of a 95 % interval over seeds and questions together."
    if beside:
        number = len(finding.points)
        legend += f" The verdict is from the first {number} points; the others decide nothing."
    heads = ["point", "seeds", "visual tokens", *scores]
    return Grid(f"{id}: scores", heads, rows, legend, about={"table": "scores of a finding"})


def _mean(runs: list[Any], score: str) -> Figure:
    estimate = mean_of([run.points[score] for run in runs])
    low, high = estimate.interval()
    text = f"{100 * estimate.value:.1f} ± {50 * (high - low):.1f}"
    return Figure(text, {"value": estimate.value, "low": low, "high": high})


def history_grid(claims: Claims, id: str) -> Grid | None:
    """Every rule and every verdict of a finding, the oldest first; nothing is ever left out."""
    events = claims.histories[id].events
    rows = [[event.get("date", NONE), *_event(event)] for event in events]
    if not rows:
        return None
    heads = ["date", "event", "rule", "commit", "what it says"]
    return Grid(f"{id}: history", heads, rows, names=5, about={"table": "history"})


def _event(event: Mapping[str, Any]) -> list[str]:
    commit = (event.get("git") or NONE)[:9]
    if event["event"] == RULE:
        return ["rule", event["sha256"][:12], commit, "written down, before its first run"]
    if event["event"] == VERDICT:
        found = [
            f"{each['score']} {100 * each['value']:+.1f} "
            f"[{100 * each['low']:+.1f}, {100 * each['high']:+.1f}]"
            for each in event["effects"]
        ]
        said = f"{event['verdict']} at {event['look']} seeds: {', '.join(found)}"
        return ["verdict", event["rule"][:12], commit, said]
    numbers = [
        f"{each['score']} {each['points']:+.1f} ± {each['half']:.1f}" for each in event["numbers"]
    ]
    said = f"{event['verdict']} ({event['file']}): {', '.join(numbers)}. {event['why']}"
    if event.get("changed"):
        said += f" Changed since the verdict before: {'; '.join(event['changed'])}."
    return ["typed by hand", "none", commit, said]
