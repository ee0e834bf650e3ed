"""Operations that stand in for kernels without a second derivative."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import initopt
from initopt.model.double_backward import _KERNELS, _PLAIN, _without_cudnn, plain_attention, plain_kernels, plain_norms


class OfPlainOperations(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + 3).clamp(0, 6) / 6


def run(gate: nn.Module) -> initopt.Result:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8), gate, nn.Linear(8, 3)).double()
    batches = [(torch.randn(8, 6, dtype=torch.float64), torch.randint(3, (8,))) for _ in range(2)]
    return initopt.nio(model, batches, steps=2, measure_batches=0, num_subbatches=2)


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
    with plain_kernels():
        found = F.hardsigmoid(x)
        inplace = F.hardsigmoid(x * 1, inplace=True)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(inplace, expected)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), x)[0], slope)
    torch.testing.assert_close(torch.autograd.grad(inplace.sum(), x)[0], slope)


def names_of_kernels() -> list[str]:
    """What the calls are in the graph that are others within our blocks."""
    x = torch.randn(2, 2, 4, 8, requires_grad=True)
    g = torch.ones(2, 1, 1, 1, requires_grad=True)
    found = [
        F.hardsigmoid(x),
        F.hardsigmoid(x * 1, inplace=True),
        torch._weight_norm(x, g, 0),
        F.scaled_dot_product_attention(x, x, x),
        F.layer_norm(x, (8,)),
        F.batch_norm(x, None, None, training=True),
    ]
    return [y.grad_fn.name() for y in found]


@pytest.mark.parametrize("block", [plain_kernels, plain_attention, plain_norms])
def test_a_thread_that_trains_meanwhile_sees_the_real_ones(block: Callable[[], AbstractContextManager[None]]) -> None:
    expected = names_of_kernels()
    seen: list[str] = []
    with block():
        thread = threading.Thread(target=lambda: seen.extend(names_of_kernels()))
        thread.start()
        thread.join()
        here = names_of_kernels()
    assert seen == expected
    assert here != expected
    assert names_of_kernels() == expected


def test_cudnn_is_off_for_recurrent_layers_on_devices_that_have_it() -> None:
    enabled: list[bool] = []
    call = _without_cudnn(lambda x: enabled.append(torch.backends.cudnn.enabled))
    call(torch.ones(1, device="meta"))
    call(torch.ones(1))  # nobody asks on a CPU, and other threads may be on a GPU
    assert enabled == [False, True]
    assert torch.backends.cudnn.enabled


class Spy(TorchFunctionMode):
    """Sees, above other modes, that recurrent layers are called."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.gru, torch.lstm):
            self.called.append(func)
        return func(*args, **(kwargs or {}))


def test_recurrent_layers_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced: list[Any] = []

    def noted(function: Any, *args: Any) -> Any:
        replaced.append(function)
        return function(*args)

    for function in (torch.gru, torch.lstm):
        monkeypatch.setitem(_KERNELS, function, partial(noted, function))
        monkeypatch.setitem(_PLAIN, function, partial(noted, function))

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = nn.ModuleList([nn.GRU(6, 4), nn.LSTM(4, 4)]), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.transpose(0, 1)
            for layer in self.layers:
                x = layer(x)[0]
            return self.head(x[-1])

    batches = [(torch.randn(8, 5, 6), torch.randint(3, (8,))) for _ in range(2)]
    with Spy() as spy:
        initopt.measure(Last(), batches)
    assert len(spy.called) > 2
    assert set(replaced) == set(spy.called) == {torch.gru, torch.lstm}
    assert len(replaced) >= len(spy.called)  # more often where one block is within another


def test_no_mode_is_on_after_the_first_pass_of_a_model_without_such_operations() -> None:
    stacks: list[int] = []

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        stacks.append(torch._C._len_torch_function_stack())
        return F.cross_entropy(model(batch[0]), batch[1])

    batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(3)]
    initopt.measure(nn.Linear(6, 3), batches, loss, engine="recompute")
    assert stacks[0] > 0
    assert not any(stacks[-8:])
    stacks.clear()
    initopt.measure(nn.Sequential(nn.Hardsigmoid(), nn.Linear(6, 3)), batches, loss, engine="recompute")
    assert all(stacks)
