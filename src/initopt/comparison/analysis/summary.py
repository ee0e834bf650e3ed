"""The findings of a comparison, as data: every initialization on every network beside the reference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from initopt.comparison.analysis.outcome import Outcome
from initopt.comparison.analysis.statistics import Estimate, Paired, estimate, holm, paired_difference
from initopt.comparison.storage.record import RunRecord
from initopt.comparison.storage.store import StoredComparison

__all__ = ["SIGNIFICANT", "Entry", "NetworkSummary", "SelectionCell", "Summary", "Target", "over_runs", "summarize"]

SIGNIFICANT = 0.05
"""The level below which a corrected p-value counts as a difference."""

_SHARES = (0.5, 0.75, 0.9, 0.95)


@dataclass(frozen=True)
class SelectionCell:
    """What one learning rate gave on the validation split: values by seed, and how many runs diverged and failed.

    A run that diverged counts as untrained.
    """

    values: dict[int, float]
    diverged: int
    failed: int


@dataclass(frozen=True)
class Entry:
    """One initialization on one network.

    Attributes:
        name: of the initialization.
        runs: the final ones, by seed.
        missing: seeds without a run.
        final: what counts in the end, by seed.
        first: the same after the first epoch; empty if that was not looked at.
        final_difference: to the reference; ``None`` for the reference itself.
        first_difference: the same after the first epoch.
        steps_to: training steps to every target, by seed; ``inf`` where it was not reached.
        selection: the runs that chose the learning rate, by learning rate.
    """

    name: str
    runs: dict[int, RunRecord]
    missing: tuple[int, ...]
    final: dict[int, float]
    first: dict[int, float]
    final_difference: Paired | None
    first_difference: Paired | None
    steps_to: tuple[dict[int, float], ...]
    selection: dict[float, SelectionCell]

    def having(self, status: str) -> list[RunRecord]:
        """The runs of a status, ``"done"``, ``"diverged"`` or ``"failed"``."""
        return [run for run in self.runs.values() if run.status == status]

    @property
    def lrs(self) -> list[float]:
        """The learning rates of the final runs: one, unless the selection was made for every seed."""
        return sorted({run.lr for run in self.runs.values()})

    @property
    def lr_at_edge(self) -> bool:
        """Whether the chosen learning rate is the least or largest of several that were tried."""
        grid = sorted(self.selection)
        return len(grid) > 1 and any(lr in (grid[0], grid[-1]) for lr in self.lrs)

    def measured(self, when: str, figure: str) -> Estimate:
        """A figure of the measurements ``"before"`` or ``"after"``, over seeds."""
        found: list[Mapping[str, float] | None] = [getattr(run, when) for run in self.runs.values()]
        return over_runs(None if figures is None else figures.get(figure) for figures in found)

    @property
    def pairs(self) -> int:
        """The number of seeds that the initialization has in common with the reference."""
        return len(self.final_difference.differences) if self.final_difference else 0

    @property
    def mean_difference(self) -> float:
        """The mean difference to the reference in the end; ``nan`` without one."""
        return self.final_difference.estimate.mean if self.final_difference else math.nan

    @property
    def verdict(self) -> int:
        """1 if the value is higher in the end than the reference's, -1 if lower, 0 if that is not clear.

        Clear is what the corrected test and the interval both say.
        """
        paired = self.final_difference
        if paired is None or paired.p_holm is None or paired.p_holm >= SIGNIFICANT:
            return 0
        if paired.estimate.low > 0:
            return 1
        return -1 if paired.estimate.high < 0 else 0


@dataclass(frozen=True)
class Target:
    """A value to be reached, and which share it is of what the initialization in question has in the end."""

    share: float
    value: float


@dataclass(frozen=True)
class NetworkSummary:
    """All initializations on one network.

    Attributes:
        name: of the network.
        outcome: what its runs are judged by.
        selected_by: what the runs that chose the learning rates are judged by here.
        first_epoch: where "after the first epoch" was looked at; ``None`` if nowhere.
        entries: in the order of the comparison.
        reference: the name of the initialization that the others are compared to.
        targets: values whose steps are counted.
        targets_of: the name of the initialization that the targets are derived from; ``None`` without targets.
    """

    name: str
    outcome: Outcome
    selected_by: Outcome
    first_epoch: float | None
    entries: tuple[Entry, ...]
    reference: str
    targets: tuple[Target, ...]
    targets_of: str | None

    @property
    def others(self) -> list[Entry]:
        """The initializations other than the reference."""
        return [entry for entry in self.entries if entry.name != self.reference]

    @property
    def runs(self) -> list[RunRecord]:
        """The final runs of all initializations."""
        return [run for entry in self.entries for run in entry.runs.values()]

    def better(self, difference: float) -> bool:
        """Whether a difference to the reference is an improvement."""
        return difference > 0 if self.outcome.higher_is_better else difference < 0


@dataclass(frozen=True)
class Summary:
    """All networks, and the name of the initialization that the others are compared to; empty without initializations."""

    comparison: StoredComparison
    networks: tuple[NetworkSummary, ...]
    reference: str

    @property
    def comparisons(self) -> int:
        """The number of comparisons that the tests are corrected for."""
        return sum(len(network.others) for network in self.networks)


def over_runs(values: Iterable[float | None]) -> Estimate:
    """Summarize values of runs; those that are missing or not finite are left out.

    >>> over_runs([1.0, None, float("inf"), 3.0]).mean
    2.0
    """
    return estimate([value for value in values if value is not None and math.isfinite(value)])


def summarize(comparison: StoredComparison) -> Summary:
    """Summarize a comparison.

    The reference is the initialization ``"default"``, or the first one where there is no such. The corrections are over
    all networks and initializations, once for the end and once for the first epoch.

    Raises:
        ValueError: if there are two final runs of one network, initialization and seed.
    """
    names = list(comparison.initializations)
    reference = "default" if "default" in names else next(iter(names), "")
    networks = (_network(comparison, network, names, reference) for network in comparison.networks)
    return Summary(comparison, _corrected(networks), reference)


def _network(comparison: StoredComparison, network: str, names: Sequence[str], reference: str) -> NetworkSummary:
    runs = {name: _by_seed(comparison.runs, network, name) for name in names}
    everyone = [run for found in runs.values() for run in found.values()]
    outcome = Outcome.of(everyone)
    first_epoch = outcome.first_epoch(everyone)
    final = {name: _finite({s: outcome.final(run) for s, run in found.items()}) for name, found in runs.items()}
    first = {
        name: {} if first_epoch is None else _finite({s: outcome.at_epoch(run, first_epoch) for s, run in found.items()})
        for name, found in runs.items()
    }
    targets_of, targets = _targets(outcome, final, reference)
    selecting = [run for run in comparison.selection if run.network == network]
    validation = Outcome.of(selecting, "validation")
    entries = tuple(
        Entry(
            name=name,
            runs=runs[name],
            missing=tuple(seed for seed in comparison.seeds if seed not in runs[name]),
            final=final[name],
            first=first[name],
            final_difference=None if name == reference else paired_difference(final[name], final[reference]),
            first_difference=None if name == reference else paired_difference(first[name], first[reference]),
            steps_to=tuple(
                {s: outcome.steps_to(run, t.value) for s, run in runs[name].items() if run.status != "failed"}
                for t in targets
            ),
            selection=_selection([run for run in selecting if run.initialization == name], validation),
        )
        for name in names
    )
    return NetworkSummary(network, outcome, validation, first_epoch, entries, reference, targets, targets_of)


def _by_seed(runs: Iterable[RunRecord], network: str, name: str) -> dict[int, RunRecord]:
    found: dict[int, RunRecord] = {}
    for run in sorted((r for r in runs if r.network == network and r.initialization == name), key=lambda run: run.seed):
        if run.seed in found:
            raise ValueError(
                f"there are two final runs of {network!r} from {name!r} with seed {run.seed}, at lr={found[run.seed].lr:g} "
                f"and lr={run.lr:g}; one of them belongs to another comparison: remove its folder"
            )
        found[run.seed] = run
    return found


def _finite(values: Mapping[int, float]) -> dict[int, float]:
    return {seed: value for seed, value in values.items() if math.isfinite(value)}


def _targets(
    outcome: Outcome, final: Mapping[str, Mapping[int, float]], reference: str
) -> tuple[str | None, tuple[Target, ...]]:
    """Shares of what the reference has in the end; of the best, where the reference learned nothing.

    Of an accuracy, a share of it; of a loss, which has no natural zero, a share of the way down from the untrained one.
    Targets that an untrained network meets are left out.
    """
    means = {name: estimate(list(values.values())).mean for name, values in final.items() if values}
    best = sorted(means, key=lambda name: means[name], reverse=outcome.higher_is_better)[:1]
    for name in [reference, *best]:
        if name not in means:
            continue
        untrained, end = outcome.untrained, means[name]
        if outcome.higher_is_better:
            targets = [Target(share, share * end) for share in _SHARES if not share * end <= untrained]
        else:
            values = {share: untrained + share * (end - untrained) for share in _SHARES}
            targets = [Target(share, value) for share, value in values.items() if value < untrained]
        if targets:
            return name, tuple(targets)
    return None, ()


def _selection(runs: Iterable[RunRecord], validation: Outcome) -> dict[float, SelectionCell]:
    cells: dict[float, SelectionCell] = {}
    for run in sorted(runs, key=lambda run: (run.lr, run.seed)):
        cell = cells.get(run.lr, SelectionCell({}, 0, 0))
        cells[run.lr] = SelectionCell(
            cell.values | _finite({run.seed: validation.final(run)}),
            cell.diverged + (run.status == "diverged"),
            cell.failed + (run.status == "failed"),
        )
    return cells


def _corrected(networks: Iterable[NetworkSummary]) -> tuple[NetworkSummary, ...]:
    """The networks with their p-values corrected, for all of them together."""
    networks = tuple(networks)
    for field in ("final_difference", "first_difference"):
        corrected = iter(holm([getattr(entry, field).p for network in networks for entry in network.others]))
        networks = tuple(
            replace(
                network, entries=tuple(_with_p(entry, field, network.reference, corrected) for entry in network.entries)
            )
            for network in networks
        )
    return networks


def _with_p(entry: Entry, field: str, reference: str, corrected: Iterator[float | None]) -> Entry:
    if entry.name == reference:
        return entry
    return replace(entry, **{field: replace(getattr(entry, field), p_holm=next(corrected))})
