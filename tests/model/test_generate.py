"""Greedy answers equal those of transformers' generate; sampled ones come by their probability."""

from pathlib import Path

import pytest
import torch

from llava_lab.data.packing import Batch, EncodedSample, Segment
from llava_lab.evaluate.benchmark import Benchmark
from llava_lab.evaluate.groups import by_images
from llava_lab.evaluate.metrics.question import ExactMatch
from llava_lab.evaluate.prompts import Trees
from llava_lab.model.connector.linear import Linear
from llava_lab.model.encoder.timm import TimmEncoder
from llava_lab.model.generate import QuestionBatch, Sampling, answer
from llava_lab.model.llava import Llava
from llava_lab.model.llm import CausalLM
from llava_lab.tiny_world.generate import QUESTIONS

CONFIG = {
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": 2,
}


@pytest.fixture
def model() -> Llava:
    torch.manual_seed(0)
    options = {"embed_dim": 48, "depth": 1, "num_heads": 4, "mlp_ratio": 2}
    encoder = TimmEncoder("xcit_nano_12_p16_224", -1, False, False, 64, None, options)
    llm = CausalLM(None, "v1", pretrained=False, config=CONFIG, tokenizer="asset:tokenizer")
    for weight in llm.parameters():  # far from zero, so that the arg max is never a tie
        torch.nn.init.normal_(weight, std=0.3)
    return Llava(encoder, Linear, llm).eval()


def prompts() -> Batch:
    segments = [
        Segment([1, 20, 30, 40], [-100] * 4),
        Segment([50, 60], [-100] * 2, 0),
        Segment([70, 80, 90], [-100] * 3, 0),
    ]
    other = [Segment([1, 25], [-100] * 2), Segment([35], [-100], 0)]
    return Batch.pack(
        [EncodedSample(segments, None, [], "one"), EncodedSample(other, None, [], "two")]
    )


@pytest.mark.parametrize("attention", ["forest", "padded"])
def test_greedy_tokens_equal_transformers(model: Llava, attention: str) -> None:
    stop = frozenset({2})
    questions = QuestionBatch(prompts(), ["a", "b", "c"], 6, stop)
    if attention == "padded":
        model.llm.attention = "padded"
        model.llm.model.set_attn_implementation("sdpa")
    got = answer(model, questions)
    assert got.ids == ["a", "b", "c"]
    model.llm.model.set_attn_implementation("sdpa")
    paths = [[1, 20, 30, 40, 50, 60], [1, 20, 30, 40, 70, 80, 90], [1, 25, 35]]
    for path, tokens in zip(paths, got.tokens, strict=True):
        ids = torch.tensor([path])
        mask = torch.ones_like(ids)
        wanted = model.llm.model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=6, pad_token_id=3
        )[0, len(path) :].tolist()
        assert tokens == wanted


def test_an_answer_ends_at_a_stop_token(model: Llava) -> None:
    free = answer(model, QuestionBatch(prompts(), ["a", "b", "c"], 6, frozenset())).tokens[0]
    stopped = answer(model, QuestionBatch(prompts(), ["a", "b", "c"], 6, frozenset({free[2]})))
    cut = free.index(free[2]) + 1
    assert stopped.tokens[0] == free[:cut]


@pytest.mark.parametrize("attention", ["forest", "padded"])
def test_an_answer_is_whole_where_it_has_ended(model: Llava, attention: str) -> None:
    """Also one whose last token that is allowed ends it."""
    if attention == "padded":
        model.llm.attention = "padded"
        model.llm.model.set_attn_implementation("sdpa")

    def whole(most: int, stops: frozenset[int], text: str | None = None) -> list[bool]:
        return answer(model, QuestionBatch(prompts(), ["a", "b", "c"], most, stops, text)).whole

    free = answer(model, QuestionBatch(prompts(), ["a", "b", "c"], 6, frozenset())).tokens
    assert whole(6, frozenset()) == [False] * 3
    place = free[0].index(free[0][2])
    for most in (place, place + 1, place + 2):
        stops = frozenset({free[0][place]})
        said = answer(model, QuestionBatch(prompts(), ["a", "b", "c"], most, stops))
        assert said.whole == [tokens[-1] in stops for tokens in said.tokens]
        assert said.whole[0] == (most > place)
    text = model.llm.tokenizer.decode(free[0])
    assert whole(6, frozenset(), text)[0] and not whole(5, frozenset(), text)[0]


def test_questions_of_one_image_share_its_prefix(model: Llava, small_world: Path) -> None:
    benchmark = Benchmark(
        "q", str(small_world / QUESTIONS), str(small_world / "images"), ExactMatch()
    )
    groups = by_images(benchmark.questions)
    from llava_lab.data.chat import get_template
    from llava_lab.data.modules.encoded import ViewLoader
    from llava_lab.data.views.pad import Pad

    loader = ViewLoader(Pad(), model.encoder.view_spec)
    trees = Trees(groups, get_template("v1"), model.llm.tokenizer, loader, "first", None)
    row, group = trees[0]
    assert len(row.segments) == 1 + len(group.questions) == 1 + len(group.places) > 2
    assert row.segments[0].ids.count(-200) == row.layouts[0].tokens
    assert all(segment.ids.count(-200) == 0 for segment in row.segments[1:])
    assert all(segment.parent == 0 for segment in row.segments[1:])


def leaf(ids: list[int]) -> EncodedSample:
    return EncodedSample(
        [Segment([1, 20, 30], [-100] * 3), Segment(ids, [-100] * len(ids), 0)], None, [], ""
    )


@pytest.mark.parametrize("attention", ["forest", "padded"])
def test_a_questions_draws_do_not_depend_on_its_batch(model: Llava, attention: str) -> None:
    if attention == "padded":
        model.llm.attention = "padded"
        model.llm.model.set_attn_implementation("sdpa")

    def say(names: str, seed: int = 0, temperature: float = 1.0) -> dict[str, list[int]]:
        batch = Batch.pack([leaf([40 + 10 * "abc".index(name)]) for name in names])
        asked = QuestionBatch(
            batch, list(names), 8, frozenset(), sampling=Sampling(temperature, seed)
        )
        said = answer(model, asked.to(torch.device("cpu")))
        return dict(zip(said.ids, said.tokens, strict=True))

    together = say("abc")
    assert together == say("cab") == say("a") | say("b") | say("c")
    assert together != say("abc", seed=1)
    greedy = answer(model, QuestionBatch(Batch.pack([leaf([40])]), ["a"], 8, frozenset())).tokens[0]
    assert say("a", temperature=1e-4)["a"] == greedy != together["a"]


def test_tokens_are_drawn_by_their_probability() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0, float("-inf")]])
    for temperature in (1.0, 2.0):
        sampling = Sampling(temperature, seed=3)
        draws = sampling.draws("q")
        drawn = torch.tensor([draws.random() for _ in range(4000)], dtype=torch.double)
        shares = torch.bincount(sampling.choose(logits.expand(4000, -1), drawn), minlength=4) / 4000
        wanted = (logits[0] / temperature).softmax(-1)
        assert torch.allclose(shares, wanted, atol=0.03) and shares[3] == 0
    with pytest.raises(ValueError, match="temperature is 0; it is above 0"):
        Sampling(0)


def test_tokens_are_drawn_where_a_gpu_has_no_deterministic_sum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = torch.Tensor.cumsum

    def cumsum(given: torch.Tensor, along: int) -> torch.Tensor:
        assert not torch.are_deterministic_algorithms_enabled()  # or CUDA refuses it
        return own(given, along)

    monkeypatch.setattr(torch.Tensor, "cumsum", cumsum)
    logits, drawn = torch.zeros(1, 4), torch.tensor([0.6], dtype=torch.double)
    torch.use_deterministic_algorithms(True)
    try:
        assert Sampling().choose(logits, drawn).tolist() == [2]
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
