"""Pictures of the results for docs/assets.

python benchmarks/plot.py [--results benchmarks/results/engines-cpu.json] [--out docs/assets]
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from contenders import PUBLISHED, TRAINING
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from results import memory_of, ratios
from tables import case_title, contenders_of

from initopt._support.files import write_file
from initopt._support.reading import read_json

__all__ = ["against_d", "main", "over_networks"]

_STYLES = {
    "graph": ("#0072B2", "o"),
    "recompute": ("#009E73", "s"),
    "groups": ("#E69F00", "^"),
    "coupled": ("#CC79A7", "D"),
    "plain": ("#56B4E9", "v"),
    "differences": ("#999999", "P"),
    PUBLISHED: ("#D55E00", "X"),
}
"""Colours of Okabe and Ito, which the colour-blind can tell apart; markers beside them."""

_MORE = (("#000000", "<"), ("#F0E442", ">"))


def styles(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of every contender."""
    spare = itertools.cycle(_MORE)
    return {name: _STYLES.get(name) or next(spare) for name in names}


Numbers = Callable[[dict[str, Any], dict[str, Any]], tuple[float, float, float] | None]
"""From a contender and the training step to median, least and largest."""


def time_numbers(contender: dict[str, Any], training: dict[str, Any]) -> tuple[float, float, float] | None:
    return ratios(contender["seconds"], training["seconds"]) if contender.get("seconds") else None


def memory_numbers(contender: dict[str, Any], training: dict[str, Any]) -> tuple[float, float, float] | None:
    memory, unit = memory_of(contender), memory_of(training)
    return None if memory is None or not unit else (memory / unit,) * 3


_PANELS: tuple[tuple[str, Numbers], ...] = (
    ("time of a step, in training steps", time_numbers),
    ("peak memory, in that of a training step", memory_numbers),
)


def against_d(cases: list[dict[str, Any]]) -> Figure:
    """Time and memory against the number of sub-batches, for one network."""
    cases = sorted(cases, key=lambda case: case["num_subbatches"])
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (label, numbers) in zip(figure.subplots(1, 2), _PANELS, strict=True):
        for name, (colour, marker) in styles(contenders_of(cases)).items():
            points = [(c["num_subbatches"], numbers(c["contenders"][name], c["contenders"][TRAINING])) for c in cases]
            known = [(d, *found) for d, found in points if found]
            if known:
                counts, median, low, high = zip(*known, strict=True)
                axes.fill_between(counts, low, high, color=colour, alpha=0.15, linewidth=0)
                dashes = "--" if name == PUBLISHED else "-"
                axes.plot(counts, median, dashes, color=colour, marker=marker, markersize=6, label=name)
        _log_axes(axes, [case["num_subbatches"] for case in cases])
        axes.set_ylabel(label)
    figure.axes[0].legend(frameon=False)
    figure.suptitle(case_title(cases[0]))
    return figure


def _log_axes(axes: Axes, counts: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("number of sub-batches D")
    axes.grid(alpha=0.3)
    _bare(axes)


def over_networks(cases: list[dict[str, Any]]) -> Figure:
    """Bars for each network at one number of sub-batches: time above, memory below."""
    names = contenders_of(cases)
    figure = Figure(figsize=(1.5 + 1.3 * len(cases), 6.5), layout="constrained")
    for axes, (label, numbers) in zip(figure.subplots(2, 1, sharex=True), _PANELS, strict=True):
        for position, case in enumerate(cases):
            here = [name for name in names if name in case["contenders"]]
            for place, name in enumerate(here):
                found = numbers(case["contenders"][name], case["contenders"][TRAINING])
                if found is None:
                    continue
                median, low, high = found
                x = position + (place - (len(here) - 1) / 2) * 0.8 / len(names)
                hatch = "//" if name == PUBLISHED else None
                axes.bar(x, median, 0.8 / len(names), color=styles(names)[name][0], hatch=hatch, edgecolor="white")
                if high > low:
                    axes.errorbar(x, median, [[median - low], [high - median]], color="black", linewidth=0.8)
        axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
        # From the medians: the range of a hiccup may leave the picture.
        axes.set_ylim(0, 1.25 * max((patch.get_height() for patch in axes.patches), default=1.0) or 1.0)
        axes.set_ylabel(label, fontsize=9)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        _bare(axes)
    titles = [case_title(case).replace(", ", ",\n").replace(" of the ", "\nof the ") for case in cases]
    figure.axes[1].set_xticks(range(len(cases)), titles, fontsize=8)
    handles = [figure.axes[0].bar(0, 0, color=styles(names)[n][0], hatch="//" if n == PUBLISHED else None) for n in names]
    figure.legend(handles, names, loc="outside upper center", ncols=min(len(names), 4), frameon=False)
    return figure


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def main(arguments: Sequence[str] | None = None) -> None:
    root = Path(__file__).parents[1]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=root / "benchmarks" / "results" / "engines-cpu.json")
    parser.add_argument("--out", type=Path, default=root / "docs" / "assets")
    options = parser.parse_args(arguments)
    cases = list(read_json(options.results)["cases"].values())
    swept = cases[0]["network"]
    sweep = [case for case in cases if case["network"] == swept and not case["overlap"]]
    at_four = [case for case in cases if case["num_subbatches"] == 4 and case["contenders"][TRAINING].get("memory")]
    for name, figure in ((f"benchmark-{swept}", against_d(sweep)), ("benchmark-networks", over_networks(at_four))):
        path = options.out / f"{name}.png"
        write_file(path, lambda temporary, figure=figure: figure.savefig(temporary, dpi=150, format="png"))
        print(f"picture: {path}")


if __name__ == "__main__":
    main()
