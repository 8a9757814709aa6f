"""Answers that were worked out by hand score with us what lmms-eval's own functions score them.

pytest -n 0 -m serving tests/serving/test_lmms_scores.py
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from environment import REPOSITORY, lmms_eval

from llava_lab.data.questions import Question
from llava_lab.evaluate.metrics.choice import mmmu_letter
from llava_lab.evaluate.metrics.distance import RelaxedAccuracy, TreeDistance
from llava_lab.evaluate.metrics.paired import PairedYesNo

pytestmark = [pytest.mark.serving, pytest.mark.timeout(1800)]

# Files of tasks alone: the package around them needs the hub.
THEIRS = """
import importlib.util, json, sys
from pathlib import Path

(root,) = importlib.util.find_spec("lmms_eval").submodule_search_locations

def task(name):
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), f"{root}/tasks/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

rows = json.loads(Path(sys.argv[1]).read_text())
chartqa, mme, donut = task("chartqa/utils"), task("mme/utils"), task("synthdog/donut_evaluator")
letters, trees = task("_task_utils/mmmu_mcq_utils"), donut.JSONParseEvaluator()
found = {"chartqa": [], "mmmu": [], "synthdog": [], "mme": []}
for said, answer in rows["chartqa"]:
    doc = {"type": "human_test", "answer": answer}
    found["chartqa"].append(chartqa.chartqa_process_results(doc, [said])["relaxed_overall"])
for said, options in rows["mmmu"]:
    index, letter = letters.get_multi_choice_info(options)
    found["mmmu"].append(letters.parse_mmmu_multi_choice_response(said, letter, index))
for said, answer in rows["synthdog"]:
    told = {"text_sequence": answer}
    found["synthdog"].append(trees.cal_acc({"output": said.lower().strip()}, told))
for said, answer, picture, task_name in rows["mme"]:
    doc = {"answer": answer, "question_id": picture, "category": task_name}
    found["mme"].append(mme.mme_process_results(doc, [said])["mme_perception_score"])
whole = mme.mme_aggregate_results(found["mme"])
found["mme"] = [row["score"] for row in found["mme"]] + [whole]
print("FOUND" + json.dumps(found))
"""


def rows(name: str) -> dict[str, list[Any]]:
    text = (REPOSITORY / "tests" / "evaluate" / "official" / name).read_text("utf-8")
    return yaml.safe_load(text)


def test_four_sets_score_what_lmms_eval_scores(tmp_path: Path) -> None:
    rules, texts = rows("rules.yaml"), rows("texts.yaml")
    relaxed = [
        (said, answers if isinstance(answers, str) else answers[0])
        for said, answers, _ in rules["relaxed"]
    ]
    choices = [(said, options) for said, options, letter in rules["mmmu"] if letter is not None]
    trees = [(said, answer) for said, answer, _ in texts["tree"]]
    # Yes and no by turns, two a picture, five pictures a task. MME's own script does not read a
    # lone "y" and "n"; lmms-eval's, which is Otter's, does.
    said = [text for text, _ in rules["yes_no"] if text not in ("y", "n")] * 2
    yes_no = [
        (text, "Yes" if at % 2 == 0 else "No", str(at // 2), "color" if at < 10 else "count")
        for at, text in enumerate(said[: len(said) // 2 * 2])
    ]
    assert min(map(len, (relaxed, trees, yes_no))) >= 20 and len(choices) >= 15
    (tmp_path / "rows.json").write_text(
        json.dumps({"chartqa": relaxed, "mmmu": choices, "synthdog": trees, "mme": yes_no})
    )
    (tmp_path / "theirs.py").write_text(THEIRS)
    command = [str(lmms_eval()), str(tmp_path / "theirs.py"), str(tmp_path / "rows.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.rpartition("FOUND")[2])
    ours: dict[str, list[Any]] = {
        "chartqa": [RelaxedAccuracy().score(text, [answer]) for text, answer in relaxed],
        "mmmu": [mmmu_letter(text, options) for text, options in choices],
        "synthdog": [TreeDistance().score(text, [answer]) for text, answer in trees],
    }
    metric = PairedYesNo({"perception": ["color", "count"]})
    asked = [
        Question(picture, (), "?", task, (answer,), "row") for _, answer, picture, task in yes_no
    ]
    metric.check(asked)
    lines = metric.grade(asked, [text for text, *_ in yes_no])
    ours["mme"] = [line["correct"] for line in lines]
    ours["mme"].append(100 * metric.compute()["perception"].value)
    for name, scores in ours.items():
        table = {"chartqa": relaxed, "mmmu": choices, "synthdog": trees, "mme": [*yes_no, "all"]}
        pairs = zip(table[name], scores, theirs[name], strict=True)
        odd = [row for row in pairs if row[1] != pytest.approx(row[2])]
        assert not odd, name
