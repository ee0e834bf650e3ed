"""One run of a race: a start is made, trained from for some steps, and looked at; here, or in another process."""

from __future__ import annotations

import io
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from initopt._support.errors import InitoptWarning, warn
from initopt._support.words import counted
from initopt.choice.batches import Batches
from initopt.choice.starts import copied, make_start
from initopt.comparison.running.workers import Workers
from initopt.comparison.spec.initialization import Initialization
from initopt.model.losses import LossFunction, as_loss
from initopt.model.parameters import trainable_parameters
from initopt.model.ranks import Alone, Ranks
from initopt.runs.shared import compare_weights
from initopt.training.looks import losses_on
from initopt.training.optimizers import OptimizerFactory, Rates, make_optimizer
from initopt.training.replica import Replica
from initopt.training.steps import Course, OwnStep, clipping, last_fifth, train_steps

__all__ = ["NOTHING", "Begun", "Hands", "Run", "Shared", "check_sendable", "looks_at_the_end"]

COOL_DOWN = 0.4
"""The share of a run, at its end, in which the rate falls to zero in a straight line: at a constant rate, where a run ends
depends on its last few batches, and a start that only wants a lower rate looks no better than one that does not train."""

NOTHING = "it changes nothing in this network"
"""Why a start does not run that leaves the network as it is, such as a scheme for layers that it does not have."""

LAST_FIFTH = 0.8
"""The share of a run after which its looks count: those of its last fifth."""


def looks_at_the_end(steps: int, own_step: bool) -> set[int]:
    """After which steps of a run its last looks are: after a user's own step, which does not cool down, there are three."""
    return {steps, *(math.ceil(share * steps) for share in (LAST_FIFTH, 0.9) if own_step)}


@dataclass
class Run:
    """A training from a start, at a rate, with a seed.

    Attributes:
        seed: of all that is drawn.
        trainer: goes on with it; ``None`` when it is over.
        course: of its training losses.
        looks: losses on each batch held out, by the number of training steps before.
        seconds: of its training steps.
        seconds_of_start: that making its start took, for all runs from it.
    """

    seed: int
    trainer: Replica | None
    course: Course = field(default_factory=Course)
    looks: dict[int, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    seconds_of_start: float = 0.0

    def final(self) -> list[float]:
        """Losses on each batch held out, the mean of the looks of the last fifth of training; infinite if it diverged."""
        last = max(self.looks)
        chosen = [losses for number, losses in self.looks.items() if number >= LAST_FIFTH * last]
        return [math.inf if self.course.diverged else fmean(losses) for losses in zip(*chosen, strict=True)]

    def training_loss(self) -> float:
        """The mean over the last fifth of the steps; infinite if it diverged."""
        return math.inf if self.course.diverged or not self.course.losses else fmean(last_fifth(self.course.losses))


@dataclass
class Begun:
    """A start made with a seed, and the runs from it.

    Attributes:
        runs: one for each rate; none if the start could not be made.
        failure: why there are none: :data:`NOTHING`, or an error; ``""`` if there are.
    """

    runs: list[Run] = field(default_factory=list)
    failure: str = ""


@dataclass(frozen=True)
class Shared:
    """The parts that all runs of a race share.

    Attributes:
        make_model: gives a new model for a seed, with its own start.
        batches: which all of them see, in the same order for the same seed.
        optimizer: what makes the optimizer.
        places: where an optimizer that is given as such has which parameter.
        loss_fn: the user's.
        step: a training step of the user's own.
        clip_grad_norm: bound on the gradient norm in training.
        end: training steps of a run that comes to the end.
        ranks: the processes that do each run together, all with their own batches.
    """

    make_model: Callable[[int], nn.Module]
    batches: Batches
    optimizer: OptimizerFactory
    places: dict[int, int] | None
    loss_fn: LossFunction | None
    step: OwnStep | None
    clip_grad_norm: float | None
    end: int
    ranks: Ranks = field(default_factory=Alone)
    _own: dict[int, nn.Module] = field(default_factory=dict, init=False, repr=False)
    """The network of the present seed."""

    def begin(self, seed: int, start: Initialization, rates: Sequence[float], rung: int) -> Begun:
        """Make a start, and train from it up to the first rung at each rate."""
        if seed not in self._own:
            self._own.clear()
            self._own[seed] = self.make_model(seed)
            compare_weights(self.ranks, self._own[seed])
        model = copied(self._own[seed])
        begun = time.perf_counter()

        def make() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", InitoptWarning)
                make_start(model, start, self.batches.training, self.loss_fn, seed, self.ranks)

        _, failure = self.ranks.attempt_together(make, f"the start {start.name}")
        if failure:  # whatever a start does not bear: the race goes on without it
            return Begun(failure=failure.partition("\n")[0])
        if start.steps and _equal(*(itertools.chain(m.parameters(), m.buffers()) for m in (model, self._own[seed]))):
            return Begun(failure=NOTHING)
        seconds = time.perf_counter() - begun if start.steps else 0.0
        models = [*(copied(model) for _ in rates[1:]), model]
        made = zip(models, rates, strict=True)
        runs = [self.go_on(Run(seed, self._trainer(mine, lr), seconds_of_start=seconds), rung) for mine, lr in made]
        if self.step is not None and not start.steps and _equal(models[0].parameters(), self._own[seed].parameters()):
            warn(
                "step= has changed no parameter of the network that it was given, in "
                f"{counted(runs[0].course.steps, 'step')}: does it train another network, or with another optimizer "
                "than its arguments?"
            )
        return Begun(runs)

    def _trainer(self, model: nn.Module, lr: float) -> Replica:
        if not model.training:
            model.train()
        parameters: list[Tensor] = [parameter.value for parameter in trainable_parameters(model)]
        optimizer = make_optimizer(self.optimizer, parameters, self.places, lr)
        clip = clipping(optimizer, self.clip_grad_norm)
        return Replica(model, optimizer, as_loss(self.loss_fn), own=self.step, clip=clip, ranks=self.ranks)

    def go_on(self, run: Run, rung: int) -> Run:
        """Train up to a rung, and look."""
        trainer, course = run.trainer, run.course
        assert trainer is not None
        rates = Rates(trainer.optimizer) if self.step is None else None
        looks = looks_at_the_end(rung, rates is None) if rung == self.end else {rung}

        def before(step: int) -> None:
            if rates is not None:
                rates.scale(min(1.0, (self.end - step) / (COOL_DOWN * self.end)))

        for stop in sorted(looks):
            if stop <= course.steps or course.diverged:
                continue
            begun = time.perf_counter()
            train_steps(trainer, islice(self.batches.order(run.seed), course.steps, stop), run.seed, course, before)
            run.seconds += time.perf_counter() - begun
            losses = [math.inf] * len(self.batches.held_out)
            if not course.diverged:
                trainer.share_buffers()
                losses = trainer.mean_of(losses_on(trainer.model, self.batches.held_out, trainer.loss, run.seed))
                if not all(map(math.isfinite, losses)):
                    course.diverged = f"the loss on batches held out is {fmean(losses)} after step {course.steps}"
            run.looks[course.steps] = losses
        if not course.diverged:
            trainer.refuse_apart()
        if rung == self.end and not course.diverged:
            course.end()
        if trainer.own is None:
            trainer.optimizer.zero_grad()  # whose memory the others need
        if rung == self.end or course.diverged:
            run.trainer = None
        return run


def _equal(own: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    """Whether tensors of two models of one kind are the same, bit for bit."""
    return all(map(torch.equal, own, others))


def _packed(value: Any) -> bytes:
    """As bytes of its own: what is sent otherwise shares memory with a process that may end."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpacked(packed: bytes) -> Any:
    return torch.load(io.BytesIO(packed), weights_only=False)  # from a process of our own


def check_sendable(shared: Shared, starts: Iterable[Initialization]) -> None:
    """Refuse what cannot be sent to another process.

    Raises:
        ValueError: the message says what it is.
    """
    if isinstance(shared.optimizer, torch.optim.Optimizer):
        raise ValueError(
            "an optimizer that is there cannot be sent to other processes with its model; pass what makes it, such as "
            "functools.partial(torch.optim.SGD, lr=0.1), or use workers=1"
        )
    parts: dict[str, Any] = {name: getattr(shared, name) for name in ("make_model", "optimizer", "loss_fn", "step")}
    for name, value in (parts | {f"start {start.name!r}": start for start in starts}).items():
        try:
            _packed(value)
        except Exception as error:  # pickling calls code of all kinds
            raise ValueError(
                f"{name} cannot be sent to other processes ({error}); define it at the top level of a module and bind "
                "arguments with functools.partial, or use workers=1"
            ) from None


class Hands:
    """The processes that do the runs: this one, or several others.

    Args:
        shared: the parts that all runs share.
        workers: how many processes; 1 for this one alone.
    """

    def __init__(self, shared: Shared, workers: int) -> None:
        self._shared, self._stack = shared, ExitStack()
        self._workers = workers

    def __enter__(self) -> Hands:
        self._others: Workers | None = None
        if self._workers > 1:
            threads = max(1, torch.get_num_threads() // self._workers)
            self._others = self._stack.enter_context(Workers(self._workers, _enter, _packed(self._shared), threads))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def do(self, what: str, calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Call a method of :class:`Shared` several times; the results come in the order of the calls."""
        if self._others is None:
            for arguments in calls:
                yield getattr(self._shared, what)(*arguments)
            return
        futures = [self._others.submit(_do, what, _packed(arguments)) for arguments in calls]
        for future in futures:
            yield _unpacked(future.result())


_SHARED: list[Shared] = []
"""The parts that the runs of this process share, if it is one of several."""


def _enter(shared: bytes, threads: int, number: int) -> None:
    torch.set_num_threads(threads)
    _SHARED[:] = [_unpacked(shared)]


def _do(what: str, arguments: bytes) -> bytes:
    return _packed(getattr(_SHARED[0], what)(*_unpacked(arguments)))
