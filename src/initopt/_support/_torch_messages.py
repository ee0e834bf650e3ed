"""What errors of PyTorch are about, by their words: PyTorch has no types for most of them.

A message that has changed is not recognized, and the error is then raised as PyTorch has it.
``tests/support/test_torch_messages.py`` provokes those that a CPU can give.
"""

from __future__ import annotations

import gc
import re

import torch

__all__ = [
    "free_cached_memory",
    "is_from_reentrant_checkpoint",
    "is_of_fixed_size",
    "is_of_one_value",
    "is_of_other_dtype",
    "is_out_of_memory",
    "is_written_over",
    "missing_derivative",
]

_OUT_OF_MEMORY = re.compile(
    r"out of memory"  # CUDA, HIP, XPU, "MPS backend out of memory"
    r"|DefaultCPUAllocator: (can't allocate|not enough) memory"
    r"|CUDNN_STATUS_NOT_SUPPORTED"  # what cuDNN says where it finds no room to work in
    r"|CU(BLAS|DNN)_STATUS_ALLOC_FAILED"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on an accelerator or a CPU.

    >>> is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 17.8 GB, max allowed: 18.1 GB)"))
    True
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def free_cached_memory(device: torch.device) -> None:
    """Give back what PyTorch keeps of a device's memory for later, before another try in smaller pieces.

    It is in blocks of the sizes that did not fit. What the failed try left in cycles is collected first.
    """
    gc.collect()
    if device.type != "cpu":
        empty = getattr(getattr(torch, device.type, None), "empty_cache", None)  # not every backend has one
        if empty is not None:
            empty()


_MISSING = (
    re.compile(r"derivative for '?(?P<operator>[\w:.]+)'? is not implemented"),
    re.compile(r"(?P<operator>torch\.compile) with aot_autograd does not currently support double backward"),
    re.compile(r"[Dd]ouble backwards? (?:on|for|of|through) (?P<operator>[\w:]+) (?:is )?not (?:supported|implemented)"),
    re.compile(r"[Dd]ouble backwards? is not supported for (?P<operator>[\w ]+?)(?: due|\.|$)"),
    re.compile(r"differentiate twice a function that was marked with (?P<operator>@once_differentiable)"),
    re.compile(r"(?P<operator>[\w:]+) does not support (?:double|higher.order) back"),
)

_COMPILED = re.compile(r"backward function was compiled with non-empty donated buffers")
"""What is said of a compiled part of a model, whose backward pass can be taken only once."""


def missing_derivative(error: BaseException) -> str | None:
    """The operator that has no second derivative, if that is what an error says.

    >>> missing_derivative(NotImplementedError("the derivative for '_embedding_bag_backward' is not implemented."))
    '_embedding_bag_backward'
    """
    if _COMPILED.search(str(error)):
        return "torch.compile"
    for pattern in _MISSING:
        match = pattern.search(str(error))
        if match:
            return match["operator"]
    return None


def is_written_over(error: BaseException) -> bool:
    """Whether something that a backward pass needs was written over in place."""
    return "modified by an inplace operation" in str(error)


def is_from_reentrant_checkpoint(error: BaseException) -> bool:
    """Whether activation checkpointing of the reentrant kind does without ``torch.autograd.grad``."""
    return "incompatible with .grad()" in str(error)


def is_of_one_value(error: BaseException) -> bool:
    """Whether a batch norm has one value in each channel, and so no statistics."""
    return "Expected more than 1 value per channel" in str(error)


_FIXED_SIZE = re.compile(r"Guard failed: .*size|Expected input at .*shape\[")


def is_of_fixed_size(error: BaseException) -> bool:
    """Whether a module of ``torch.export`` was given another number of samples than it was exported with."""
    return _FIXED_SIZE.search(str(error)) is not None


_OTHER_DTYPE = re.compile(
    r"same dtype|expected scalar type|expected m1 and m2|Input type .* and (weight|bias) type|dtypes? .*(match|mismatch)"
)


def is_of_other_dtype(error: BaseException) -> bool:
    """Whether an operation was given tensors of two types."""
    return _OTHER_DTYPE.search(str(error)) is not None
