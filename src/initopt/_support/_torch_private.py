"""PyTorch's private names: all that initopt uses, but for those of ``fully_shard`` (:mod:`initopt._support._torch_fsdp`).

No other file of the package may name one (``tests/repo/test_torch_private.py``). Each is looked up when it is used, so that
``import initopt`` works without it, and ``tests/support/test_torch_private.py`` says of each what broke. It runs on the
oldest and on the newest PyTorch (``make test-oldest``).
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn, overrides
from torch.utils import _python_dispatch
from torch.utils.data import DataLoader

__all__ = [
    "ATTRIBUTES",
    "BATCH_NORMS",
    "CONVOLUTIONS",
    "INSTANCE_NORMS",
    "ORIGINAL",
    "STRUCTURE",
    "TRANSPOSED_CONVOLUTIONS",
    "DispatchMode",
    "attention_math",
    "autocast_nesting",
    "backward_pass",
    "batch_norm_backward",
    "batch_norm_forward",
    "buffers_of",
    "compiler_is_loaded",
    "convolution",
    "convolution_backward",
    "dispatch_modes",
    "forget_iterator",
    "function_modes",
    "hooks_of",
    "in_functorch",
    "is_compiled",
    "is_multithreading_enabled",
    "kernels_named",
    "layer_norm_backward",
    "layer_norm_forward",
    "parameters_of",
    "pop_saved_tensors_hooks",
    "reset_of",
    "saved_tensors_hooks",
    "set_dispatch_modes",
    "set_function_modes",
    "set_transient_buffers",
    "tell_recurrent",
    "transient_buffers",
    "undisturbed",
    "unheard",
    "version_of",
    "without_hooks",
]

aten = torch.ops.aten

# Autograd


def backward_pass(
    outputs: Sequence[Tensor],
    slopes: Sequence[Tensor],
    retain_graph: bool,
    create_graph: bool,
    inputs: Sequence[Tensor],
    allow_unused: bool,
) -> tuple[Tensor | None, ...]:
    """Call the engine as ``torch.autograd.grad`` does.

    That hands itself to any mode that is on, so it cannot be called from one that is to stay on in the backward pass.
    Without this call no exact engine works.
    """
    found: tuple[Tensor | None, ...] = torch.autograd.Variable._execution_engine.run_backward(
        tuple(outputs), tuple(slopes), retain_graph, create_graph, tuple(inputs), allow_unused, accumulate_grad=False
    )
    return found


def undisturbed() -> AbstractContextManager[None]:
    """Open a block whose operations no mode looks at, which would take longer than the operations themselves.

    There is no public form of it for function modes. Without it no exact engine works.
    """
    block: AbstractContextManager[None] = torch._C.DisableTorchFunction()
    return block


def in_functorch() -> bool:
    """Whether a transform of ``torch.func`` is under way, whose wrapped tensors have a dispatch of their own.

    There is no public way to ask. Without this one, no exact engine works.
    """
    return bool(torch._C._functorch.maybe_current_level())


def hooks_of(tensor: Tensor) -> dict[int, Callable[..., Any]] | None:
    """The gradient hooks of a tensor: the dict itself, or ``None`` for a tensor that never had one.

    PyTorch hands out handles to one's own hooks only. ``register_post_accumulate_grad_hook`` is another matter: those never
    run in ``torch.autograd.grad``.
    """
    hooks: dict[int, Callable[..., Any]] | None = tensor._backward_hooks
    return hooks


@contextmanager
def without_hooks(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Take gradient hooks off tensors within a block: they act on gradients, and not on derivatives of these."""
    kept = [(hooks, dict(hooks)) for hooks in map(hooks_of, tensors) if hooks]
    for hooks, _ in kept:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, content in kept:
            hooks.update(content)


def version_of(tensor: Tensor) -> int:
    """The number of times that a tensor was written to; 0 for one of inference mode, which does not count.

    Nothing public says whether a tensor was written to. Without it, no model can be kept as it was.
    """
    return 0 if tensor.is_inference() else tensor._version


ATTRIBUTES = frozenset(
    getattr(Tensor, name).__get__
    for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_leaf", "grad_fn", "_backward_hooks")
    if hasattr(Tensor, name)
)
"""What function modes are handed when a tensor is asked for one of the attributes that are asked for most often.

They are no operations. Without these, the stacked engine is slower, and nothing else."""

# Operations with their backward passes apart. ``torch.ops.aten`` is public, and its signatures are not promised.


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: list[int], padding: list[int], dilation: list[int],
    transposed: bool, output_padding: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """A convolution of any kind."""
    y: Tensor = aten.convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups)
    return y


def convolution_backward(
    dy: Tensor, x: Tensor, weight: Tensor, which: tuple[bool, bool, bool], *, stride: list[int], padding: list[int],
    dilation: list[int], transposed: bool, output_padding: list[int], groups: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The derivatives of a convolution that are asked for, and no others; autograd would compute all of them."""
    found: tuple[Tensor, ...] = aten.convolution_backward(
        dy, x, weight, None, stride, padding, dilation, transposed, output_padding, groups, which
    )
    return found


def batch_norm_forward(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm on batch statistics, with the mean and the inverse standard deviation that it used."""
    found: tuple[Tensor, Tensor, Tensor] = aten.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
    return found


def batch_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, invstd: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The derivatives of :func:`batch_norm_forward` with respect to input, weight and bias."""
    found: tuple[Tensor, Tensor, Tensor] = aten.native_batch_norm_backward(
        dy, x, weight, None, None, mean, invstd, True, eps, (True, True, True)
    )
    return found


def layer_norm_forward(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm, with the mean and the inverse standard deviation that it used."""
    found: tuple[Tensor, Tensor, Tensor] = aten.native_layer_norm(x, shape, weight, bias, eps)
    return found


def layer_norm_backward(
    dy: Tensor, x: Tensor, shape: Sequence[int], mean: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """The derivative of :func:`layer_norm_forward` with respect to its input alone."""
    dx: Tensor = aten.native_layer_norm_backward(dy, x, shape, mean, invstd, weight, bias, (True, False, False))[0]
    return dx


def attention_math(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, is_causal: bool, scale: float | None,
    enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """Scaled dot-product attention by operations that can all be differentiated.

    The public choice of a kernel, ``torch.nn.attention.sdpa_kernel``, is made for all threads, and can be made again by the
    model. Without this, models with attention have no second derivative.
    """
    mixed: Tensor = torch._scaled_dot_product_attention_math(
        query, key, value, mask, dropout, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]
    return mixed


def kernels_named(*names: str) -> list[Any]:
    """Functions that modules and ``torch.nn.functional`` call, by their names under ``torch``, for a mode to know them by.

    One that is gone is left out: nobody calls it, and what is called in its place keeps PyTorch's own second derivative,
    which is missing (hard sigmoid) or wrong (weight norm).

    >>> kernels_named("tanh", "no_such_function") == [torch.tanh]
    True
    """
    found = []
    for name in names:
        place: Any = torch
        for part in name.split("."):
            place = getattr(place, part, None)
        if place is not None:
            found.append(place)
    return found


def unheard(function: Any) -> Callable[..., Any]:
    """A copy of a function of ``torch.nn.functional`` that does not hand itself to modes, but lets them see what it calls.

    It is the same code with another ``has_torch_function``. Should PyTorch ask in another way, the copy hands itself to a
    mode again, and attention within ``F.multi_head_attention_forward`` is not replaced.
    """
    return types.FunctionType(
        function.__code__,
        function.__globals__ | {"has_torch_function": lambda arguments: False},
        argdefs=function.__defaults__,
    )


# Modules


def _kinds(module: str, name: str, *public: type[nn.Module]) -> tuple[type[nn.Module], ...]:
    """The private class that all modules of a kind are made from, if it is there, and its public subclasses."""
    found = getattr(getattr(nn.modules, module, None), name, None)
    return public if found is None else (found, *public)


BATCH_NORMS = _kinds("batchnorm", "_BatchNorm", nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Batch norms, those of other libraries included as long as the private class is there."""

INSTANCE_NORMS = _kinds("instancenorm", "_InstanceNorm", nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
"""Instance norms, as for :data:`BATCH_NORMS`."""

TRANSPOSED_CONVOLUTIONS = _kinds(
    "conv", "_ConvTransposeNd", nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
)  # fmt: skip
"""Transposed convolutions, as for :data:`BATCH_NORMS`."""

CONVOLUTIONS = (*_kinds("conv", "_ConvNd", nn.Conv1d, nn.Conv2d, nn.Conv3d), *TRANSPOSED_CONVOLUTIONS)
"""Convolutions of both kinds, as for :data:`BATCH_NORMS`."""

STRUCTURE = frozenset({"_parameters", "_modules"} | {name for name in vars(nn.Module()) if "_hooks" in name})
"""Attributes in which a module keeps its parameters, its inner modules and its hooks.

Nothing public puts these back as they were, in their order, without running registration hooks."""


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The dict in which a module keeps its own parameters, to be read or written without a registration."""
    found: dict[str, nn.Parameter | None] = module._parameters
    return found


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """The dict in which a module keeps its own buffers, as for :func:`parameters_of`."""
    found: dict[str, Tensor | None] = module._buffers
    return found


def transient_buffers(module: nn.Module) -> set[str]:
    """The names of the buffers that are not in a module's ``state_dict``; nothing public tells."""
    return set(module._non_persistent_buffers_set)


def set_transient_buffers(module: nn.Module, names: set[str]) -> None:
    """Set the names of the buffers that are not in a module's ``state_dict``."""
    module._non_persistent_buffers_set = set(names)


def tell_recurrent(module: nn.RNNBase) -> None:
    """Have a recurrent layer hold the parameters that it has by now, which it keeps in a list as well."""
    module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]


def reset_of(module: nn.Module) -> Callable[[], None] | None:
    """The function that draws the parameters of a module anew; attention and transformers have it under a private name."""
    reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
    return reset if callable(reset) else None


# torch.compile

ORIGINAL = "_orig_mod"
"""Where a compiled module has the one that it was made from, which is in the names of its parameters, too."""


def is_compiled(module: nn.Module) -> bool:
    """Whether a module was compiled, by ``torch.compile`` or in place; nothing public tells.

    Should both marks be gone, compiled modules are traced anew where other operations are put in, which is slow.
    """
    return hasattr(module, ORIGINAL) or getattr(module, "_compiled_call_impl", None) is not None


def compiler_is_loaded() -> bool:
    """Whether anything can have been compiled so far; asking ``torch.compiler`` would load it, which takes seconds."""
    return "torch._dynamo" in sys.modules


# Modes and flags of the present thread, by value. Public context managers put back only what they have entered, and an
# exception out of a signal handler may come before that.


class DispatchMode(_python_dispatch.TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A block in which ``__torch_dispatch__`` sees every operation; PyTorch documents the class, in a private module."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # PyTorch would load its compiler, which takes seconds, to keep it from this mode


def function_modes() -> list[Any]:
    """The function modes that are on, innermost last."""
    return list(overrides._get_current_function_mode_stack())  # type: ignore[no-untyped-call]


def set_function_modes(modes: Sequence[Any]) -> None:
    """Have these on, and no others."""
    while function_modes():
        overrides._pop_mode()  # type: ignore[no-untyped-call]
    for mode in modes:
        overrides._push_mode(mode)  # type: ignore[no-untyped-call]


def dispatch_modes() -> list[Any]:
    """The dispatch modes that are on, innermost last."""
    return list(_python_dispatch._get_current_dispatch_mode_stack())


def set_dispatch_modes(modes: Sequence[Any]) -> None:
    """Have these on, and no others."""
    while dispatch_modes():
        _python_dispatch._pop_mode()
    for mode in modes:
        _python_dispatch._push_mode(mode)


def is_multithreading_enabled() -> bool:
    """Whether backward passes may run in other threads; ``torch.autograd.set_multithreading_enabled`` sets it."""
    return bool(torch._C._is_multithreading_enabled())


def saved_tensors_hooks() -> Any:
    """The innermost hooks of ``torch.autograd.graph.saved_tensors_hooks``, or ``None``.

    PyTorch 2.5 does not tell. Then those stay on that an exception out of a signal handler has kept from being taken off.
    """
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return None if top is None else top(True)


def pop_saved_tensors_hooks() -> None:
    """Take off the innermost hooks of ``torch.autograd.graph.saved_tensors_hooks``."""
    torch._C._autograd._pop_saved_tensors_default_hooks()


def autocast_nesting() -> int:
    """How many blocks of autocast are open: what entering and leaving one gives, in lack of a question."""
    torch.autocast_increment_nesting()
    return int(torch.autocast_decrement_nesting())


def forget_iterator(loader: DataLoader[Any]) -> None:
    """Have a loader begin anew with workers of its own when it is iterated over next.

    With ``persistent_workers`` it has one iterator for all its life, which the next ``iter()`` would wind back, whoever is
    reading from it. The attributes that it had before bring that iterator back.
    """
    loader._iterator = None
