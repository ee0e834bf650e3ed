"""What is private of ``torch.distributed.fsdp.fully_shard``: there are public functions to set most of it, and none to ask.

Each name is looked up when it is used, and ``tests/support/test_torch_private.py`` has a probe of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "data_mesh",
    "forget_passes",
    "hooked_reduction",
    "precisions",
    "reducing",
    "resharding",
    "set_resharding",
    "without_fetching",
    "without_steps",
]


def resharding(module: Any) -> list[tuple[Any, ...]]:
    """When a module of ``fully_shard`` lets go of its whole parameters.

    Should the names be gone, training goes on right after initopt, and with more memory than before.
    """
    state = module._get_fsdp_state()
    own = [("_auto_reshard_after_forward", getattr(state, "_auto_reshard_after_forward", None))]
    names = ("post_forward_mesh_info", "reshard_after_backward")
    groups = [[(name, getattr(group, name)) for name in names] for group in _groups(state)]
    return [tuple(own), *map(tuple, groups)]


def set_resharding(module: Any, settings: list[tuple[Any, ...]]) -> None:
    """The inverse of :func:`resharding`."""
    state = module._get_fsdp_state()
    for owner, values in zip([state, *_groups(state)], settings, strict=True):
        for name, value in values:
            setattr(owner, name, value)


def _groups(state: Any) -> list[Any]:
    several = getattr(state, "_fsdp_param_groups", None)  # since 2.13
    if several is not None:
        return list(several)
    return [] if state._fsdp_param_group is None else [state._fsdp_param_group]


_OF_REDUCTION = {
    "reduce_grads": True,
    "all_reduce_grads": True,
    "reshard_after_backward": True,
    "gradient_divide_factor": None,
    "reduce_scatter_reduce_op": None,  # before 2.8
    "_partial_reduce_output": None,
}
"""Attributes of a group of parameters, and what they are where each backward pass reduces all by itself to a mean."""


@contextmanager
def reducing(modules: Sequence[Any]) -> Iterator[None]:
    """A block in which backward passes end with the mean over ranks in the parts of the parameters, and with no whole ones.

    Whatever their user has set, and has accumulated so far without a reduction, is back afterwards.
    """
    with ExitStack() as stack:
        for module in modules:
            state = module._get_fsdp_state()
            # One that has not run yet gets another context when it does.
            stack.callback(_set_last, state, state._state_ctx.is_last_backward)
            _set_last(state, True)
            for group in _groups(state):
                for name, value in _OF_REDUCTION.items():
                    if hasattr(group, name):
                        stack.callback(setattr, group, name, getattr(group, name))
                        setattr(group, name, value)
                for parameter in group.fsdp_params:
                    stack.callback(setattr, parameter, "unsharded_accumulated_grad", parameter.unsharded_accumulated_grad)
                    parameter.unsharded_accumulated_grad = None
                    whole = getattr(parameter, "_unsharded_param", None)
                    if whole is not None:
                        stack.callback(setattr, whole, "grad", whole.grad)
                        whole.grad = None
        yield


def _set_last(state: Any, value: bool) -> None:
    state._state_ctx.is_last_backward = value


@contextmanager
def without_fetching(modules: Sequence[Any]) -> Iterator[None]:
    """A block of backward passes that end at outputs of the model, and need no weight.

    The hook that ``fully_shard`` hangs on the outputs would gather some, and wait for all ranks to do the same.
    """
    with ExitStack() as stack:
        for module in modules:
            state = module._get_fsdp_state()
            owners = [
                (state._state_ctx, "post_backward_final_callback_queued", True),
                (state, "_states_to_backward_prefetch", []),
                *((group, "_training_state", _before_backward(group)) for group in _groups(state)),
            ]
            stack.callback(setattr, state, "_training_state", state._training_state)  # the hook sets it
            for owner, name, value in owners:
                stack.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, value)
        yield


def _before_backward(group: Any) -> Any:
    """The state of a group that has been gathered for the backward pass."""
    return type(group._training_state).PRE_BACKWARD


def forget_passes(modules: Sequence[Any]) -> bool:
    """Have ``fully_shard`` forget a pass that was broken off; whether this PyTorch can.

    Before the first pass there is nothing to forget, and PyTorch's own function fails.
    """
    roots = [module for module in modules if module._get_fsdp_state()._is_root]
    able = all(hasattr(root, "reset_iter_state") for root in roots)  # since 2.13
    for root in roots if able else ():
        root.reset_iter_state()
    return able


def data_mesh(module: Any) -> Any:
    """The mesh over which a module's parameters are in parts, and its gradients reduced; ``None`` if it has none itself.

    A mesh of tensor parallelism beside it is not part of it.
    """
    return next((group.mesh_info.mesh for group in _groups(module._get_fsdp_state())), None)


def precisions(module: Any) -> list[torch.dtype]:
    """What the ``MixedPrecisionPolicy`` of a module says that it computes, reduces and returns in."""
    policy = module._get_fsdp_state()._mp_policy
    return [dtype for dtype in (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) if dtype is not None]


def hooked_reduction(module: Any) -> bool:
    """Whether a module has a reduction of its user's own, ``set_all_reduce_hook``."""
    return any(getattr(group, "_all_reduce_hook", None) is not None for group in _groups(module._get_fsdp_state()))


@contextmanager
def without_steps(tensors: Sequence[Tensor]) -> Iterator[None]:
    """A block in which nothing runs after a gradient was accumulated, as an optimizer within the backward pass does.

    Hooks of ``register_post_accumulate_grad_hook`` never run in ``torch.autograd.grad``, but ``fully_shard`` calls them.
    """
    hooks: list[dict[int, Callable[..., Any]]] = [
        held for held in (getattr(tensor, "_post_accumulate_grad_hooks", None) for tensor in tensors) if held
    ]
    kept = [dict(held) for held in hooks]
    for held in hooks:
        held.clear()
    try:
        yield
    finally:
        for held, content in zip(hooks, kept, strict=True):
            held.update(content)
