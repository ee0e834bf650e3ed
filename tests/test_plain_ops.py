"""Operations that stand in for kernels without a second derivative."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initopt
from initopt.plain_ops import plain_hard_sigmoid


class OfPlainOperations(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + 3).clamp(0, 6) / 6


def run(gate: nn.Module) -> initopt.Result:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8), gate, nn.Linear(8, 3)).double()
    batches = [(torch.randn(8, 6, dtype=torch.float64), torch.randint(3, (8,))) for _ in range(2)]
    return initopt.nio(model, batches, steps=2, measure_steps=0, num_subbatches=2)


@pytest.mark.parametrize("inplace", [False, True])
def test_hard_sigmoids_have_exact_derivatives(inplace: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, expected = run(nn.Hardsigmoid(inplace)), run(OfPlainOperations())
    assert found.engine == expected.engine != "differences"
    assert found.scales == pytest.approx(expected.scales, rel=1e-12)


def test_a_plain_hard_sigmoid_is_the_same_function() -> None:
    x = torch.tensor([-5.0, -3.0, -1.0, 0.0, 2.0, 3.0, 4.0], requires_grad=True)
    expected = F.hardsigmoid(x)
    slope = torch.autograd.grad(expected.sum(), x)[0]
    with plain_hard_sigmoid():
        found = F.hardsigmoid(x)
        inplace = F.hardsigmoid(x * 1, inplace=True)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(inplace, expected)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), x)[0], slope)
    torch.testing.assert_close(torch.autograd.grad(inplace.sum(), x)[0], slope)


def test_the_kernels_come_back_with_the_last_user() -> None:
    kernels = torch._C._nn.hardsigmoid, torch._C._nn.hardsigmoid_
    with plain_hard_sigmoid():
        with plain_hard_sigmoid():
            pass
        assert torch._C._nn.hardsigmoid is not kernels[0]
    assert (torch._C._nn.hardsigmoid, torch._C._nn.hardsigmoid_) == kernels
