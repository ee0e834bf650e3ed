"""Errors of PyTorch that are known by their words, provoked where a CPU can."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from initopt._support import _torch_messages as messages


def error_of(function: Callable[[], object]) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is
        function()
    return caught.value


def test_a_cpu_that_is_out_of_memory() -> None:
    assert messages.is_out_of_memory(error_of(lambda: torch.empty(2**60)))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 17.88 GB, other allocations: 288.00 KB)"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("the user's own cache is out of memory"), False),
    ],
)  # fmt: skip
def test_what_is_out_of_memory(error: Exception, expected: bool) -> None:
    assert messages.is_out_of_memory(error) is expected


@pytest.mark.heavy
def test_the_cache_of_the_device_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[str] = []
    for name in ("cuda", "mps", "xpu"):
        monkeypatch.setattr(torch, name, SimpleNamespace(empty_cache=lambda name=name: emptied.append(name)), raising=False)
    for name in ("cpu", "cuda:1", "mps", "xpu", "meta"):  # the last has no memory to give back
        messages.free_cached_memory(torch.device(name))
    assert emptied == ["cuda", "mps", "xpu"]


def test_a_derivative_that_is_missing() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    bag = F.embedding_bag(torch.tensor([[0, 1]]), x, per_sample_weights=torch.ones(1, 2), mode="sum")
    (slope,) = torch.autograd.grad(bag.square().sum(), x, create_graph=True)
    error = error_of(lambda: torch.autograd.grad(slope.sum(), x))
    assert messages.missing_derivative(error) is not None, str(error)


def test_once_differentiable() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            return x * 1

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, dy):  # type: ignore[no-untyped-def]
            return dy * 1

    x = torch.ones(1, requires_grad=True)
    (slope,) = torch.autograd.grad(Once.apply(x).square().sum(), x, create_graph=True)
    error = error_of(slope.sum().backward)
    assert messages.missing_derivative(error) == "@once_differentiable"


def test_what_is_written_over() -> None:
    x = torch.ones(2, requires_grad=True)
    y = x.exp()
    loss = y.sum()
    y.detach().add_(1)
    error = error_of(lambda: torch.autograd.grad(loss, x))
    assert messages.is_written_over(error)
    assert not messages.is_written_over(RuntimeError("another one"))


def test_reentrant_checkpoints() -> None:
    x = torch.ones(2, requires_grad=True)
    loss = checkpoint(torch.sin, x, use_reentrant=True).sum()
    assert messages.is_from_reentrant_checkpoint(error_of(lambda: torch.autograd.grad(loss, x)))


def test_statistics_of_one_value() -> None:
    assert messages.is_of_one_value(error_of(lambda: nn.BatchNorm1d(3)(torch.ones(1, 3))))


@pytest.mark.parametrize("layer", [nn.Linear(3, 2), nn.Conv1d(3, 2, 1)])
def test_tensors_of_two_types(layer: nn.Module) -> None:
    error = error_of(lambda: layer(torch.ones(4, 3, 3, dtype=torch.float64)))
    assert messages.is_of_other_dtype(error), str(error)
    assert not messages.is_of_other_dtype(error_of(lambda: layer(torch.ones(4, 5, 5))))


def test_an_exported_module_of_a_fixed_size() -> None:
    exported = torch.export.export(nn.Linear(2, 3), (torch.ones(4, 2),)).module()
    assert messages.is_of_fixed_size(error_of(lambda: exported(torch.ones(2, 2))))
