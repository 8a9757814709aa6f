"""The loss from a head equals plain cross-entropy of its logits, in blocks and whole."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from llava_lab.train import cross_entropy
from llava_lab.train.cross_entropy import linear_cross_entropy

TARGETS, WORDS, WIDTH = 37, 1003, 24


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> Tensor:
    return functional.cross_entropy(
        functional.linear(hidden, weight, bias), targets, reduction="none"
    )


def drawn(dtype: torch.dtype, bias: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    torch.manual_seed(5)
    hidden, weight, offset = (torch.randn(*s) for s in ((TARGETS, WIDTH), (WORDS, WIDTH), (WORDS,)))
    targets = torch.randint(WORDS, (TARGETS,))
    targets[:2] = torch.tensor([0, WORDS - 1])
    return hidden.to(dtype), weight.to(dtype), targets, offset.to(dtype) if bias else None


def results(function, hidden, weight, targets, bias) -> list[Tensor]:
    """Losses, and the gradients under gradients of the losses that differ by target."""
    leaves = [None if x is None else x.detach().requires_grad_() for x in (hidden, weight, bias)]
    losses = function(leaves[0], leaves[1], targets, leaves[2])
    (losses * torch.linspace(-1, 2, len(losses))).sum().backward()
    return [losses.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


@pytest.fixture(params=[TARGETS * 64, TARGETS * 320, 0], ids=["64", "320", "fewest"])
def in_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "BLOCK", request.param)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_blocks_give_the_losses_and_gradients_of_float64(
    in_blocks: None, dtype: torch.dtype, error: float, bias: bool
) -> None:
    given = drawn(dtype, bias)
    exact = [None if x is None else x.double() if x.is_floating_point() else x for x in given]
    found, expected = results(linear_cross_entropy, *given), results(plain, *exact)
    assert found[0].dtype == torch.float32 and {x.dtype for x in found[1:]} == {dtype}
    for ours, right in zip(found, expected, strict=True):
        assert (ours - right).norm() <= error * right.norm()


def test_what_fits_at_once_is_plain_to_the_bit() -> None:
    given = drawn(torch.float32, bias=True)
    for ours, theirs in zip(
        results(linear_cross_entropy, *given), results(plain, *given), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("trained", [0, 1])
def test_what_is_frozen_gets_no_gradient(in_blocks: None, trained: int) -> None:
    hidden, weight, targets, _ = drawn(torch.float32, bias=False)
    both = results(linear_cross_entropy, hidden, weight, targets, None)[1:]
    leaf = (hidden, weight)[trained].requires_grad_()
    losses = linear_cross_entropy(hidden, weight, targets)
    (losses * torch.linspace(-1, 2, len(losses))).sum().backward()
    assert leaf.grad is not None and torch.equal(leaf.grad, both[trained])
    assert (hidden, weight)[1 - trained].grad is None


def test_a_tied_head_sums_both_of_its_gradients(in_blocks: None) -> None:
    words = torch.arange(TARGETS)
    gradients = []
    for function in (linear_cross_entropy, plain):
        table = nn.Parameter(drawn(torch.float64, bias=False)[1])
        function(functional.embedding(words, table), table, words.flip(0), None).sum().backward()
        gradients.append(table.grad)
    torch.testing.assert_close(*gradients)


def test_blocks_follow_autocast_as_plain_does(in_blocks: None) -> None:
    given = drawn(torch.float32, bias=True)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = results(linear_cross_entropy, *given), results(plain, *given)
    for ours, right in zip(found, expected, strict=True):
        assert ours.dtype == right.dtype == torch.float32
        assert (ours - right).norm() <= 1e-2 * right.norm()


def test_a_second_derivative_is_refused(in_blocks: None) -> None:
    hidden, weight, targets, _ = drawn(torch.float32, bias=False)
    hidden.requires_grad_()
    losses = linear_cross_entropy(hidden, weight, targets)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(losses.sum(), hidden, create_graph=True)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_no_tensor_grows_with_the_vocabulary(in_blocks: None) -> None:
    sizes = []
    for words in (1_000, 8_000):
        weight, hidden = torch.randn(words, 2), torch.randn(TARGETS, 2, requires_grad=True)
        with Largest() as made:
            linear_cross_entropy(hidden, weight, torch.arange(TARGETS)).sum().backward()
        sizes.append(made.elements)
    assert sizes[1] <= max(TARGETS * 320, 2 * 8_000)
