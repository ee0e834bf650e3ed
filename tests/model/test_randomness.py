"""Random state, and random numbers for each purpose from a stream of their own."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from initopt.comparison.running.batches import EpochOrder
from initopt.model.randomness import GENERATORS, OwnGenerator, RandomState, Stream, drawing_on, mixed_seed, seeded


@pytest.fixture
def generators(monkeypatch: pytest.MonkeyPatch) -> list[torch.Generator]:
    """Those of three CUDA devices, of which the last is the current one."""
    found = [torch.Generator("cpu") for _ in range(3)]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.cuda, "default_generators", found)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda number: found[number].get_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, number: found[number].set_state(state))
    return found


def on(device: str) -> Tensor:
    return SimpleNamespace(device=torch.device(device))  # type: ignore[return-value]


def draw(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def test_only_the_devices_of_a_model_are_seeded(generators: list[torch.Generator]) -> None:
    before = [generator.get_state() for generator in generators]
    with drawing_on([on("cpu"), on("cuda:1")]), seeded(3):
        drawn = [draw(generator) for generator in generators]
    assert torch.equal(generators[1].get_state(), before[1])
    assert torch.equal(generators[2].get_state(), before[2])  # the current one, on which a loss may draw
    assert not torch.equal(generators[0].get_state(), before[0])  # another thread's draws stay drawn
    with drawing_on([on("cuda:1")]), seeded(3):
        again = [draw(generator) for generator in generators]
    assert again[1:] == drawn[1:]
    assert again[0] != drawn[0]


def test_all_devices_are_seeded_where_nothing_is_said(generators: list[torch.Generator]) -> None:
    before = [generator.get_state() for generator in generators]
    with seeded(3):
        assert len({draw(generator) for generator in generators}) == 1
    assert all(torch.equal(g.get_state(), state) for g, state in zip(generators, before, strict=True))


def test_a_state_is_stored_and_put_back(generators: list[torch.Generator]) -> None:
    state = RandomState.from_plain(*RandomState.now().to_plain())
    drawn = [draw(generator) for generator in generators]
    state.put_back()
    assert [draw(generator) for generator in generators] == drawn


def test_keys_of_any_length_and_stream_have_states_of_their_own():
    numbers = range(4)
    keys = [(), *itertools.product(numbers), *itertools.product(numbers, numbers), *itertools.product(*[numbers] * 3)]
    keys += [(stream, *key) for stream in Stream for key in keys]
    found = {mixed_seed(seed, *key) for seed in (0, 1, 2**32 - 1) for key in keys}
    assert len(found) == 3 * len(keys)


def test_what_draws_for_a_seed_differs_by_purpose():
    """As in (s, 0) and (s, 0, 0), which were one state: the weights of a seed, and the order of its first epoch."""

    def drawn(*key):
        with seeded(5, *key):
            return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    purposes = [drawn(), drawn(0), drawn(0, 0), *(drawn(stream) for stream in Stream), drawn(Stream.ORDER, 0)]
    assert all(a != b for first, second in itertools.combinations(purposes, 2) for a, b in zip(first, second, strict=True))
    assert drawn(Stream.WEIGHTS) == drawn(Stream.WEIGHTS)


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = []
    for seed in (0, 1):
        order = EpochOrder(50, 5, seed)
        for order.epoch in (0, 1, 2):
            orders.append(list(order))
    assert len({str(order) for order in orders}) == 6


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_generator_of_the_users_own(kind):
    generator = np.random.default_rng(0) if kind is np.random.Generator else kind()
    own = OwnGenerator(generator)
    states = []
    for key in ((), (0,), (0, 0), (0,)):
        own.seed(3, *key)
        states.append(str(own._get()))
    assert states[1] == states[3]
    assert len(set(states)) == 3
