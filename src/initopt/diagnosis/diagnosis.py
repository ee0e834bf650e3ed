"""The findings of a diagnosis, and the forms that they are shown in."""

from __future__ import annotations

import math
import os
import textwrap
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from initopt._support.checks import check_choice, data_frame
from initopt._support.files import Contents, write_folder
from initopt._support.words import first_few
from initopt.diagnosis.folding import listed
from initopt.diagnosis.rows import Row, in_units, plain_row, rows_of, shortened, table
from initopt.diagnosis.rules import RULES, SEVERITIES, Finding
from initopt.diagnosis.rules.base import counted_by_severity, notable
from initopt.diagnosis.seen import Block, Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from initopt.diagnosis.remedies import Trial

__all__ = ["FORMAT", "Diagnosis"]

Order = Literal["severity", "network"]

FORMAT = "initopt diagnosis 1"
"""The form of the JSON, with its version."""

CONTENTS = Contents("diagnosis.json", ("diagnosis.html", "rows.csv"))
"""What the folder of a diagnosis holds."""

_LINES = 12
"""Rows of the table on a terminal."""


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The state of health of a network at its start: :func:`initopt.diagnose` returns one.

    Attributes:
        model: class of the model.
        trace: the record of all that was seen.
        findings: what the rules say, the worst first.
        tried: remedies that were tried on a copy, the best first.
        untried: the reason why no remedy was tried; ``""`` if one was.
    """

    model: str
    trace: Trace = field(repr=False)
    findings: tuple[Finding, ...]
    tried: tuple[Trial, ...] = ()
    untried: str = ""

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Calls and parameters in the order in which they ran; see :class:`Row`."""
        return rows_of(self.trace, self.findings)

    @property
    def healthy(self) -> bool:
        """Whether nothing worse than a note was found."""
        return not any(notable(self.findings))

    @property
    def verdict(self) -> str:
        """The state of health in a sentence."""
        if self.healthy:
            return f"healthy: {'; '.join(self._vital_signs())}"
        words = counted_by_severity(self.findings, SEVERITIES[:2])
        worst = self.findings[0]
        place = f" at {worst.place}" if worst.where else ""
        return f"{' and '.join(words)}; the worst{_short(place)}: {worst.text}"

    def _vital_signs(self) -> list[str]:
        """Three numbers that show that a network is well, as clauses."""
        trace = self.trace
        layers = [call for call in trace.calls if call.matrix and call.deviation > 0]
        signs = []
        if len(layers) > 1:
            kept = layers[-1].deviation / layers[0].deviation
            signs.append(f"{kept:.2g} of the signal of the first of {len(layers)} layers is left in the last")
        sloped = [call for call in layers if call.slope > 0]
        if len(sloped) > 1:
            signs.append(f"{sloped[0].slope / sloped[-1].slope:.2g} times the gradient of the last comes to the first")
        known = {"classes": trace.output.channels, "binary": 2}.get(trace.data.task or "", 0)
        if known > 1:
            signs.append(f"the loss is {trace.loss:.3g}, and ln {known} = {math.log(known):.3g}")
        elif trace.data.task == "regression" and trace.data.targets.deviation > 0:
            signs.append(
                f"the loss is {trace.loss:.3g}, and the variance of the targets {trace.data.targets.deviation**2:.3g}"
            )
        else:
            signs.append(f"the loss is {trace.loss:.3g}")
        if len(signs) < 3:
            signs.append(f"GradCosine is {trace.whole.cosine:.2f}")
        if len(signs) < 3 and trace.calls:
            signs.append(f"{trace.calls[-1].spread:.2g} of the output depends on the input")
        return signs

    @property
    def advice(self) -> str:
        """One sentence that says what to do next."""
        if self.tried and self.tried[0].better:
            best = self.tried[0]
            return f"Use {best.call}: on a copy, {best.changes}."
        if not self.healthy:
            worst = self.findings[0]
            return f"First of all, for {worst.rule}{_short(' at ' + worst.place) if worst.where else ''}: {worst.remedy}."
        return "Nothing is to be done before training; initopt.nio(model, batches) may still improve the start."

    def table(self, order: Order = "severity", rows: int | None = None) -> str:
        """The rows as text.

        Args:
            order: ``"severity"``: rows with findings, the worst first; ``"network"``: all rows in the order of the network.
            rows: the most to show; the middle ones are left out. All by default.

        Raises:
            ValueError: for another order.
        """
        check_choice("order", order, ("severity", "network"))
        chosen = list(self.rows)
        if order == "severity":
            marked = [row for row in chosen if row.severity in SEVERITIES[:2]]
            chosen = sorted(marked, key=lambda row: SEVERITIES.index(row.severity))
        return table(chosen, rows)

    def __str__(self) -> str:
        trace = self.trace
        count = sum(math.prod(tensor.shape) for tensor in trace.tensors)
        lines = [f"{self.model}: {len(trace.calls)} layers, {in_units(count)} parameters, seen on {trace.extent}", ""]
        if self.healthy:
            lines += textwrap.wrap(f"{self.verdict[:1].upper()}{self.verdict[1:]}.", 100)
        else:
            lines += [self.table(rows=_LINES), ""] if any(row.severity in SEVERITIES[:2] for row in self.rows) else []
            shown = list(notable(self.findings))
            for finding in shown[:6]:
                lines += textwrap.wrap(_line(finding), 100, subsequent_indent="      ", break_on_hyphens=False)
            lines += [f"and {len(shown) - 6} more: .findings has all"] if len(shown) > 6 else []
            for trial in self.tried:
                lines += textwrap.wrap(f"tried {trial}", 100, subsequent_indent="      ")
        notes = sorted({finding.rule for finding in self.findings if finding.severity == "note"})
        if notes:
            named = first_few([f"{code} {RULES[code].name}" for code in notes], 4)
            lines += textwrap.wrap(f"Notes, which may be meant so: {named}.", 100)
        return "\n".join([*lines, "", *textwrap.wrap(self.advice, 100)])

    def _repr_html_(self) -> str:
        from initopt.diagnosis.page import fragment

        return fragment(self)

    def to_dataframe(self) -> Any:
        """The rows as a :class:`pandas.DataFrame`, a column for each attribute of :class:`Row`.

        Raises:
            ImportError: without pandas.
        """
        return data_frame(list(map(plain_row, self.rows)))

    def to_dict(self) -> dict[str, Any]:
        """The whole diagnosis as plain values, in the form that docs/diagnosis.md describes."""
        trace = self.trace
        blocks = [_of_block(block) for block in trace.blocks]
        return {
            "format": FORMAT,
            "model": self.model,
            "verdict": self.verdict,
            "advice": self.advice,
            "healthy": self.healthy,
            "batches": trace.num_batches,
            "samples": trace.data.samples,
            "loss": trace.loss,
            "task": trace.data.task,
            "findings": [as_plain(finding) for finding in self.findings],
            "tried": [trial.to_dict() for trial in self.tried],
            "untried": self.untried,
            "blocks": blocks,
            "whole": _of_block(trace.whole) | {"sign_agreement": trace.sign_agreement},
            "attention_entropy": trace.attention,
            "rows": [{name: _listed(value) for name, value in plain_row(row).items()} for row in self.rows],
        }

    def plot(self) -> Figure:
        """Draw the size of signals and of gradients through the network, with the findings marked.

        Returns:
            A figure that belongs to no window.
        """
        from initopt.diagnosis.plotting import plot_diagnosis

        return plot_diagnosis(self)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``diagnosis.html``, a page that needs nothing else, ``diagnosis.json`` and ``rows.csv`` into a folder.

        Args:
            folder: is made; one that holds an earlier diagnosis, and nothing else, is replaced.

        Returns:
            The path of the page.

        Raises:
            FileExistsError: if something else is there.
        """
        from initopt.diagnosis.page import write_all

        return write_folder(folder, partial(write_all, self), CONTENTS) / "diagnosis.html"


def as_plain(finding: Finding) -> dict[str, Any]:
    """A finding as plain values, for JSON."""
    return {
        "rule": finding.rule,
        "name": RULES[finding.rule].name,
        "severity": finding.severity,
        "where": list(finding.where),
        "place": finding.place,
        "text": finding.text,
        "remedy": finding.remedy,
    }


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _of_block(block: Block) -> dict[str, Any]:
    figures = {"grad_cosine": block.cosine, "signal_to_noise": block.signal_to_noise, "grad_norm": block.norm}
    return {"name": block.name, "share": block.share, "coherence": block.coherence} | figures


def _short(text: str) -> str:
    return shortened(text, 60)


def _line(finding: Finding) -> str:
    place = listed(finding.where)
    return f"{finding.rule} {finding.severity}{': ' + _short(place) if place else ''}: {finding.text}"
