"""Preferences from a model's own answers: best against worst, each question once."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REPOSITORY, stage_options

from llava_lab.__main__ import main
from llava_lab.cli import fit as cli
from llava_lab.core.journal import Journal
from llava_lab.data.image_folder import VideoPath
from llava_lab.data.modules.preference import read_preferences
from llava_lab.data.questions import Question
from llava_lab.data.source import Source
from llava_lab.serve import prefer as module
from llava_lab.serve.answer import answer_questions
from llava_lab.serve.prefer import check, pairs, prefer
from llava_lab.serve.scorers import AnsweredQuestion, score_by_answers


def ask(name: str, *answers: str, root: Path = Path("/v"), caption: str | None = None) -> Question:
    video = VideoPath(root / "a" / f"{name}.mp4")
    return Question(name, (video,), "<image>\nWhat?", None, answers, f"q.jsonl, {name}", caption)


def test_sentences_that_are_answers_count_for_an_answer_and_others_against_it() -> None:
    question = ask("q", "A red star moves left.", "The sign says N.")
    said = {
        "A red star moves left. The sign says N.": 2,
        "A red star moves left. The sign says J.": 0,
        "the sign says n": 1,
        "A red star moves left. A red star moves left.": 1,
        "A blue star moves left. The sign says J.": -2,
        "": 0,
    }
    assert score_by_answers([(question, text) for text in said]) == list(said.values())
    assert score_by_answers([(ask("q", "left"), "Left."), (ask("q", "2"), "three")]) == [1, -1]


def test_every_question_is_sampled_once_whenever_it_is_killed(tmp_path: Path) -> None:
    questions = [ask(f"q{n}", "left", root=tmp_path) for n in range(5)]
    words = {"q0": "left right up", "q1": "up up up", "q2": "up down right", "q4": "up left left"}
    asked: list[str] = []

    def sample(batch: Sequence[Question]) -> list[str]:
        if len(asked) == 6:
            asked.append("killed")
            raise KeyboardInterrupt
        asked.extend(question.id for question in batch)
        return [words.get(q.id[:2], "left up left").split()[int(q.id[-1])] for q in batch]

    out = tmp_path / "pairs.jsonl"
    with pytest.raises(KeyboardInterrupt):
        prefer(questions, sample, score_by_answers, Journal(out, "a"), 3, 1)
    with Journal(out, "a").path.open("ab") as file:
        file.write(b'["q2", [["cut')
    scored = prefer(questions, sample, score_by_answers, Journal(out, "a"), 3, 2)
    asked.remove("killed")
    assert asked == [f"q{n}#{k}" for n in range(5) for k in range(3)]
    rows, why = pairs(questions, scored, tmp_path)
    assert why == {"alike": 1, "even": 1}
    first = {"id": "q0", "video": "a/q0.mp4", "prompt": "<video>\nWhat?", "chosen": "left"}
    assert rows[0] == {**first, "rejected": "right", "chosen_score": 1, "rejected_score": -1}
    assert [(row["id"], row["rejected"]) for row in rows[1:]] == [("q3", "up"), ("q4", "up")]
    with pytest.raises(ValueError, match="begun with another"):
        prefer(questions, sample, score_by_answers, Journal(out, "b"), 3, 2)
    with pytest.raises(ValueError, match="none of 1 questions makes a pair: 1 have answers that"):
        pairs(questions[1:2], scored, tmp_path)


def test_an_answer_that_is_cut_off_is_in_no_pair(tmp_path: Path) -> None:
    """It was scored like any other, and the shorter for it often the worse."""
    questions = [ask(name, "left", root=tmp_path) for name in ("q0", "q1", "q2")]
    said = {"q0": ["left", None, "up"], "q1": [None, "left", None], "q2": [None] * 3}
    journal, scored_texts = Journal(tmp_path / "pairs.jsonl", "a"), []

    def sample(batch: Sequence[Question]) -> list[str | None]:
        return [said[each.id[:2]][int(each.id[-1])] for each in batch]

    def score(answered: Sequence[AnsweredQuestion]) -> list[int]:
        scored_texts.extend((each.id, text) for each, text in answered)
        return score_by_answers(answered)

    for _ in range(2):
        scored = prefer(questions, sample, score, journal, 3, 1)
        rows, why = pairs(questions, scored, tmp_path)
        assert [(row["id"], row["chosen"], row["rejected"]) for row in rows] == [
            ("q0", "left", "up")
        ]
        assert why == {"cut": 2}
    assert scored_texts == [("q0", "left"), ("q0", "up"), ("q1", "left")]
    with pytest.raises(ValueError, match=r"2 answers that are cut off\. .*--max-new-tokens"):
        pairs(questions[1:], scored, tmp_path)


def test_answers_to_another_question_of_the_same_id_are_not_taken(tmp_path: Path) -> None:
    """They were: a mended row of a file got the answers to what it had asked before."""
    first, other = ask("q0", "left", root=tmp_path), ask("q1", "left", root=tmp_path)
    journal, asked = Journal(tmp_path / "pairs.jsonl", "a"), []

    def sample(batch: Sequence[Question]) -> list[str]:
        asked.extend(question.id for question in batch)
        return ["left" if question.text == first.text else "up" for question in batch]

    prefer([first, other], sample, score_by_answers, journal, 1, 1)
    for change in (
        {"text": "<image>\nWhere?"},
        {"images": (VideoPath(tmp_path / "b.mp4"),)},
        {"answers": ("up",)},
        {"caption": "A star."},
    ):
        asked.clear()
        changed = [replace(first, **change), other]
        scored = prefer(changed, sample, score_by_answers, journal, 1, 1)
        assert asked == ["q0#0"], change
        text = "up" if "text" in change else "left"
        assert scored["q0"] == [(text, score_by_answers([(changed[0], text)])[0])]
    with pytest.raises(ValueError, match="holds 6 results, and none of this command"):
        prefer([ask("q2", "left", root=tmp_path)], sample, score_by_answers, journal, 1, 1)


def test_what_could_not_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1 questions have no `caption` .*\n  q\.jsonl, b"):
        check([ask("a", caption="A star."), ask("b", "left")], judged=True)
    with pytest.raises(ValueError, match=r"1 questions have no `answer` .*\n  q\.jsonl, a"):
        check([ask("a", caption="A star."), ask("b", "left")], judged=False)
    with pytest.raises(ValueError, match="1 question ids are repeated, the first 'a'"):
        check([ask("a", "x"), ask("a", "x")], judged=False)


def _captioned(videos: Path, folder: Path) -> tuple[list[Path], Path]:
    """Two shards of captions, and prompts that have none of their own."""
    prompts = [json.loads(line) for line in (videos / "prompts.jsonl").read_text().splitlines()]
    names = list(dict.fromkeys(prompt["video"] for prompt in prompts))
    rows = [
        {
            **{"id": name, "video": name},
            "conversations": [
                {"from": "human", "value": "<video>\nDescribe this video in detail."},
                {"from": "gpt", "value": f"A film, told by number {at}."},
            ],
        }
        for at, name in enumerate(names)
    ]
    shards = [folder / f"captions-{at}.json" for at in range(2)]
    for at, shard in enumerate(shards):
        shard.write_text(json.dumps(rows[at::2]))
    bare = folder / "bare.jsonl"
    lines = [{k: v for k, v in prompt.items() if k != "caption"} for prompt in prompts]
    bare.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return shards, bare


@pytest.mark.timeout(600)
def test_a_models_own_answers_train_it(
    shortened: list[str],
    small_videos: Path,
    tmp_path: Path,
    judge_server,
    capsys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in docs/preferences.md: a model, pairs of its own answers, two steps of DPO on them."""
    sft, dpo = (REPOSITORY / "experiments" / f"llava_next_video{end}.yaml" for end in ("", "_dpo"))
    options = [*shortened, *stage_options(sft, tmp_path)]
    cli.main(["fit", "-c", str(sft), *options, "--data.benchmarks=[]"])
    (run,) = tmp_path.glob("runs/llava_next_video/*")

    def say(body: dict) -> str:
        text = body["messages"][-1]["content"]
        assert "Caption: " in text and "Question: Describe the video." in text
        return json.dumps({"score": 1 + len(text) % 5})

    server = judge_server(say)
    out = tmp_path / "pairs.jsonl"
    arguments = ["prefer", str(run), str(small_videos / "prompts.jsonl"), "--out", str(out)]
    arguments += ["--images", str(small_videos / "videos"), "--max-new-tokens", "8"]
    arguments += ["--temperature", "2"]
    with pytest.raises(SystemExit):
        main(arguments)
    assert "6 answers that are cut off" in capsys.readouterr().err
    Journal(out, "").remove()
    # The few steps of a test do not teach a model to end its answers.
    monkeypatch.setattr(
        module, "whole_or_not", lambda *a, **k: [(t, True) for t in answer_questions(*a, **k)]
    )
    judged = ["--judge-url", server.url, "--judge-model", "m"]
    judged += ["--judge-cache", str(tmp_path / "judgements")]
    main([*arguments, *judged])
    printed = capsys.readouterr().out
    assert f"pairs of 6 questions: {out}" in printed and "judgements in" in printed
    first, asked = out.read_text(), len(server.bodies)
    with pytest.raises(SystemExit):
        main([*arguments, *judged])
    assert f"--out {out}: exists already" in capsys.readouterr().err
    out.unlink()
    main([*arguments, *judged])
    assert out.read_text() == first and len(server.bodies) == asked
    found = read_preferences(Source(out, small_videos / "videos"), 0)
    assert 2 <= len(found) <= 6
    options = [*shortened, *stage_options(dpo, tmp_path), f"--paths.preferences={out}"]
    options += ["--stages.dpo.data.hold_out=0", "--data.benchmarks=[]"]
    capsys.readouterr()
    cli.main(["fit", "-c", str(dpo), *options])
    said = capsys.readouterr().out
    assert "stage instruct: finished in" in said and "stage dpo: training" in said
    (path,) = tmp_path.glob("runs/llava_next_video_dpo/*/results.json")
    stage = json.loads(path.read_text())["stages"][-1]
    assert stage["name"] == "dpo" and stage["steps"] == 2
    shards, bare = _captioned(small_videos, tmp_path)
    others = ["prefer", str(run), str(bare), "--out", str(tmp_path / "captioned.jsonl")]
    others += [*arguments[5:], *judged, "--captions", *map(str, shards)]
    before = len(server.bodies)
    main(others)
    seen = {body["messages"][-1]["content"] for body in server.bodies[before:]}
    assert seen and all("Caption: A film, told by number " in text for text in seen)
    with pytest.raises(SystemExit):
        main([*arguments, "--judge-url", server.url])
    assert "--judge-url and --judge-model go together" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--captions", str(out)])
    assert "it needs --judge-url and --images" in capsys.readouterr().err
