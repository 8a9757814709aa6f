"""Verdicts: worked cases of the rule, of looks and of a family."""

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats
from test_finding import write_rule

from llava_lab.report.family import Verdict, verdicts
from llava_lab.report.finding import Contrast, Finding, Look, Move, Stay
from llava_lab.report.finding_file import read_finding
from llava_lab.report.verdict import Evidence, Moved, decide, measure

LOOK = Look(5, 0.01)
NORMAL = NormalDist()


@dataclass(frozen=True)
class Known:
    """A difference in points, known to a standard error, with many degrees of freedom."""

    points: float
    error: float = 1.0

    @property
    def value(self) -> float:
        return self.points / 100

    def interval(self, level: float) -> tuple[float, float]:
        half = NORMAL.inv_cdf((1 + level) / 2) * self.error / 100
        return self.value - half, self.value + half

    def p(self, null: float, side: str) -> float:
        below = NORMAL.cdf((self.value - null) * 100 / self.error)
        return 1 - below if side == "above" else below


def evidence(effect: Known, direction: str = "up", stayed: Known | None = None, **controls: Known):
    """Of a score that must move by 10, and one that must stay within 3."""
    move = Move("questions/accuracy/count", direction, 10)
    stay = Stay("questions/accuracy/color", 3, Contrast("2", "1"))
    return Evidence(LOOK, (Moved(move, effect, controls),), ((stay, stayed),) if stayed else (), ())


# The interval at 99 % is ± 2.58 standard errors, that at 90 % ± 1.64.
@pytest.mark.parametrize(
    ("measured", "word", "lacking"),
    [
        (evidence(Known(12)), "reproduced", []),
        (evidence(Known(10, 3.8)), "reproduced", []),
        (evidence(Known(-12), "down"), "reproduced", []),
        (evidence(Known(12), placebo=Known(11), stayed=Known(1)), "reproduced", []),
        (evidence(Known(9.9)), "inconclusive", ["the effect is +9.9, not +10 or more"]),
        (evidence(Known(10, 3.9)), "inconclusive", ["the interval of the effect is [-0.0,"]),
        (evidence(Known(12), placebo=Known(2)), "inconclusive", ["the interval of placebo is [-0"]),
        (
            evidence(Known(12), stayed=Known(1.5)),
            "inconclusive",
            ["2 − 1 is [-0.1, +3.1], not"],
        ),
        (
            evidence(Known(12), stayed=Known(0, 1.9)),
            "inconclusive",
            ["[-3.1, +3.1], not within"],
        ),
        (evidence(Known(-12)), "contradicted", ["not above 0", "is -12.0, not +10 or more"]),
        (evidence(Known(12), "down"), "contradicted", ["not below 0", "is +12.0, not -10 or less"]),
        (evidence(Known(-12), placebo=Known(-11), stayed=Known(9)), "contradicted", ["above 0"]),
        (evidence(Known(-12), placebo=Known(1)), "inconclusive", ["above 0"]),
        (evidence(Known(-9.9)), "inconclusive", ["above 0"]),
        (evidence(Known(0)), "no effect", ["above 0", "is +0.0, not +10"]),
        (evidence(Known(7)), "no effect", ["the effect is +7.0"]),
        (evidence(Known(7.5)), "inconclusive", ["the effect is +7.5"]),
        (evidence(Known(0, 3.9)), "inconclusive", ["above 0"]),
    ],
)
def test_the_rule_says(measured: Evidence, word: str, lacking: list[str]) -> None:
    found, why = decide(measured, 0.01)
    assert found == word
    text = "\n".join(why)
    assert bool(why) == bool(lacking) and all(each in text for each in lacking), text


def test_of_several_scores_all_must_move() -> None:
    both = evidence(Known(12))
    weaker = replace(both, moved=(*both.moved, *evidence(Known(5, 3)).moved))
    assert decide(weaker, 0.01)[0] == "inconclusive"
    assert weaker.p == evidence(Known(5, 3)).p > both.p


def test_p_is_that_of_the_weakest_control() -> None:
    assert evidence(Known(12), tokens=Known(3)).p == pytest.approx(2 * stats.norm.sf(3))
    assert evidence(Known(-12), tokens=Known(-3)).p == pytest.approx(2 * stats.norm.sf(3))
    assert evidence(Known(12), tokens=Known(-3)).p == 1


def finding(folder: Path, name: str = "T1", looks: dict[int, float] | None = None) -> Finding:
    looks = looks or {5: 0.01, 8: 0.04}
    return replace(
        read_finding(write_rule(folder, name=name)),
        looks=tuple(Look(seeds, alpha) for seeds, alpha in looks.items()),
    )


def of(rules: list[Finding], effects: dict[str, dict[int, Known]]) -> dict[str, Verdict]:
    """Verdicts of what findings have at each look, in the score that must move."""

    def measured(rule: Finding, look: Look) -> Evidence | None:
        effect = effects.get(rule.id, {}).get(look.seeds)
        return None if effect is None else replace(evidence(effect), look=look)

    return verdicts({rule.id: rule for rule in rules}, measured)


def test_a_look_spends_its_alpha(tmp_path: Path) -> None:
    """What would do at 5 % does not at a look of 1 %, nor later at more than the other's 4 %."""
    rule = finding(tmp_path)
    at = {p: Known(12, 12 / stats.norm.isf(p / 2)) for p in (0.009, 0.011, 0.039, 0.041)}
    found = {
        (first, second): of([rule], {"T1": {5: at[first], **({8: at[second]} if second else {})}})
        for first, second in [(0.009, None), (0.011, None), (0.011, 0.039), (0.011, 0.041)]
    }
    words = {key: each["T1"].word for key, each in found.items()}
    assert list(words.values()) == ["reproduced", "inconclusive", "reproduced", "inconclusive"]
    assert found[0.011, 0.039]["T1"].alpha == 0.04
    assert [each["T1"].next for each in found.values()] == [None, rule.looks[1], None, None]
    said = [each["T1"].said for each in found.values()]
    assert said == ["reproduced", "inconclusive so far", "reproduced", "inconclusive"]


def test_a_finding_that_a_look_decides_stops_there(tmp_path: Path) -> None:
    rule = finding(tmp_path)
    for first, word in ((Known(12), "reproduced"), (Known(0), "no effect")):
        found = of([rule], {"T1": {5: first, 8: Known(-12)}})["T1"]
        assert (found.word, found.evidence.look.seeds) == (word, 5)


def test_runs_between_two_looks_are_not_looked_at(tmp_path: Path) -> None:
    asked = []
    rule = finding(tmp_path)
    verdicts({"T1": rule}, lambda rule, look: asked.append(look.seeds))
    assert asked == [5]


def test_findings_without_runs_have_their_share_of_the_level(tmp_path: Path) -> None:
    rules = [finding(tmp_path, f"T{number}", {5: 0.05}) for number in (1, 2, 3)]
    effect = {5: Known(12, 12 / stats.norm.isf(0.02 / 2))}
    assert of(rules[:1], {"T1": effect})["T1"].word == "reproduced"
    found = of(rules, {"T1": effect})
    assert (found["T1"].word, found["T1"].family) == ("inconclusive", 3)
    assert found["T2"].word == "not run" and found["T2"].next == rules[1].looks[0]


def test_what_is_settled_leaves_its_share_to_the_others(tmp_path: Path) -> None:
    """Holm by hand: of 0.05, p of 0.01, 0.02 and 0.04 are compared with 1/60, 1/40 and 1/20."""
    rules = [finding(tmp_path, f"T{number}", {5: 0.05}) for number in (1, 2, 3)]
    effects = {
        rule.id: {5: Known(12, 12 / stats.norm.isf(p / 2))}
        for rule, p in zip(rules, (0.04, 0.01, 0.02), strict=True)
    }
    found = of(rules, effects)
    assert [found[rule.id].word for rule in rules] == ["reproduced"] * 3
    assert [found[rule.id].family for rule in rules] == [1, 3, 2]
    del effects["T3"]
    assert of(rules, effects)["T1"].word == "inconclusive"


def test_false_claims_are_as_rare_as_the_level_over_looks_and_findings(tmp_path: Path) -> None:
    """Three findings without any effect, with two looks: at most one family in 20 claims any."""
    rules = [finding(tmp_path, f"T{number}") for number in (1, 2, 3)]
    noise = np.random.default_rng(0).normal(size=(1500, 3, 8))
    claimed = 0
    for draw in noise:
        effects = {
            rule.id: {n: Known(10 * seeds[:n].mean(), 10 / n**0.5) for n in (5, 8)}
            for rule, seeds in zip(rules, draw, strict=True)
        }
        found = of(rules, effects)
        claimed += any(each.evidence.p <= each.alpha for each in found.values())
    assert 0.02 < claimed / len(noise) < 0.06


def test_all_that_a_rule_names_is_measured(tmp_path: Path) -> None:
    rule = read_finding(write_rule(tmp_path))
    asked = []

    def compare(contrast: Contrast, score: str, seeds) -> Known:
        asked.append((str(contrast), score.rpartition("/")[2], list(seeds)))
        return Known(0)

    measure(rule, rule.looks[0], compare)
    first = list(range(100, 105))
    assert asked == [
        ("2 − 1", "count", first),
        ("2 − 2, shuffled", "count", first),
        ("2 − 1", "color", first),
        ("2 − 1", "accuracy", first),
    ]
