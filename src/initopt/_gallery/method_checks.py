"""Whether a method leaves alone what it must, and goes on where it was stopped."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from initopt._api import optimize
from initopt._gallery.entries import chosen_entries, expect_refusal, raise_if_wrong
from initopt._gallery.entry import SEED, Entry
from initopt.methods import Method, create_method
from initopt.methods.records import Record, steps_taken
from initopt.schemes import apply_

__all__ = ["check_method"]


def check_method(
    method: str | Method | Callable[[Entry], Method],
    entries: Iterable[str | Entry] | None = None,
    *,
    resume: bool = True,
    beyond: Mapping[str, str] | None = None,
) -> int:
    """Check that runs of a method leave alone what they must, and go on where they were stopped, on odd little models.

    On every entry:

    - Random state, modes, flags, hooks, gradients, buffers and attributes are as before.
    - Every weight is the one at the start, times its scale, and every tensor that trains has a scale: 1 if it is zero.
    - There is a record for each step, in order, and its figures are finite.
    - A run that is stopped after its first step leaves the weights as they were; resumed from its checkpoint, it ends in
      the same scales and records as an unbroken one. So does a run that is done and called again.

    Args:
        method: its name, the method with its options, or a function that gives the method for an entry. A few steps are
            enough. Training mode follows the entry, unless the method comes from a function.
        entries: names in :data:`ENTRIES`, or entries of your own; the whole gallery by default, which takes minutes.
        resume: whether to stop and resume, which takes most of the time.
        beyond: entries that the method has to refuse, and a part of what it says; the weights have to be as before.

    Returns:
        How many of the entries it changed.

    Raises:
        AssertionError: that lists every entry on which something is wrong, and what.
        ValueError: if an entry is unknown.

    >>> from initopt.methods import NIO
    >>> from initopt.testing import check_method
    >>> check_method(NIO(steps=2), ["mlp", "batch_norm_2d"])
    2
    """
    wrong: list[str] = []
    changed = count = 0
    for entry in chosen_entries(entries):
        count += 1
        chosen = _method_for(method, entry)
        message = (beyond or {}).get(entry.name)
        try:
            with tempfile.TemporaryDirectory() as folder:
                if message is not None:
                    model = entry.model()
                    with _unchanged(model, weights=True):
                        expect_refusal(message, _run, model, entry, chosen)
                    continue
                changed += _check_run(chosen, entry)
                if resume:
                    _check_resuming(chosen, entry, Path(folder) / "checkpoint")
        except Exception as error:  # one entry is not to hide the others
            notes = " ".join(getattr(error, "__notes__", ()))
            wrong.append(f"{entry.name}: {type(error).__name__}: {error} {notes}".rstrip())
    raise_if_wrong(wrong, count)
    return changed


def _method_for(method: str | Method | Callable[[Entry], Method], entry: Entry) -> Method:
    if isinstance(method, (str, Method)):
        return replace(create_method(method, {}), train_mode=entry.train_mode)
    return method(entry)


def _run(model: nn.Module, entry: Entry, method: Method, **options: Any) -> Any:
    return optimize(
        model, [entry.batch()], entry.loss_fn(), method=method, measure_batches=0, seed=SEED, progress=False, **options
    )


def _demand(right: bool, message: str) -> None:
    if not right:
        raise AssertionError(message)


@contextmanager
def _unchanged(model: nn.Module, weights: bool) -> Iterator[None]:
    """A block that has to leave everything but the weights as it was, and these, too, if they are to stay."""
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    buffers = {name: (b, b.clone()) for name, b in model.named_buffers()}
    flags = [(module.training, set(vars(module))) for module in model.modules()]
    kept = ("momentum", "track_running_stats", "forward")
    attributes = [[vars(module).get(name) for name in kept] for module in model.modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    trains = {name: (p, p.requires_grad) for name, p in model.named_parameters()}
    randomness = torch.get_rng_state()
    yield
    _demand(torch.equal(torch.get_rng_state(), randomness), "the random state is another one")
    _demand([(m.training, set(vars(m))) for m in model.modules()] == flags, "training mode or attributes have changed")
    for module, before in zip(model.modules(), attributes, strict=True):
        for name, value in zip(kept, before, strict=True):
            _demand(vars(module).get(name) is value, f"{name} of a {type(module).__name__} has changed")
    counted = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    _demand(counted == hooks, "a hook has stayed behind, or is gone")
    for name, parameter in model.named_parameters():
        _demand(parameter is trains[name][0], f"parameter {name!r} is another object")
        _demand(parameter.requires_grad == trains[name][1], f"requires_grad of {name!r} has changed")
        _demand(parameter.grad is None, f"parameter {name!r} has a gradient")
        _demand(not weights or torch.equal(parameter, values[name]), f"the values of {name!r} are not as before")
    for name, buffer in model.named_buffers():
        _demand(buffer is buffers[name][0], f"buffer {name!r} is another object")
        _demand(torch.equal(buffer, buffers[name][1]), f"the values of buffer {name!r} have changed")


def _check_run(method: Method, entry: Entry) -> bool:
    """Check an unbroken run.

    Returns:
        Whether it has changed the model.
    """
    model = entry.model()
    torch.manual_seed(3)
    with _unchanged(model, weights=False):
        result = _run(model, entry, method)
    other = entry.model()
    if method.scheme is not None:
        apply_(other, method.scheme, entry.batch(), entry.loss_fn(), seed=SEED)
    start = {name: p.detach() for name, p in other.named_parameters()}
    trained = [name for name, p in other.named_parameters() if p.requires_grad]
    _demand(list(result.scales) == trained, f"there are scales of {list(result.scales)}, not of {trained}")
    for name, parameter in model.named_parameters():
        scale = result.scales.get(name, 1.0)
        _demand(torch.equal(parameter, start[name] * scale), f"{name!r} is not what it was, times its scale")
        _demand(scale == 1 or bool(start[name].any()), f"{name!r} is zero and has a scale of {scale}")
    _demand(steps_taken(result.history) == method.steps, f"{method.steps} steps, but records of another number")
    numbers = [record.step for record in result.history]
    _demand(numbers == sorted(numbers), f"the records are of the steps {numbers}")
    _demand(set(numbers) == set(range(method.steps)), f"the records are of the steps {numbers}")
    for record in result.history:
        broken = [name for name, value in asdict(record).items() if isinstance(value, float) and not math.isfinite(value)]
        _demand(not broken, f"{', '.join(broken)} of step {record.step} not finite")
    return any(scale != 1 for scale in result.scales.values())


class _StopError(Exception):
    pass


def _check_resuming(method: Method, entry: Entry, path: Path) -> None:
    """Check that a run that is stopped after its first step goes on, and that one that is done stays as it is."""
    expected = _run(entry.model(), entry, method)

    def stop(record: Record) -> None:
        raise _StopError

    def same(result: Any, what: str) -> None:
        pair = [[asdict(record) | {"seconds": 0.0} for record in run.history] for run in (result, expected)]
        _demand(result.scales == expected.scales, f"{what} has other scales")
        _demand(pair[0] == pair[1], f"{what} has other records")

    model = entry.model()
    with _unchanged(model, weights=True), _stopped():
        _run(model, entry, method, checkpoint=path, checkpoint_every=1, callbacks=stop)
    same(_run(model, entry, method, checkpoint=path), "a resumed run")
    same(_run(entry.model(), entry, method, checkpoint=path), "a run that is done and called again")


@contextmanager
def _stopped() -> Iterator[None]:
    try:
        yield
    except _StopError:
        return
    raise AssertionError("an exception of a callback does not end the run")
