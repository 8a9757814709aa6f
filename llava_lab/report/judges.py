"""12. Judges: what an LM had a part in of a run's scores -> notes below its tables."""

from llava_lab.report.runs import RunResults

FIVE = "; a score of 5 points is 100"
# What the numbers of our metrics are, by the class; of others nothing is known.
POINTS = {
    **{"RightAnswer": FIVE, "Aspects": FIVE, "Consistency": FIVE, "MMVet": "; a score of 1 is 100"},
    "Relative": "; 100 is as many points as the reference answers get",
}
CUT = "ExtractedMathVista"  # whose LM gives no points


def judge_notes(run: RunResults) -> list[str]:
    """Notes on judges: scores of different judges or prompts are not comparable."""
    judges = run.results.get("judges")
    if not judges:
        return []
    asked = (run.config or {}).get("data", {}).get("benchmarks") or []
    metrics = {each["name"]: each.get("metric") for each in asked}
    notes = []
    for name, judge in judges.items():
        metric = metrics.get(name)
        path = metric if isinstance(metric, str) else (metric or {}).get("class_path", "")
        kind = path.rpartition(".")[2]
        prompts = ", ".join(
            f"{each['prompt']} {each['prompt_sha256'][:12]}" for each in judge["prompts"].values()
        )
        what = "answers are cut out" if kind == CUT else "judged"
        notes.append(f"{name}: {what} by {judge['model']} ({prompts}){POINTS.get(kind, '')}.")
    return notes
