"""What a run says of tensors that are multiplied by zeros, as the adapters of PEFT are at their start."""

from __future__ import annotations

from initopt._support.errors import warn
from initopt._support.words import counted, first_few
from initopt.engines.first_batch import Unreached
from initopt.methods import Method
from initopt.model.problem import Problem
from initopt.model.sharded import has_entries
from initopt.schemes import Scheme

__all__ = ["tell_of_scheme", "tell_of_zeros"]

_SHOWN = 1


def tell_of_zeros(problem: Problem, method: Method, unreached: Unreached | None) -> bool:
    """Warn if all tensors that a method could scale are multiplied by others that are zero.

    The output of a network is then the same whatever their scales: these are but learning rates of the zeros. Adapters of
    low rank begin like that (LoRA: B is zero).

    Returns:
        whether it warned.
    """
    if unreached is None or not unreached.zeros:
        return False
    moving = [p.name for p in problem.scale_params if not p.is_bias and has_entries(p.value)]
    if not moving or not set(moving) <= set(unreached.names):
        return False
    warn(
        f"initopt: whatever {method.name} can scale ({counted(len(moving), 'tensor')}: {first_few(moving, _SHOWN)}) is "
        f"multiplied by others that are zero ({first_few(list(unreached.zeros), _SHOWN)}): no scale of theirs changes the "
        "outputs, and each is but a learning rate of the zeros: the gradient norm moves, and GradCosine hardly. Begin from "
        "factors that are not zero (for LoRA, initopt.integrations.peft.start('pissa')), or measure only"
    )
    return True


def tell_of_scheme(problem: Problem, scheme: str | Scheme) -> None:
    """Warn if a scheme draws weights in the place of zeros that keep a pretrained function as it is."""
    zeros = [
        p.name
        for p in problem.parameters.trainable
        if {"lora_B", "lora_embedding_A"} & set(p.name.split(".")) and not has_entries(p.value)
    ]
    if zeros:
        name = scheme if isinstance(scheme, str) else scheme.name
        warn(
            f"initopt: scheme {name!r} draws {len(zeros)} zero factors of adapters ({first_few(zeros, _SHOWN)}), "
            "so the model no longer begins as the pretrained one; scheme=None keeps them"
        )
