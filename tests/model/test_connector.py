from collections.abc import Callable

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from llava_lab.model.connector.base import Connector
from llava_lab.model.connector.linear import Linear
from llava_lab.model.connector.mlp import MLP

# LM width: parameters of linear and of mlp2x_gelu from CLIP-L's width, recipes.md section 1.0.
RELEASED = {
    4096: (4_198_400, 20_979_712),
    5120: (5_248_000, 31_467_520),
    7168: (7_347_200, 58_734_592),
    8192: (8_396_800, 75_513_856),
}


@pytest.mark.parametrize(("width", "counts"), RELEASED.items())
def test_as_many_parameters_as_released(width: int, counts: tuple[int, int]) -> None:
    with torch.device("meta"):
        connectors = Linear(1024, width), MLP(1024, width)
    assert tuple(sum(p.numel() for p in c.parameters()) for c in connectors) == counts


def test_names_are_those_of_mm_projector() -> None:
    assert list(Linear(3, 5).state_dict()) == ["weight", "bias"]
    assert list(MLP(3, 5).state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert list(MLP(3, 5, depth=1).state_dict()) == ["0.weight", "0.bias"]
    assert len(MLP(3, 5, depth=4).state_dict()) == 8


def test_mlp_is_linear_exact_gelu_linear() -> None:
    mlp, features = MLP(3, 5), torch.randn(2, 4, 3)
    hidden = features @ mlp[0].weight.T + mlp[0].bias
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    expected = hidden @ mlp[2].weight.T + mlp[2].bias
    torch.testing.assert_close(mlp(features), expected, rtol=1e-6, atol=1e-6)


def test_linear_is_one_matrix() -> None:
    linear, features = Linear(3, 5), torch.randn(2, 4, 3)
    torch.testing.assert_close(linear(features), features @ linear.weight.T + linear.bias)


@pytest.mark.parametrize("depth", [0, -1])
def test_an_mlp_without_layers_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=f"depth is {depth}"):
        MLP(3, 5, depth)


def from_yaml(connector: dict) -> nn.Module:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--connector", type=Callable[[int, int], Connector])
    return parser.instantiate(parser.parse_object({"connector": connector})).connector(3, 5)


def test_widths_are_injected_into_what_yaml_names() -> None:
    package = "llava_lab.model.connector"
    mlp = from_yaml({"class_path": f"{package}.mlp.MLP", "init_args": {"depth": 3}})
    assert isinstance(mlp, MLP) and isinstance(mlp, Connector)
    assert [tuple(p.shape) for p in mlp.parameters() if p.ndim == 2] == [(5, 3), (5, 5), (5, 5)]
    assert isinstance(from_yaml({"class_path": f"{package}.linear.Linear"}), Linear)
