"""Diagnoses of a network before and after its initialization, as a result keeps them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from initopt._support.words import first_few
from initopt.diagnosis.diagnosis import Diagnosis
from initopt.diagnosis.rows import Row, table
from initopt.diagnosis.rules import RULES, Evidence, Finding, found_in
from initopt.diagnosis.rules.base import notable
from initopt.diagnosis.rules.state import OF_ALL_RANKS
from initopt.diagnosis.trace import trace
from initopt.model.losses import LossFunction
from initopt.model.sharded import own_class

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Change", "Checkup", "look_at"]


@dataclass(frozen=True)
class Checkup:
    """A diagnosis without its tensors, and without remedies.

    Attributes:
        verdict: the state of health in a sentence.
        findings: what the rules say, the worst first.
        rows: calls and parameters in the order in which they ran.
    """

    verdict: str
    findings: tuple[Finding, ...]
    rows: tuple[Row, ...] = field(repr=False)

    @property
    def healthy(self) -> bool:
        """Whether nothing worse than a note was found."""
        return not any(notable(self.findings))

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes of the rules that found something worse than a note, each once, the worst first."""
        return tuple(dict.fromkeys(finding.rule for finding in notable(self.findings)))

    def table(self, rows: int | None = None) -> str:
        """Rows as text, in the order of the network; at most some of them, the middle ones left out."""
        return table(self.rows, rows)

    def __str__(self) -> str:
        return "\n".join([self.verdict, *map(str, notable(self.findings))])


@dataclass(frozen=True)
class Change:
    """The layers of a network before and after its initialization.

    Attributes:
        before: with the original weights.
        after: with the new ones, on the same batches; if these were given up, with those that were tried.
    """

    before: Checkup
    after: Checkup

    @property
    def gone(self) -> tuple[str, ...]:
        """Codes of the rules that found something before and nothing after; notes do not count."""
        return tuple(code for code in self.before.codes if code not in self.after.codes)

    @property
    def new(self) -> tuple[str, ...]:
        """Codes of the rules that found something after and nothing before."""
        return tuple(code for code in self.after.codes if code not in self.before.codes)

    @property
    def left(self) -> tuple[str, ...]:
        """Codes of the rules that found something both before and after."""
        return tuple(code for code in self.after.codes if code in self.before.codes)

    def __str__(self) -> str:
        """One line: which findings are gone, new and left."""
        groups = (("gone", self.gone), ("new", self.new), ("left", self.left))
        parts = [f"{word}: {first_few([_named(code) for code in codes], 3)}" for word, codes in groups if codes]
        return "; ".join(parts) if parts else "nothing wrong, before and after"

    def plot(self) -> Figure:
        """Draw the size of signals and of gradients through the network, before and after.

        Returns:
            A figure that belongs to no window.
        """
        from matplotlib.figure import Figure

        from initopt.diagnosis.plotting import plot_change

        figure = Figure(figsize=(11, 3.4), layout="constrained")
        forward, backward = figure.subplots(1, 2)
        plot_change(self, forward, backward)
        return figure


def _named(code: str) -> str:
    return f"{code} {RULES[code].name}" if code in RULES else code


def look_at(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFunction | None,
    *,
    num_batches: int = 4,
    num_subbatches: int = 4,
    seed: int,
) -> Checkup:
    """Look at a model, which stays as it is.

    Args:
        model: the model.
        batches: as for :func:`initopt.measure`.
        loss_fn: likewise.
        num_batches: the most batches to take; 4 take the passes of 2.7 training steps, and the time of 6 to 8.
        num_subbatches: D, the number of sub-batches that each batch is split into.
        seed: base of the seeds for what the model draws.
    """
    seen = trace(model, batches, loss_fn, num_batches=num_batches, num_subbatches=num_subbatches, seed=seed, progress=False)
    found = Diagnosis(own_class(model).__name__, seen, tuple(found_in(Evidence(model, seen), ignore=OF_ALL_RANKS)))
    return Checkup(found.verdict, found.findings, found.rows)
