"""One run of a method on one model: begun or resumed, its steps, its measurements."""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from initopt._version import __version__
from initopt.checkpoint import Checkpoint, loader_generators
from initopt.engines import create_engine
from initopt.engines.first_batch import examine
from initopt.identity import fingerprint, identify
from initopt.losses import LossFunction
from initopt.measure import measure_batches
from initopt.measurement import Measurement
from initopt.methods import Method, MethodRun
from initopt.modes import measuring
from initopt.parameters import trainable_parameters
from initopt.preserve import Kept, Originals, inner_work, put_values
from initopt.problem import Problem
from initopt.progress import Progress, reporter
from initopt.randomness import RandomState, derive_seed
from initopt.records import Record, steps_taken
from initopt.result import Result
from initopt.schemes import apply_
from initopt.storage import plain, unplain
from initopt.stream import BatchStream
from initopt.where import located, warn

__all__ = ["Callback", "Run", "Settings"]

Callback = Callable[[Record], object]
"""Is called with each record when its step is done."""


@dataclass(frozen=True)
class Settings:
    """What is the same for all methods; see :func:`initopt.optimize`."""

    measure_steps: int
    seed: int | None
    progress: Progress
    callbacks: tuple[Callback, ...]
    checkpoint: Path | None
    checkpoint_every: int


class Run:
    """A run within :func:`initopt.preserve.preserving`.

    Args:
        model: the model.
        batches: the user's batches.
        loss_fn: the user's loss.
        method: what to run.
        settings: and how.
        kept: the trainable parameters with a copy of their values (a run that is resumed has its own), and the guard of
            all else.

    Raises:
        MismatchError: if the checkpoint is that of another run.
        ValueError: if it is no checkpoint, or is beyond the end of this run.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        loss_fn: LossFunction | None,
        method: Method,
        settings: Settings,
        kept: Kept,
    ) -> None:
        self._begun = time.perf_counter()
        self._model, self._method, self._settings = model, method, settings
        self._originals = kept.originals
        self._names = {p.value: p.name for p in trainable_parameters(model)}
        previous = self._previous = _read(settings.checkpoint)
        generators = loader_generators(batches)
        self._randomness = RandomState.now()
        self._generators = {name: generator.get_state() for name, generator in generators.items()}
        self._seed = derive_seed(settings.seed) if previous is None else previous.seed
        self._problem = Problem.create(
            model,
            loss_fn,
            num_subbatches=method.num_subbatches,
            overlap=method.overlap,
            split=method.split,
            batch_norm=method.batch_norm,
            grad_params=method.grad_params,
            scale_params=method.scale_params,
            seed=self._seed,
            microbatch=method.microbatch,
            memory_budget=method.memory_budget,
            state=kept.state,
        )
        others = {"measure_steps": settings.measure_steps, "seed": settings.seed}
        self._identity: dict[str, Any] = {}
        if settings.checkpoint is not None:
            self._identity = identify(method, loss_fn, self._problem, others, generators)
        if previous is not None:
            previous.refuse_unless_same(self._identity)
            self._originals = self._stored_weights(previous)
            self._randomness, self._generators = previous.randomness, previous.generators
            self._randomness.put_back()
            for name, generator in generators.items():
                generator.set_state(self._generators[name])
        self._engine = create_engine(method.engine, self._problem)
        self._history: list[Record] = []
        if previous is not None:
            self._history = list(previous.history)
            self._begun -= previous.seconds
            self._engine.load_state(previous.engine)
        self._loss_fn = loss_fn
        self._first_batch = ""
        self._at_work: MethodRun
        taken, left = method.batches_taken(self._history), method.steps - steps_taken(self._history)
        self._stream = BatchStream(
            batches,
            taken + left * method.batches_per_step,
            settings.measure_steps,
            skip=taken,
            on_first=self._begin,
        )

    def result(self) -> Result:
        """Do all of it."""
        with measuring(self._model, self._method.train_mode):
            self._take_steps()
            before, after = self._measure()
        options = {field.name: getattr(self._method, field.name) for field in fields(self._method)}
        options |= {"measure_steps": self._settings.measure_steps, "seed": self._seed}
        return Result(
            method=self._method.name,
            options=unplain(plain(options)),  # functions by their name
            history=self._history,
            scales=self._at_work.scales(),
            before=before,
            after=after,
            seconds=self._seconds(),
            engine=self._engine.name,
            engine_reason=self._engine.reason,
            weights={name: parameter.detach().to("cpu", copy=True) for parameter, name in self._names.items()},
            versions={"initopt": __version__, "torch": torch.__version__, "python": platform.python_version()},
        )

    def _seconds(self) -> float:
        return time.perf_counter() - self._begun

    def _stored_weights(self, previous: Checkpoint) -> Originals:
        """The original weights of the run that is resumed, in the place of the model's own."""
        path, done, steps = self._settings.checkpoint, steps_taken(previous.history), self._method.steps
        stored = {p: previous.start[self._names[p]].to(value.device) for p, value in self._originals.items()}
        same = all(torch.equal(stored[parameter], value) for parameter, value in self._originals.items())
        if done > steps:
            raise ValueError(f"the checkpoint {path} is at step {done}, beyond steps={steps}; remove it")
        if not same and done == steps:
            raise ValueError(
                f"the checkpoint {path} holds a finished run that began from other weights than the model has; remove it, "
                "or choose another path for each run"
            )
        if not same:
            warn(
                f"going on from the checkpoint {path}, which began from other weights than the model has and replaces them"
            )
        return stored

    def _begin(self, batch: Any) -> None:
        """Put the method to work, the first batch being there."""
        if self._settings.checkpoint is not None:
            self._first_batch = fingerprint(batch)
        if self._previous is not None:
            self._previous.refuse_unless_first(self._first_batch)
        start = self._originals
        if self._method.scheme is not None:
            put_values(self._originals)
            with inner_work():
                apply_(self._model, self._method.scheme, batch, self._loss_fn, seed=self._seed)
            start = {p: p.detach().clone() for p in self._originals}
        if self._previous is None:
            doubts = examine(self._problem, batch, self._method.differentiates)
            if doubts is not None:
                self._engine.distrust(doubts)
        self._at_work = self._method.start(self._problem, self._engine, start)
        if self._previous is not None:
            self._at_work.load_state(self._previous.state)
        else:
            self._save()  # all checks are done; a path that cannot be written is found out now

    def _save(self) -> None:
        if self._settings.checkpoint is None:
            return
        Checkpoint(
            identity=self._identity,
            first_batch=self._first_batch,
            seed=self._seed,
            seconds=self._seconds(),
            history=self._history,
            start={self._names[parameter]: value for parameter, value in self._originals.items()},
            state=self._at_work.state(),
            engine=self._engine.state(),
            randomness=self._randomness,
            generators=self._generators,
        ).write(self._settings.checkpoint)

    def _take_steps(self) -> None:
        done, steps = steps_taken(self._history), self._method.steps
        stream = iter(self._stream)
        # Reading a batch begins the run; one that is finished has none, but passes over those of its steps.
        batches = itertools.chain([next(stream)] if done < steps else list(stream), stream)
        with reporter(self._settings.progress, self._method.name, steps, done) as report:
            for number in range(done, steps):
                records = self._take_step(number, batches)
                report(records[-1].summary())
                for record in records:
                    for callback in self._settings.callbacks:
                        callback(record)

    def _take_step(self, number: int, batches: Iterator[Any]) -> Sequence[Record]:
        with located(f"step {number}"):
            records = self._at_work.step(number, batches)
        self._history += records
        if (number + 1) % self._settings.checkpoint_every == 0 or number + 1 == self._method.steps:
            self._save()
        return records

    def _measure(self) -> tuple[Measurement | None, Measurement | None]:
        """Measure with the original and with the new weights on the batches held back.

        Both at the end: a stream has no other batches to give at the start. A failure costs the measurements, with a
        warning, and not the steps.
        """
        if self._settings.measure_steps == 0:
            return None, None
        engine = create_engine(self._method.engine, replace(self._problem, overlap=0.0))
        engine.load_state(self._engine.state())  # the one that it has gone over to, if it has
        held = self._stream.held
        try:
            with reporter(self._settings.progress, "measuring", 2 * len(held)) as report:
                with _weights_as(self._originals), located("the measurement with the original weights"):
                    before = measure_batches(engine, held, report)
                with located("the measurement with the new weights"):
                    return before, measure_batches(engine, held, report)
        except Exception as error:  # one bad batch, or one line of the user's, is not to cost the steps
            notes = " ".join(getattr(error, "__notes__", []))
            warn(
                f"initopt: all steps of {self._method.name} are done, but the batches held back could not be measured, so "
                f"the result has no before and after ({type(error).__name__}: {error} {notes})"
            )
            return None, None


def _read(path: Path | None) -> Checkpoint | None:
    """The checkpoint, if there is one of a run that has made a step."""
    if path is None or not path.exists():
        return None
    previous = Checkpoint.read(path)
    return previous if previous.history else None


@contextmanager
def _weights_as(values: Originals) -> Iterator[None]:
    """Other values in the parameters, until the block ends."""
    present = {parameter: parameter.detach().clone() for parameter in values}
    put_values(values)
    try:
        yield
    finally:
        put_values(present)
