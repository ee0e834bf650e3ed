"""The tables of a report."""

from __future__ import annotations

import math
from collections import Counter
from statistics import median

from initopt.comparison.analysis.outcome import Outcome
from initopt.comparison.analysis.statistics import Paired, estimate
from initopt.comparison.analysis.summary import SIGNIFICANT, Entry, NetworkSummary, Summary, over_runs
from initopt.comparison.report.content import Strong, Table
from initopt.comparison.report.formatting import (
    NOTHING,
    difference,
    epoch_name,
    interval,
    mean_and_spread,
    number,
    outcome_name,
    p_value,
    score,
    seeds_named,
    unit,
)
from initopt.diagnosis import RULES

__all__ = [
    "cost_table",
    "differences_table",
    "gradients_table",
    "layers_table",
    "overview_table",
    "results_table",
    "selection_table",
    "targets_table",
]


def overview_table(summary: Summary) -> Table | None:
    """The differences in the end on all networks; ``None`` without anything to compare."""
    names = [name for name in summary.comparison.initializations if name != summary.reference]
    if not names:
        return None
    rows = [[name, *(_end(network, name) for network in summary.networks)] for name in names]
    return Table(
        f"Difference to {summary.reference} in the end",
        ["initialization", *(f"{network.name}{_in_unit(network.outcome)}" for network in summary.networks)],
        rows,
        "Mean over seeds. Bold: clear, by the corrected test and by the interval; all others could be chance. For losses, "
        "less is better.",
    )


def results_table(network: NetworkSummary) -> Table:
    """What the runs have after the first epoch and in the end."""
    outcome, first = network.outcome, network.first_epoch
    columns = ["initialization", "learning rate", "runs", *([f"after {epoch_name(first)}"] if first else []), "in the end"]
    rows = []
    for entry in network.entries:
        ends = list(entry.final.values())
        row = [entry.name, ", ".join(map(number, entry.lrs)) or NOTHING]
        row.append(f"{len(ends)} of {len(entry.runs) + len(entry.missing)}")
        row += [mean_and_spread(estimate(list(entry.first.values())), outcome)] if first else []
        row.append(mean_and_spread(estimate(ends), outcome))
        row.append(f"{score(min(ends), outcome)} to {score(max(ends), outcome)}" if len(ends) > 1 else NOTHING)
        rows.append([*row, _share(entry, "diverged"), _share(entry, "failed")])
    note = "Mean ± standard deviation over seeds, and the least and the largest."
    if any(entry.having("diverged") for entry in network.entries):
        note += f" A run that diverged counts as an untrained network ({score(outcome.untrained, outcome)})."
    return Table(outcome_name(outcome).capitalize(), [*columns, "range", "diverged", "failed"], rows, note)


def differences_table(network: NetworkSummary) -> Table | None:
    """Paired differences with intervals and tests; ``None`` without anything to compare."""
    if not network.others:
        return None
    first = network.first_epoch
    early = [f"after {epoch_name(first)}", "p, corrected"] if first else []
    rows = []
    for entry in network.others:
        row = [entry.name, str(entry.pairs)]
        if first:
            found, _, corrected = _tested(entry.first_difference, network.outcome)
            row += [found, corrected]
        rows.append([*row, *_tested(entry.final_difference, network.outcome)])
    better = "more" if network.outcome.higher_is_better else "less"
    return Table(
        f"Difference to {network.reference}, seed by seed",
        ["initialization", "pairs", *early, "in the end", "p", "p, corrected"],
        rows,
        f"{outcome_name(network.outcome).capitalize()} minus that of {network.reference}{_in_unit(network.outcome)}; "
        f"{better} is better. In brackets: 95 % bootstrap interval. p: paired t-test; corrected after Holm for all "
        f"comparisons of this report. Bold: below {SIGNIFICANT:g}.",
    )


def _tested(paired: Paired | None, outcome: Outcome) -> tuple[str, str, str]:
    """Difference, p and corrected p."""
    if paired is None or not paired.differences:
        return NOTHING, NOTHING, NOTHING
    corrected = p_value(paired.p_holm)
    clear = paired.p_holm is not None and paired.p_holm < SIGNIFICANT
    return interval(paired.estimate, outcome), p_value(paired.p), Strong(corrected) if clear else corrected


def targets_table(network: NetworkSummary) -> Table | None:
    """Training steps to the targets; ``None`` without any."""
    if not network.targets:
        return None
    outcome = network.outcome
    rows = []
    for entry in network.entries:
        cost = over_runs(run.initialization_steps for run in entry.runs.values())
        rows.append([entry.name, *map(_steps, entry.steps_to), number(cost.mean) if cost.count else NOTHING])
    kind = "the accuracy" if outcome.higher_is_better else "the way down from the untrained loss to the loss"
    targets = [f"{100 * target.share:g} % of it: {score(target.value, outcome)}" for target in network.targets]
    return Table(
        f"Training steps to a given {outcome_name(outcome)}",
        ["initialization", *targets, "initialization's own cost"],
        rows,
        f"It is {kind} that {network.targets_of} has in the end, on average. Median over the runs, as "
        "closely as they were looked at; in parentheses, how many reached it, where not all did. A dash: less than half "
        "did. The cost, in training steps, comes on top.",
    )


def _steps(steps: dict[int, float]) -> str:
    """The median, where the runs that never got there count as infinitely late."""
    if not steps:
        return NOTHING
    middle = median(steps.values())
    reached = sum(math.isfinite(step) for step in steps.values())
    text = number(middle, 4) if math.isfinite(middle) else NOTHING
    return text if reached == len(steps) else f"{text} ({reached} of {len(steps)})"


def cost_table(network: NetworkSummary) -> Table:
    """What the initializations cost."""
    rows = []
    for entry in network.entries:
        runs = entry.having("done") + entry.having("diverged")
        seconds = over_runs(run.initialization_seconds for run in runs)
        steps = over_runs(run.initialization_steps for run in runs)
        step = over_runs(None if run.step_seconds is None else 1000 * run.step_seconds for run in runs)
        share = over_runs(
            None if run.initialization_steps is None else run.initialization_steps / run.steps
            for run in entry.having("done")
            if run.steps
        )
        percent = f"{number(100 * share.mean, 2)} %" if share.count else NOTHING
        rows.append([entry.name, mean_and_spread(seconds), mean_and_spread(steps), percent, mean_and_spread(step)])
    return Table(
        "Cost of the initialization",
        ["initialization", "seconds", "in training steps", "of the training", "a training step, ms"],
        rows,
        "Mean ± standard deviation over seeds. A training step is the median of the same run's own; runs that ran at the "
        "same time on one machine slow each other down.",
    )


def gradients_table(network: NetworkSummary) -> Table | None:
    """GradCosine and gradient norm before and after; ``None`` if nothing was measured."""
    rows = []
    for entry in network.entries:
        cells = [entry.measured(when, figure) for figure in ("grad_cosine", "grad_norm") for when in ("before", "after")]
        if any(cell.count for cell in cells):
            rows.append([entry.name, *(mean_and_spread(cell) for cell in cells)])
    if not rows:
        return None
    return Table(
        "Gradients before training",
        ["initialization", "GradCosine, own start", "GradCosine, trained from", "gradient norm, own start", "trained from"],
        rows,
        "Mean ± standard deviation over seeds, on the same held-back batches: of the network's own start, and of the start "
        "that was trained from.",
    )


def layers_table(network: NetworkSummary) -> Table | None:
    """What the rules find in the starts; ``None`` if nobody looked."""
    rows = []
    for entry in network.entries:
        looked = [run.findings for run in entry.runs.values() if run.findings is not None]
        counts = Counter(code for findings in looked for code in {finding.rule for finding in findings})
        texts = {finding.rule: finding.text for findings in looked for finding in findings}
        order = sorted(counts, key=lambda code: (-counts[code], code))
        if looked:
            named = [f"{_rule(code)}{_of(counts[code], len(looked))}" for code in order]
            rows.append([entry.name, "; ".join(named) or "nothing", texts[order[0]] if order else NOTHING])
    if not rows:
        return None
    return Table(
        "Layers before training",
        ["initialization", "what is wrong with its start", "for example"],
        rows,
        "Errors and warnings of initopt.diagnose on the start that was trained from, on batches held back; in parentheses, "
        "in how many of the starts, where not in all.",
    )


def _rule(code: str) -> str:
    return f"{code} {RULES[code].name}" if code in RULES else code


def _of(count: int, total: int) -> str:
    return "" if count == total else f" ({count} of {total})"


def selection_table(network: NetworkSummary) -> Table | None:
    """What every learning rate gave on the validation split; ``None`` if nothing was selected."""
    grid = sorted({lr for entry in network.entries for lr in entry.selection})
    if not grid:
        return None
    rows = [[entry.name, *(_selected(entry, lr, network.selected_by) for lr in grid)] for entry in network.entries]
    seeds = sorted({seed for entry in network.entries for cell in entry.selection.values() for seed in cell.values})
    return Table(
        "How the learning rates were chosen",
        ["initialization", *(number(lr) for lr in grid)],
        rows,
        f"{outcome_name(network.selected_by).capitalize()} in the end by learning rate, mean ± standard deviation over "
        f"{seeds_named(seeds) if seeds else 'seeds that all failed'}; in bold, what the "
        "final runs use. The test data play no part in it.",
    )


def _selected(entry: Entry, lr: float, outcome: Outcome) -> str:
    cell = entry.selection.get(lr)
    if cell is None:
        return NOTHING
    text = mean_and_spread(estimate(list(cell.values.values())), outcome)
    troubles = [f"{count} {name}" for count, name in ((cell.diverged, "diverged"), (cell.failed, "failed")) if count]
    text += f" ({', '.join(troubles)})" if troubles else ""
    return Strong(text) if lr in entry.lrs else text


def _end(network: NetworkSummary, name: str) -> str:
    """The difference of an initialization in the end."""
    entry = next(entry for entry in network.entries if entry.name == name)
    text = difference(entry.mean_difference, network.outcome)
    return Strong(text) if entry.verdict else text


def _share(entry: Entry, status: str) -> str:
    count = len(entry.having(status))
    return f"{count} of {len(entry.runs)}" if count else "0"


def _in_unit(outcome: Outcome) -> str:
    return f", in{unit(outcome)}" if unit(outcome) else ""
