"""Estimates: worked examples, and simulated runs whose true score and difference are known."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf

import numpy as np
import pytest
from scipy.special import ndtri

from llava_lab.evaluate.interval import Estimate
from llava_lab.report.estimate import Difference, apart, difference_of, holm, mean_of
from llava_lab.report.points import Points
from llava_lab.report.stated import differing, less_known, over_runs, stated


def points(
    got: Sequence[float],
    of: Sequence[float] | None = None,
    clusters: Sequence[int] | None = None,
    world: str = "one",
) -> Points:
    """An accuracy, unless `of` is given, of questions about a picture each."""
    every = np.arange(len(got))
    where = every if clusters is None else np.array(clusters)
    whole = np.ones(len(got)) if of is None else np.array(of, float)
    known = (every.astype(str), where.astype(str), np.array(got, float), whole)
    return Points("scenes", "accuracy", *known, content=world)


def test_seeds_that_answered_the_same_questions_are_crossed() -> None:
    # By hand: MS_S = 1/2 (1 df), MS_Q = 1/3 (3), MS_E = 1/6 (3); (1/2 + 1/3 - 1/6) / 8 = 1/12.
    # Satterthwaite: (2/3)^2 / (1/4 + 1/27 + 1/108) = 1.5 degrees of freedom.
    found = mean_of([points([1, 1, 1, 0]), points([1, 0, 0, 0])])
    assert found.value == 0.5 and found.se == pytest.approx((1 / 12) ** 0.5)
    assert found.df == pytest.approx(1.5)
    assert (found.runs, found.questions, found.clusters) == (2, 4, 4)


def test_seeds_that_differ_by_no_more_than_noise_have_the_questions_variance() -> None:
    # MS_S = 0, MS_Q = 2/5 (5 df), MS_E = 1/5 (5): no variance of seeds is seen; 2/5 / 12 is left.
    found = mean_of([points([1, 1, 1, 0, 0, 0]), points([1, 1, 0, 1, 0, 0])])
    assert found.se == pytest.approx((1 / 30) ** 0.5) and found.df == pytest.approx(5)


def test_seeds_with_a_world_each_are_nested() -> None:
    runs = [points([1] * n + [0] * (10 - n), world=str(n)) for n in (5, 6, 7)]
    found = mean_of(runs)
    # Mean 0.6, standard deviation 0.1: standard error 0.1 / sqrt(3), two degrees of freedom.
    assert (found.value, found.df) == (pytest.approx(0.6), 2)
    assert found.se == pytest.approx(0.1 / 3**0.5) and found.clusters == 30
    low, high = found.interval()
    assert 0 < 0.6 - 4.3027 * found.se < low < 0.6 < high < 0.6 + 4.3027 * found.se < 1


def test_two_seeds_of_each_world_count_as_one() -> None:
    runs = [points([1] * n + [0] * (10 - n), world=str(n // 4)) for n in (3, 2, 7, 6)]
    found = mean_of(runs)
    assert found.value == pytest.approx(0.45) and found.df == 1
    assert found.se == pytest.approx(0.2)  # means 0.25 and 0.65


def test_questions_of_one_picture_do_not_count_twice() -> None:
    alone = [points(each) for each in ([1, 1, 1, 0], [1, 0, 0, 0])]
    twice = [
        points(np.repeat(each.got, 2).tolist(), clusters=np.repeat(range(4), 2).tolist())
        for each in alone
    ]
    first, second = mean_of(alone), mean_of(twice)
    assert (second.value, second.df) == (first.value, pytest.approx(first.df))
    assert second.se == pytest.approx(first.se) and second.questions == 8


def test_a_difference_is_paired_question_by_question() -> None:
    ours, theirs = (
        points([1, 1, 1, 0] + [1] * 3 + [0] * 3),
        points([0, 0, 0, 1] + [1] * 3 + [0] * 3),
    )
    found = difference_of([(ours, theirs)])
    # Of 10 differences three are +1 and one is -1: squares less 10 * 0.2^2 are 3.6; / 9 / 10.
    assert found.value == pytest.approx(0.2) and found.se == pytest.approx(0.2)
    assert (found.flipped, found.df, found.seeds_to_settle) == (4, 9, None)
    assert found.interval() == pytest.approx((0.2 - 2.2622 * 0.2, 0.2 + 2.2622 * 0.2), abs=1e-4)
    assert found.p() == pytest.approx(0.3434, abs=1e-4)  # t = 1, 9 degrees of freedom
    assert found.p(side="above") == pytest.approx(found.p() / 2)
    other = difference_of([(ours, points(theirs.got.tolist(), world="two"))])
    assert other.flipped is None and other.se > found.se


def test_differences_of_ratios_are_paired_too() -> None:
    # Precision of two models: those of the questions that both answer with yes cancel out.
    shared = [1] * 40 + [0] * 40
    ours = points([*shared, 1, 0], [1] * 80 + [1, 0])
    theirs = points([*shared, 0, 0], [1] * 80 + [0, 1])
    found = difference_of([(ours, theirs)])
    assert found.value == pytest.approx(41 / 81 - 40 / 81) and found.flipped == 2
    assert found.se < 0.012 < mean_of([ours]).se / 4


def test_where_no_question_flipped_the_interval_has_a_width() -> None:
    same = points([1, 0] * 50)
    found = difference_of([(same, same), (same, same)])
    assert found.value == 0 and found.flipped == 0
    assert found.interval() == pytest.approx((-0.0198, 0.0198), abs=1e-4)
    assert found.p() == 1


@pytest.mark.parametrize("share", [0, 1])
def test_an_interval_at_the_end_of_the_scale_has_a_width_and_stays_inside(share: int) -> None:
    for runs in ([points([share] * 40)], [points([share] * 40, world=w) for w in "abc"]):
        low, high = mean_of(runs).interval()
        assert 0 <= low <= share <= high <= 1 and 0 < high - low < 0.1
    found = mean_of([points([share] * 9 + [1 - share], world=w) for w in "ab"])
    assert 0 < found.low < found.high < 1 and found.df == 1


def test_a_ratio_of_which_nothing_counts_is_not_known() -> None:
    empty, known = points([0, 0], [0, 0]), points([1, 0])
    for found in (mean_of([empty]), mean_of([empty, known])):
        assert found.interval() == (0, 1)
    assert difference_of([(known, empty)]).interval() == (-1, 1)
    assert mean_of([points([1, 1], clusters=[0, 0])]).interval() == (0, 1)  # one picture


def test_seeds_that_would_settle_it_are_those_of_the_t_test() -> None:
    # Differences of 2, 4 and 0 points in worlds of their own: 7 seeds, since 2.447 < sqrt(7) and
    # 2.571 > sqrt(6).
    half = [1] * 250 + [0] * 250
    pairs = [
        (points([1] * (250 + more) + [0] * (250 - more), world=w), points(half, world=w))
        for more, w in ((10, "a"), (20, "b"), (0, "c"))
    ]
    assert difference_of(pairs).seeds_to_settle == 7
    assert difference_of([pairs[1], pairs[1]]).seeds_to_settle == 2  # it is settled already


def test_no_number_of_seeds_makes_up_for_few_questions() -> None:
    ours, theirs = points([1, 1, 1, 0, 0, 1, 0, 1]), points([0, 0, 1, 1, 0, 1, 0, 1])
    assert difference_of([(ours, theirs)] * 4).seeds_to_settle == inf


def test_independent_estimates_differ_by_welchs_rule() -> None:
    found = apart(Estimate(0.5, 0.03, 4, 1, 9), Estimate(0.3, 0.04, 9, 1, 9))
    assert found.value == pytest.approx(0.2) and found.se == pytest.approx(0.05)
    assert found.df == pytest.approx(0.05**4 / (0.03**4 / 4 + 0.04**4 / 9))


def test_equal_scores_of_other_questions_are_as_if_those_of_one_picture_differed() -> None:
    """It was a question's share of 1, whatever the score: a twentieth of what MME's total has."""
    ours, theirs, others = (replace(points([20.0] * 50, world=w), top=20.0) for w in "aab")
    paired, alone = difference_of([(ours, theirs)]), difference_of([(ours, others)])
    assert paired.se == alone.se == pytest.approx(20 / 50)
    assert apart(Estimate(2, 0, 9, 1, 9, 5), Estimate(2, 0, 9, 1, 9, 5)).se == 1 / 5


def test_holms_correction_is_the_worked_one() -> None:
    # Holm (1979): 0.01, 0.02, 0.03 and 0.005 of four become 0.03, 0.04, 0.04 and 0.02.
    assert holm([0.01, 0.02, 0.03, 0.005]) == pytest.approx([0.03, 0.04, 0.04, 0.02])
    assert holm([0.9, 0.6]) == [1, 1] and holm([]) == []


def test_a_published_number_is_taken_off_both_ends() -> None:
    ours = mean_of([points([1, 1, 1, 0] * 10)])
    less = less_known(ours, 0.5)
    assert less.value == 0.25 and less.interval() == (ours.low - 0.5, ours.high - 0.5)


def test_a_star_is_where_the_interval_leaves_the_published_number_out() -> None:
    # 50 of 50 right is no proof of more than 95.0: by chance it is 50 of 50 in 0.95^50 = 7.7 %.
    less = less_known(mean_of([points([1] * 50)]), 0.95)
    assert less.low < 0 and less.p() > 0.05
    assert less_known(mean_of([points([1] * 50)]), 0.92).p() < 0.05


def test_a_probability_is_below_5_percent_where_the_95_percent_interval_leaves_a_number_out() -> (
    None
):
    generator = np.random.default_rng(0)
    outside = 0
    for _ in range(500):
        value, null = generator.choice([0.0, 1.0, *generator.uniform(0, 1, 6)], 2)
        se = generator.choice([0.0, inf, *generator.uniform(0.01, 0.3, 6)])
        df, clusters = generator.uniform(1, 40), int(generator.integers(1, 60))
        of = (value, se, df, 3, clusters, clusters)
        low, high = sorted(generator.uniform(0, 1, 2))
        ends = (min(low, value), max(high, value))
        both = [Estimate(*of, bounds) for bounds in ((0.0, 1.0), (-inf, inf))]
        both += [Estimate(*of, (0.0, 1.0), ends), Difference(*of, (-1.0, 1.0))]
        cases = [(each, null) for each in both] + [(less_known(both[0], 0.3), null - 0.3)]
        for each, asked in cases:
            least, most = each.interval()
            if min(abs(least - asked), abs(most - asked)) < 1e-9:
                continue
            left_out = not least < asked < most
            assert (each.p(asked) < 0.05) == left_out, (each, asked)
            outside += left_out
    assert 500 < outside < 2000  # of 2,500


def test_without_points_runs_have_the_spread_between_them() -> None:
    runs = [stated({"value": v, "ci95": [v - 0.1, v + 0.1], "n": 100}) for v in (0.5, 0.6, 0.7)]
    assert runs[0].interval() == (0.4, 0.6)
    found = over_runs(runs)
    assert (found.value, found.df) == (pytest.approx(0.6), 2)
    assert found.se == pytest.approx(0.1 / 3**0.5)
    same = differing([(runs[0], runs[1]), (runs[1], runs[2])])
    assert same.value == pytest.approx(-0.1) and same.high - same.low == pytest.approx(
        0.04, abs=1e-3
    )
    out = stated({"value": 0.98, "ci95": [0.93, 1.03], "n": 10})
    assert out.interval()[0] == 0.93


def test_a_score_that_may_exceed_one_is_not_held_below_it() -> None:
    runs = [stated({"value": v, "ci95": [v - 0.04, v + 0.04], "n": 60}) for v in (0.95, 1.05)]
    found = over_runs(runs)
    assert found.value == pytest.approx(1) and found.bounds == (0, inf)
    assert found.high == pytest.approx(1 + 12.7062 * 0.05, abs=1e-3) and found.low >= 0
    both = [replace(points([8, 9], [9, 9]), top=10.0), replace(points([10, 9], [9, 9]), top=10.0)]
    assert 0 < mean_of(both).low < 1 < mean_of(both).high


def simulated(
    generator: np.random.Generator, seeds: int, spread: float, worlds: bool, true: float = 0.7
) -> list[tuple[Points, Points]]:
    """Two arms of equal accuracy: questions of 60 pictures, two each, are easy or hard.

    Args:
        generator: Random numbers.
        seeds: Number of seeds.
        spread: Standard deviation between seeds, of both arms independently, in probits.
        worlds: Whether each seed has questions of its own.
        true: The accuracy.
    """
    middle, hard = ndtri(true) * (2 + spread**2) ** 0.5, np.zeros(120)
    pairs = []
    for seed in range(seeds):
        if worlds or not seed:
            hard = np.repeat(generator.normal(size=60), 2)
        shown = [
            middle + generator.normal() * spread + hard + generator.normal(size=120) for _ in "ab"
        ]
        world = f"{seed}" if worlds else "one"
        first, second = (
            points((1.0 * (each > 0)).tolist(), None, np.repeat(range(60), 2).tolist(), world)
            for each in shown
        )
        pairs.append((first, second))
    return pairs


def coverage(seeds: int, spread: float, worlds: bool, times: int) -> tuple[float, float]:
    """How often the interval holds the true accuracy, and the true difference of zero."""
    generator = np.random.default_rng(0)
    means = differences = 0
    for _ in range(times):
        pairs = simulated(generator, seeds, spread, worlds)
        found, less = mean_of([first for first, _ in pairs]), difference_of(pairs)
        means += found.low <= 0.7 <= found.high
        differences += less.low <= 0 <= less.high
    return means / times, differences / times


def test_intervals_hold_what_is_true_about_as_often_as_they_say() -> None:
    for seeds, spread, worlds in ((1, 0.0, False), (3, 0.15, False), (5, 0.15, True)):
        for share in coverage(seeds, spread, worlds, 150):
            assert 0.90 <= share <= 0.99, (seeds, spread, worlds, share)


@pytest.mark.slow
@pytest.mark.parametrize("worlds", [False, True])
@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
@pytest.mark.parametrize("spread", [0.0, 0.15, 0.4])
def test_intervals_cover(seeds: int, spread: float, worlds: bool) -> None:
    """Two seeds that share questions are too few to tell the variances apart."""
    least = 0.85 if seeds == 2 and not worlds else 0.91
    for share in coverage(seeds, spread, worlds, 1000):
        assert least <= share <= (1 if seeds == 2 else 0.99), share
