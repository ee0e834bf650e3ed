"""What a comparison shows, and what it does not, in plain words that are computed from the numbers."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from initopt._support.words import counted, listed
from initopt.comparison.analysis.statistics import estimate
from initopt.comparison.analysis.summary import SIGNIFICANT, Entry, NetworkSummary, Summary
from initopt.comparison.report.formatting import (
    difference,
    epoch_name,
    interval,
    number,
    outcome_name,
    score,
    seeds_named,
    unit,
)

__all__ = ["caveats", "findings"]


def findings(summary: Summary) -> list[str]:
    """A paragraph about every network: what is better and worse than the reference, what diverged."""
    return [" ".join([f"On {network.name}:", *_found(network)]) for network in summary.networks]


def _found(network: NetworkSummary) -> Iterable[str]:
    if not any(entry.final for entry in network.entries):
        yield "no run has come to a result yet, so there is nothing to be said."
        return
    if not network.others:
        yield _alone(network)
    elif not any(entry.pairs for entry in network.others):
        yield (
            f"no initialization shares a finished seed with {network.reference}, which the others would be compared to, so "
            "nothing can be said about differences."
        )
    else:
        yield from _against_reference(network)
    yield from _early(network)
    yield from _diverged(network)


def _alone(network: NetworkSummary) -> str:
    only = network.entries[0]
    found = estimate(list(only.final.values()))
    mean = score(found.mean, network.outcome)
    return f"{only.name} alone was run, to a {outcome_name(network.outcome)} of {mean}; there is nothing to compare it to."


def _against_reference(network: NetworkSummary) -> Iterable[str]:
    outcome, reference = network.outcome, network.reference
    compared = [entry for entry in network.others if entry.pairs]
    most = max(entry.pairs for entry in compared)
    of_reference = next(entry for entry in network.entries if entry.name == reference)
    level = score(estimate(list(of_reference.final.values())).mean, outcome)
    if most == 1:
        best = max(compared, key=lambda entry: entry.mean_difference * (1 if outcome.higher_is_better else -1))
        away = f"{difference(best.mean_difference, outcome)}{unit(outcome)} from {reference} at {level}"
        yield (
            f"one seed, which is an example and no evidence. In it, {best.name} has the best {outcome_name(outcome)} of "
            f"the others, {away}; another seed may turn that round."
        )
        return
    for is_better, how in ((True, "better"), (False, "worse")):
        clear = [entry for entry in compared if entry.verdict and network.better(entry.mean_difference) is is_better]
        clear.sort(key=lambda entry: entry.mean_difference, reverse=outcome.higher_is_better)
        if clear:
            ends = "ends" if len(clear) == 1 else "end"
            yield f"{listed([_named(network, entry) for entry in clear])} {ends} {how} than {reference} ({level})."
    level_with = [entry.name for entry in compared if not entry.verdict]
    if level_with:
        beside = "" if any(entry.verdict for entry in compared) else f" ({level})"
        yield f"{listed(level_with)} cannot be told from {reference}{beside} by these {most} seeds."
    without = [entry.name for entry in network.others if not entry.pairs]
    if without:
        yield f"{listed(without)} {'has' if len(without) == 1 else 'have'} no finished seed in common with {reference}."


def _early(network: NetworkSummary) -> Iterable[str]:
    """What is clear after the first epoch and not, or no longer, in the end: a head start, or a price."""
    if network.first_epoch is None:
        return
    clear = [
        (entry, network.better(paired.estimate.mean))
        for entry in network.others
        if (paired := entry.first_difference) is not None and paired.p_holm is not None and paired.p_holm < SIGNIFICANT
    ]
    for ahead, what, how in ((True, "A head start", "better"), (False, "A slow start", "worse")):
        names = [
            entry.name
            for entry, is_ahead in clear
            if is_ahead is ahead and not (entry.verdict and network.better(entry.mean_difference) is ahead)
        ]
        if names:
            yield (
                f"{what} that does not last: after {epoch_name(network.first_epoch)}, {listed(names)} "
                f"{'was' if len(names) == 1 else 'were'} clearly {how} than {network.reference}, in the end not."
            )


def _diverged(network: NetworkSummary) -> Iterable[str]:
    counts = [(entry, len(entry.having("diverged"))) for entry in network.entries]
    counts = [(entry, count) for entry, count in counts if count]
    if counts:
        runs = listed([f"{count} of {len(entry.runs)} from {entry.name}" for entry, count in counts])
        untrained = score(network.outcome.untrained, network.outcome)
        yield f"Runs that diverged: {runs}; they count as an untrained network ({untrained}), which their means contain."
    if any(entry.name == network.reference for entry, _ in counts) and network.others:
        yield f"Since {network.reference} is among them, much of every difference, and of its spread, comes from that."


def caveats(summary: Summary) -> list[str]:
    """What cannot be concluded, and what to know before the rest is believed: a few sentences for each reservation."""
    found = [
        _of_seeds(summary),
        _of_many(summary),
        _of_highest(summary),
        _of_lost_runs(summary),
        *_of_learning_rates(summary),
        _of_versions(summary),
        _of_scope(summary),
    ]
    return [sentence for sentence in found if sentence]


def _of_seeds(summary: Summary) -> str:
    counts = {entry.pairs for network in summary.networks for entry in network.others} - {0}
    if not counts:
        return ""
    if max(counts) == 1:
        return "With one seed there is no spread, so no interval and no test: every difference here could be the seed's."
    widths = []
    for network in summary.networks:
        halves = [
            (entry.final_difference.estimate.high - entry.final_difference.estimate.low) / 2
            for entry in network.others
            if entry.final_difference is not None and entry.pairs > 1
        ]
        if halves:
            width = difference(median(halves), network.outcome).lstrip("+")
            widths.append(f"{width}{unit(network.outcome)} on {network.name}")
    few = min(counts)
    text = (
        f"Not clearly different does not mean equal. {counted(max(counts), 'seed')} can only show so much: half the width "
        f"of the interval of a difference is typically {listed(widths)}, and what is smaller would not have been seen."
    )
    if few < 5:
        text += (
            f" Some comparisons rest on {counted(few, 'pair')} only; an interval of fewer than 5 is the range of the "
            "differences, which leaves the true mean out more often than 1 time in 20."
        )
    return text


def _of_many(summary: Summary) -> str:
    if summary.comparisons < 2 or all(entry.pairs < 2 for network in summary.networks for entry in network.others):
        return ""
    return (
        f"There are {summary.comparisons} comparisons. The corrected p-values account for their number, the intervals do "
        "not: of so many, some intervals leave zero out by chance."
    )


def _of_highest(summary: Summary) -> str:
    if all(len(network.entries) < 4 for network in summary.networks):
        return ""
    return (
        f"All were compared with {summary.reference}, not with each other. That one of many has the highest mean is partly "
        "luck: run again, it would likely come out lower."
    )


def _of_lost_runs(summary: Summary) -> str:
    failed = [
        f"{len(entry.having('failed'))} of {entry.name} on {network.name}"
        for network in summary.networks
        for entry in network.entries
        if entry.having("failed")
    ]
    missing = [f"on {network.name}, {_missing(network)}" for network in summary.networks if _missing(network)]
    parts = []
    if failed:
        parts.append(f"Runs that failed: {listed(failed)}. They are in no mean, and their seeds in no pair.")
    if missing:
        parts.append(f"The comparison is not finished. Missing are, {'; '.join(missing)}.")
    if summary.comparison.problems:
        parts.append(f"Of the stored runs, {len(summary.comparison.problems)} cannot be read and are left out.")
    return " ".join(parts)


def _missing(network: NetworkSummary) -> str:
    """The seeds without a run, in as few words as they take."""
    names: dict[tuple[int, ...], list[str]] = {}
    for entry in network.entries:
        if entry.missing:
            names.setdefault(entry.missing if entry.runs else (), []).append(entry.name)
    return listed(
        [f"{seeds_named(seeds) if seeds else 'all seeds'} of {listed(having)}" for seeds, having in names.items()]
    )


def _of_learning_rates(summary: Summary) -> Iterable[str]:
    chosen = [network for network in summary.networks if any(entry.selection for entry in network.entries)]
    fixed = [network.name for network in summary.networks if network not in chosen and network.runs and network.others]
    if fixed:
        rates = sorted({run.lr for network in summary.networks if network not in chosen for run in network.runs})
        yield (
            f"On {listed(fixed)}, the learning rate ({', '.join(number(lr) for lr in rates)}) was not chosen for each "
            "initialization: one that needs another may lose by that alone."
        )
    edges = [f"{entry.name} on {network.name}" for network in chosen for entry in network.entries if entry.lr_at_edge]
    if edges:
        yield (
            "The learning rate that was chosen is the least or the largest of those tried, so that a better one may lie "
            f"beyond, for {listed(edges)}."
        )


def _of_versions(summary: Summary) -> str:
    versions = {tuple(sorted(run.versions.items())) for network in summary.networks for run in network.runs}
    if len(versions) < 2:
        return ""
    differing = sorted({name for a in versions for b in versions for name, _ in set(a) ^ set(b)})
    return (
        f"The runs were not all made with the same versions of {listed(differing)}, which may make a difference of its own."
    )


def _of_scope(summary: Summary) -> str:
    epochs = summary.comparison.recipe.get("epochs")
    length = f", for {counted(epochs, 'epoch')}" if isinstance(epochs, int) else ""
    return (
        f"This is about {listed([network.name for network in summary.networks])} on these data, trained by this recipe"
        f"{length}. Other networks, data, optimizers and longer training may turn out differently. The seeds vary the "
        "weights and the order of the data; the test data are the same for all, and their own chance is in no interval."
    )


def _named(network: NetworkSummary, entry: Entry) -> str:
    assert entry.final_difference is not None
    return f"{entry.name} ({interval(entry.final_difference.estimate, network.outcome)}{unit(network.outcome)})"
