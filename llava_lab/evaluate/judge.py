"""11. Judge: prompts -> verdicts of an LM behind an OpenAI-compatible server, cached on disk."""

import ast
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from llava_lab.core.atomic import write
from llava_lab.core.engine import ChatEngine, UnusableReply, check_url
from llava_lab.core.messages import listed
from llava_lab.core.strict_json import parse
from llava_lab.core.yaml_file import read_mapping
from llava_lab.model.weights import locate

Verdict = TypeVar("Verdict")
Messages = list[dict[str, str]]


class UnparsedReply(ValueError):
    """The judge's reply could not be parsed after all retries."""


class JudgePrompt:
    """Prompt of a judge: a YAML file with a `user` message and, optionally, a `system` one.

    `{question}` and other names of a case's values are filled in; other braces stay. LLaVA's own
    file of rules is read, too, with the rule's name behind it: rule.json#llava_bench_conv.

    Args:
        file: The file, or asset:judge/NAME.yaml for one that ships with the package.
        needs: Names that it must contain.
    """

    def __init__(self, file: str, needs: tuple[str, ...]):
        self.file = file
        name, _, rule = file.partition("#")
        path = Path(locate(name))
        found = read_mapping(path)
        if rule:
            found = _messages_of(path, found, rule)
        texts = found.values()
        if not {"user"} <= set(found) <= {"system", "user"}:
            raise ValueError(f"{path}: a prompt has `user` and may have `system`, nothing else")
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{path}: `system` and `user` are texts; put | behind the colon")
        for name in needs:
            if not any(f"{{{name}}}" in text for text in texts):
                raise ValueError(f"{path}: shows no {{{name}}}, which is to be judged by it")
        known = [role for role in ("system", "user") if role in found]
        # Line ends alone are cut: published prompts may end in a space.
        self.texts = {role: found[role] if rule else found[role].strip("\n") for role in known}
        self.sha256 = hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()

    def messages(self, case: Mapping[str, str]) -> Messages:
        """Fill in the messages of one case."""

        def fill(text: str) -> str:
            return re.sub(r"\{(\w+)\}", lambda found: case.get(found[1], found[0]), text)

        return [{"role": role, "content": fill(text)} for role, text in self.texts.items()]

    def settings(self) -> dict[str, Any]:
        """Settings that are written to results."""
        return {"prompt": self.file, "prompt_sha256": self.sha256, "prompt_texts": self.texts}


def _messages_of(path: Path, rules: Mapping[str, Any], name: str) -> dict[str, str]:
    """Messages with a rule of LLaVA's file, as its script writes them for LLaVA-Bench.

    haotian-liu/LLaVA@c121f04, llava/eval/eval_gpt_review_bench.py and table/rule.json.
    """
    rule = rules.get(name)
    if not isinstance(rule, dict) or not {"role", "prompt"} <= set(rule):
        raise ValueError(f"{path}: has no rule {name!r}; it has {', '.join(rules)}")
    shown = [("Context", "{caption}"), ("Question", "{question}")]
    parts = [f"[{title}]\n{text}\n\n" for title, text in shown]
    for number, text in ((1, "{answer}"), (2, "{prediction}")):
        who = f"{rule['role']} {number}"
        parts.append(f"[{who}]\n{text}\n\n[End of {who}]\n\n")
    parts.append(f"[System]\n{rule['prompt']}\n\n")
    return {"system": _SYSTEM, "user": "".join(parts)}


_SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."


@dataclass
class Judge:
    """LM that judges answers.

    A reply that could be parsed is cached on disk by a hash of model, messages and sampling, not of
    the server's address, and is not requested again.

    Args:
        url: Address of an OpenAI-compatible server, up to and with /v1.
        model: The server's name of its model. Scores of different judges or versions cannot be
            compared.
        cache: Folder of the replies.
        temperature: Sampling temperature of the judge.
        max_tokens: Longest reply of the judge.
        tries: Number of requests before a reply that cannot be parsed is an error.
        in_flight: Most requests at once.
        on_unread: What a reply that cannot be parsed is: an "error" once all others are kept, or
            the "worst" score, as the published scripts count it; `unread` is their share.
    """

    url: str
    model: str
    cache: str = "judgements"
    temperature: float = 0.0
    max_tokens: int = 512
    tries: int = 3
    in_flight: int = 8
    on_unread: Literal["error", "worst"] = "error"

    def __post_init__(self) -> None:
        check_url(self.url)
        if self.on_unread not in ("error", "worst"):
            raise ValueError(f"judge.on_unread is {self.on_unread!r}; it is error or worst")
        self._spent: Counter[str] = Counter()

    @property
    def spent(self) -> Counter[str]:
        """What its replies have cost so far, as `ChatEngine` counts it."""
        return self._spent

    def settings(self) -> dict[str, Any]:
        """Settings that are written to results."""
        return {"model": self.model, **self.sampling}

    @property
    def sampling(self) -> dict[str, Any]:
        """Sampling options of a request."""
        return {"temperature": self.temperature, "max_tokens": self.max_tokens}

    def judge(
        self,
        cases: Mapping[str, Messages],
        read: Callable[[str], Verdict],
        worst: Verdict | None = None,
    ) -> dict[str, Verdict]:
        """Judge all cases.

        Args:
            cases: Messages by the case's name.
            read: Parses a reply; raises a ValueError if it cannot.
            worst: Verdict of a reply that cannot be parsed, where `on_unread` asks for it.

        Raises:
            ValueError: If the server refuses; or, once all other cases are judged and cached, with
                a list of the cases whose reply could not be parsed.
        """
        places = {name: self._place(messages) for name, messages in cases.items()}
        wanted = {place: cases[name] for name, place in places.items()}
        kept = {place: self._kept(place, read) for place in wanted}
        verdicts = {place: verdict for place, verdict in kept.items() if verdict is not None}
        unparsed: dict[Path, UnparsedReply] = {}
        engine = ChatEngine(self.url, self.model, self.in_flight)
        missing = [place for place in wanted if place not in verdicts]
        for place, found in engine.each(
            lambda place: self._ask(engine, place, wanted[place], read), missing
        ):
            if isinstance(found, UnparsedReply):
                unparsed[place] = found
            elif isinstance(found, Exception):
                raise ValueError(f"the judge {self.model}: {found}") from found
            else:
                verdicts[place] = found
        self._spent.update(engine.spent)
        if unparsed and self.on_unread == "worst" and worst is not None:
            verdicts |= dict.fromkeys(unparsed, worst)
        elif unparsed:
            lines = [f"{name}: {unparsed[at]}" for name, at in places.items() if at in unparsed]
            raise ValueError(
                f"{len(lines)} of {len(cases)} judgements of {self.model} cannot be read, asked "
                f"for {self.tries} times each; the others are kept in {self.cache}:\n  "
                f"{listed(lines, 10)}"
            )
        return {name: verdicts[place] for name, place in places.items()}

    def _kept(self, place: Path, read: Callable[[str], Verdict]) -> Verdict | None:
        """Return the cached verdict; None if there is none, or `read` cannot parse it."""
        if not place.is_file():
            return None
        try:
            match parse(place.read_text(encoding="utf-8"), str(place)):
                case {"said": str(reply)}:
                    return read(reply)
        except ValueError:
            pass
        return None

    def _ask(
        self,
        engine: ChatEngine,
        place: Path,
        messages: Messages,
        read: Callable[[str], Verdict],
    ) -> Verdict:
        reply = ""
        for _ in range(self.tries):
            try:
                reply = engine.complete(messages, **self.sampling)
            except UnusableReply as problem:
                reply = str(problem)
                continue
            try:
                verdict = read(reply)
            except ValueError:
                continue
            kept = {"model": self.model, "messages": messages, **self.sampling, "said": reply}
            write(place, json.dumps(kept, indent=2) + "\n")
            return verdict
        raise UnparsedReply(repr(reply[:200]))

    def _place(self, messages: Messages) -> Path:
        text = json.dumps([self.model, messages, self.sampling], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()
        return Path(self.cache) / key[:2] / f"{key}.json"


def read_object(reply: str) -> dict[str, Any]:
    """Parse the first {...} of a reply: JSON, or a Python dictionary.

    The published prompts ask for the latter.
    """
    found = re.search(r"\{.*?\}", reply, re.DOTALL)
    if not found:
        raise ValueError("no {...}")
    for reader in (json.loads, ast.literal_eval):
        try:
            value = reader(found[0])
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        if isinstance(value, dict):
            return value
    raise ValueError(f"{found[0]} is not JSON")


def read_score(found: Mapping[str, Any], least: int, most: int) -> int:
    """Read the `score` of a reply; a fraction is rounded down, as in the released scorers.

    Source: LLaVA-VL/LLaVA-NeXT@e789bd4, llava/eval.
    """
    value = found.get("score")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"`score` is {value!r}")
    number = float(value) if isinstance(value, str) else value
    if not least <= number <= most:
        raise ValueError(f"`score` is {value!r}, not from {least} to {most}")
    return int(number)
