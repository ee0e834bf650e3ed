"""One run of a method on one model: begun or resumed, its steps, its measurements."""

from __future__ import annotations

import contextlib
import itertools
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from initopt._support.errors import HarmError, NonFiniteError, TrainedModelError, ZeroGradientError, located, warn
from initopt._support.files import plain, unplain
from initopt._support.progress import Progress, reporter
from initopt._version import __version__
from initopt.batches.stream import BatchStream
from initopt.engines import create_engine
from initopt.engines.gradients import mean_gradient, whole
from initopt.gram.measurement import Measurement
from initopt.methods import MethodRun
from initopt.methods.records import Record, steps_taken
from initopt.model.modes import measuring
from initopt.model.outputs import mismatched_loss
from initopt.model.preserve import Kept, Originals, inner_work, put_values, weights_as
from initopt.model.randomness import RandomState, derive_seed
from initopt.model.state import StateGuard
from initopt.runs.checkpoint import Checkpoint, OfRank, fingerprint, going_on_from, identify, loader_generators
from initopt.runs.factors import tell_of_scheme, tell_of_zeros
from initopt.runs.measuring import measure_batches
from initopt.runs.result import Result
from initopt.runs.resuming import previous_run, stored_weights
from initopt.runs.shared import compare_ranks, examine_all, same_scales, same_weights
from initopt.runs.task import Task
from initopt.runs.trial import Trial, try_out
from initopt.runs.verdict import TRAINED, Verdict, judge, with_trial
from initopt.schemes import apply_

if TYPE_CHECKING:
    from initopt.diagnosis.change import Change, Checkup

__all__ = ["Run", "run"]


def run(task: Task, kept: Kept) -> Result:
    """Do a run within :func:`initopt.model.preserve.preserving`, from the first batch or from its checkpoint.

    Raises:
        MismatchError: if the checkpoint is that of another run.
        ValueError: if it is no checkpoint, or is beyond the end of this run.
    """
    compare_ranks(task.ranks, task.model, task.parameters, _options(task), task.batches)
    path, previous = task.settings.checkpoint, previous_run(task)
    begun = Run.begin(task, kept) if path is None or previous is None else Run.resume(task, kept, previous, path)
    result = begun.result()
    task.ranks.end()
    return result


def _options(task: Task) -> dict[str, Any]:
    """All options of a run, by name."""
    method = {field.name: getattr(task.method, field.name) for field in fields(task.method)}
    return {"method": task.method.name} | vars(task.how) | method | vars(task.settings)


_MUCH = 0.25
"""Share of the parameters from which on a warning says that no gradient reaches them."""


class Run:
    """A run of a method on a model, which :meth:`begin` or :meth:`resume` makes.

    Args:
        task: what to do.
        state: the guard of what the model and the loss keep.
        identity: what makes it this run and no other.
        seed: base of the seeds for what the model draws.
        start: the trainable parameters with the values that they had when the run began.
        randomness: the random state of that time.
        generators: the states of the loader's own generators at that time.
    """

    def __init__(
        self,
        task: Task,
        state: StateGuard,
        identity: dict[str, Any],
        seed: int,
        start: Originals,
        randomness: RandomState,
        generators: dict[str, Tensor],
    ) -> None:
        self._begun = time.perf_counter()
        self._model, self._method, self._settings = task.model, task.method, task.settings
        self._task, self._identity, self._seed = task, identity, seed
        self._originals, self._randomness, self._generators = start, randomness, generators
        self._names = {p.value: p.name for p in task.parameters.trainable}
        self._ranks = task.ranks
        self._problem = task.problem(seed, state)
        self._engine = create_engine(task.how.engine, self._problem, task.how.memory_budget)
        self._history: list[Record] = []
        self._first_batch = ""
        self._broken = ""  # what failed with the new weights
        self._trial: Trial | None = None
        self._at_work: MethodRun
        self._stream: BatchStream

    @classmethod
    def begin(cls, task: Task, kept: Kept) -> Run:
        """A run from the first batch."""
        generators = loader_generators(task.batches)
        states = {name: generator.get_state() for name, generator in generators.items()}
        randomness, seed = RandomState.now(), task.ranks.broadcast(derive_seed(task.settings.seed), "the seed")
        new = cls(task, kept.state, identify(task, generators), seed, kept.originals, randomness, states)
        new._read_batches(new._begin_on)
        return new

    @classmethod
    def resume(cls, task: Task, kept: Kept, previous: Checkpoint, path: Path) -> Run:
        """A run that goes on from a checkpoint, with the loader played again from its start."""
        generators = loader_generators(task.batches)
        identity = identify(task, generators)
        number = task.ranks.number
        previous.refuse_unless_same(identity, number)
        start, mine = stored_weights(task, kept.originals, previous, path), previous.of_ranks[number]
        mine.randomness.put_back()
        with going_on_from(path):
            for name, generator in generators.items():
                generator.set_state(mine.generators[name])
        new = cls(task, kept.state, identity, previous.seed, start, mine.randomness, mine.generators)
        new._history = list(previous.history)
        new._begun -= previous.seconds
        new._first_batch = mine.first_batch
        with going_on_from(path):
            new._engine.load_state(mine.engine)

        def go_on(batch: Any) -> None:
            previous.refuse_unless_first(fingerprint(batch), number)
            task.loss.look_at(batch)
            new._at_work = task.method.start(new._problem, new._engine, new._drawn(batch))
            with going_on_from(path):
                new._at_work.load_state(previous.state)

        new._read_batches(go_on)
        return new

    def _read_batches(self, on_first: Callable[[Any], None]) -> None:
        """Have the batches of all steps that are left, and the first of all looked at."""
        method, done = self._method, steps_taken(self._history)
        taken = method.batches_taken(self._history)
        count = taken + (method.steps - done) * method.batches_per_step
        held_back, training = self._settings.measure_batches, method.training
        remembered = 0 if training is None or not held_back else training.trial_steps
        self._stream = BatchStream(self._task.batches, count, held_back, taken, on_first, remembered)

    def _begin_on(self, batch: Any) -> None:
        """Put the method to work, the first batch being there."""
        if self._settings.checkpoint is not None:
            self._first_batch = fingerprint(batch)
        self._task.loss.look_at(batch)
        if not self._settings.allow_trained:
            self._refuse_trained(batch)
        start = self._drawn(batch)
        doubts, unreached = examine_all(self._problem, batch, self._method.differentiates, self._task.how.memory_budget)
        if tell_of_zeros(self._problem, self._method, unreached):
            pass  # which says it all
        elif unreached is not None and unreached.zeros and unreached.entries > _MUCH * unreached.total:
            left = unreached.total - unreached.entries
            warn(f"initopt: the gradient reaches {left:,} of {unreached.total:,} parameters: {unreached.cause}")
        if doubts is not None:
            self._engine.distrust(doubts)
        self._at_work = self._method.start(self._problem, self._engine, start)
        self._save()  # all checks are done; a path that cannot be written is found out now

    def _drawn(self, batch: Any) -> Originals:
        """The weights at which the scales begin: those of the scheme, if there is one."""
        if self._method.scheme is None:
            return self._originals
        put_values(self._originals)
        tell_of_scheme(self._problem, self._method.scheme)
        with inner_work():
            apply_(self._model, self._method.scheme, batch, self._task.loss.given, seed=self._seed)
        return {p: p.detach().clone() for p in self._originals}

    def result(self) -> Result:
        """Do the run."""
        with measuring(self._model, self._method.train_mode):
            self._take_steps()
            before, after = self._measure()
            diagnosis = self._diagnose()
            verdict, scales, tried = self._settle_on(before, after)
            step_seconds = None if before is None else self._training_step_seconds()
        same_weights(self._ranks, self._model, self._method.name)
        in_parts = self._task.shards is not None
        if in_parts:
            same_scales(self._ranks, scales, self._method.name)
        # Times differ between ranks, as the batches do at which layers are looked; a result is the same on all.
        own = (self._history, self._seconds(), step_seconds, self._engine.reason, diagnosis)
        self._history, seconds, step_seconds, reason, diagnosis = self._ranks.broadcast(own, "the records")
        options = {field.name: getattr(self._method, field.name) for field in fields(self._method)}
        options |= {"measure_batches": self._settings.measure_batches, "seed": self._seed}
        if self._settings.measuring is not None:
            options["measuring"] = asdict(self._settings.measuring)
        return Result(
            method=self._method.name,
            options=unplain(plain(options)),  # functions by their name
            history=self._history,
            scales=scales,
            before=before,
            after=after,
            seconds=seconds,
            engine=self._engine.name,
            engine_reason=reason,
            weights={} if in_parts else {name: p.detach().to("cpu", copy=True) for p, name in self._names.items()},
            versions={"initopt": __version__, "torch": torch.__version__, "python": platform.python_version()},
            verdict=verdict,
            tried_scales=tried,
            trial=self._trial,
            left_alone=self._left_alone(),
            training_step_seconds=step_seconds,
            diagnosis=diagnosis,
        )

    def _left_alone(self) -> dict[str, list[str]]:
        left, spared = self._at_work.left_alone(), list(self._task.parameters.spared)
        return left | {"a magnitude of pretrained weights": spared} if spared else left

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
        if found.word in ("improved", "applied"):
            found = self._tried(found)
        if found.word in ("improved", "applied") or not changed:
            return f"{found.word}: {found.why}", scales, None
        harmed = found.word == "harmed"
        message, instead = f"{self._method.name}: {found.why}", found.instead or _INSTEAD
        if harmed and self._settings.on_harm == "raise":
            raise HarmError(f"{message}; the weights are as before. {instead}")
        if self._settings.on_harm == "warn":
            if harmed:
                warn(f"initopt: {message}. The new weights are kept, since on_harm='warn'. {instead}")
                return f"harmed: {found.why}", scales, None
            return f"not improved: {found.why}", scales, None
        put_values(self._originals)
        if harmed:
            warn(f"initopt: {message}, so the weights are as before. {instead}")
        word = "restored" if harmed else found.word
        return f"{word}: {found.why}", dict.fromkeys(scales, 1.0), scales

    def _tried(self, found: Verdict) -> Verdict:
        """The verdict, with that of some training steps, if the method knows how the network is trained.

        A failure costs the trial, with a warning, and not the steps.
        """
        training, batches = self._method.training, list(self._stream.recent)
        if training is None or not batches:
            return found
        held = self._stream.held
        held = held[: min(self._ranks.gather(len(held), "the batches held back"))]
        try:
            microbatch = self._engine.microbatch
            self._trial = try_out(self._problem, training, batches, held, self._originals, microbatch)
        except Exception as error:
            self._ranks.tell(error)
            warn(
                f"initopt: the new weights could not be tried by the optimizer ({type(error).__name__}: {error}), so the "
                "verdict is that of the measurements alone"
            )
            return found
        return with_trial(found, self._trial)

    def _training_step_seconds(self) -> float | None:
        """Time of one plain gradient of a held-back batch, the second one; ``None`` if that does not come to an end."""
        with contextlib.suppress(Exception):  # a whole batch may not fit where sub-batches do, and it is but a figure
            return self._timed_gradient()
        return None

    def _timed_gradient(self) -> float:
        batch = whole(self._problem.prepare(self._stream.held[0], 0))
        parameters = [parameter.value for parameter in self._problem.grad_params]
        seconds = 0.0
        for _ in range(2):
            begun = time.perf_counter()
            mean_gradient(self._problem, batch, parameters, self._engine.microbatch)
            _wait_for(self._problem.device)
            seconds = time.perf_counter() - begun
        return seconds

    @property
    def _progress(self) -> Progress:
        return self._settings.progress if self._ranks.leads else False

    def _seconds(self) -> float:
        return time.perf_counter() - self._begun

    def _refuse_trained(self, data: Any) -> None:
        found = self._ranks.gather(mismatched_loss(self._problem, data), "the loss of other samples")
        pairs = [pair for pair in found if pair is not None]
        losses = [sum(each) / len(pairs) for each in zip(*pairs, strict=True)] if len(pairs) == len(found) else None
        if losses is not None and 0 <= losses[0] < TRAINED * losses[1]:
            raise TrainedModelError(
                f"the model looks trained: its loss is {losses[0]:.3g}, and {losses[1]:.3g} with the targets of other "
                f"samples. {self._method.name} is for initial weights and would undo that; allow_trained=True lets it"
            )

    def _save(self) -> None:
        if self._settings.checkpoint is None:
            return
        fixed = self._identity["fixed"]
        mine = OfRank(fixed, self._first_batch, self._engine.state(), self._randomness, self._generators)
        of_ranks = tuple(self._ranks.gather(mine, "a checkpoint"))
        if self._ranks.leads:
            start = {self._names[parameter]: value for parameter, value in self._originals.items()}
            seconds, state = self._seconds(), self._at_work.state()
            stored = Checkpoint(self._identity, self._seed, seconds, self._history, start, state, of_ranks)
            stored.write(self._settings.checkpoint)

    def _take_steps(self) -> None:
        done, steps = steps_taken(self._history), self._method.steps
        stream = iter(self._stream)
        # Reading a batch begins the run; one that is finished has none, but passes over those of its steps.
        batches = itertools.chain([next(stream)] if done < steps else list(stream), stream)
        with reporter(self._progress, self._method.name, steps, done) as report:
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
        held = held[: min(self._ranks.gather(len(held), "the batches held back"))]
        if not held:
            return None, None
        # Sub-batches that share no samples, unless it is asked for that they do.
        overlap = 0.0 if self._settings.measuring is None else self._settings.measuring.overlap
        problem = replace(self._problem, subbatches=replace(self._problem.subbatches, overlap=overlap))
        engine = create_engine(self._task.how.engine, problem, self._task.how.memory_budget)
        engine.load_state(self._engine.state())  # the one that it has gone over to, if it has
        try:
            with reporter(self._progress, "measuring", 2 * len(held)) as report:
                with weights_as(self._originals), located("the measurement with the original weights"):
                    before = measure_batches(engine, held, report)
                try:
                    with located("the measurement with the new weights"):
                        return before, measure_batches(engine, held, report)
                except (NonFiniteError, ZeroGradientError) as error:
                    self._ranks.tell(error)
                    self._broken = str(error)
                    return before, None
        except Exception as error:  # one bad batch, or one line of the user's, is not to cost the steps
            self._ranks.tell(error)
            notes = " ".join(getattr(error, "__notes__", []))
            warn(
                f"initopt: all steps of {self._method.name} are done, but the batches held back could not be measured, so "
                f"the result has no before and after ({type(error).__name__}: {error} {notes})"
            )
            return None, None

    def _diagnose(self) -> Change | None:
        """Look at the layers with the original and with the new weights; a failure costs nothing but that."""
        held, how = self._stream.held, self._task.how
        if not held or not self._settings.diagnose or self._engine.microbatch is not None or self._task.shards:
            return None
        from initopt.diagnosis.change import Change, look_at  # not at every import of initopt

        def look() -> Checkup:
            self._problem.state.refresh()  # what the model keeps of the last pass is not its own
            return look_at(self._model, held, self._task.loss.given, num_subbatches=how.num_subbatches, seed=self._seed)

        try:
            with inner_work():
                with weights_as(self._originals):
                    before = look()
                return Change(before, look())
        except Exception as error:  # as for the measurements
            warn(
                f"initopt: all steps of {self._method.name} are done, but the layers could not be looked at, so the result "
                f"has no diagnosis ({type(error).__name__}: {error}); diagnose=False does not try"
            )
            return None


_INSTEAD = 'Try initopt.lsuv, or a scheme that fits the nonlinearity (scheme="kaiming_normal" for ReLU)'


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
