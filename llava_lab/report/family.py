"""12. Family: the verdicts of all findings together, each at the look that decides it.

The level is shared out twice. A look spends its own alpha and no other's. Holm's procedure divides
that alpha by the number of findings that are not settled yet, those without runs among them: a
finding whose p is at most its share is settled, and the shares of the others grow. So the chance of
any false claim, at whatever look, is at most the sum of the alphas (Holm, Scand. J. Stat. 6:65,
1979; with looks: Maurer and Bretz, Stat. Biopharm. Res. 5:311, 2013).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llava_lab.report.finding import Finding, Look
from llava_lab.report.verdict import INCONCLUSIVE, NOT_RUN, Evidence, decide

Measure = Callable[[Finding, Look], Evidence | None]


@dataclass(frozen=True)
class Verdict:
    """What the rule says of a claim by now.

    Attributes:
        finding: The finding.
        word: reproduced, contradicted, no effect, inconclusive or not run.
        family: How many findings shared the level when it was tested.
        evidence: What it is from, or None where no look has all of its runs.
        lacking: What keeps the claim from being reproduced.
    """

    finding: Finding
    word: str
    family: int
    evidence: Evidence | None = None
    lacking: tuple[str, ...] = ()

    @property
    def alpha(self) -> float | None:
        """Share of errors of its adjusted intervals."""
        return self.evidence.look.alpha / self.family if self.evidence else None

    @property
    def said(self) -> str:
        """The verdict for readers: "inconclusive so far" where another look is to be taken."""
        return f"{self.word} so far" if self.evidence and self.next else self.word

    @property
    def next(self) -> Look | None:
        """The look that is to be taken next; None where there is none, or no need."""
        if self.evidence is None:
            return self.finding.looks[0]
        if self.word != INCONCLUSIVE:
            return None
        place = self.finding.looks.index(self.evidence.look) + 1
        return self.finding.looks[place] if place < len(self.finding.looks) else None


def verdicts(findings: Mapping[str, Finding], measured: Measure) -> dict[str, Verdict]:
    """Verdicts of all findings.

    Args:
        findings: All findings, also those without runs: they share the level.
        measured: What was measured for a finding at a look; None where runs are missing.
    """
    found = {id: Verdict(each, NOT_RUN, len(findings)) for id, each in findings.items()}
    open_, evidence = set(findings), {id: measured(f, f.looks[0]) for id, f in findings.items()}
    while True:
        _settle(evidence, found, open_)
        again = False
        for id in findings:
            if (there := evidence[id]) is None:
                continue
            found[id] = _judged(found[id], there, len(open_ | {id}), id in open_)
            if (look := found[id].next) and (more := measured(findings[id], look)):
                evidence[id], again = more, True
        if not again:
            return found


def _settle(
    evidence: Mapping[str, Evidence | None], found: dict[str, Verdict], open_: set[str]
) -> None:
    """Take away those whose p is at most their share, until there is none (Holm)."""
    while True:
        ready = [(id, each) for id in sorted(open_) if (each := evidence[id]) is not None]
        settled = [id for id, each in ready if each.p <= each.look.alpha / len(open_)]
        for id in settled:
            finding = found[id].finding
            found[id] = Verdict(finding, INCONCLUSIVE, len(open_))
        if not settled:
            return
        open_ -= set(settled)


def _judged(before: Verdict, evidence: Evidence, family: int, is_open: bool) -> Verdict:
    """The verdict of a look; what is settled keeps the share with which it was."""
    family = family if is_open else before.family
    word, lacking = decide(evidence, evidence.look.alpha / family)
    return Verdict(before.finding, word, family, evidence, tuple(lacking))
