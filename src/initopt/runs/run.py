"""One run of a method on one model: begun or resumed, its steps, its measurements."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from initopt._support.errors import HarmError, NonFiniteError, TrainedModelError, ZeroGradientError, located, warn
from initopt._support.files import plain, unplain
from initopt._support.progress import Progress, reporter
from initopt._support.workshop import clear_leftovers
from initopt._version import __version__
from initopt.batches.stream import BatchStream
from initopt.batches.subbatches import Windows
from initopt.engines import create_engine
from initopt.engines.first_batch import examine
from initopt.engines.gradients import subbatch_gradients
from initopt.gram.measurement import Measurement
from initopt.methods import Method, MethodRun
from initopt.methods.records import Record, steps_taken
from initopt.model.losses import LossFunction
from initopt.model.modes import measuring
from initopt.model.outputs import mismatched_loss
from initopt.model.parameters import trainable_parameters
from initopt.model.preserve import Kept, Originals, inner_work, put_values
from initopt.model.problem import Problem
from initopt.model.randomness import RandomState, derive_seed
from initopt.runs.checkpoint import Checkpoint, fingerprint, going_on_from, identify, loader_generators
from initopt.runs.measuring import measure_batches
from initopt.runs.result import Result
from initopt.runs.verdict import TRAINED, OnHarm, Verdict, judge
from initopt.schemes import apply_

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
    on_harm: OnHarm = "restore"
    allow_trained: bool = False


class Run:
    """A run within :func:`initopt.model.preserve.preserving`.

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
            with going_on_from(self._path):
                for name, generator in generators.items():
                    generator.set_state(self._generators[name])
        self._engine = create_engine(method.engine, self._problem)
        self._history: list[Record] = []
        if previous is not None:
            self._history = list(previous.history)
            self._begun -= previous.seconds
            with going_on_from(self._path):
                self._engine.load_state(previous.engine)
        self._loss_fn = loss_fn
        self._first_batch = ""
        self._broken = ""  # what failed with the new weights
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
            verdict, scales, tried = self._settle_on(before, after)
            step_seconds = None if before is None else self._training_step_seconds()
        options = {field.name: getattr(self._method, field.name) for field in fields(self._method)}
        options |= {"measure_steps": self._settings.measure_steps, "seed": self._seed}
        return Result(
            method=self._method.name,
            options=unplain(plain(options)),  # functions by their name
            history=self._history,
            scales=scales,
            before=before,
            after=after,
            seconds=self._seconds(),
            engine=self._engine.name,
            engine_reason=self._engine.reason,
            weights={name: parameter.detach().to("cpu", copy=True) for parameter, name in self._names.items()},
            versions={"initopt": __version__, "torch": torch.__version__, "python": platform.python_version()},
            verdict=verdict,
            tried_scales=tried,
            left_alone=self._at_work.left_alone(),
            training_step_seconds=step_seconds,
        )

    def _settle_on(
        self, before: Measurement | None, after: Measurement | None
    ) -> tuple[str, dict[str, float], dict[str, float] | None]:
        """The verdict, the scales that the weights have in the end, and the ones that were tried and given up."""
        scales = self._at_work.scales()
        if before is None:
            why = "no batch was held back to measure on" if not self._stream.held else "the batches held back failed"
            return f"not judged: {why}", scales, None
        work = self._at_work
        changed = self._method.scheme is not None or any(scale != 1 for scale in scales.values())
        if after is None:
            found = Verdict("harmed", f"what was fine with the old weights is not with the new ones: {self._broken}")
        else:
            found = judge(before, after, work.harm(before, after), work.gain(before, after), changed)
        if found.word in ("improved", "applied") or not changed:
            return f"{found.word}: {found.why}", scales, None
        harmed = found.word == "harmed"
        message = f"{self._method.name}: {found.why}"
        if harmed and self._settings.on_harm == "raise":
            raise HarmError(f"{message}; the weights are as before. {_INSTEAD}")
        if self._settings.on_harm == "warn":
            if harmed:
                warn(f"initopt: {message}. The new weights are kept, since on_harm='warn'. {_INSTEAD}")
                return f"harmed: {found.why}", scales, None
            return f"not improved: {found.why}", scales, None
        put_values(self._originals)
        if harmed:
            warn(f"initopt: {message}, so the weights are as before. {_INSTEAD}")
        word = "restored" if harmed else found.word
        return f"{word}: {found.why}", dict.fromkeys(scales, 1.0), scales

    def _training_step_seconds(self) -> float | None:
        """Time of one plain gradient of a held-back batch, the second one; ``None`` if that does not come to an end."""
        with contextlib.suppress(Exception):  # a whole batch may not fit where sub-batches do, and it is but a figure
            return self._timed_gradient()
        return None

    def _timed_gradient(self) -> float:
        batch = self._problem.prepare(self._stream.held[0], 0)
        whole = Windows((torch.arange(batch.windows.batch_size, device="cpu"),), batch.windows.batch_size)
        batch = replace(batch, windows=whole)
        parameters = [parameter.value for parameter in self._problem.grad_params]
        seconds = 0.0
        for _ in range(2):
            begun = time.perf_counter()
            for _ in subbatch_gradients(self._problem, batch, parameters, self._engine.microbatch):
                pass
            _wait_for(self._problem.device)
            seconds = time.perf_counter() - begun
        return seconds

    @property
    def _path(self) -> Path:
        """Of the checkpoint, where there is one."""
        assert self._settings.checkpoint is not None
        return self._settings.checkpoint

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
        self._problem.loss.look_at(batch)
        if self._previous is None and not self._settings.allow_trained:
            self._refuse_trained(batch)
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
            with going_on_from(self._path):
                self._at_work.load_state(self._previous.state)
        else:
            self._save()  # all checks are done; a path that cannot be written is found out now

    def _refuse_trained(self, data: Any) -> None:
        losses = mismatched_loss(self._problem, data)
        if losses is not None and 0 <= losses[0] < TRAINED * losses[1]:
            raise TrainedModelError(
                f"the model looks trained: its loss is {losses[0]:.3g}, and {losses[1]:.3g} with the targets of other "
                f"samples. {self._method.name} is for initial weights and would undo that; allow_trained=True lets it"
            )

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
        held = self._stream.held
        if not held:
            return None, None
        engine = create_engine(self._method.engine, replace(self._problem, overlap=0.0))
        engine.load_state(self._engine.state())  # the one that it has gone over to, if it has
        try:
            with reporter(self._settings.progress, "measuring", 2 * len(held)) as report:
                with _weights_as(self._originals), located("the measurement with the original weights"):
                    before = measure_batches(engine, held, report)
                try:
                    with located("the measurement with the new weights"):
                        return before, measure_batches(engine, held, report)
                except (NonFiniteError, ZeroGradientError) as error:
                    self._broken = str(error)
                    return before, None
        except Exception as error:  # one bad batch, or one line of the user's, is not to cost the steps
            notes = " ".join(getattr(error, "__notes__", []))
            warn(
                f"initopt: all steps of {self._method.name} are done, but the batches held back could not be measured, so "
                f"the result has no before and after ({type(error).__name__}: {error} {notes})"
            )
            return None, None


_INSTEAD = 'Try initopt.lsuv, or a scheme that fits the nonlinearity (scheme="kaiming_normal" for ReLU)'


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _read(path: Path | None) -> Checkpoint | None:
    """The checkpoint, if there is one of a run that has made a step."""
    if path is None:
        return None
    clear_leftovers(Path(os.path.realpath(path)))
    if not path.exists():
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
