"""Engine: messages -> replies of an OpenAI-compatible server, such as vLLM and SGLang."""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from urllib3.util import Retry

from llava_lab.core.strict_json import parse

Request = TypeVar("Request")
Result = TypeVar("Result")

# An engine that restarts is back within a minute or so: 0.5 + 1 + 2 + ... seconds between tries.
RETRIES, BACKOFF = 8, 0.5
RETRIED = (408, 409, 429, 500, 502, 503, 504)
# Finish reasons of a complete answer; some servers send none.
ENDED = (None, "stop", "eos", "eos_token", "stop_sequence", "end_turn")
KEY = "OPENAI_API_KEY"
TOKENS = ("prompt_tokens", "completion_tokens")  # what a server says that a reply has cost


class UnusableReply(ValueError):
    """The reply holds no whole answer: it is empty, a refusal, or truncated."""


class TruncatedReply(UnusableReply):
    """The reply was truncated at `max_tokens`; asking again would not help."""


def check_url(url: str) -> str:
    """Return an engine's address, or refuse one with a secret in it: it is logged and written.

    Args:
        url: Address, up to and with /v1.

    Raises:
        ValueError: If it is no http address, or holds a user, a password or a query.
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known, parts = False, urlsplit("")
    if "@" in url or "?" in url or "#" in url:
        raise ValueError(
            f"the engine's URL holds a user, a key or a query, which would be shown and written: "
            f"give the address alone, and the key in the environment ({KEY})"
        )
    if not known:
        raise ValueError(f"{url!r} is no engine's URL, such as http://127.0.0.1:8000/v1")
    return url.rstrip("/")


class ChatEngine:
    """Client of chat completions of one model, with retries and exponential backoff.

    The API key, where the server wants one, is read from OPENAI_API_KEY.

    Args:
        url: Address, up to and with /v1, without a user, a key or a query.
        model: The server's name of its model.
        in_flight: Most requests at once.

    Attributes:
        spent: What replies have cost so far, unusable ones too: `replies`, and, where the server
            says so, `prompt_tokens` and `completion_tokens`; `unmetered` are replies without them.
    """

    def __init__(self, url: str, model: str, in_flight: int):
        self.url, self.model, self.in_flight = check_url(url), model, in_flight
        self.spent: Counter[str] = Counter()
        self.counting = threading.Lock()
        self.session = requests.Session()
        retry = Retry(
            RETRIES, backoff_factor=BACKOFF, status_forcelist=RETRIED, allowed_methods=["POST"]
        )
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=in_flight, max_retries=retry)
        self.session.mount("http://", adapter)
        self.session.mount("https://", adapter)
        self.key = os.environ.get(KEY, "").strip()
        if self.key:
            if not (self.key.isascii() and self.key.isprintable()):
                raise ValueError(f"{KEY} holds characters that no key has")
            self.session.headers["Authorization"] = f"Bearer {self.key}"

    def complete(
        self, messages: list[dict[str, Any]], *, whole: bool = True, **sampling: Any
    ) -> str:
        """Return the model's reply to messages.

        Args:
            messages: Messages in OpenAI's format.
            whole: Refuse a reply that is empty or truncated.
            sampling: `max_tokens`, `temperature` and the like.

        Raises:
            UnusableReply: If the engine replies, but not with an answer.
            ValueError: If the engine is not reached, refuses, or replies in another form.
        """
        body = {"model": self.model, "messages": messages, **sampling}
        try:
            reply = self.session.post(f"{self.url}/chat/completions", json=body, timeout=600)
            # Not by the header: JSON is UTF-8, also where a server calls it text/plain.
            text = reply.content.decode("utf-8", "backslashreplace")
        except requests.RequestException as error:
            raise ValueError(f"{self.url}: {self._hidden(str(error))}") from None
        shown = self._hidden(text[:300])
        if not reply.ok:
            raise ValueError(f"{self.url} says {reply.status_code}: {shown}")
        answered = parse(text, f"{self.url}: its reply")
        self._count(answered)
        match answered:
            case {"choices": [{"message": dict() as message} as choice, *_]}:
                return _text(message, choice.get("finish_reason"), sampling, whole)
        raise ValueError(f"{self.url} answers without a choice: {shown}")

    def _count(self, reply: Any) -> None:
        """Add what a reply has cost."""
        usage = reply.get("usage") if isinstance(reply, Mapping) else None
        with self.counting:
            self.spent["replies"] += 1
            if isinstance(usage, Mapping) and all(type(usage.get(key)) is int for key in TOKENS):
                self.spent.update({key: usage[key] for key in TOKENS})
            else:
                self.spent["unmetered"] += 1

    def _hidden(self, text: str) -> str:
        """Mask the API key, which some servers repeat in error messages."""
        return text.replace(self.key, "***") if self.key else text

    def each(
        self, ask: Callable[[Request], Result], requests: Iterable[Request]
    ) -> Iterator[tuple[Request, Result | Exception]]:
        """Call `ask` on every request in threads, and yield results as they finish.

        An OSError or a ValueError of `ask` is yielded in place of the result; the others go on.
        """
        waiting = iter(requests)
        pending: dict[Future[Result], Request] = {}
        with ThreadPoolExecutor(self.in_flight) as pool:
            while True:
                for request in waiting:
                    pending[pool.submit(ask, request)] = request
                    if len(pending) >= self.in_flight:
                        break
                if not pending:
                    return
                finished, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    request = pending.pop(future)
                    error = future.exception()
                    if error is None:
                        yield request, future.result()
                    elif isinstance(error, (OSError, ValueError)):
                        yield request, error
                    else:
                        raise error


def _text(message: dict[str, Any], finish: Any, sampling: dict[str, Any], whole: bool) -> str:
    """Return the text of a reply if it can be encoded; by default also whole and not empty."""
    if refusal := message.get("refusal"):
        raise UnusableReply(f"the engine refuses: {str(refusal)[:200]}")
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        strings = [text for text in texts if isinstance(text, str)]
        content = "".join(strings) if len(strings) == len(texts) else None
    if finish == "length" and whole:
        raise TruncatedReply(
            f"the answer is cut off at {sampling.get('max_tokens')} tokens (finish_reason 'length')"
        )
    if finish not in (*ENDED, "length"):
        raise UnusableReply(f"the answer is not whole (finish_reason {str(finish)[:50]!r})")
    said_else = any(message.get(key) for key in ("tool_calls", "reasoning_content", "reasoning"))
    if content is None and finish == "stop" and not whole and not said_else:
        return ""  # as SGLang writes an empty answer
    if not isinstance(content, str) or (whole and not content.strip()):
        what = "nothing" if content is None or isinstance(content, str) else type(content).__name__
        raise UnusableReply(f"the engine says {what}")
    try:
        content.encode()
    except UnicodeEncodeError:
        raise UnusableReply(
            "the answer holds half a surrogate pair, which is no character"
        ) from None
    return content.strip()
