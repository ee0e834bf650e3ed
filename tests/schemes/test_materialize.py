"""Weights for models on the meta device; sharded ones are in tests/model/test_sharded.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from initopt.schemes import apply_, materialize_


class WithMask(nn.Module):
    """A buffer and a parameter that no function draws."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.token = nn.Parameter(torch.zeros(4))
        self.register_buffer("mask", torch.ones(4, dtype=torch.bool))
        self.register_buffer("places", torch.arange(4))


def on_meta(build: type[nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def test_modules_draw_as_they_do_by_themselves() -> None:
    model, plain = on_meta(WithMask).linear, nn.Linear(4, 4)
    materialize_(model, seed=3)
    apply_(plain, "default", seed=3)
    assert torch.equal(model.weight, plain.weight)
    assert torch.equal(model.bias, plain.bias)


def test_what_nothing_fills_is_named() -> None:
    with pytest.raises(ValueError, match=r"'token', 'mask', 'places': no module fills it.*give otherwise="):
        materialize_(on_meta(WithMask))


def test_what_nothing_fills_is_filled_by_a_function() -> None:
    def fill(name: str, tensor: torch.Tensor) -> None:
        given.append(name)
        tensor.copy_(torch.ones(4))

    given: list[str] = []
    model = on_meta(WithMask)
    assert materialize_(model, "orthogonal", otherwise=fill).set == ("linear.weight", "linear.bias")
    assert given == ["token", "mask", "places"]
    assert model.places.tolist() == [1, 1, 1, 1]
    assert model.mask.all()


def test_a_function_that_leaves_something_is_told() -> None:
    with pytest.raises(ValueError, match="'token', 'places'"):
        materialize_(on_meta(WithMask), otherwise=lambda name, tensor: None)


def test_a_model_with_values_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'weight', 'bias' is not on the meta device.*apply_ is for one that has"):
        materialize_(nn.Linear(2, 3))
