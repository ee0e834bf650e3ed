"""The report of a comparison as a document, from the plain words on top to the recipe at the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from initopt.comparison.content import Block, Document, Listing, Section, Sentences, Text
from initopt.comparison.figures import network_figures
from initopt.comparison.style import styles
from initopt.comparison.summary import NetworkSummary, Summary
from initopt.comparison.tables import cost_table, gradients_table, network_tables, overview_table, selection_table
from initopt.comparison.wording import counted
from initopt.comparison.words import caveats, findings
from initopt.storage import plain

__all__ = ["to_document"]


def to_document(summary: Summary) -> Document:
    """Put a report together.

    Args:
        summary: of the comparison.
    """
    drawn = styles(summary.comparison.initializations, summary.reference)
    return Document(
        title="Initializations compared",
        lead=_lead(summary),
        sections=[
            Section("In plain words", list(_in_plain_words(summary))),
            *(Section(network.name, list(_network(network, n))) for n, network in enumerate(summary.networks, 1)),
            Section("How it was done", list(_how(summary))),
        ],
        colours={name: style.colour for name, style in drawn.items()},
    )


def _lead(summary: Summary) -> str:
    comparison = summary.comparison
    paired = (
        " Of a seed, all initializations have the same draw of random numbers and the same order of the data, and they are "
        f"compared with {summary.reference} seed by seed."
        if len(comparison.initializations) > 1
        else ""
    )
    return (
        f"{counted(len(comparison.initializations), 'initialization')} on {counted(len(summary.networks), 'network')}, "
        f"{counted(len(comparison.seeds), 'seed')} each.{paired}"
    )


def _in_plain_words(summary: Summary) -> Iterator[Block]:
    for paragraph in findings(summary):
        yield Text(paragraph)
    table = overview_table(summary)
    if table is not None:
        yield table
    yield Text("What cannot be concluded:")
    yield Sentences(caveats(summary))


def _network(network: NetworkSummary, number: int) -> Iterator[Block]:
    if any(run.status != "failed" for run in network.runs):
        figures = network_figures(network, number)
        results, *others = network_tables(network)
        yield results
        if "results" in figures:
            yield figures["results"]
        yield from others
        yield from (figures[name] for name in ("curves", "panels") if name in figures)
        yield cost_table(network)
        gradients = gradients_table(network)
        if gradients is not None:
            yield gradients
        if "gradients" in figures:
            yield figures["gradients"]
    else:
        yield Text("No run of this network has come to a result.")
    selection = selection_table(network)
    if selection is not None:
        yield selection
    yield from _troubles(network)


def _troubles(network: NetworkSummary) -> Iterator[Block]:
    """Why runs failed or diverged."""
    for entry in network.entries:
        for status in ("failed", "diverged"):
            runs = entry.having(status)
            if runs:
                reasons = [f"seed {run.seed}: {(run.error or 'no reason was stored').strip()}" for run in runs]
                first = reasons[0].splitlines()[0] + (", and more" if len(runs) > 1 else "")
                yield Listing(f"{entry.name}: {counted(len(runs), 'run')} {status} ({first})", "\n\n".join(reasons))


def _how(summary: Summary) -> Iterator[Block]:
    yield Sentences(_RULES)
    comparison = summary.comparison
    yield Listing("The recipe", _as_yaml(comparison.recipe), open=True)
    whole = {"networks": comparison.networks, "initializations": comparison.initializations, "seeds": comparison.seeds}
    yield Listing("What was compared", _as_yaml(whole | comparison.details), open=not comparison.details)
    if comparison.problems:
        yield Listing("Stored runs that cannot be read", "\n".join(comparison.problems), open=True)
    versions = {tuple(run.versions.items()): run.versions for run in [*comparison.runs, *comparison.selection]}
    versions = versions or {(): comparison.versions}
    for found in versions.values():
        which = [run for run in [*comparison.runs, *comparison.selection] if run.versions == found]
        title = "Versions" if len(versions) == 1 else f"Versions of {counted(len(which), 'run')}"
        yield Listing(title, _as_yaml(found), open=True)


def _as_yaml(value: Any) -> str:
    return str(yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True, width=100)).strip()


_RULES = (
    "A run that diverged counts as an untrained network: as the median of all runs of that network before their first "
    "step. That is what it leaves to its user; to leave it out would flatter an initialization that makes runs diverge.",
    "A run that failed (an exception) or is missing has no result; the differences are over the seeds that both "
    "initializations have.",
    "Intervals are bootstrap percentile intervals of the mean over seeds (9999 draws, the same each time), widened for few "
    "seeds after Hesterberg (2015). Of five normal values, they have the true mean in them 93 times in 100; the plain ones "
    "84 times. For fewer than five seeds they are the range of the values, which has it 88 times in 100 for four, 75 for "
    "three, 50 for two.",
    "p is from Student's t-test on the paired differences. Wilcoxon's signed-rank test assumes less, but cannot give less "
    "than 0.0625 for five pairs, whatever they show. The correction is Holm's, over all comparisons of the report, once "
    "for the end and once for the first epoch.",
    "A difference is called clear if the corrected p is below 0.05 and the interval leaves zero out.",
    "GradCosine is the mean cosine similarity of the gradients of parts of a batch, the gradient norm their mean length, "
    "both on batches that the initialization has not seen.",
)
