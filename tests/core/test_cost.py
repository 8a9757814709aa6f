"""What work costs is said in tokens, in money where prices are known, and by how fast it was."""

import pytest

from llava_lab.core.cost import Prices, summary


def test_a_line_says_rate_tokens_and_price() -> None:
    spent = {"replies": 4, "prompt_tokens": 3_000_000, "completion_tokens": 500_000}
    said = summary("captions", 4, 2.0, spent, Prices(1.0, 4.0))
    assert said == (
        "4 captions in 2.0 s, 2.00 a second; 3,000,000 tokens read and 500,000 written, as the "
        "engine says; cost 5, 1.25e+06 a million"
    )
    assert "cost" not in summary("captions", 4, 2.0, spent, Prices())
    assert summary("captions", 0, 0.0, {}, Prices()) == "0 captions in 0.0 s, 0.00 a second"
    unmetered = summary("captions", 2, 1.0, {"replies": 2, "unmetered": 2}, Prices(1.0, 1.0))
    assert unmetered.endswith("2 replies do not say how many tokens they cost")
    assert "tokens read" not in unmetered
    partly = summary("captions", 4, 2.0, {**spent, "unmetered": 1}, Prices(1.0, 4.0))
    assert "; cost 5; 1 replies do not say" in partly  # what a million would cost is not known


def test_prices_go_together_and_are_not_below_zero() -> None:
    with pytest.raises(ValueError, match="go together"):
        Prices(1.0)
    with pytest.raises(ValueError, match=r"price_completion is -1\.0; it is 0 or more"):
        Prices(1.0, -1.0)
