"""Engine: messages -> what an OpenAI-compatible engine, such as vLLM and SGLang, says to them."""

import os
from collections.abc import Callable, Iterable, Iterator
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
# How engines say that an answer ended by itself; some say nothing.
ENDED = (None, "stop", "eos", "eos_token", "stop_sequence", "end_turn")
KEY = "OPENAI_API_KEY"


class Unsaid(ValueError):
    """An engine's reply that is no answer: nothing, a refusal, or the beginning of an answer."""


class Cut(Unsaid):
    """An answer that was cut off at `max_tokens`; asking again cuts it again."""


def check_url(url: str) -> str:
    """Return an engine's address, or refuse one that holds a secret: it is shown and written.

    Args:
        url: Up to and with /v1.

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
    """Chat completions of one model; busy and broken answers are tried again, longer and longer.

    The key, where one is asked for, is read from OPENAI_API_KEY.

    Args:
        url: Up to and with /v1, without a user, a key or a query.
        model: The engine's name of its model.
        in_flight: Requests at once.
    """

    def __init__(self, url: str, model: str, in_flight: int):
        self.url, self.model, self.in_flight = check_url(url), model, in_flight
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

    def say(self, messages: list[dict[str, Any]], **sampling: Any) -> str:
        """What the model says: a whole answer that is not empty.

        Args:
            messages: In OpenAI's form.
            sampling: `max_tokens`, `temperature` and the like.

        Raises:
            Unsaid: If the engine replies, but not with a whole answer.
            ValueError: If the engine is not reached, refuses, or replies in another form.
        """
        body = {"model": self.model, "messages": messages, **sampling}
        try:
            reply = self.session.post(f"{self.url}/chat/completions", json=body, timeout=600)
            text = reply.text
        except requests.RequestException as error:
            raise ValueError(f"{self.url}: {self._hidden(str(error))}") from None
        shown = self._hidden(text[:300])
        if not reply.ok:
            raise ValueError(f"{self.url} says {reply.status_code}: {shown}")
        match parse(text, f"{self.url}: its reply"):
            case {"choices": [{"message": dict() as message} as choice, *_]}:
                return _whole(message, choice.get("finish_reason"), sampling.get("max_tokens"))
        raise ValueError(f"{self.url} answers without a choice: {shown}")

    def _hidden(self, text: str) -> str:
        """The text without the key, which some engines repeat."""
        return text.replace(self.key, "***") if self.key else text

    def each(
        self, ask: Callable[[Request], Result], items: Iterable[Request]
    ) -> Iterator[tuple[Request, Result | Exception]]:
        """What `ask` makes of every item, `in_flight` at once, as they are done.

        An OSError or a ValueError is yielded in place of a result; the others go on.
        """
        waiting = iter(items)
        asked: dict[Future[Result], Request] = {}
        with ThreadPoolExecutor(self.in_flight) as pool:
            while True:
                for item in waiting:
                    asked[pool.submit(ask, item)] = item
                    if len(asked) >= self.in_flight:
                        break
                if not asked:
                    return
                finished, _ = wait(asked, return_when=FIRST_COMPLETED)
                for future in finished:
                    item = asked.pop(future)
                    error = future.exception()
                    if error is None:
                        yield item, future.result()
                    elif isinstance(error, (OSError, ValueError)):
                        yield item, error
                    else:
                        raise error


def _whole(message: dict[str, Any], finish: Any, max_tokens: int | None) -> str:
    """The answer in a reply's message, if it is whole, not empty, and text that can be written."""
    if refusal := message.get("refusal"):
        raise Unsaid(f"the engine refuses: {str(refusal)[:200]}")
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        said = [text for text in texts if isinstance(text, str)]
        content = "".join(said) if len(said) == len(texts) else None
    if finish == "length":
        raise Cut(f"the answer is cut off at {max_tokens} tokens (finish_reason 'length')")
    if finish not in ENDED:
        raise Unsaid(f"the answer is not whole (finish_reason {str(finish)[:50]!r})")
    if not isinstance(content, str) or not content.strip():
        what = "nothing" if content is None or isinstance(content, str) else type(content).__name__
        raise Unsaid(f"the engine says {what}")
    try:
        content.encode()
    except UnicodeEncodeError:
        raise Unsaid("the answer holds half a surrogate pair, which is no character") from None
    return content.strip()
