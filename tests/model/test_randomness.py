"""Random state of processors and accelerators is put back."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initopt
from initopt.model.preserve import preserved
from initopt.model.randomness import seeded
from tests.helpers import make_batches, make_model
from tests.model._measuring import MODES, batch_of, measure, normed


def test_seeds_queued_for_an_accelerator_that_is_not_in_use_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = make_model(), make_batches(2)
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    initopt.measure(model, batches)
    assert seeds == []


def of_torch(x: Tensor) -> Tensor:
    return torch.rand_like(x)


def of_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(np.random.random_sample(tuple(x.shape))).float()


def of_python(x: Tensor) -> Tensor:
    return random.random() * torch.ones_like(x)


class Noise(nn.Module):
    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return x + self.draw(x)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("draw", [of_torch, of_numpy, of_python])
def test_noise_is_the_same_each_time_and_differs_between_batches(draw: Callable[[Tensor], Tensor], mode: Any) -> None:
    model = normed(Noise(draw))

    def grams(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return initopt.measure(model, [batch_of()] * 2, num_subbatches=2, batch_norm=mode).gram

    first = grams(seed=4)
    assert torch.equal(grams(seed=4), first)
    assert not torch.allclose(first[0], first[1])
    assert not torch.allclose(grams(seed=5), first)


def test_noise_differs_between_sub_batches() -> None:
    """Two sub-batches of the same samples have different gradients only by their noise."""
    model = normed(Noise(of_numpy))
    half = batch_of(8)
    gram = measure(model, tuple(torch.cat([part, part]) for part in half))
    assert not torch.allclose(gram[0, 0], gram[1, 1])
    plain = measure(normed(nn.Identity()), tuple(torch.cat([part, part]) for part in half))
    torch.testing.assert_close(plain[0, 0], plain[1, 1])


def test_draws_inside_a_seeded_block_are_not_noticed_outside() -> None:
    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.random_sample()), random.random()

    with preserved(nn.Linear(1, 1)):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        expected = [draw(), draw()]
    with preserved(nn.Linear(1, 1)):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        found = [draw()]
        with seeded(1, 2):
            inside = draw()
        found.append(draw())
        with seeded(1, 2):
            assert draw() == inside
        with seeded(1, 3):
            assert not set(draw()) & set(inside)
    assert found == expected
