"""Balance: captions with their noun phrases -> a subset in which frequent phrases are rarer.

The rule by which LLaVA made 595K pictures of CC3M (arXiv:2304.08485, appendix "Data"): phrases of
fewer than 3 captions are skipped; from the rarest of the others on, the captions that have the
phrase are added to the pool; of a phrase of more than 100 captions a random 100 of all of them.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Balanced:
    """What a filter keeps.

    Attributes:
        chosen: Numbers of the captions that are kept, in the order of the file.
        before: Captions of each phrase.
        after: Captions of each phrase among those that are kept.
        least: Captions of the rarest phrase that was not skipped.
    """

    chosen: list[int]
    before: Counter[str]
    after: Counter[str]
    least: int


def balance(
    phrases: Sequence[Sequence[str]], least: int = 3, most: int = 100, seed: int = 0
) -> Balanced:
    """Choose captions so that every phrase that is not rare stays, and none is too frequent.

    A caption that several phrases choose is kept once; so a phrase may have more than `most`
    captions in the end, those that other phrases have chosen.

    Args:
        phrases: Phrases of each caption, each phrase once.
        least: Phrases of fewer captions are skipped.
        most: Captions that one phrase chooses.
        seed: Decides which.

    Raises:
        ValueError: If a number is below 1, or no phrase is in so many captions.
    """
    if least < 1 or most < 1:
        raise ValueError(
            f"least is {least} and most {most} captions of a phrase; both are 1 or more"
        )
    holders: dict[str, list[int]] = {}
    for number, found in enumerate(phrases):
        for phrase in found:
            holders.setdefault(phrase, []).append(number)
    before = Counter({phrase: len(numbers) for phrase, numbers in holders.items()})
    pool: set[int] = set()
    for phrase in sorted(holders, key=lambda phrase: (before[phrase], phrase)):
        if before[phrase] >= least:
            pool.update(_drawn(holders[phrase], most, f"{seed}/{phrase}"))
    if not pool:
        raise ValueError(f"no noun phrase is in {least} of the {len(phrases)} captions")
    chosen = sorted(pool)
    after = Counter(phrase for number in chosen for phrase in phrases[number])
    return Balanced(chosen, before, after, least)


def _drawn(numbers: list[int], most: int, seed: str) -> list[int]:
    """A random choice of at most so many."""
    if len(numbers) <= most:
        return numbers
    # Python promises the same random() from the same seed in every version, but not sample().
    rng = random.Random(seed)
    keys = {number: rng.random() for number in numbers}
    return sorted(numbers, key=keys.__getitem__)[:most]
