"""The runs of the study: new ones from the folders of their comparisons, and the stored ones of before there were such."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from starts import STARTS, in_folders
from subjects import NETWORKS

from initopt.comparison import RunRecord, load_comparison
from initopt.comparison.analysis.outcome import Outcome
from initopt.comparison.running.execute import choose_lr
from initopt.comparison.storage.record import CurvePoint, Purpose, Subset

__all__ = ["RESULTS", "VARIANTS", "WIDE", "Results", "load"]

RESULTS = Path(__file__).parents[1] / "results" / "defaults.jsonl"
WIDE = RESULTS.with_name("learning-rates.jsonl")
VARIANTS = RESULTS.with_name("variants.jsonl")

_PURPOSES: dict[Subset, Purpose] = {"validation": "selection", "test": "final"}
_FIGURES = {"grad_cosine": "grad_cosine", "grad_norm": "grad_norm", "start_loss": "loss"}


def load(place: Path) -> list[RunRecord]:
    """All runs of a folder that ``study.py`` wrote, or of a file of stored rows."""
    if place.is_dir():
        comparisons = [load_comparison(path.parent) for path in sorted(place.glob("*/comparison.json"))]
        runs = [run for found in comparisons for run in [*found.selection, *found.runs]]
        names = {in_folders(name): name for name in STARTS}
        return [replace(run, initialization=names.get(run.initialization, run.initialization)) for run in runs]
    return [run for line in place.read_text().splitlines() for run in _stored(json.loads(line))]


def _stored(row: dict[str, Any]) -> Iterator[RunRecord]:
    """A line of a file: a training that was judged on the validation split, and perhaps on the test split, too."""
    if "failed" in row:
        return
    parts: list[Subset] = [part for part in _PURPOSES if part in row] or ["validation"]
    guess = NETWORKS[row["network"]].guess
    figures = [{name: row[key][when] for key, name in _FIGURES.items() if key in row} for when in (0, 1)]
    for part in parts:
        found = row.get(part)
        curve = [CurvePoint(0, 0.0, part, math.nan, guess)]
        if found is not None:
            curve.append(CurvePoint(1, 1.0, part, found["loss"], found["accuracy"]))
        yield RunRecord(
            network=row["network"],
            initialization=row["start"],
            seed=row["seed"],
            lr=row["lr"],
            purpose=_PURPOSES[part],
            status="diverged" if found is None else "done",
            error=None,
            steps=1,
            initialization_seconds=row["seconds"],
            initialization_steps=None,
            step_seconds=None,
            seconds=row["seconds"],
            before=figures[0],
            after=figures[1],
            scales=row["scales"],
            curve=tuple(curve),
            versions={},
        )


class Results:
    """The runs, by network and start."""

    def __init__(self, runs: Iterable[RunRecord]) -> None:
        self._runs: dict[tuple[str, str], list[RunRecord]] = {}
        for run in runs:
            self._runs.setdefault((run.network, run.initialization), []).append(run)

    def of(self, network: str, start: str, part: Subset | None = None) -> list[RunRecord]:
        """The runs of a start on a network; those that were looked at on a part of the data."""
        runs = self._runs.get((network, start), [])
        return [run for run in runs if part is None or run.purpose == _PURPOSES[part]]

    def by_seed(self, network: str, start: str, lr: float, part: Subset) -> dict[int, float]:
        """Accuracy in percent by seed; a training that diverged counts as guessing."""
        outcome = Outcome(part, "accuracy", NETWORKS[network].guess)
        return {run.seed: 100 * outcome.final(run) for run in self.of(network, start, part) if run.lr == lr}

    def best_lr(self, network: str, start: str) -> float:
        """The learning rate with the best mean accuracy on the validation split."""
        best = choose_lr(self.of(network, start, "validation"))
        assert best is not None
        return best

    def at_best(self, network: str, start: str, part: Subset) -> dict[int, float]:
        """Accuracy at the best learning rate of the start, by seed."""
        return self.by_seed(network, start, self.best_lr(network, start), part) if self.of(network, start) else {}

    def over_lrs(self, network: str, start: str) -> dict[int, float]:
        """Mean accuracy on the validation split over all learning rates, by seed."""
        if not self.of(network, start):
            return {}
        found = [self.by_seed(network, start, lr, "validation") for lr in NETWORKS[network].lrs]
        return {seed: fmean(one[seed] for one in found) for seed in found[0]}
