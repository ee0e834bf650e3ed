"""A Gram matrix without the gradients of every sub-batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import initopt
from initopt.engines.stacked import contributions as uses
from initopt.testing import ENTRIES
from tests.engines._cases import BEYOND_GROUPS, check

MEASURED = [name for name, entry in ENTRIES.items() if "subbatch" in entry.modes and name not in BEYOND_GROUPS]


@pytest.mark.gallery
@pytest.mark.parametrize("name", MEASURED)
def test_measuring_without_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same Gram matrix, also by single rows."""
    for rows in (uses._ROWS, 1):
        monkeypatch.setattr(uses, "_ROWS", rows)
        check(name, "subbatch", "groups", functions=())


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.untyped_storage().nbytes() > 0:
            self.numel = max(self.numel, result.untyped_storage().nbytes() // result.element_size())
        return result


@pytest.mark.heavy
@pytest.mark.parametrize("length", [1, 5])
def test_measuring_makes_no_gradient_of_every_sample(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uses, "_ROWS", 1000)
    torch.manual_seed(0)

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(1)

    model = nn.Sequential(nn.Embedding(300, 40), nn.Linear(40, 80), nn.Tanh(), nn.Linear(80, 40), Mean(), nn.Linear(40, 3))
    data = [(torch.randint(300, (32, length)), torch.randint(3, (32,)))]
    expected = initopt.measure(model, data, num_subbatches=32, engine="plain")
    with Largest() as largest:
        found = initopt.measure(model, data, num_subbatches=32)
    torch.testing.assert_close(found.gram, expected.gram, rtol=1e-5, atol=1e-9)
    activations = 32 * length * 80
    assert largest.numel <= max(2 * activations, 300 * 40, 32 * 3 * 40)  # of all samples: 588,000


def test_measuring_puts_back_what_the_forward_pass_writes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 6, max_norm=0.5), nn.Flatten(), nn.Linear(18, 3))
    before = model[0].weight.detach().clone()
    initopt.measure(model, [(torch.randint(11, (16, 3)), torch.randint(3, (16,))) for _ in range(3)])
    assert torch.equal(model[0].weight, before)
