"""Which tensors are selected, and which are biases."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from torch.nn.utils import parametrizations

import initopt
from initopt.model.parameters import is_bias, trainable_parameters
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
