"""Engine: messages -> what an OpenAI-compatible engine, such as vLLM and SGLang, says to them."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import requests
from urllib3.util import Retry

Item = TypeVar("Item")
Result = TypeVar("Result")

# An engine that restarts is back within a minute or so: 0.5 + 1 + 2 + ... seconds between tries.
RETRIES, BACKOFF = 8, 0.5
RETRIED = (408, 409, 429, 500, 502, 503, 504)


class ChatEngine:
    """Chat completions of one model; busy and broken answers are tried again, longer and longer.

    The key, where one is asked for, is read from OPENAI_API_KEY.

    Args:
        url: Up to and with /v1.
        model: The engine's name of its model.
        in_flight: Requests at once.
    """

    def __init__(self, url: str, model: str, in_flight: int):
        self.url, self.model, self.in_flight = url.rstrip("/"), model, in_flight
        self.session = requests.Session()
        retry = Retry(
            RETRIES, backoff_factor=BACKOFF, status_forcelist=RETRIED, allowed_methods=["POST"]
        )
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=in_flight, max_retries=retry)
        self.session.mount("http://", adapter)
        self.session.mount("https://", adapter)
        if key := os.environ.get("OPENAI_API_KEY"):
            self.session.headers["Authorization"] = f"Bearer {key}"

    def say(self, messages: list[dict[str, Any]], **sampling: Any) -> str:
        """What the model says.

        Args:
            messages: In OpenAI's form.
            sampling: `max_tokens`, `temperature` and the like.

        Raises:
            ValueError: If the engine refuses, or answers without a choice.
        """
        body = {"model": self.model, "messages": messages, **sampling}
        reply = self.session.post(f"{self.url}/chat/completions", json=body, timeout=600)
        if not reply.ok:
            raise ValueError(f"{self.url} says {reply.status_code}: {reply.text[:300]}")
        try:
            return str(reply.json()["choices"][0]["message"]["content"]).strip()
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{self.url} answers without a choice: {reply.text[:300]}") from error

    def each(
        self, ask: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result | Exception]]:
        """What `ask` makes of every item, `in_flight` at once, as they are done.

        An OSError or a ValueError is yielded in place of a result; the others go on.
        """
        waiting = iter(items)
        asked: dict[Future[Result], Item] = {}
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
