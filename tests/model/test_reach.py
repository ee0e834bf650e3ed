"""What modules and losses keep from one pass for the next, wherever it is, is found and put back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import initopt


class Biased(nn.Module):
    """Attention biases by distance, looked up once in evaluation mode; in LeViT and others, ``train()`` clears them."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)
        self.biases = nn.Parameter(torch.randn(11))
        self.register_buffer("distances", torch.arange(6)[:, None] - torch.arange(6) + 5)
        self.by_device: dict[str, Tensor] = {}
        self.listed: list[Tensor] = [torch.zeros(())]
        self.kept: Tensor | None = None

    def looked_up(self) -> Tensor:
        if self.training or self.where == "nowhere":
            return self.biases[self.distances]
        if self.where == "dict":
            if "cpu" not in self.by_device:
                self.by_device["cpu"] = self.biases[self.distances]
            return self.by_device["cpu"]
        if self.where == "list":
            if len(self.listed) == 1:
                self.listed.append(self.biases[self.distances])
            return self.listed[1]
        if self.where == "attribute":
            if self.kept is None:
                self.kept = self.biases[self.distances]
            return self.kept
        if not hasattr(self, "new"):
            self.new = self.biases[self.distances]
        return self.new

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.softmax(self.first(x)[:, None] * x[:, :, None] + self.looked_up(), -1).sum(1))


def run(where: str, **options: Any) -> tuple[Biased, initopt.Result]:
    torch.manual_seed(0)
    model = Biased(where).double()
    batches = [(torch.randn(8, 6, dtype=torch.float64), torch.randint(3, (8,))) for _ in range(5)]
    options |= {"scale_biases": True, "scale_invariant": True, "num_subbatches": 2, "seed": 0}
    return model, initopt.nio(model, batches, steps=3, measure_batches=2, **options)


@pytest.mark.gallery
@pytest.mark.parametrize("engine", ["auto", "recompute", "plain", "differences"])
@pytest.mark.parametrize("where", ["dict", "list", "attribute", "new attribute"])
def test_what_a_module_keeps_is_of_one_pass(where: str, engine: str) -> None:
    _, expected = run("nowhere", engine=engine)
    model, found = run(where, engine=engine)
    assert found.scales == pytest.approx(expected.scales, rel=1e-12)
    torch.testing.assert_close(found.after.gram, expected.after.gram)
    assert found.scales["biases"] != 1
    assert (model.by_device, model.listed, model.kept, hasattr(model, "new")) == ({}, [torch.zeros(())], None, False)


class Counting(nn.Module):
    """Counts its calls in a buffer, and the count matters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.last(torch.tanh(self.first(x) * self.calls))


def test_buffers_that_the_steps_wrote_to_are_not_measured() -> None:
    torch.manual_seed(0)
    model = Counting()
    batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(5)]
    expected = initopt.measure(model, batches[3:])
    found = initopt.nio(model, batches, steps=3, measure_batches=2)
    torch.testing.assert_close(found.before.gram, expected.gram)


class WritingOver(nn.Module):
    """Keeps a state in place, as long as it is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.exp(self.first(x))
        if not self.training:
            state.mul_(2)
        return self.last(state)


def test_a_model_that_cannot_be_differentiated_in_evaluation_mode() -> None:
    batches = [(torch.randn(8, 6), torch.randint(3, (8,)))]
    with pytest.raises(RuntimeError, match="modified by an inplace operation") as caught:
        initopt.measure(WritingOver(), batches)
    assert "train_mode=True" in "".join(caught.value.__notes__)
    assert initopt.measure(WritingOver(), batches, train_mode=True).num_batches == 1
