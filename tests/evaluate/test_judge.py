"""A judge is asked once for each case; what cannot be read is asked again, then named."""

import json
from pathlib import Path

import pytest

from llava_lab.evaluate.judge import Judge, JudgePrompt, read_object, read_score


def grade(said: str) -> int:
    return read_score(read_object(said), 0, 5)


def cases(number: int) -> dict[str, list[dict[str, str]]]:
    return {f"q{n}": [{"role": "user", "content": f"case {n}"}] for n in range(number)}


def judge(url: str, tmp_path: Path, **options: object) -> Judge:
    return Judge(url, "judge-1", str(tmp_path / "judgements"), **options)


def test_judgements_are_read_in_both_forms() -> None:
    said = 'I think: {"verdict": "yes", "score": 4} because {it} is right'
    assert read_object(said) == {"verdict": "yes", "score": 4}
    assert read_object("```\n{'pred': 'no', 'score': 2.8}\n```") == {"pred": "no", "score": 2.8}
    assert grade("{'score': 4.8}") == 4 and grade('{"score": "3"}') == 3
    huge = f"{{'score': {'1' * 400}}}"
    for broken in (
        "yes",
        "{score}",
        "{'score': 6}",
        "{'score': true}",
        "{}",
        "{'score': 'inf'}",
        huge,
    ):
        with pytest.raises(ValueError):
            grade(broken)


def test_a_judgement_is_asked_for_once(judge_server, tmp_path: Path) -> None:
    server = judge_server(lambda body: '{"score": ' + body["messages"][0]["content"][-1] + "}")
    same = {**cases(5), "twin": cases(5)["q3"]}
    found = judge(server.url, tmp_path).judge(same, grade)
    assert found == {"q0": 0, "q1": 1, "q2": 2, "q3": 3, "q4": 4, "twin": 3}
    assert len(server.bodies) == 5
    assert {body["model"] for body in server.bodies} == {"judge-1"}
    assert {body["temperature"] for body in server.bodies} == {0.0}
    # Another address asks nothing: what is kept hangs on model, messages and sampling.
    assert judge("http://127.0.0.1:9/v1", tmp_path).judge(same, grade) == found
    assert judge(server.url, tmp_path, temperature=0.5).judge(cases(1), grade) == {"q0": 0}
    assert len(server.bodies) == 6
    kept = [json.loads(path.read_text()) for path in tmp_path.rglob("*.json")]
    assert {each["messages"][0]["content"] for each in kept} == {f"case {n}" for n in range(5)}


def test_what_cannot_be_read_is_asked_again_and_then_listed(judge_server, tmp_path: Path) -> None:
    tries: dict[str, int] = {}

    def say(body: dict) -> str:
        name = body["messages"][0]["content"]
        tries[name] = tries.get(name, 0) + 1
        if name == "case 1":
            return "well, four"
        return "hm" if name == "case 2" and tries[name] < 3 else '{"score": 4}'

    server = judge_server(say)
    with pytest.raises(ValueError, match=r"1 of 4 judgements .* be read, asked for 3 times"):
        judge(server.url, tmp_path).judge(cases(4), grade)
    assert tries == {"case 0": 1, "case 1": 3, "case 2": 3, "case 3": 1}
    with pytest.raises(ValueError, match=r"q1: 'well, four'"):
        judge(server.url, tmp_path).judge(cases(4), grade)
    assert tries == {"case 0": 1, "case 1": 6, "case 2": 3, "case 3": 1}


def test_a_judge_that_refuses_is_one_message(judge_server, tmp_path: Path) -> None:
    server = judge_server(lambda body: 401)
    with pytest.raises(ValueError, match=r"the judge judge-1: http.* says 401: ") as stopped:
        judge(server.url, tmp_path, in_flight=2).judge(cases(50), grade)
    assert len(str(stopped.value).splitlines()) == 1 and len(server.bodies) < 10


def test_a_rule_of_llavas_own_file_is_the_published_prompt(tmp_path: Path) -> None:
    path = tmp_path / "rule.json"
    path.write_text(json.dumps({"conv": {"role": "Assistant", "prompt": "Two scores."}}))
    prompt = JudgePrompt(f"{path}#conv", ("caption", "question", "answer", "prediction"))
    case = {"caption": "a dog", "question": "What?", "answer": "A dog.", "prediction": "{caption}"}
    system, user = prompt.messages(case)
    assert system["content"].startswith("You are a helpful and precise assistant for checking")
    assert user["content"] == (
        "[Context]\na dog\n\n[Question]\nWhat?\n\n"
        "[Assistant 1]\nA dog.\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\n{caption}\n\n[End of Assistant 2]\n\n[System]\nTwo scores.\n\n"
    )
    with pytest.raises(ValueError, match="has no rule 'detail'; it has conv"):
        JudgePrompt(f"{path}#detail", ())


def test_a_prompt_is_filled_once_and_pinned_by_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "prompt.yaml"
    path.write_text("system: Judge.\nuser: |\n  Q {question} A {prediction} as {'score': 3}, {x}\n")
    prompt = JudgePrompt(str(path), ("question", "prediction"))
    _, user = prompt.messages({"question": "say {prediction}", "prediction": "no"})
    assert user == {"role": "user", "content": "Q say {prediction} A no as {'score': 3}, {x}"}
    before = prompt.settings()
    path.write_text("user: Q {question} A {prediction}")
    assert JudgePrompt(str(path), ()).settings()["prompt_sha256"] != before["prompt_sha256"]
    with pytest.raises(ValueError, match=r"prompt\.yaml: shows no \{answer\}"):
        JudgePrompt(str(path), ("answer",))
    for text in ("user: 3", "system: a", "- a", "user: a\nuserr: b", "user: ["):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"prompt\.yaml"):
            JudgePrompt(str(path), ())
