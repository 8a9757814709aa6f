"""One call for the whole forest, and one a level for new tokens: by a plain kernel, and by torch's.

The plain kernel takes what torch's takes, and computes one sequence after the other.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_forest import BASE, CONVERSATIONS, FAMILIES, TREES, lm, loss_and_gradients
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from llava_lab.data.forest import Forest
from llava_lab.data.packing import Batch, EncodedSample, Segment
from llava_lab.model import decode
from llava_lab.model.attention import forest as attention
from llava_lab.model.attention import kernel
from llava_lab.model.attention.cache import KeyValueCache, LayerKind
from llava_lab.model.attention.plan import AttentionPlan
from llava_lab.model.generate import QuestionBatch, Sampling, answer
from llava_lab.model.llm import CausalLM
from llava_lab.train.recompute import keep_products

CPU = torch.device("cpu")
PAIRS = Forest((7, 3, 2, 5, 1, 4), (None, 0, 0, None, 3, 3))
DEEP = Forest((5, 2, 3, 4, 2, 6), (None, 0, 1, 1, 0, None))
CALLS: list[tuple[int, ...]] = []


def plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: kernel.AuxRequest | None = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Any:
    """What `varlen_attn` computes, sequence by sequence, aligned at the end of the keys."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and len(cu_seq_q) == len(cu_seq_k)
    assert cu_seq_q[0] == 0 and cu_seq_q[-1] == len(query) and cu_seq_k[-1] <= len(key)
    assert max_q >= cu_seq_q.diff().max() and max_k >= cu_seq_k.diff()[cu_seq_q.diff() > 0].max()
    assert enable_gqa, "it might choose cuDNN"
    CALLS.append((len(query), len(key)))
    group, (left, right) = query.shape[1] // key.shape[1], window_size
    outputs, sums = [], []
    for i in range(len(cu_seq_q) - 1):
        q = query[cu_seq_q[i] : cu_seq_q[i + 1]]
        k = key[cu_seq_k[i] : cu_seq_k[i + 1]].repeat_interleave(group, 1)
        v = value[cu_seq_k[i] : cu_seq_k[i + 1]].repeat_interleave(group, 1)
        if not len(q):
            continue
        scores = torch.einsum("qhd,khd->hqk", q, k) * (scale or q.shape[-1] ** -0.5)
        behind = torch.arange(len(q))[:, None] + len(k) - len(q) - torch.arange(len(k))
        hidden = (behind > left) & (left >= 0) | (-behind > right) & (right >= 0)
        scores = scores.masked_fill(hidden, float("-inf"))
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
        sums.append(scores.logsumexp(-1) if len(k) else torch.full(scores.shape[:2], torch.inf))
    output, sums = torch.cat(outputs), torch.cat(sums, 1).float()
    return (output, sums) if return_aux is not None and return_aux.lse else output


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Every layer by the kernel's way, with the plain kernel; its calls, as queries and keys."""
    monkeypatch.setattr(kernel, "varlen_attn", plain)
    monkeypatch.setattr(kernel, "GROUPED", {"enable_gqa": True})
    monkeypatch.setattr(attention, "takes", lambda *_: True)
    CALLS.clear()
    return CALLS


def test_each_segment_is_a_sequence_over_its_path() -> None:
    paths = AttentionPlan.whole(Forest((3, 2, 1), (None, 0, 0)), CPU).paths
    assert paths.queries.tolist() == [0, 3, 5, 6]
    assert paths.keys.tolist() == [0, 3, 8, 12]
    assert paths.index.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5]
    assert (paths.most_queries, paths.most_keys) == (3, 5)


def test_roots_alone_gather_nothing() -> None:
    paths = AttentionPlan.whole(CONVERSATIONS, CPU).paths
    assert paths.index is None and paths.keys is paths.queries
    assert paths.queries.tolist() == [0, 5, 14, 17] and paths.most_keys == 9


def test_new_tokens_attend_level_by_level() -> None:
    cache = KeyValueCache(Forest((4, 2, 3, 5), (None, 0, 0, None)), reserve=2)
    plan = cache.step([1, 2, 3], 0, CPU)
    prefix, own = plan.levels(1)
    # Slots: the first prompt 0 to 4, its answers 4 to 8 and 8 to 13, the second prompt 13 to 20.
    assert prefix.keys.tolist() == [0, 0, 4, 13, 19]
    assert prefix.queries.tolist() == [0, 0, 2, 2, 3] and prefix.blind is None
    assert own.keys.tolist() == [0, 4, 7, 8, 12, 12]
    assert own.queries.tolist() == [0, 0, 1, 1, 2, 3]
    assert own.blind.tolist() == [False, False, True]
    assert plan.slots.tolist() == [6, 11, 18] and plan.query_positions.tolist() == [6, 7, 5]
    plan.advance()
    assert prefix.keys.tolist() == [0, 0, 4, 13, 20]
    assert own.keys.tolist() == [0, 4, 8, 8, 13, 13]
    assert plan.levels(3)[1].queries.tolist() == [0, 0, 3, 3, 6, 9]
    assert plan.slots.tolist() == [7, 12, 19] and plan.query_positions.tolist() == [7, 8, 6]


@pytest.mark.parametrize(
    ("kind", "fixed"),
    [
        (LayerKind(2, None, True), True),
        (LayerKind(2, 99, True), True),
        (LayerKind(2, 4, True), False),
        (LayerKind(2, None, False), False),
    ],
    ids=["kernel", "long window", "short window", "blocks"],
)
def test_a_step_whose_masks_are_made_anew_is_not_fixed(kind: LayerKind, fixed: bool) -> None:
    cache = KeyValueCache(DEEP, reserve=2)
    cache.kinds |= {LayerKind(1, None, True), kind}
    assert cache.step(DEEP.leaves, -1, CPU).fixed() is fixed


SCALED = {"granite": {"attention_multiplier": 0.7, "logits_scaling": 1.0}}


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma", "granite"])
@pytest.mark.parametrize("forest", [CONVERSATIONS, PAIRS, DEEP], ids=["roots", "pairs", "deep"])
def test_one_call_a_layer_equals_the_padded_reference(
    family: str, forest: Forest, fused: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "granite", SCALED["granite"])
    model = lm(family)
    one, gradients = loss_and_gradients(model, forest, "forest")
    paths = sum(sum(forest.lengths[s] for s in forest.path(i)) for i in range(len(forest.lengths)))
    keys = forest.tokens if forest is CONVERSATIONS else paths
    assert fused == [(forest.tokens, keys)] * BASE["num_hidden_layers"]
    padded, wanted = loss_and_gradients(model, forest, "padded")
    assert abs(one - padded) < 1e-5 * padded.abs()
    for name, gradient in wanted.items():
        difference = (gradients[name] - gradient).abs().max()
        assert difference <= 1e-5 * gradient.abs().max(), name


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma"])
@pytest.mark.parametrize("forest", [CONVERSATIONS, TREES, DEEP], ids=["roots", "trees", "deep"])
def test_new_tokens_equal_computing_every_path_anew(
    family: str, forest: Forest, fused: list
) -> None:
    model = lm(family).eval()
    ids = torch.arange(forest.tokens) * 5 % 96
    cache = KeyValueCache(forest, reserve=3)
    paths = {
        leaf: torch.cat([ids[forest.starts[s] : forest.end(s)] for s in forest.path(leaf)])
        for leaf in forest.leaves
    }
    with torch.no_grad():
        model(model.embed(ids), forest, AttentionPlan.whole(forest, CPU, cache))
        plan = cache.step(forest.leaves, 0, CPU)
        for count in range(3):
            tokens = torch.tensor([(leaf * 11 + count) % 96 for leaf in forest.leaves])
            fused.clear()
            got = model(model.embed(tokens), forest, plan)
            for row, leaf in enumerate(forest.leaves):
                path = paths[leaf] = torch.cat([paths[leaf], tokens[row : row + 1]])
                wanted = model(model.embed(path), Forest((len(path),), (None,)))[-1]
                assert torch.allclose(got[row], wanted, atol=1e-5)
            if count < 2:
                plan.advance()
    levels = [keys for _, keys in fused].count(cache.room.tokens)
    # A window that is shorter than a path hides keys, which levels cannot say: by blocks.
    assert levels == (0 if family == "mistral" else 2 * max(len(forest.path(i)) for i in paths))


def questions(stops: set[int], sampling: Sampling | None = None) -> QuestionBatch:
    def segment(ids: list[int], parent: int | None = None) -> Segment:
        return Segment(ids, [-100] * len(ids), parent)

    deep = [segment([1, 20, 30]), segment([40], 0), segment([41], 1), segment([42, 43], 1)]
    wide = [segment([1, 25, 35]), *(segment([50 + i, 60], 0) for i in range(4))]
    rows = [EncodedSample(each, None, [], "") for each in (deep, wide, [segment([1, 70, 80])])]
    names = list("abcdefg")
    return QuestionBatch(Batch.pack(rows), names, 9, frozenset(stops), sampling=sampling)


def recorded(work: Any) -> Any:
    """What `capture` does, without a GPU: the steps' counter goes on, their tensors do not."""
    plan = work.__self__.plan

    def replay() -> None:
        plan.count -= 1
        work()

    plan.count += 1
    return replay


@pytest.mark.parametrize(
    ("ahead", "replayed", "sampling"),
    [
        (0, False, None),
        (1, False, Sampling(1.5, seed=3)),
        (1, True, None),
    ],
    ids=["greedy", "sampled, ahead", "replayed"],
)
def test_answers_by_levels_equal_those_without_a_cache(
    ahead: int,
    replayed: bool,
    sampling: Sampling | None,
    fused: list,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llm: CausalLM = lm("llama").eval()
    for weight in llm.parameters():  # far from zero, so that the arg max is never a tie
        torch.nn.init.normal_(weight, std=0.3)
    llm.__dict__["_tokenizer"] = SimpleNamespace(decode=lambda ids, **_: " ".join(map(str, ids)))
    model: Any = SimpleNamespace(llm=llm, embed=lambda batch: llm.embed(batch.ids))
    monkeypatch.setattr(decode, "AHEAD", {"cpu": ahead})
    monkeypatch.setattr(decode, "REPLAYED", {"cpu"} if replayed else set())
    monkeypatch.setattr(decode, "capture", recorded)
    llm.attention = "padded"
    llm.model.set_attn_implementation("sdpa")
    free = answer(model, questions(set(), sampling)).tokens
    stops = {free[0][1], free[3][3], free[5][6]}
    wanted = answer(model, questions(stops, sampling)).tokens
    assert len({len(tokens) for tokens in wanted}) > 2  # they end at unlike steps
    llm.attention = "forest"
    llm.model.set_attn_implementation(attention.ATTENTION)
    assert not fused
    assert answer(model, questions(stops, sampling)).tokens == wanted
    assert fused


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch's kernel wants a GPU")
GPU = pytest.param("cuda", marks=NO_GPU)
ROOTS = ((300, 1, 513), (None,) * 3)
LONG = ((700, 90, 130, 400, 31, 257), (None, 0, 0, None, 3, 4))


def attended(
    forest: Forest, steps: int, dtype: torch.dtype, device: str, window: int | None
) -> list[Tensor]:
    """Attention of one layer over random heads, with gradients, or that of later tokens."""
    draw = torch.Generator().manual_seed(0)
    module, place = SimpleNamespace(layer_idx=0), torch.device(device)
    reach = {"sliding_window": window, "scaling": 0.2}

    def heads(tokens: int) -> list[Tensor]:
        shapes = ((tokens, number, 64) for number in (8, 2, 2))
        drawn = [torch.randn(shape, generator=draw).bfloat16() for shape in shapes]
        return [each.to(place, dtype).transpose(0, 1)[None].requires_grad_() for each in drawn]

    row = heads(forest.tokens)
    if not steps:
        plan = AttentionPlan.whole(forest, place)
        output, _ = attention.forest_attention(module, *row, None, forest=plan, **reach)
        weights = torch.randn(output.shape, generator=draw).bfloat16().to(place, dtype)
        (output * weights).sum().backward()
        return [output.detach(), *(each.grad for each in row)]
    with torch.no_grad():
        cache = KeyValueCache(forest, steps)
        plan = AttentionPlan.whole(forest, place, cache)
        attention.forest_attention(module, *row, None, forest=plan, **reach)
        plan, outputs = cache.step(forest.leaves, 0, place), []
        for count in range(steps):
            new = heads(len(forest.leaves))
            outputs.append(attention.forest_attention(module, *new, None, forest=plan, **reach)[0])
            if count + 1 < steps:
                plan.advance()
        return outputs


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("steps", [0, 3], ids=["training", "decoding"])
@pytest.mark.parametrize("window", [None, 120])
@pytest.mark.parametrize(("lengths", "parents"), [ROOTS, LONG], ids=["roots", "deep"])
def test_the_kernel_errs_about_as_little_as_torchs_attention(
    lengths: tuple[int, ...],
    parents: tuple[int | None, ...],
    window: int | None,
    steps: int,
    device: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if device == "cpu":  # where it is the way there that is tried, not the kernel
        lengths, window = tuple(n // 6 + 1 for n in lengths), window and window // 6
    forest = Forest(lengths, parents)
    wanted = attended(forest, steps, torch.float64, "cpu", window)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with monkeypatch.context() as patched:
        patched.setattr(attention, "takes", lambda *_: False)
        blocks = attended(forest, steps, dtype, device, window)
    if device == "cpu":
        request.getfixturevalue("fused")
    found = attended(forest, steps, dtype, device, window)
    assert len(found) == len(blocks) == len(wanted)
    for one, other, exact in zip(found, blocks, wanted, strict=True):
        scale = exact.square().mean().sqrt()
        mine, its = ((x.cpu().double() - exact).square().mean().sqrt() for x in (one, other))
        assert mine <= (2 if steps else 1.5) * its < 0.05 * scale  # levels are rounded twice


@NO_GPU
@pytest.mark.parametrize("asks", [False, True], ids=["it can", "a layer asks it something"])
def test_a_gpu_replays_the_steps_of_answers_where(
    asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Model:
        llm = lm("llama").eval().to("cuda", torch.bfloat16)

        def embed(self, batch: Batch) -> Tensor:
            return self.llm.embed(batch.ids)

    model: Any = Model()
    for weight in model.llm.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    model.llm.__dict__["_tokenizer"] = SimpleNamespace(decode=lambda ids, **_: str(ids))
    asked = [questions(set()), questions({3, 40, 41, 42, 50, 60, 80})]
    batches = [each.to(torch.device("cuda")) for each in asked]
    monkeypatch.setattr(decode, "REPLAYED", set())
    wanted = [answer(model, each).tokens for each in batches]
    captures: list[Any] = []
    own = decode.capture
    monkeypatch.setattr(decode, "REPLAYED", {"cuda"})
    monkeypatch.setattr(decode, "capture", lambda work: captures.append(own(work)) or captures[-1])
    if asks:
        model.llm.model.model.layers[1].register_forward_pre_hook(
            lambda _, given: float(given[0].sum()) and None
        )
        with pytest.warns(UserWarning, match="kernel by kernel"):
            assert answer(model, batches[0]).tokens == wanted[0]
        assert not captures
    assert [answer(model, each).tokens for each in batches] == wanted
    assert asks or len(captures) >= 2


class Kernels(TorchDispatchMode):
    """Counts calls of torch's kernel."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.torch_attn._varlen_attn.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("forest", [CONVERSATIONS, PAIRS], ids=["roots", "pairs"])
def test_torchs_kernel_takes_the_call_and_is_not_computed_again(
    forest: Forest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "takes", lambda *_: True)
    model = lm("mistral").to("meta").train()  # shapes only, so that no GPU is needed
    counts = []
    for options in (None, {}, {"context_fn": keep_products}):
        if options is not None:
            model.model.gradient_checkpointing_enable({"use_reentrant": False, **options})
        with Kernels() as kernels:
            ids = torch.zeros(forest.tokens, dtype=torch.long, device="meta")
            model(model.embed(ids), forest).sum().backward()
        counts.append(kernels.count)
    assert counts == [2, 4, 2]


@pytest.mark.slow
def test_layers_with_the_kernel_compile_without_a_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "takes", lambda *_: True)
    model, graphs = lm("llama").to("meta").train(), CompileCounter()
    for layer in model.model.model.layers:
        layer.compile(backend=graphs, fullgraph=True)
    for forest in (PAIRS, CONVERSATIONS, DEEP, TREES):
        ids = torch.zeros(forest.tokens, dtype=torch.long, device="meta")
        model(model.embed(ids), forest).sum().backward()
    assert 0 < graphs.frame_count < 4 * 2  # other lengths are no other graphs


def test_torchs_kernel_takes_new_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "takes", lambda *_: True)
    model, meta = lm("llama").to("meta").eval(), torch.device("meta")
    cache = KeyValueCache(DEEP, reserve=2)
    with torch.no_grad(), Kernels() as kernels:
        ids = torch.zeros(DEEP.tokens, dtype=torch.long, device=meta)
        model(model.embed(ids), DEEP, AttentionPlan.whole(DEEP, meta, cache))
        plan = cache.step(DEEP.leaves, 0, meta)
        model(model.embed(ids[: len(DEEP.leaves)]), DEEP, plan)
        plan.advance()
    assert kernels.count == 2 + 2 * 3


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True),
        ({"dtype": torch.float16}, True),
        ({"width": 256}, True),
        ({"dtype": torch.float32}, False),
        ({"width": 264}, False),
        ({"width": 68}, False),
        ({"value": 32}, False),
        ({"dropout": 0.1}, False),
        ({"capability": 7}, False),
        ({"is_cuda": False}, False),
    ],
)
def test_what_the_kernel_does_not_take_goes_by_blocks(
    change: dict[str, Any], taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = {"dtype": torch.bfloat16, "width": 64, "dropout": 0.0, "capability": 9} | change
    device = SimpleNamespace(major=case["capability"])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    here = {"is_cuda": case.get("is_cuda", True), "device": "cuda", "dtype": case["dtype"]}
    query = SimpleNamespace(**here, shape=(1, 4, 9, case["width"]))
    value = SimpleNamespace(**here, shape=(1, 2, 9, case.get("value", case["width"])))
    assert kernel.takes(query, value, case["dropout"]) is taken


def test_cudnn_is_never_chosen_by_shape() -> None:
    assert not torch.backends.cuda.cudnn_sdp_enabled()
