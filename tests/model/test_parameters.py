"""Which tensors are selected, and which are biases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import initopt
from initopt.model.parameters import is_bias, select, trainable_parameters
from tests.helpers import make_batches, make_model


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bias", True),
        ("0.bias", True),
        ("attention.in_proj_bias", True),
        ("lstm.bias_ih_l0_reverse", True),
        ("lstm.weight_ih_l0", False),
        ("bias_mlp.0", False),
        ("bias_mlp.0.weight", False),
        ("bias_mlp.0.bias", True),
        ("weight_net.bias", True),
        ("parametrizations.weight.original0", False),
        ("bias_net.parametrizations.weight.original", False),
        ("weight_net.parametrizations.bias.original1", True),
        ("gain", False),
    ],
)
def test_biases_by_name(name: str, expected: bool) -> None:
    assert is_bias(name) is expected


def test_parametrized_tensors() -> None:
    model = nn.ModuleDict({"bias_net": parametrizations.weight_norm(nn.Linear(3, 3))})
    assert {p.name: p.is_bias for p in trainable_parameters(model)} == {
        "bias_net.bias": True,
        "bias_net.parametrizations.weight.original0": False,
        "bias_net.parametrizations.weight.original1": False,
    }


@pytest.mark.parametrize("name", ["scale_params", "grad_params"])
@pytest.mark.parametrize("keep", [lambda name: True, lambda name, parameter: True, lambda a, b, c, d: True])
def test_a_filter_of_another_form_is_refused(name: str, keep: Any) -> None:
    with pytest.raises(TypeError, match=rf"{name} must be a function of \(name, parameter, module\); got one of the form"):
        initopt.nio(make_model(), make_batches(), steps=1, measure_batches=0, **{name: keep})


def test_a_filter_with_a_further_default_is_fine() -> None:
    def keep(name: str, parameter: nn.Parameter, module: nn.Module, kind: type = nn.Linear) -> bool:
        return isinstance(module, kind)

    result = initopt.nio(make_model(), make_batches(), steps=1, measure_batches=0, scale_params=keep)
    assert "1.weight" not in result.scales


class TestKinds:
    def model(self) -> nn.Module:
        return nn.ModuleDict(
            {
                "conv": nn.Conv2d(3, 4, 3),
                "norm": nn.BatchNorm2d(4),
                "wpe": nn.Embedding(5, 4),
                "table": nn.Embedding(5, 4),
                "head": nn.Linear(4, 2),
                "blocks": nn.ParameterDict({"relative_position_bias_table": nn.Parameter(torch.zeros(3))}),
            }
        )

    @pytest.mark.parametrize(
        ("kinds", "expected"),
        [
            ("convolutions", {"conv.weight", "conv.bias"}),
            ("linear", {"head.weight", "head.bias"}),
            ("norms", {"norm.weight", "norm.bias"}),
            ("embeddings", {"wpe.weight", "table.weight"}),
            ("positions", {"wpe.weight", "blocks.relative_position_bias_table"}),
            (["norms", "linear"], {"norm.weight", "norm.bias", "head.weight", "head.bias"}),
        ],
    )
    def test_by_name(self, kinds: Any, expected: set[str]) -> None:
        assert {p.name for p in select(trainable_parameters(self.model()), kinds, "params")} == expected

    def test_biases(self) -> None:
        found = {p.name for p in select(trainable_parameters(self.model()), "biases", "params")}
        assert {"conv.bias", "norm.bias", "head.bias"} <= found
        assert not {name for name in found if name.endswith("weight")}

    def test_an_unknown_name(self) -> None:
        with pytest.raises(ValueError, match=r"unknown params 'liner'; known are 'biases', .*'linear'"):
            select(trainable_parameters(self.model()), "liner", "params")

    @pytest.mark.parametrize("wrong", [3, [nn.Linear], {"linear": 1}])
    def test_something_else(self, wrong: Any) -> None:
        with pytest.raises(TypeError, match="or names such as 'linear'"):
            select(trainable_parameters(self.model()), wrong, "params")

    def test_a_run_takes_them(self) -> None:
        result = initopt.nio(make_model(), make_batches(), steps=1, measure_batches=0, scale_params="linear")
        assert {name.partition(".")[0] for name in result.scales} == {"0", "4", "6"}
