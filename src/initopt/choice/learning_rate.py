"""The learning rates that suit a start, found by training from it for a few steps at many of them."""

from __future__ import annotations

import functools
import inspect
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from initopt._support.checks import accepting, check_integer, check_number
from initopt._support.errors import LoaderError, NonFiniteError
from initopt._support.progress import Progress, counter
from initopt.batches.stream import check_batches
from initopt.choice.batches import Batches, first_batches, refuse_broken
from initopt.choice.rate_result import LearningRates
from initopt.choice.rate_runs import Plan
from initopt.choice.rate_search import Search
from initopt.choice.starts import refuse_parts_of_others
from initopt.model.group import ranks_of
from initopt.model.losses import Loss, LossFunction, as_loss
from initopt.model.parameters import trainable_parameters
from initopt.model.preserve import Kept, preserving, put_values
from initopt.model.randomness import derive_seed
from initopt.model.ranks import ProcessGroup, Ranks
from initopt.model.shard_passes import ShardPasses, staying_sharded
from initopt.model.sharded import has_shards, own_class
from initopt.model.wrappers import unreplicated
from initopt.runs.shared import compare_calls, compare_weights
from initopt.training.looks import losses_on
from initopt.training.optimizers import OptimizerFactory, Rates, check_optimizer, make_optimizer, takes_rate
from initopt.training.replica import Replica
from initopt.training.steps import Course, OwnStep, check_step, only_own_gradients, refuse_closure, train_steps

__all__ = ["find_lr"]

_LOWEST, _HIGHEST = 1e-6, 10.0
"""The range by default; wider where it does not reach four decades below the user's rate, and two above."""

_RECORDED = 2
"""Steps of the first run in which is watched what a step writes to, beside buffers and parameters that train."""


@accepting()
def find_lr(
    model: nn.Module,
    loader: Iterable[Any],
    optimizer: OptimizerFactory,
    loss_fn: LossFunction | None = None,
    *,
    seeds: int = 3,
    steps: int = 50,
    sweep_steps: int = 100,
    warmup_steps: int = 20,
    min_lr: float | None = None,
    max_lr: float | None = None,
    precision: float = 1.1,
    num_batches: int | None = None,
    budget: int = 3000,
    step: OwnStep | None = None,
    seed: int | None = None,
    progress: Progress = None,
    process_group: ProcessGroup = "auto",
) -> LearningRates:
    """Find the learning rates that suit the start of a network: the best, the largest stable, and for a warm-up.

    A range test for each seed, in which the rate rises from step to step, shows where to look. The answer comes from runs
    of ``steps`` steps at *one* rate, each from the start: every seed has an order of batches and draws of its own, the same
    at all rates, and losses are compared with those of the start on the same batches. The largest stable rate is found by
    bisection, and rates beyond it are tried with and without a warm-up.

    Args:
        model: the model; afterwards it is as it was, also after an exception. It is trained in the modes that it has, or in
            training mode if it is not.
        loader: an iterable of batches, as for :func:`initopt.measure`; the first ``num_batches`` are kept in memory, up to
            4 GB.
        optimizer: a function of parameters and a learning rate, such as ``functools.partial(torch.optim.SGD, lr=0.1,
            momentum=0.9)`` or ``lambda parameters, lr: ...``; or an optimizer of the model, which is left alone. With
            several parameter groups, all rates are multiplied by the same number, and the rate is that of the first group.
            A rate that the optimizer comes with is the user's own, and is tried, too.
        loss_fn: as for :func:`initopt.measure`.
        seeds: number of orders of batches.
        steps: training steps of a run at one rate, 5 or more. Longer runs favour lower rates.
        sweep_steps: steps of a range test, 20 or more.
        warmup_steps: steps of a linear warm-up, out of ``steps``; 0 to try none.
        min_lr: the lowest rate; by default 1e-6, or a ten-thousandth of the user's own.
        max_lr: the highest rate; by default 10, or a hundred times the user's own.
        precision: factor, above 1.01, within which the largest stable rate is found.
        num_batches: most batches to read; by default, as many as a range test has steps. Fewer are gone through again.
        budget: training steps that the search may cost; what they are not enough for is left out, and named in the result.
        step: an own training step, a function of (model, optimizer, batch) that returns the loss, in the place of loss,
            backward pass and update: for clipping, mixed precision, several losses.
        seed: base of the seeds; follows from torch's random state if not given.
        progress: whether to show a progress bar; by default, if standard error is a terminal.
        process_group: the processes of ``torch.distributed`` that train together, when the call is made on all of them,
            each with its own part of the data: a group; ``"auto"``, that of a ``DistributedDataParallel``; ``None`` for
            this process alone. The steps are those of ``DistributedDataParallel``, and all find the same rates.

    Returns:
        The rates that were found, whose ``str()`` fits on a screen.

    Raises:
        ValueError, TypeError: for arguments that cannot work; the message says what is allowed.
        LoaderError: if there is no batch.
        NonFiniteError: if the loss of the start is not finite.
        RankError: if processes that work together differ in weights, options or number of batches, or another one fails.

    >>> import functools, torch, initopt
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Linear(4, 1, bias=False)  # whose loss is a quadratic function of its weight
    >>> inputs = torch.randn(64, 4) * torch.tensor([2.0, 1.0, 1.0, 0.5])
    >>> batches = [(inputs, inputs @ torch.ones(4, 1))]
    >>> sgd = functools.partial(torch.optim.SGD, lr=0.01)
    >>> found = initopt.find_lr(model, batches, sgd, torch.nn.MSELoss(), seeds=1, precision=1.02, warmup_steps=0, seed=0)
    >>> largest = 2 / torch.linalg.eigvalsh(2 * inputs.T @ inputs / 64)[-1]
    >>> 0.95 < found.largest_stable / largest < 1.01
    tensor(True)
    """
    plain = {
        "seeds": check_integer("seeds", seeds, 1),
        "steps": check_integer("steps", steps, 5),
        "sweep_steps": check_integer("sweep_steps", sweep_steps, 20),
        "warmup_steps": check_integer("warmup_steps", warmup_steps, 0),
        "num_batches": None if num_batches is None else check_integer("num_batches", num_batches, 1),
        "budget": check_integer("budget", budget, 1),
    }
    if warmup_steps >= steps:
        raise ValueError(
            f"warmup_steps must be fewer than steps={steps}, which they are a part of; got {warmup_steps}. Try "
            f"steps={3 * warmup_steps}"
        )
    check_number("precision", precision, above=1.01, finite=True)
    check_batches(loader)
    check_step(step)
    _check_optimizer(optimizer)
    ranks, model = ranks_of(model, process_group), unreplicated(model)
    refuse_parts_of_others(model, ranks)
    parameters = [parameter.value for parameter in trainable_parameters(model)]
    loss = as_loss(loss_fn)
    name, own = _look_at(optimizer, parameters, step)
    low, high = _range(min_lr, max_lr, own)
    base = derive_seed(None if seed is None else check_integer("seed", seed, 0))
    plan = Plan(
        seeds=tuple(range(base, base + seeds)),
        steps=steps,
        sweep_steps=sweep_steps,
        warmup_steps=warmup_steps,
        min_lr=low,
        max_lr=high,
        precision=precision,
        budget=budget,
        own=own,
    )
    if budget < plan.least:
        raise ValueError(
            f"budget must be {plan.least} training steps or more for seeds={seeds}, steps={steps} and "
            f"sweep_steps={sweep_steps}; got {budget}. Fewer seeds or shorter runs need less"
        )
    most = plain["num_batches"] or max(steps, sweep_steps)

    def work(kept: Kept) -> LearningRates:
        begun = time.perf_counter()
        compare_calls(ranks, vars(plan) | {"seeds": seeds, "num_batches": most, "optimizer": name}, loader)
        compare_weights(ranks, model)
        shared = replace(plan, seeds=ranks.broadcast(plan.seeds, "the seeds"))
        batches = _read(loader, most, ranks)
        if passes is not None:
            passes.refuse_others(batches.training)
        runs = _Runs(model, kept, parameters, optimizer, loss, step, batches, ranks)
        if ranks.size == 1:
            refuse_broken(batches, lambda some: runs.before_training(some, shared.seeds[0]))
        with counter(progress if ranks.leads else False, "training steps") as count:
            search = Search(runs, shared, lambda doing, done: count(done, budget))
            try:
                search.run()
            finally:
                put_values(kept.originals)
        seconds = ranks.broadcast(time.perf_counter() - begun, "the time")
        ranks.end()
        return _result(search, shared, own_class(model).__name__, name, seconds)

    with ranks.together(), ExitStack() as stack:
        passes: ShardPasses | None = None
        if has_shards(model):
            passes = stack.enter_context(staying_sharded(model, ranks, "it is trained as it is", (loss_fn, step)))
        return preserving(model, work, (loss_fn, step), loader)


def _check_optimizer(optimizer: Any) -> None:
    if optimizer is None:
        raise TypeError("find_lr needs the optimizer: pass functools.partial(torch.optim.AdamW, lr=3e-4), say")
    check_optimizer(optimizer, with_rate=True)


def _look_at(optimizer: OptimizerFactory, parameters: Sequence[Tensor], step: OwnStep | None) -> tuple[str, float | None]:
    """The name of the class, and the user's rate, if there is one.

    Raises:
        ValueError: if its rate is zero, or its step needs a closure.
    """
    with_own = isinstance(optimizer, torch.optim.Optimizer) or not takes_rate(optimizer)
    made = make_optimizer(optimizer, parameters, lr=None if with_own else 0.001)
    refuse_closure(made, step)
    rate = float(made.param_groups[0]["lr"])
    if rate <= 0:
        raise ValueError(
            f"optimizer has a learning rate of {rate:g}, which no factor changes (schedulers that warm up begin there); "
            "pass functools.partial of its class, or make it without the scheduler"
        )
    return type(made).__name__, rate if with_own else _given_rate(optimizer)


def _given_rate(optimizer: Any) -> float | None:
    """The rate that a function is bound to or has by default; the default of a class is not the user's."""
    while isinstance(optimizer, functools.partial):
        if "lr" in optimizer.keywords:
            return float(optimizer.keywords["lr"])
        optimizer = optimizer.func
    if isinstance(optimizer, type):
        return None
    parameter = inspect.signature(optimizer).parameters.get("lr")
    return None if parameter is None or parameter.default in (parameter.empty, None) else float(parameter.default)


def _range(min_lr: float | None, max_lr: float | None, own: float | None) -> tuple[float, float]:
    for name, value in {"min_lr": min_lr, "max_lr": max_lr}.items():
        if value is not None:
            check_number(name, value, above=0, finite=True)
    own_low, own_high = (own / 1e4, own * 100) if own else (_LOWEST, _HIGHEST)
    low = min_lr if min_lr is not None else min(_LOWEST, own_low, max_lr / 1e4 if max_lr is not None else _LOWEST)
    high = max_lr if max_lr is not None else max(_HIGHEST, own_high, low * 1e4)
    if not low * 10 <= high:
        raise ValueError(f"max_lr must be ten times min_lr or more, for a range; got min_lr={low:g} and max_lr={high:g}")
    return float(low), float(high)


def _read(loader: Iterable[Any], most: int, ranks: Ranks) -> Batches:
    found = first_batches(loader, most, ranks)
    if not found:
        raise LoaderError("loader is empty: iterating over it gave no batch, and at least one is needed")
    return Batches(found, held_out=[])


class _Runs:
    """Runs of a model from its start, in place."""

    def __init__(
        self,
        model: nn.Module,
        kept: Kept,
        parameters: Sequence[Tensor],
        optimizer: OptimizerFactory,
        loss: Loss,
        own: OwnStep | None,
        batches: Batches,
        ranks: Ranks,
    ) -> None:
        self._model, self._kept, self._parameters, self._batches = model, kept, parameters, batches
        self._optimizer, self._loss, self._own, self._ranks = optimizer, loss, own, ranks
        self._recorded = False

    def __call__(self, seed: int, rates: Sequence[float], hopeless: Callable[[int, float], bool]) -> list[float]:
        put_values(self._kept.originals)
        if not self._model.training:
            self._model.train()
        optimizer = make_optimizer(self._optimizer, self._parameters, lr=rates[-1])
        groups = Rates(optimizer)
        # The backward pass of fully_shard is one of Tensor.backward; what else that reaches is put back.
        backward = torch.Tensor.backward if has_shards(self._model) else only_own_gradients(optimizer)
        trainer = Replica(self._model, optimizer, self._loss, self._own, backward, ranks=self._ranks)
        course = Course()

        def wanted(most: int) -> Iterator[Any]:
            for batch in itertools.islice(self._batches.order(seed), course.steps, most):
                if course.losses and hopeless(course.steps - 1, course.losses[-1]):
                    return
                yield batch

        def go_on(most: int) -> None:
            train_steps(trainer, wanted(most), seed, course, lambda number: groups.scale(rates[number] / rates[-1]))

        try:
            if not self._recorded:
                with self._kept.state.recording():
                    go_on(_RECORDED)
                self._recorded = True
                self._refuse_broken(course)
            go_on(len(rates))
            if not course.diverged:
                trainer.refuse_apart()
        finally:
            for parameter in self._model.parameters():
                parameter.grad = None
            self._kept.state.put_back()
        return course.losses

    def before_training(self, batches: list[Any], seed: int) -> list[float]:
        """The losses of the start on some batches, in training mode."""
        try:
            with self._kept.state.recording():
                return losses_on(self._model, batches, self._loss, seed, training=True)
        finally:
            self._kept.state.put_back()

    def _refuse_broken(self, course: Course) -> None:
        if course.diverged:
            raise NonFiniteError(
                f"the loss of the start is {course.losses[-1]}, so that no learning rate can help; "
                "initopt.diagnose(model, loader) says where that comes from"
            )


def _result(search: Search, plan: Plan, model: str, optimizer: str, seconds: float) -> LearningRates:
    suggested, interval, why = search.suggestion()
    return LearningRates(
        model=model,
        optimizer=optimizer,
        suggested=suggested,
        interval=interval,
        why=why,
        largest_stable=search.largest_stable,
        unstable_at=search.unstable_at,
        own=plan.own,
        start_loss=search.start.mean,
        start_noise=search.start.noise,
        steps=plan.steps,
        seeds=plan.seeds,
        sweeps=tuple(search.sweeps),
        runs=tuple(search.known),
        warmup=search.warmup,
        steps_spent=search.spent,
        budget=plan.budget,
        undone=tuple(search.undone),
        seconds=seconds,
    )
