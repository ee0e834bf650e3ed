"""docs/defaults.md, from the results of the study: python benchmarks/study/defaults_page.py."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from networks import NETWORKS
from pages import fill, spread, table
from starts import STARTS
from study import RESULTS

from initopt._support.files import write_file

__all__ = ["main", "page"]

PAGE = Path(__file__).parents[2] / "docs" / "defaults.md"

TEXT = Path(__file__).parent / "defaults.md"

Row = dict[str, Any]
REFERENCE = "default"


class Results:
    """The rows of the study, by network, start, learning rate and seed."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            self._rows.setdefault((row["network"], row["start"]), []).append(row)

    def of(self, network: str, start: str) -> list[Row]:
        """All rows of a start on a network."""
        return self._rows.get((network, start), [])

    def by_seed(self, network: str, start: str, lr: float, part: str) -> dict[int, float]:
        """Accuracy in percent by seed; a training that diverged counts as guessing."""
        rows = [row for row in self.of(network, start) if row.get("lr") == lr]
        guess = 100 / (65 if NETWORKS[network].data == "text" else 10)
        return {row["seed"]: 100 * row[part]["accuracy"] if "validation" in row else guess for row in rows}

    def best_lr(self, network: str, start: str) -> float:
        """The one with the best mean accuracy on the validation split."""
        return max(
            NETWORKS[network].lrs, key=lambda lr: fmean(self.by_seed(network, start, lr, "validation").values() or [-1.0])
        )

    def at_best(self, network: str, start: str, part: str) -> dict[int, float]:
        """Accuracy at the best learning rate of the start, by seed."""
        return self.by_seed(network, start, self.best_lr(network, start), part) if self.of(network, start) else {}

    def over_lrs(self, network: str, start: str) -> dict[int, float]:
        """Mean accuracy on the validation split over all learning rates, by seed."""
        if not self.of(network, start):
            return {}
        found = [self.by_seed(network, start, lr, "validation") for lr in NETWORKS[network].lrs]
        return {seed: fmean(one[seed] for one in found) for seed in found[0]}


def _difference(found: dict[int, float], reference: dict[int, float]) -> str:
    """Paired difference in points; nothing if there are no pairs."""
    pairs = [found[seed] - reference[seed] for seed in found if seed in reference]
    if not pairs:
        return ""
    few = "" if len(pairs) >= 3 else f" ({len(pairs)} seed{'s' * (len(pairs) > 1)})"
    return f"{spread(pairs, '+')}{few}"


def differences(results: Results, networks: Sequence[str], starts: Sequence[str], part: str, over_lrs: bool = False) -> str:
    """Paired differences to the network's own start, in points."""

    def values(network: str, start: str) -> dict[int, float]:
        return results.over_lrs(network, start) if over_lrs else results.at_best(network, start, part)

    rows = []
    own = [values(network, REFERENCE) for network in networks]
    rows.append(["the network's own start, %", *(f"{fmean(one.values()):.1f}" for one in own)])
    for start in starts:
        cells = [_difference(values(network, start), reference) for network, reference in zip(networks, own, strict=True)]
        if any(cells):
            rows.append([start, *cells])
    return table(["start", *(NETWORKS[network].title for network in networks)], rows)


def old_and_new(results: Results, networks: Sequence[str]) -> str:
    """NIO on whole and on centred gradients beside the network's own start, on the split by which the network is judged."""
    starts = {"own start": REFERENCE, "nio until now": "uncentred nio", "nio": "nio"}
    rows = []
    for name in networks:
        part = "test" if NETWORKS[name].role == "confirmation" else "validation"
        found = [results.at_best(name, start, part) for start in starts.values()]
        if not all(found):
            continue
        cells = [
            f"{spread(one.values())} (lr {results.best_lr(name, start):g})"
            for one, start in zip(found, starts.values(), strict=True)
        ]
        rows.append([NETWORKS[name].title, *cells, _difference(found[2], found[0]), _difference(found[2], found[1])])
    return table(["network", *starts, "nio - own start, points", "nio - nio until now, points"], rows)


def accuracies(results: Results, networks: Sequence[str]) -> str:
    """Accuracy at the best learning rate of each start, in percent."""
    starts = [REFERENCE, *(name for name in STARTS if name != REFERENCE)]
    run = [start for start in starts if any(results.of(name, start) for name in networks)]
    rows = []
    for name in networks:
        cells = [spread(found.values()) if (found := results.at_best(name, start, "validation")) else "" for start in run]
        rows.append([NETWORKS[name].title, *cells])
    return table(["network", *run], rows)


def edges(results: Results, networks: Sequence[str]) -> str:
    """How often the learning rate that counts is the first or the last of its list, so that a better one may be beyond."""
    found = []
    for start in (REFERENCE, "nio"):
        run = [name for name in networks if results.of(name, start)]
        ends = [name for name in run if results.best_lr(name, start) in (NETWORKS[name].lrs[0], NETWORKS[name].lrs[-1])]
        found.append(f"for `{start}` on {len(ends)} of {len(run)} networks")
    return " and ".join(found)


def against_the_best(results: Results, networks: Sequence[str]) -> str:
    """NIO against the best of all other starts, chosen with hindsight on the test split."""
    rows = []
    for name in networks:
        ours = results.at_best(name, "nio", "test")
        others = {start: results.at_best(name, start, "test") for start in STARTS if start != "nio"}
        best = max(
            (start for start in others if others[start]), key=lambda start: fmean(others[start].values()), default=""
        )
        if not ours or not best:
            continue
        theirs = f"{best}: {spread(others[best].values())}"
        rows.append([NETWORKS[name].title, spread(ours.values()), theirs, _difference(ours, others[best])])
    return table(["network", "nio, %", "the best of the others, %", "paired difference, points"], rows)


def changes(results: Results, networks: Sequence[str], start: str) -> str:
    """What a start does to GradCosine, gradient norm and loss."""
    rows = []
    for network in networks:
        found = [row for row in results.of(network, start) if "grad_cosine" in row and "start_loss" in row]
        if found:
            pairs = [
                f"{fmean(r[key][0] for r in found):.2f} → {fmean(r[key][1] for r in found):.2f}"
                for key in ("grad_cosine", "grad_norm", "start_loss")
            ]
            rows.append([NETWORKS[network].title, *pairs, f"{fmean(r['seconds'] for r in found):.0f} s"])
    return table(["network", "GradCosine", "gradient norm", "loss", "time"], rows)


def page(rows: Iterable[Row]) -> str:
    """The whole page."""
    results = Results(rows)
    seen = [name for name in NETWORKS if results.of(name, REFERENCE)]
    choice = [name for name in seen if NETWORKS[name].role == "choice"]
    confirmation = [name for name in seen if NETWORKS[name].role == "confirmation"]
    deep = [name for name in seen if NETWORKS[name].role == "deep"]
    starts = [name for name in STARTS if name != REFERENCE]
    parts = {
        "best": differences(results, choice, starts, "validation"),
        "over lrs": differences(results, choice, starts, "validation", over_lrs=True),
        "edges": edges(results, choice),
        "old and new": old_and_new(results, [*choice, *confirmation]),
        "deep": accuracies(results, deep),
        "confirmation": differences(results, confirmation, starts, "test"),
        "against the best": against_the_best(results, confirmation),
        "changes": changes(results, [*choice, *confirmation], "nio"),
    }
    return fill(TEXT.read_text(), parts)


def main() -> None:
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    write_file(PAGE, lambda path: path.write_text(page(rows)))
    print(f"page: {PAGE}")


if __name__ == "__main__":
    main()
