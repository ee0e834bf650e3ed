"""Everything that the demo found, as plain values for ``results.json``."""

from __future__ import annotations

from typing import Any

import initopt
from initopt.demo import recipe
from initopt.demo.experiment import Experiment, SeedRun
from initopt.demo.spread import Spread
from initopt.demo.starts import STARTS
from initopt.demo.verdict import verdict

__all__ = ["to_record"]


def to_record(experiment: Experiment, threads: int) -> dict[str, Any]:
    """The recipe, the versions, the numbers per seed and epoch, and their summary.

    Args:
        experiment: what came out.
        threads: with how many processor threads.
    """
    first = experiment.runs[0].result
    epochs = range(1, experiment.epochs + 1)
    return {
        "format": "initopt demo 1",
        "verdict": verdict(experiment),
        "versions": first.versions,
        "recipe": {
            "data": "UCI optical digits: 1071 images to train, 364 to test",
            "network": f"{recipe.DEPTH} linear layers, {recipe.WIDTH} wide, tanh, no normalization",
            "optimizer": "SGD",
            "lr": recipe.LEARNING_RATE,
            "momentum": recipe.MOMENTUM,
            "batch_size": recipe.BATCH_SIZE,
            "epochs": experiment.epochs,
            "threads": threads,
            "nio": {name: value for name, value in first.options.items() if name != "seed"},
        },
        "summary": {
            "accuracy": {start: [_spread(experiment.accuracy(start, e)) for e in epochs] for start in STARTS},
            "nio_minus_default": [_spread(experiment.gain(e)) for e in epochs],
        },
        "runs": [_run(run) for run in experiment.runs],
    }


def _spread(spread: Spread) -> dict[str, float]:
    return {"mean": spread.mean, "std": spread.std, "margin_95": spread.margin}


def _run(run: SeedRun) -> dict[str, Any]:
    measured = {"before": run.result.before, "after": run.result.after}
    return {
        "seed": run.seed,
        "nio_seconds": run.result.seconds,
        "measured": {name: _figures(found) for name, found in measured.items() if found is not None},
        "curves": run.curves,
    }


def _figures(found: initopt.Measurement) -> dict[str, Any]:
    return {"grad_cosine": found.grad_cosine, "grad_norm": found.grad_norm, "sem": found.sem}
