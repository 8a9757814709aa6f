"""Cost: tokens, prices and seconds -> what work costs, before it is done and after."""

from collections.abc import Mapping
from dataclasses import dataclass

from llava_lab.core.numbers import at_least

MILLION = 1_000_000
CHARACTERS = 4  # of English text a token, roughly, where no tokenizer is at hand


@dataclass(frozen=True)
class Prices:
    """What an engine takes for a million tokens, in any currency; None where it is not known.

    Args:
        prompt: For those that it reads.
        completion: For those that it writes.
    """

    prompt: float | None = None
    completion: float | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("--price-prompt and --price-completion go together")
        at_least(0, price_prompt=self.prompt, price_completion=self.completion)

    def of(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        """Price of some tokens; None where prices are not known."""
        if self.prompt is None or self.completion is None:
            return None
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / MILLION


def estimate_tokens(text: str) -> int:
    """About how many tokens a text has, rounded up."""
    return -(-len(text) // CHARACTERS)


def summary(what: str, done: int, seconds: float, spent: Mapping[str, int], prices: Prices) -> str:
    """How fast an engine was, and what it has cost, in a line.

    Args:
        what: What was made, such as "captions".
        done: How many of them were made.
        seconds: How long that took.
        spent: What a `ChatEngine` has counted; empty for an engine of ours.
        prices: Its prices.
    """
    rate = done / seconds if seconds > 0 else 0.0
    parts = [f"{done:,} {what} in {seconds:,.1f} s, {rate:,.2f} a second"]
    read, written = spent.get("prompt_tokens", 0), spent.get("completion_tokens", 0)
    unmetered = spent.get("unmetered", 0)
    if spent.get("replies", 0) > unmetered:
        parts.append(f"{read:,} tokens read and {written:,} written, as the engine says")
        if (price := prices.of(read, written)) is not None:
            million = "" if unmetered else f", {price / max(done, 1) * MILLION:,.4g} a million"
            parts.append(f"cost {price:,.4g}{million}")
    if unmetered:
        parts.append(f"{unmetered:,} replies do not say how many tokens they cost")
    return "; ".join(parts)
