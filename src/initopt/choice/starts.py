"""The starts of a race: which ones fit a network, and how each is made."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from initopt._support.errors import InitoptWarning
from initopt.comparison.running.start import take
from initopt.comparison.spec.initialization import Drawing, Initialization, as_initialization
from initopt.methods import Method
from initopt.model.losses import LossFunction
from initopt.model.preserve import Kept, inner_work, preserving
from initopt.model.randomness import Stream, mixed_seed
from initopt.model.ranks import ALONE, Ranks
from initopt.model.shard_passes import ShardPasses
from initopt.model.sharded import has_shards
from initopt.schemes import apply_

__all__ = [
    "OWN",
    "as_starts",
    "copied",
    "default_starts",
    "make_start",
    "nominal_steps",
    "refuse_parts_of_others",
    "refuse_shards",
]

OWN = "own"
"""The name of the network's own start."""

_SATURATING = {"tanh", "sigmoid", "softsign", "hardtanh", "logsigmoid"}


def as_starts(starts: Sequence[Any] | Mapping[str, Any]) -> list[Initialization]:
    """The starts that the user gave, with the network's own first.

    Args:
        starts: names, methods, functions, lists of these, or initializations, as :func:`initopt.compare` takes them; or a
            dict of these by name.

    Raises:
        ValueError, TypeError: for anything else, and for what has no place in a race.
    """
    if isinstance(starts, str) or not isinstance(starts, (Sequence, Mapping)):
        raise TypeError(
            f"starts must be a list of starts, such as ['orthogonal', 'lsuv', 'nio']; got {type(starts).__name__}"
        )
    given = list(starts.items()) if isinstance(starts, Mapping) else [("", value) for value in starts]
    found = [_named(name, value) for name, value in given if value != OWN]
    own = [start for start in found if not start.steps]
    others = [start for start in found if start.steps]
    if not others:
        raise ValueError("starts must have a start beside the network's own; None takes those that fit the network")
    for start in others:
        if start.recipe or start.batch_size is not None:
            raise ValueError(
                f"start {start.name!r} has a recipe or a batch_size; all runs of a race are trained in the same way"
            )
    names = [start.name for start in others]
    twice = next((name for name in names if names.count(name) > 1 or name == OWN), None)
    if twice is not None or len(own) > 1:
        raise ValueError(f"two starts are called {twice or OWN!r}; give them names: {{'name': start, ...}}")
    return [Initialization(name=OWN), *others]


def _named(name: str, value: Any) -> Initialization:
    if callable(value) and not name and not isinstance(value, type):
        # What cannot be imported by a path needs a name in a comparison, which is stored; here, it has one.
        name = getattr(value, "__name__", "") or getattr(getattr(value, "func", None), "__name__", "")
        name = "function" if name == "<lambda>" else name
    made = Initialization(method=value, name=name) if callable(value) and name else as_initialization(value)
    return made if not name or made.name == name else dataclasses.replace(made, name=name)


def refuse_shards(model: Any) -> None:
    """Refuse a network that is in parts on several devices, which is trained here as a whole.

    Raises:
        TypeError: saying what to do.
    """
    if has_shards(model):
        raise TypeError(
            "the model is sharded over devices (DTensor), and its short trainings here take the whole model on each; call "
            "this before it is sharded, with process_group= for several processes"
        )


def refuse_parts_of_others(model: nn.Module, ranks: Ranks) -> None:
    """Refuse a network that is in parts on other processes than those that train it.

    Raises:
        TypeError: saying why.
    """
    if has_shards(model) and (reason := ShardPasses.refusal(model, ranks)) is not None:
        raise TypeError(
            f"the model is sharded over devices (DTensor), and cannot be trained here: {reason}. Call this on all of these "
            "processes, or before it is sharded"
        )


def copied(model: nn.Module) -> nn.Module:
    """A copy of a network.

    Raises:
        ValueError: if it cannot be copied; the message says why.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # copying calls code of all kinds
        raise ValueError(
            f"the network cannot be copied (copy.deepcopy), which a race does for each start: "
            f"{str(error).partition(chr(10))[0]}"
        ) from error


def default_starts(
    model: nn.Module, batch: Any, loss_fn: LossFunction | None, seed: int, ranks: Ranks = ALONE
) -> list[Initialization]:
    """The starts that fit a network, its own first, from running a copy of it.

    Args:
        model: the network; stays as it is.
        batch: to run it on.
        loss_fn: runs it.
        seed: of what is drawn.
        ranks: that have the starts which rank 0 has found.
    """
    follow = set(apply_(copied(model), "orthogonal", batch, loss_fn, seed=seed).nonlinearities.values())
    names: list[Any] = ["xavier_normal"] if follow & _SATURATING else []
    names += ["kaiming_normal"] if follow - _SATURATING or not follow else []
    names += ["orthogonal", "lsuv", "nio", ["lsuv", "nio"]]
    names += [name for name in _FOR_PARTS if _fits(name, model, batch, loss_fn, seed)]
    return as_starts(ranks.broadcast(names, "the starts"))


_FOR_PARTS = ("mimetic", "zero_branches", "scaled_branches")
"""Schemes for networks with self-attention or residual branches."""


def _fits(scheme: str, model: nn.Module, batch: Any, loss_fn: LossFunction | None, seed: int) -> bool:
    """Whether a scheme finds in a network what it is for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InitoptWarning)  # it is said where the scheme is a start
        try:
            apply_(copied(model), scheme, batch, loss_fn, seed=seed)
        except ValueError:
            return False
    return True


def make_start(
    model: nn.Module,
    start: Initialization,
    batches: Iterable[Any],
    loss_fn: LossFunction | None,
    seed: int,
    ranks: Ranks = ALONE,
    finish: Callable[[], object] | None = None,
) -> None:
    """Give a model a start, in place; after an exception its weights are as before.

    A scheme sees on the first batch which nonlinearity follows each layer, and has its gain. Of several processes, each
    with its own batches, a method is that of all of them together, and what schemes and functions make is that of rank 0.

    Args:
        model: with its own start.
        start: what to do.
        batches: can be iterated over again.
        loss_fn: the user's.
        seed: of what is drawn.
        ranks: the processes that make it together.
        finish: is called when it is made; after an exception in it, the weights are as before, too.
    """

    def work(kept: Kept) -> None:
        with inner_work():
            for number, step in enumerate(start.steps):
                if isinstance(step, Drawing):
                    seed_of_step = mixed_seed(seed, Stream.SCHEME, number)
                    apply_(model, step.scheme, next(iter(batches)), loss_fn, params=step.params, seed=seed_of_step)
                else:
                    take(step, model, batches, loss_fn, seed, number, ranks.group)
                if not isinstance(step, Method):
                    ranks.copy_first(list(model.parameters()), f"the weights of {start.name}")
        if finish is not None:
            finish()

    if start.steps:
        preserving(model, work, loss_fn, batches)


def nominal_steps(start: Initialization) -> int:
    """A rough cost of a start in training steps: 8 for each step of a method, 1 for a scheme or function.

    A step of NIO took 5 to 10 times as long as a training step of small networks on a CPU.
    """
    return sum(8 * getattr(step, "steps", 0) or 1 for step in start.steps)
