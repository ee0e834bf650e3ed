"""Hooks that fire when a gradient is accumulated: an optimizer's step in the backward pass, a reduction over processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import initopt
from tests.helpers import make_batches


def stepping() -> tuple[nn.Sequential, list[int]]:
    """A model that trains itself as soon as somebody calls ``backward()``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizers = {p: torch.optim.SGD([p], lr=0.5) for p in model.parameters()}
    calls: list[int] = []

    def step(parameter: nn.Parameter) -> None:
        calls.append(1)
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    return model, calls


@pytest.mark.parametrize("engine", ["auto", "groups", "graph", "recompute", "differences"])
@pytest.mark.parametrize("run", ["measure", "nio", "lsuv", "gradinit", "metainit"])
def test_no_call_fires_a_hook_on_accumulated_gradients(run: str, engine: str) -> None:
    model, calls = stepping()
    before = [p.detach().clone() for p in model.parameters()]
    options: dict[str, Any] = {"engine": engine, "seed": 0}
    if run == "measure":
        initopt.measure(model, make_batches(), **options)
        assert all(torch.equal(p, value) for p, value in zip(model.parameters(), before, strict=True))
    else:
        getattr(initopt, run)(model, make_batches(), steps=2, measure_batches=1, **options)
    assert calls == []


def test_the_check_of_groups_sees_user_hooks_on_gradients() -> None:
    """As every other gradient: the engines' own have gone through them, too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 6, sparse=True), nn.Flatten(), nn.Linear(12, 3))
    seen: list[Tensor] = []
    model[2].weight.register_hook(lambda g: seen.append(g) or 0.5 * g)
    batches = [(torch.randint(9, (16, 2)), torch.randint(3, (16,))) for _ in range(3)]
    grams = [initopt.measure(model, batches, engine=engine, seed=0).gram for engine in ("auto", "plain")]
    torch.testing.assert_close(*grams, rtol=1e-4, atol=1e-6)
    assert seen
