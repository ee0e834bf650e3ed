"""docs/predicting.md and its picture, from the rows of predicting.py: python benchmarks/study/predicting_page.py."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from predicting import BEGINNINGS, PREDICTING, SUBJECTS
from scipy import stats
from subjects import NETWORKS

from initopt._support.files import write_file

sys.path.append(str(Path(__file__).parents[1]))
from tables import fill, markdown, spread

__all__ = ["main", "page"]

DOCS = Path(__file__).parents[2] / "docs"
TEXT = Path(__file__).parent / "predicting.md"

Row = dict[str, Any]
Numbers = NDArray[np.float64]

FIGURES = {
    "grad_cosine": "GradCosine",
    "centred_grad_cosine": "GradCosine, centred",
    "few_grad_cosine": "GradCosine of single samples",
    "coherence": "m-coherence",
    "signal_to_noise": "signal-to-noise ratio",
    "sign_agreement": "sign agreement (GradSign)",
    "grad_norm": "gradient norm",
    "centred_grad_norm": "gradient norm, centred",
    "objective": "what `nio` maximizes",
    "rank": "effective rank, all layers (NEAR)",
    "output_rank": "effective rank, outputs",
    "output_spread": "output spread",
    "loss": "loss",
}
"""Figures of a start in words."""

BY_NIO = tuple(start for start in BEGINNINGS if "nio" in start)

NORM_WEIGHT = 0.3  # of the objective of nio

_RESAMPLES = 5000


@dataclass(frozen=True)
class Table:
    """The figures of the starts of a network with a seed, and what training made of them.

    Attributes:
        network: its name.
        seed: of the runs.
        rows: of the starts that have figures.
    """

    network: str
    seed: int
    rows: tuple[Row, ...]

    def figure(self, name: str) -> Numbers:
        """A figure of each start."""
        if name == "objective":
            sizes = np.maximum(self.figure("centred_grad_norm"), np.finfo(float).tiny)
            return self.figure("centred_grad_cosine") + NORM_WEIGHT * np.log(sizes)
        return np.array([row["figures"][name] for row in self.rows], dtype=np.float64)

    def accuracy(self, when: str) -> Numbers:
        """In percent; a training that diverged counts as guessing."""
        guess = NETWORKS[self.network].guess
        return 100 * np.array([guess if row[when] is None else row[when]["accuracy"] for row in self.rows])

    def gain(self, when: str) -> Numbers:
        """The loss with its sign turned; minus infinity of a training that diverged."""
        return np.array([-math.inf if row[when] is None else -row[when]["loss"] for row in self.rows])


Correlation = Callable[[Numbers, Numbers], float]


def spearman(one: Numbers, other: Numbers) -> float:
    """Rank correlation; nan where one of the two is constant."""
    if len(one) < 3 or np.ptp(stats.rankdata(one)) == 0 or np.ptp(stats.rankdata(other)) == 0:
        return math.nan
    return float(stats.spearmanr(stats.rankdata(one), stats.rankdata(other)).statistic)


def kendall(one: Numbers, other: Numbers) -> float:
    """Kendall's tau-b; nan where one of the two is constant."""
    return float(stats.kendalltau(stats.rankdata(one), stats.rankdata(other)).statistic)


def partial(one: Numbers, other: Numbers, given: Numbers) -> float:
    """Spearman's correlation at an equal third; nan where that says all of one of the two."""
    both, first, second = spearman(one, other), spearman(one, given), spearman(other, given)
    left = (1 - first**2) * (1 - second**2)
    return (both - first * second) / math.sqrt(left) if left > 1e-9 else math.nan


def share_of_the_best(figure: Numbers, accuracy: Numbers, highest: bool) -> float:
    """What choosing by a figure gains on choosing blindly, by what the best choice gains; nan where there is no choice."""
    best, mean = accuracy.max(), accuracy.mean()
    chosen = accuracy[figure.argmax() if highest else figure.argmin()]
    return float((chosen - mean) / (best - mean)) if best > mean else math.nan


class Tables:
    """All of them, a network and a seed each."""

    def __init__(self, rows: Sequence[Row], starts: Sequence[str] = BEGINNINGS) -> None:
        self.starts = starts
        found: dict[tuple[str, int], list[Row]] = {}
        for row in rows:
            if row["start"] in starts:
                found.setdefault((row["network"], row["seed"]), []).append(row)
        whole = {key: own for key, own in found.items() if len(own) == len(starts)}
        self.networks = [name for name in SUBJECTS if any(network == name for network, _ in whole)]
        self.seeds = sorted({seed for _, seed in whole})
        self.tables = {
            (name, seed): Table(name, seed, tuple(row for row in own if row["figures"] is not None))
            for (name, seed), own in whole.items()
        }
        self.runs = len(self.tables) * len(starts)

    @cached_property
    def without_figures(self) -> int:
        """Starts that could not be measured."""
        return self.runs - sum(len(table.rows) for table in self.tables.values())

    def over_all(self, value: Callable[[Table], float]) -> Numbers:
        """A value of each table, shape ``(networks, seeds)``; nan where there is none."""
        found = np.full((len(self.networks), len(self.seeds)), math.nan)
        for (name, seed), table in self.tables.items():
            found[self.networks.index(name), self.seeds.index(seed)] = value(table)
        return found

    def extent(self) -> str:
        """How many starts, networks, seeds and trainings there are, in words."""
        counts = {name: sum(network == name for network, _ in self.tables) for name in self.networks}
        most = max(counts.values())
        fewer = [f"{NETWORKS[name].title} with {count}" for name, count in counts.items() if count < most]
        but = f" ({', '.join(fewer)})" if fewer else ""
        starts = f"{len(self.starts)} starts of {len(self.networks)} networks"
        return f"{starts}, with {most} seeds each{but}: {self.runs} trainings"


@dataclass(frozen=True)
class Estimate:
    """A mean over networks of means over seeds, with an interval.

    Attributes:
        mean: of the networks.
        low: lower end of the interval of 95 %, from drawing networks and seeds anew.
        high: its upper end.
        networks: the mean over seeds of each.
    """

    mean: float
    low: float
    high: float
    networks: Numbers

    @classmethod
    def of(cls, values: Numbers) -> Estimate:
        """From a value for each network and seed; those that are not known are left out."""
        draw = np.random.default_rng(0)
        networks, seeds = values.shape
        rows = draw.integers(networks, size=(_RESAMPLES, networks, 1))
        columns = draw.integers(seeds, size=(_RESAMPLES, 1, seeds))
        drawn = _mean(_mean(values[rows, columns]))
        drawn = drawn[~np.isnan(drawn)]
        low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (math.nan, math.nan)
        each = _mean(values)
        return cls(float(_mean(each)), float(low), float(high), each)

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def _mean(values: Numbers) -> Numbers:
    """Along the last dimension, of those that are known; nan where none is."""
    known = ~np.isnan(values)
    counts = known.sum(-1)
    return np.where(counts > 0, np.where(known, values, 0).sum(-1) / np.maximum(counts, 1), math.nan)


def estimates(tables: Tables, when: str, correlation: Correlation = spearman, of: str = "accuracy") -> dict[str, Estimate]:
    """The correlation of each figure with what training makes of the start."""

    def value(name: str) -> Callable[[Table], float]:
        return lambda table: correlation(table.figure(name), getattr(table, of)(when))

    return {name: Estimate.of(tables.over_all(value(name))) for name in FIGURES}


def correlations(tables: Tables) -> str:
    """A row a figure: with early and late accuracy and late loss, by ranks; Kendall's; and at an equal gradient norm."""
    columns = {
        "accuracy, early": estimates(tables, "early"),
        "accuracy, late": estimates(tables, "late"),
        "-loss, late": estimates(tables, "late", of="gain"),
        "accuracy, late; Kendall": estimates(tables, "late", kendall),
    }
    equal = {name: Estimate.of(tables.over_all(_at_equal_norm(name))) for name in FIGURES if name != "grad_norm"}
    rows = [
        [title, *(_cell(found[name]) for found in columns.values()), _cell(equal[name]) if name in equal else ""]
        for name, title in FIGURES.items()
    ]
    return markdown(["figure of the start", *columns, "accuracy, late; at equal gradient norm"], rows)


def _cited(tables: Tables) -> dict[str, str]:
    """Single correlations, for the text."""
    found = {when: estimates(tables, when) for when in ("early", "late")}
    named = (
        *(("grad_cosine", "early"), ("grad_norm", "early"), ("grad_cosine", "late"), ("grad_norm", "late")),
        *(("objective", "late"), ("centred_grad_cosine", "late"), ("sign_agreement", "late"), ("rank", "late")),
    )
    cited = {f"{FIGURES[name]}, {when}": str(found[when][name]) for name, when in named}
    equal = {"GradCosine, equal": "grad_cosine", "rank, equal": "rank"}
    return cited | {title: str(Estimate.of(tables.over_all(_at_equal_norm(name)))) for title, name in equal.items()}


def _at_equal_norm(name: str) -> Callable[[Table], float]:
    return lambda table: partial(table.figure(name), table.accuracy("late"), table.figure("grad_norm"))


def _cell(found: Estimate) -> str:
    return f"**{found}**" if found.clear else str(found)


def by_network(tables: Tables) -> str:
    """The mean over seeds of the rank correlation with late accuracy, for each network."""
    found = estimates(tables, "late")
    rows = [[title, *(f"{value:+.2f}" for value in found[name].networks)] for name, title in FIGURES.items()]
    return markdown(["figure of the start", *(NETWORKS[name].title for name in tables.networks)], rows)


def choices(tables: Tables) -> str:
    """What choosing the start by a figure is worth."""

    def value(name: str, when: str) -> Callable[[Table], float]:
        return lambda table: share_of_the_best(table.figure(name), table.accuracy(when), name != "loss")

    rows = []
    for name, title in FIGURES.items():
        found = [Estimate.of(tables.over_all(value(name, when))) for when in ("early", "late")]
        rows.append([f"{'lowest' if name == 'loss' else 'highest'} {title}", *map(_cell, found)])
    return markdown(["choice", "of the accuracy, early", "of the accuracy, late"], rows)


def accuracies(tables: Tables) -> str:
    """Late accuracy by start and network."""
    rows = []
    for start in tables.starts:
        cells = []
        for name in tables.networks:
            found = [
                float(table.accuracy("late")[index])
                for (network, _), table in tables.tables.items()
                for index, row in enumerate(table.rows)
                if network == name and row["start"] == start
            ]
            cells.append(spread(found) if found else "")
        rows.append([start, *cells])
    return markdown(["start", *(NETWORKS[name].title for name in tables.networks)], rows)


def rates(rows: Sequence[Row], networks: Sequence[str]) -> str:
    """The learning rate of each network, in words."""
    found: Mapping[str, float] = {row["network"]: row["lr"] for row in rows}
    return ", ".join(f"{found[name]:g} ({NETWORKS[name].title})" for name in networks)


PICTURE = DOCS / "assets" / "predicting.png"


def draw(tables: Tables, path: Path) -> None:
    """The correlations with accuracy, early and late: networks as dots, their mean with its interval."""
    figure = Figure(figsize=(9.6, 0.36 * len(FIGURES) + 1.3), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, when, title in zip(panels, ("early", "late"), ("after a fifth of the steps", "in the end"), strict=True):
        _panel(axes, estimates(tables, when), title)
    figure.supxlabel("rank correlation over starts with the test accuracy", fontsize=10)
    write_file(path, lambda place: figure.savefig(place, dpi=110, format="png"))


def _panel(axes: Axes, found: Mapping[str, Estimate], title: str) -> None:
    names = list(reversed(FIGURES))
    axes.axvline(0, color="#7f7f7f", linewidth=0.8)
    for height, name in enumerate(names):
        one = found[name]
        axes.plot(one.networks, [height] * len(one.networks), "o", color="#E69F00", markersize=4, alpha=0.7)
        axes.plot([one.low, one.high], [height, height], color="#0072B2", linewidth=2)
        axes.plot([one.mean], [height], "D", color="#0072B2", markersize=6)
    axes.set_yticks(range(len(names)), [FIGURES[name].replace("`", "") for name in names])
    axes.set_xlim(-1, 1)
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def page(rows: Sequence[Row], text: str) -> str:
    """The page."""
    tables = Tables(rows)
    drawn = Tables(rows, [start for start in BEGINNINGS if start not in BY_NIO])
    parts = {
        "extent": tables.extent(),
        "seeds": f"{tables.seeds[0]} to {tables.seeds[-1]}",
        "rates": rates(rows, tables.networks),
        "left out": f"{tables.without_figures} of the {tables.runs} starts",
        **_cited(tables),
        "correlations": correlations(tables),
        "drawn": correlations(drawn),
        "networks": by_network(tables),
        "choices": choices(tables),
        "accuracies": accuracies(tables),
    }
    return fill(text, parts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, default=PREDICTING, metavar="FILE", help="of predicting.py")
    parser.add_argument("--out", type=Path, default=DOCS / "predicting.md", metavar="FILE", help="the page")
    parser.add_argument("--picture", type=Path, default=PICTURE, metavar="FILE")
    options = parser.parse_args(arguments)
    rows = [json.loads(line) for line in options.rows.read_text(encoding="utf-8").splitlines()]
    text = page(rows, TEXT.read_text(encoding="utf-8"))
    write_file(options.out, lambda path: path.write_text(text, encoding="utf-8"))
    draw(Tables(rows), options.picture)
    print(f"page: {options.out}, picture: {options.picture}")


if __name__ == "__main__":
    main()
