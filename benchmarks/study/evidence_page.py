"""docs/evidence.md, from the runs in docs/comparisons and the study: python benchmarks/study/evidence_page.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from choosing import RESULTS as CHOSEN
from choosing import WARM_UP
from choosing_page import Network, networks_in
from command import read_rows
from rates_picture import LINES, draw, networks_of
from records import RESULTS, WIDE, Results, load
from subjects import NETWORKS, TWO_DECADES

from initopt._support.files import write_file

sys.path.append(str(Path(__file__).parents[1]))
from tables import fill, markdown, spread

__all__ = ["main"]

DOCS = Path(__file__).parents[2] / "docs"
TEXT = Path(__file__).parent / "evidence.md"

Run = dict[str, Any]


class Runs:
    """The final runs of a published comparison."""

    def __init__(self, name: str) -> None:
        content = json.loads((DOCS / "comparisons" / f"{name}-runs.json").read_text())
        self.rows: list[Run] = [run for run in content["runs"] if run["purpose"] == "final"]
        self.networks = list(dict.fromkeys(run["network"] for run in self.rows))
        self.starts = list(dict.fromkeys(run["initialization"] for run in self.rows))

    def of(self, network: str, start: str) -> list[Run]:
        return [run for run in self.rows if run["network"] == network and run["initialization"] == start]

    def by_seed(self, network: str, start: str) -> dict[int, float]:
        """Test accuracy in the end in percent."""
        return {run["seed"]: accuracy(run) for run in self.of(network, start)}

    def difference(self, network: str, start: str) -> str:
        """Paired difference to the network's own start in points; nothing for that itself."""
        own, found = self.by_seed(network, "default"), self.by_seed(network, start)
        return "" if start == "default" else gained(own, found)


def gained(own: Mapping[int, float], found: Mapping[int, float]) -> str:
    """How much more there is than from the network's own start, over the seeds that both have."""
    return spread([found[seed] - own[seed] for seed in found if seed in own], "+")


def accuracy(run: Run) -> float:
    """Test accuracy in the end in percent; a run that diverged counts as an untrained network."""
    looks = [row for row in run["curve"] if row[2] == "test"]
    return 100 * float(looks[0][4] if run["status"] == "diverged" else looks[-1][4])


def steps_to(run: Run, target: float) -> float | None:
    """Training steps after which a look first showed a test accuracy."""
    reached = [row[0] for row in run["curve"] if row[2] == "test" and 100 * row[4] >= target]
    return min(reached, default=None)


def per_network(runs: Runs, cell: Callable[[str, str], str]) -> str:
    rows = [[start, *(cell(network, start) for network in runs.networks)] for start in runs.starts]
    return markdown(["start", *runs.networks], rows)


def accuracies(runs: Runs) -> str:
    return per_network(runs, lambda network, start: spread(runs.by_seed(network, start).values()))


def differences(runs: Runs) -> str:
    return per_network(runs, runs.difference)


def steps(runs: Runs) -> str:
    """Steps to what the network's own start reaches in the end, on the mean."""

    def cell(network: str, start: str) -> str:
        target = fmean(runs.by_seed(network, "default").values())
        found = [steps_to(run, target) for run in runs.of(network, start)]
        reached = [value for value in found if value is not None]
        missed = len(found) - len(reached)
        if not reached:
            return "not reached"
        return f"{fmean(reached):.0f}" + (f" ({missed} of {len(found)} not)" if missed else "")

    return per_network(runs, cell)


def costs(runs: Runs) -> str:
    def cell(network: str, start: str) -> str:
        found = runs.of(network, start)
        inits = [run["initialization_steps"] for run in found if run["initialization_steps"] is not None]
        return f"{fmean(inits):.0f} ({fmean(run['initialization_seconds'] for run in found):.0f} s)" if inits else ""

    return per_network(runs, cell)


def before_and_after(runs: Runs, start: str) -> str:
    rows = []
    for network in runs.networks:
        found = [run for run in runs.of(network, start) if run["before"] and run["after"]]
        if found:
            pairs = [
                f"{fmean(r['before'][key] for r in found):.2f} → {fmean(r['after'][key] for r in found):.2f}"
                for key in ("grad_cosine", "grad_norm")
            ]
            rows.append([network, *pairs])
    return markdown(["network", "GradCosine", "gradient norm"], rows)


def own_rates(comparisons: Sequence[Runs]) -> str:
    """Accuracy, difference to the network's own start, and the learning rate that was chosen."""
    rows = []
    for runs in comparisons:
        for network, start in product(runs.networks, runs.starts):
            rate = f"{runs.of(network, start)[0]['lr']:g}"
            end = spread(runs.by_seed(network, start).values())
            rows.append([network, start, rate, end, runs.difference(network, start)])
    return markdown(["network", "start", "learning rate", "test accuracy, %", "difference, points"], rows)


_COLUMNS = {"textbook": ("kaiming_normal", "xavier_normal")} | {
    start: (start,)
    for start in (
        *("orthogonal", "lsuv", "nio", "orthogonal + nio", "lsuv + nio", "gradinit"),
        *("mimetic", "zero_branches", "scaled_branches", WARM_UP),
    )
}
"""Starts of a column: the scheme that fits the nonlinearities has one name or the other."""


def by_network(networks: Sequence[Network]) -> str:
    """Accuracy from the network's own start, and what ``choose`` and each start add; those that gain most come first."""
    rows = []
    for network in sorted(networks, key=lambda n: -fmean(n.accuracy[n.best].values()) + fmean(n.accuracy["own"].values())):
        own = network.accuracy["own"]
        cells = [NETWORKS[network.name].title, f"{fmean(own.values()):.1f}", _gain(network, network.chosen)]
        for starts in _COLUMNS.values():
            there = [start for start in starts if start in network.accuracy]
            cells.append(_gain(network, there[0]) if there else "")
        rows.append(cells)
    return markdown(["network", "own, %", "choose", *_COLUMNS], rows)


def _gain(network: Network, start: str) -> str:
    """Over the network's own start, seed by seed, in points."""
    return "own" if start == "own" else gained(network.accuracy["own"], network.accuracy[start])


def clipping(results: Results) -> str:
    """Accuracy at the best learning rate and, in brackets, over all of them."""
    starts = ("default", "default, clipping", "uncentred nio", "uncentred nio, clipping")
    rows = []
    for name, network in NETWORKS.items():
        if all(results.of(name, start) for start in starts):
            pairs = [(results.at_best(name, start, "validation"), results.over_lrs(name, start)) for start in starts]
            cells = [f"{fmean(best.values()):.1f} ({fmean(mean.values()):.1f})" for best, mean in pairs]
            rows.append([network.title, *cells])
    return markdown(["network", *starts], rows)


def two_decades(wide: Results) -> str:
    """Accuracy at learning rates over two decades."""
    rows = []
    for name in networks_of(wide):
        lrs = TWO_DECADES[NETWORKS[name].optimizer]
        for start in LINES:
            values = [wide.by_seed(name, start, lr, "validation").values() for lr in lrs]
            cells = [f"{spread(value)} (lr {lr:g})" for value, lr in zip(values, lrs, strict=True)]
            rows.append([NETWORKS[name].title, start, *cells])
    return markdown(["network", "start", *[""] * 5], rows)


def main() -> None:
    cifar = Runs("cifar10")
    clipped, free = [Runs("cifar10-lr"), Runs("cifar10-vit")], [Runs("cifar10-lr-noclip")]
    results, wide = (Results(load(path)) for path in (RESULTS, WIDE))
    print(f"picture: {draw(wide)}")
    parts = {
        "by network": by_network(networks_in(read_rows(CHOSEN))),
        "accuracies": accuracies(cifar),
        "differences": differences(cifar),
        "steps": steps(cifar),
        "costs": costs(cifar),
        "before and after": before_and_after(cifar, "nio"),
        "own rates": own_rates(clipped),
        "own rates, no clipping": own_rates(free),
        "two decades": two_decades(wide),
        "clipping": clipping(results),
    }
    write_file(DOCS / "evidence.md", lambda path: path.write_text(fill(TEXT.read_text(), parts)))
    print(f"page: {DOCS / 'evidence.md'}")


if __name__ == "__main__":
    main()
