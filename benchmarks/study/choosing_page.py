"""Write docs/choosing.md from results/choosing.jsonl: whether what ``initopt.choose`` says is right.

python benchmarks/study/choosing_page.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from choosing import RESULTS, WARM_UP
from command import read_rows
from subjects import NETWORKS

from initopt._support.words import counted
from initopt.comparison.analysis.statistics import Paired, paired_difference

__all__ = ["Network", "main", "networks_in", "page"]

PAGE = Path(__file__).parents[2] / "docs" / "choosing.md"

_EPOCHS = 30

_CIFAR = 50_000 // 64
"""Steps of an epoch of all of CIFAR-10."""

_HEAD = """# Is what `choose` says right?

<!-- Made by benchmarks/study/choosing_page.py from benchmarks/results/choosing.jsonl. -->

[`initopt.choose`](choose.md) on networks of [our study](defaults.md), at the learning rate that is best for the network's
own start. It saw training data alone, with three seeds, and six more where it was close. Then each start of the race was
trained for {horizon} steps with a cosine schedule, from three other seeds, and judged on the validation split. So were
three that no race has: GradInit, NIO after orthogonal weights, and the network's own start with 50 steps of warm-up.
Nothing was chosen on these figures, nor on test data. Images are CIFAR-10 (JPEG copy) of 16 x 16 pixels.

"""


class Network:
    """The rows of a network."""

    def __init__(self, name: str, mine: Sequence[dict[str, Any]]) -> None:
        self.name = name
        self.choice: dict[str, Any] = [row for row in mine if row["kind"] == "choice"][-1]
        guess = NETWORKS[name].guess
        self.at_rate: dict[float, dict[str, dict[int, float]]] = {}
        for row in mine:
            if row["kind"] == "training":
                value = guess if row["diverged"] else row["accuracy"]
                self.at_rate.setdefault(row["lr"], {}).setdefault(row["start"], {})[row["seed"]] = 100 * value

    @property
    def accuracy(self) -> dict[str, dict[int, float]]:
        """In percent, by start and seed, at the rate of the race."""
        return self.at_rate[self.choice["choice"]["lr"]]

    @property
    def chosen(self) -> str:
        """The start that was chosen."""
        return str(self.choice["choice"]["start"])

    @property
    def best(self) -> str:
        """The start with the best mean accuracy, whether it was in the race or not, without a warm-up."""
        starts = [start for start in self.accuracy if start != WARM_UP]
        return max(starts, key=lambda start: fmean(self.accuracy[start].values()))

    def against(self, start: str) -> Paired:
        """The accuracy of the chosen start, less that of another one, in points."""
        return paired_difference(self.accuracy[self.chosen], self.accuracy[start])

    @property
    def cost(self) -> int:
        """Of the race, in training steps."""
        return round(self.choice["choice"]["cost"]["total"])

    def share(self, epoch: int) -> float:
        """Of a training of thirty epochs of so many steps that the race costs, in percent."""
        return 100 * self.cost / (_EPOCHS * epoch)


def worse(found: Paired) -> bool:
    """Whether a difference is below zero beyond noise."""
    return found.estimate.mean < 0 and found.p is not None and found.p < 0.05


def networks_in(found: Sequence[dict[str, Any]]) -> list[Network]:
    """The networks of the rows, without those that have no race, or not all of its trainings."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        by_name.setdefault(row["network"], []).append(row)
    return [Network(name, mine) for name, mine in by_name.items() if _complete(mine)]


def page(found: Sequence[dict[str, Any]]) -> str:
    """The page."""
    networks = networks_in(found)
    horizon = max(row["steps"] for row in found if row["kind"] == "training")
    lines = [_HEAD.format(horizon=horizon)]
    harmed = [n for n in networks if worse(n.against("own"))]
    level = [n for n in networks if not worse(n.against(n.best))]
    changed = [n for n in networks if n.choice["choice"]["changes"]]
    names = f" ({', '.join(n.name for n in harmed)})" if harmed else ""
    lines.append(
        f"On {counted(len(networks), 'network')}, another start is chosen {counted(len(changed), 'time')}. "
        f"The chosen start is worse than the network's own beyond noise (paired t-test, p < 0.05) on {len(harmed)}{names}, "
        f"and within noise of the best start on {len(level)}. Three seeds tell only large differences apart; "
        "the differences themselves are in the table, in points of accuracy on the validation split.\n"
    )
    accuracies = "own | chosen start | best start | chosen - own | chosen - best"
    lines.append(f"| network | rate | steps | chosen | {accuracies} | cost, steps | cost, % |")
    lines.append("| --- | ---: | ---: | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |")
    lines += [_line(network) for network in networks]
    images = [n.share(_CIFAR) for n in networks if NETWORKS[n.name].data == "cifar"]
    whole = f": of {_EPOCHS} epochs of all of CIFAR-10 it is {min(images):.0f} to {max(images):.0f} %" if images else ""
    lines.append(
        "\nSteps: of a run of the race. Cost: of the race, as time in training steps, and in percent of a training of "
        f"{_EPOCHS} epochs of what there is here: 6,400 images or texts, or 1,071 digits. It does not grow with the "
        f"data{whole}. "
        "Most of it is NIO, which takes 100 steps for each seed, from two starts; times are those of a busy machine. "
        "Intervals of 3 seeds are their range.\n\n## What it said\n"
    )
    lines += [f"- **{NETWORKS[n.name].title}**: {n.choice['choice']['verdict']}." for n in networks]
    lines += [
        "\n## All starts\n",
        "Accuracy in percent, mean over three seeds, at the rate of the race.\n",
        *_starts(networks),
    ]
    lines += [line for n in networks if len(n.at_rate) > 1 for line in _against_warm_up(n)]
    return "\n".join(lines) + "\n"


def _complete(mine: Sequence[dict[str, Any]]) -> bool:
    races = [row for row in mine if row["kind"] == "choice"]
    there = {row["start"] for row in mine if row["kind"] == "training"}
    return bool(races) and {row["start"] for row in races[-1]["choice"]["rows"] if row["outcome"] != "failed"} <= there


def _line(network: Network) -> str:
    own, best = network.against("own"), network.against(network.best)
    mean = {start: fmean(values.values()) for start, values in network.accuracy.items()}
    cells = [
        NETWORKS[network.name].title,
        f"{network.choice['choice']['lr']:.3g}",
        str(network.choice["steps"]),
        network.chosen,
        f"{mean['own']:.1f}",
        f"{mean[network.chosen]:.1f}",
        f"{network.best}, {mean[network.best]:.1f}",
        _points(own),
        _points(best),
        f"{network.cost:,}",
        f"{network.share(network.choice['epoch']):.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _points(found: Paired) -> str:
    if not any(found.differences.values()):
        return "same"
    return f"{found.estimate.mean:+.1f} ({found.estimate.low:+.1f} to {found.estimate.high:+.1f})"


def _starts(networks: Sequence[Network]) -> list[str]:
    starts = list(dict.fromkeys(start for network in networks for start in network.accuracy))
    lines = [f"| network | {' | '.join(starts)} |", f"| --- |{' ---: |' * len(starts)}"]
    for network in networks:
        cells = [f"{fmean(network.accuracy[start].values()):.1f}" if start in network.accuracy else "" for start in starts]
        lines.append(f"| {NETWORKS[network.name].title} | {' | '.join(cells)} |")
    return lines


def _against_warm_up(network: Network) -> list[str]:
    """A table of the starts of a network at each of its rates, and how each stands to a warm-up."""
    rates = sorted(network.at_rate)
    at_all = [start for start in network.at_rate[rates[0]] if all(start in network.at_rate[rate] for rate in rates)]

    def best(start: str) -> dict[int, float]:
        return max((network.at_rate[rate][start] for rate in rates), key=lambda found: fmean(found.values()))

    lines = [
        f"\n## Without a warm-up: {NETWORKS[network.name].title}\n",
        "Accuracy in percent, mean over three seeds; the last column has each start at the better of its rates, less the "
        "network's own start with a warm-up at the better of its own.\n",
        f"| start | {' | '.join(f'rate {rate:.3g}' for rate in rates)} | less warm-up |",
        f"| --- |{' ---: |' * (len(rates) + 1)}",
    ]
    for start in at_all:
        means = [f"{fmean(network.at_rate[rate][start].values()):.1f}" for rate in rates]
        less = "" if start == WARM_UP else _points(paired_difference(best(start), best(WARM_UP)))
        lines.append(f"| {start} | {' | '.join(means)} | {less} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args(arguments)
    PAGE.write_text(page(read_rows(options.rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
