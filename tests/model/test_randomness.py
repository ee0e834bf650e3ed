"""Random state."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from initopt.model.randomness import RandomState, drawing_on, seeded


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
