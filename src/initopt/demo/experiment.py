"""The experiment: the same training from several starts, seed after seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

import initopt
from initopt.data import digits, digits_tensors
from initopt.demo.recipe import BATCH_SIZE, MEASURED_BATCHES, create_model, create_optimizer
from initopt.demo.spread import Spread
from initopt.demo.starts import STARTS, Start, xavier_
from initopt.demo.training import Curve, train
from initopt.runs.result import Result

__all__ = ["Experiment", "SeedRun", "run_seed"]

_NIO_ORDER = 1_000_000
"""Added to a seed for the order in which NIO sees the training set, so that it is not that of the first epoch."""


@dataclass(frozen=True)
class SeedRun:
    """What came out for one seed.

    Attributes:
        seed: of the default weights, of Xavier's weights, and of the order of the data in training.
        result: NIO's, from the default weights, with the measurements before and after.
        curves: test accuracy and training loss by start.
    """

    seed: int
    result: Result
    curves: dict[Start, Curve]


@dataclass(frozen=True)
class Experiment:
    """What came out for all seeds."""

    runs: list[SeedRun]

    @property
    def epochs(self) -> int:
        """How long each training was."""
        return len(self.runs[0].curves["default"].accuracy)

    def accuracy(self, start: Start, epoch: int) -> Spread:
        """Test accuracy after an epoch (the first is 1), over the seeds."""
        return Spread.of([run.curves[start].accuracy[epoch - 1] for run in self.runs])

    def gain(self, epoch: int) -> Spread:
        """How much better NIO's start is than the default after an epoch: difference seed by seed, over the seeds."""
        curves = [run.curves for run in self.runs]
        return Spread.of([c["nio"].accuracy[epoch - 1] - c["default"].accuracy[epoch - 1] for c in curves])

    def measured(self, figure: str) -> tuple[Spread, Spread]:
        """A figure of the measurements, before and after NIO, over the seeds."""
        before = [getattr(run.result.before, figure) for run in self.runs]
        return Spread.of(before), Spread.of([getattr(run.result.after, figure) for run in self.runs])


def run_seed(seed: int, epochs: int, nio_steps: int, advance: Callable[[], object] = lambda: None) -> SeedRun:
    """Run NIO on the default weights, then train from every start with the same batches in the same order.

    Args:
        seed: of everything that is drawn.
        epochs: passes over the training set for each start.
        nio_steps: steps of NIO.
        advance: is called after every step of NIO and every epoch.

    Returns:
        The result of NIO and the curves.
    """
    models = _create_starts(seed)
    # As a list, the batches stay the same from pass to pass, so those that measure hold no image that NIO has seen.
    batches = list(digits(BATCH_SIZE, seed=_NIO_ORDER + seed))
    result = initopt.nio(
        models["nio"],
        batches,
        steps=nio_steps,
        measure_batches=MEASURED_BATCHES,
        seed=seed,
        progress=False,
        callbacks=[lambda record: advance()],
    )
    test = digits_tensors("test")
    curves = {
        start: train(model, digits(BATCH_SIZE, seed=seed), create_optimizer(model), epochs, test, advance)
        for start, model in models.items()
    }
    return SeedRun(seed, result, curves)


def _create_starts(seed: int) -> dict[Start, nn.Module]:
    """The network of a seed once for every start; NIO's still has the default weights."""
    models: dict[Start, nn.Module] = {start: create_model(seed) for start in STARTS}
    xavier_(models["xavier"], seed)
    return models
