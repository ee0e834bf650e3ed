"""The entry point: find the start, and the learning rate, for a network."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from initopt._support.checks import accepting, check_integer, check_number
from initopt._support.progress import Progress, reporter
from initopt.batches.stream import check_batches
from initopt.choice.batches import read_batches, refuse_broken
from initopt.choice.choice import Choice
from initopt.choice.outcomes import Judging, best_of
from initopt.choice.race import begin_runs, plan_race, run_race
from initopt.choice.rows import Cost
from initopt.choice.runs import Hands, Shared, check_sendable
from initopt.choice.starts import as_starts, copied, default_starts, refuse_shards
from initopt.model.group import ranks_of
from initopt.model.losses import LossFunction, as_loss
from initopt.model.parameters import trainable_parameters
from initopt.model.preserve import Kept, unwritten
from initopt.model.randomness import OwnGenerator, Stream, derive_seed, seeded
from initopt.model.ranks import ProcessGroup
from initopt.model.reach import Reach
from initopt.model.wrappers import unreplicated
from initopt.runs.shared import compare_calls
from initopt.training.looks import losses_on
from initopt.training.optimizers import OptimizerFactory, Rates, check_optimizer, make_optimizer, places_of
from initopt.training.steps import OwnStep, check_step, refuse_closure

__all__ = ["choose"]

AROUND = (1 / 3, 1.0, 3.0)
"""Rates in units of the user's own, for ``lrs="around"``."""


@accepting()
def choose(
    make_model: Callable[[], nn.Module] | nn.Module,
    loader: Iterable[Any],
    optimizer: OptimizerFactory,
    loss_fn: LossFunction | None = None,
    *,
    starts: Sequence[Any] | Mapping[str, Any] | None = None,
    lrs: Sequence[float] | str | bool | None = None,
    steps: int = 100,
    seeds: int = 3,
    more_seeds: int = 6,
    step: OwnStep | None = None,
    clip_grad_norm: float | None = None,
    held_out: int | Iterable[Any] = 10,
    budget: int | None = None,
    workers: int = 1,
    seed: int | None = None,
    progress: Progress = None,
    process_group: ProcessGroup = "auto",
) -> Choice:
    """Find out by short trainings which start is best for a network, and leave it alone where none is clearly better.

    Copies of the network train from several starts, on the same batches in the same order, with the same draws, and are
    judged on batches that none has seen. After a quarter and after half of the steps, the worse half is dropped, but three
    go on to the end, so that none of three or fewer is dropped. The network's own start at its own rate always runs to the
    end. Another one is preferred only if the interval of its paired difference to that, over seeds and batches and
    corrected for the number of starts and rates, is below zero, and its training loss is lower, too
    (:mod:`initopt.choice.judging`). Where none is, and a start has ended lower in every seed, more seeds decide. The
    rate is constant, and falls to zero over the last 40 % of a run.

    Args:
        make_model: a function that makes the network, a new one with other weights in each call: the choice is then for
            networks of its kind. Or the network itself: its own weights are the own start of each seed, and seeds differ in
            the order of batches and in what starts draw. It stays as it is.
        loader: an iterable of batches of training data, as for :func:`initopt.measure`. It is iterated over once, and what
            the race needs of it, ``steps`` batches and those held out, is kept in memory where the loader gives it, 4 GB
            at most; fewer batches are gone through several times, in another order each time.
        optimizer: a function of parameters that makes the optimizer, with the user's own learning rate: such as
            ``functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)``, or a function of (parameters) or (parameters, lr).
            Or the optimizer of the network, if ``make_model`` is a network.
        loss_fn: as for :func:`initopt.measure`.
        starts: what to compare with the network's own start: names of schemes and methods, :class:`initopt.methods.Method`
            objects, functions ``(model, batches, loss_fn) -> None``, lists of these that work one after the other, or a
            dict of all that by name. By default, the scheme that fits the nonlinearities, ``"orthogonal"``, ``"lsuv"``,
            ``"nio"`` and NIO after LSUV; where there is self-attention, ``"mimetic"``; where there are residual branches,
            ``"zero_branches"`` and ``"scaled_branches"``. Schemes that have a gain take that of the nonlinearity after each
            layer.
        lrs: learning rates to try with each start, beside the user's own: a list, or ``"around"`` (or ``True``) for a third
            and three times of it. By default, only the user's own. If ``optimizer`` has none, the first of the list counts
            as the user's own.
        steps: training steps of each run.
        seeds: runs of each start at each rate, 2 or more.
        more_seeds: further runs, where no start is clearly better, of the network's own and of the best two of those that
            end lower in every seed; fewer where a budget does not allow as many, 0 for none.
        step: a training step of the user's own, ``(model, optimizer, batch) -> loss``, in the place of zeroing gradients,
            loss, backward pass and update. Any state of it must be in the model and the optimizer. The rate is left to it.
        clip_grad_norm: bound on the gradient norm in training; none by default.
        held_out: number of batches to judge by, taken evenly from those that are read, a quarter of them at most; or other
            batches, of validation data say: a few, since all of them are looked at each time.
        budget: training steps that the race may cost, with the starts (8 for each step of a method, 1 for a scheme or
            function) and the looks (a third for each batch held out). Runs are made shorter until it is kept, and only
            as many seeds are added as it allows. None by default.
        workers: processes that do the runs; with more than one, everything that is given has to be found by an import path,
            and a script that calls this needs the line ``if __name__ == "__main__":``.
        seed: of all that is drawn; follows from torch's random state if not given.
        progress: whether to show a progress bar; by default, if standard error is a terminal.
        process_group: the processes of ``torch.distributed`` that run the race together, when the call is made on all of
            them, each with its own part of the data: a group; ``"auto"``, that of a ``DistributedDataParallel`` that is
            given as ``make_model``; ``None`` for this process alone. Each run trains as under ``DistributedDataParallel``,
            and all come to the same choice.

    Returns:
        The choice, whose ``str()`` says it all on a screen, and whose ``apply(model)`` gives a network the best start.

    Raises:
        ValueError, TypeError: for arguments that cannot work, before any work; the message says what is allowed.
        LoaderError: if there are too few batches.
        NonFiniteError: if a batch gives no finite loss before any training, for what is in it.
        RankError: if processes that work together differ in weights, options or number of batches, or another one fails.

    >>> import torch, initopt
    >>> from functools import partial
    >>> layers = [layer for _ in range(8) for layer in (nn.Linear(32, 32), nn.ReLU())]
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(*layers, nn.Linear(32, 2))  # whose signals die away
    >>> batches = [(x, (x[:, 0] > 0).long()) for x in torch.randn(40, 32, 32)]
    >>> optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    >>> choice = initopt.choose(model, batches, optimizer, starts=["kaiming_normal"], steps=60, seed=0)
    >>> choice.best.start
    'kaiming_normal'
    >>> choice.apply(model)
    """
    begun = time.perf_counter()
    if not isinstance(make_model, nn.Module) and not callable(make_model):
        raise TypeError(
            f"make_model must be a function that makes the network, or the network; got {type(make_model).__name__}"
        )
    check_batches(loader)
    if not isinstance(held_out, int):
        check_batches(held_out)
    else:
        check_integer("held_out", held_out, 1)
    check_step(step)
    check_optimizer(optimizer, with_rate=lrs is not None)
    if optimizer is None:
        raise TypeError("optimizer is missing: pass functools.partial(torch.optim.AdamW, lr=3e-4), say")
    check_integer("steps", steps, 1)
    check_integer("seeds", seeds, 2)
    check_integer("more_seeds", more_seeds, 0)
    check_integer("workers", workers, 1)
    if budget is not None:
        check_integer("budget", budget, 1)
    if clip_grad_norm is not None:
        check_number("clip_grad_norm", clip_grad_norm, above=0)
        if step is not None:
            raise ValueError("clip_grad_norm is for our training step; clip in step= where that is your own")
    if isinstance(optimizer, torch.optim.Optimizer) and not isinstance(make_model, nn.Module):
        raise TypeError(
            "optimizer is one of a model that is there, and make_model makes new ones; pass what makes their optimizer, "
            "such as functools.partial(torch.optim.AdamW, lr=3e-4)"
        )
    multiples = _checked_rates(lrs)
    given = None if starts is None else as_starts(starts)
    loss = as_loss(loss_fn)
    base = derive_seed(None if seed is None else check_integer("seed", seed, 0))
    refuse_shards(make_model)
    ranks = ranks_of(make_model if isinstance(make_model, nn.Module) else None, process_group)
    if workers > 1 and ranks.size > 1:
        raise ValueError(
            f"workers={workers} has other processes do the runs of one, and here {ranks.size} do each run together; leave "
            "workers out, or choose on one process (process_group=None)"
        )
    make_model = unreplicated(make_model) if isinstance(make_model, nn.Module) else make_model
    make = _Maker(make_model)

    def work(kept: Kept) -> Choice:
        first = ranks.broadcast(base, "the seed")
        numbers = [first + number for number in range(seeds + more_seeds)]
        own = make(numbers[0])
        refuse_shards(own)
        places = None
        if isinstance(make_model, nn.Module):
            places = places_of(p.value for p in trainable_parameters(make_model))
        rates = _rates(optimizer, own, places, multiples, step)
        if ranks.size > 1:
            options = {"rates": rates, "steps": steps, "seeds": seeds, "more_seeds": more_seeds, "budget": budget}
            options |= {"starts": [(each.name, each.describe()) for each in given or []], "step": step}
            options |= {"clip_grad_norm": clip_grad_norm, "held_out": held_out if isinstance(held_out, int) else "batches"}
            compare_calls(ranks, options, loader)
        batches = read_batches(loader, steps, held_out, ranks)
        loss.look_at(batches.training[0])
        if ranks.size == 1:
            refuse_broken(batches, lambda some: losses_on(copied(own), some, loss, first, training=True))
        chosen = given or default_starts(own, batches.training[0], loss_fn, first, ranks)
        plan = plan_race(chosen, len(rates), steps, seeds, len(batches.held_out), budget, step is not None)
        _refuse_beyond_memory(own, len(chosen) * len(rates) * seeds)
        shared = Shared(make, batches, optimizer, places, loss_fn, step, clip_grad_norm, plan.rungs[-1], ranks)
        if workers > 1:
            check_sendable(shared, chosen)
        total = seeds * (len(chosen) + sum(plan.runners[1:]))
        shown = progress if ranks.leads else False
        with Hands(shared, workers) as hands:
            with reporter(shown, "choosing", total) as report:
                entrants = run_race(hands, chosen, rates, numbers[:seeds], plan, report)
            judging = Judging(entrants, looks=2 if more_seeds else 1)
            places_of_close = [entrants.index(entrant) for entrant in judging.close()] if more_seeds else []
            close = [entrants[place] for place in ranks.broadcast(places_of_close, "who is close")]
            more = plan.affordable(close, more_seeds, budget) if close else 0
            if more:
                with reporter(shown, "adding seeds", more * len({e.start.name for e in close})) as report:
                    begin_runs(hands, close, numbers[seeds : seeds + more], plan.rungs[-1], report)
                judging.look_again(close)
        runs = [run for entrant in entrants for run in entrant.runs]
        done = sum(run.course.steps for run in runs)
        step_seconds = sum(run.seconds for run in runs) / done
        rows = judging.rows(step_seconds)
        making = {(e.start.name, run.seed): run.seconds_of_start for e in entrants for run in e.runs}
        looks = sum(map(math.isfinite, (loss for run in runs for losses in run.looks.values() for loss in losses))) / 3
        cost = Cost(done, sum(making.values()) / step_seconds, looks, time.perf_counter() - begun)
        rows, cost = ranks.broadcast((rows, cost), "the rows")  # in which times differ between ranks
        ranks.end()
        return Choice(
            rows,
            best_of(rows),
            cost,
            seeds,
            len(batches.held_out),
            first,
            judging.relative,
            {s.name: s for s in chosen},
            loss_fn,
            batches.training if isinstance(loader, Iterator) else loader,
            ranks.group,
        )

    with ranks.together(), _as_before(loss_fn, step, make_model, loader, held_out):
        return unwritten(make_model if isinstance(make_model, nn.Module) else nn.Identity(), work, loss_fn, loader)


def _checked_rates(lrs: Any) -> list[float] | str | None:
    """Rates as numbers, ``"around"``, or ``None`` for the user's own alone."""
    if lrs is None or lrs is False:
        return None
    if lrs is True or lrs == "around":
        return "around"
    if isinstance(lrs, str) or not isinstance(lrs, Iterable):
        raise ValueError(
            f"lrs must be a list of learning rates, 'around' for a third and three times yours, or None; got {lrs!r}"
        )
    rates = list(lrs)
    for rate in rates:
        check_number("each of lrs", rate, above=0, finite=True)
    if not rates:
        raise ValueError("lrs is empty; give learning rates, 'around', or None for your own alone")
    return [float(rate) for rate in rates]


@dataclass(frozen=True)
class _Maker:
    """Gives a new network with the own start of a seed; of a network that is given, a copy."""

    given: Callable[[], nn.Module] | nn.Module

    def __call__(self, seed: int) -> nn.Module:
        if isinstance(self.given, nn.Module):
            return copied(self.given)
        with seeded(seed, Stream.WEIGHTS):
            made = self.given()
        if not isinstance(made, nn.Module):
            raise TypeError(f"make_model gave {type(made).__name__}; it must give an nn.Module")
        return unreplicated(made)


def _rates(
    optimizer: OptimizerFactory,
    model: nn.Module,
    places: dict[int, int] | None,
    wanted: list[float] | str | None,
    step: OwnStep | None,
) -> list[float]:
    """The learning rates of the race, the user's own first."""
    parameters = [parameter.value for parameter in trainable_parameters(model)]
    own = None
    try:
        check_optimizer(optimizer)
    except TypeError:  # it has no rate of its own
        if not isinstance(wanted, list):
            raise ValueError(
                "optimizer has no learning rate of its own, around which others could be; give a list, lrs=[0.1]"
            ) from None
        own = wanted[0]
    made = make_optimizer(optimizer, parameters, places, own)
    refuse_closure(made, step)
    own = Rates(made).first
    check_number("the learning rate of the optimizer", own, above=0, finite=True)
    others = [own * multiple for multiple in AROUND] if isinstance(wanted, str) else wanted or []
    return list(dict.fromkeys([own, *(rate for rate in others if not math.isclose(rate, own, rel_tol=1e-6))]))


def _refuse_beyond_memory(model: nn.Module, runs: int) -> None:
    """Refuse a race whose networks, with two numbers of the optimizer for each weight, cannot be held side by side."""
    tensors = [*model.parameters(), *model.buffers()]
    needed = 3 * runs * sum(tensor.nbytes for tensor in tensors)
    device = tensors[0].device
    if device.type == "cuda":
        there = torch.cuda.mem_get_info(device)[0]
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        return
    if needed > 0.8 * there:
        raise ValueError(
            f"the race holds {runs} runs side by side, which takes some {needed / 2**30:.3g} GB with their optimizers, and "
            f"{device} has {there / 2**30:.3g} GB; give fewer starts, rates or seeds"
        )


@contextmanager
def _as_before(*reached: Any) -> Iterator[None]:
    """Gradients and generators that the user's functions reach are as before when the block ends."""
    found = Reach.of(*reached)
    gradients = [(p, p.grad) for module in found.modules for p in module.parameters(recurse=False)]
    generators = [OwnGenerator(generator) for generator in found.generators]
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for generator in generators:
            generator.put_back()
