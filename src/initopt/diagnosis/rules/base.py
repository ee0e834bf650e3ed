"""The interface of rules, and of what they look at."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from torch import nn

from initopt._support.words import counted
from initopt.diagnosis.folding import fold, listed
from initopt.diagnosis.seen import Call, Trace
from initopt.diagnosis.weights import Weight, weights_of

__all__ = [
    "NEEDS",
    "RULES",
    "SEVERITIES",
    "Evidence",
    "Finding",
    "Needs",
    "Rule",
    "Severity",
    "counted_by_severity",
    "found_in",
    "rule",
]

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""The worst first: a network with an error will not train well; a warning is worth a look; a note may be meant so."""

Needs = Literal["weights", "batch", "gradient", "optimizer"]
NEEDS: tuple[Needs, ...] = ("weights", "batch", "gradient", "optimizer")


@dataclass(frozen=True)
class Finding:
    """Something that a rule has found.

    Attributes:
        rule: its code, such as ``"A201"``.
        severity: ``"error"``, ``"warning"`` or ``"note"``.
        where: names of the tensors or modules concerned; none if it is of the whole network or the data.
        text: what it is, in words.
        remedy: what to do.
    """

    rule: str
    severity: Severity
    where: tuple[str, ...]
    text: str
    remedy: str

    @property
    def place(self) -> str:
        """The place of the finding, with names folded.

        >>> Finding("W101", "error", ("a.0.w", "a.1.w"), "", "").place
        'a.0-1.w'
        """
        return ", ".join(fold(self.where))

    def __str__(self) -> str:
        place = f" {self.place}:" if self.where else ""
        return f"{self.rule} {self.severity}:{place} {self.text}. {self.remedy[:1].upper()}{self.remedy[1:]}."


@dataclass(frozen=True, eq=False)
class Evidence:
    """The model, and what is known of it, for rules to look at.

    Attributes:
        model: the model.
        trace: of a pass over data; ``None`` without one.
        against: another start of the same architecture; ``None`` without one.
    """

    model: nn.Module
    trace: Trace | None = None
    against: nn.Module | None = None

    @cached_property
    def weights(self) -> list[Weight]:
        """All parameters and buffers."""
        return weights_of(self.model)

    @cached_property
    def parameters(self) -> list[Weight]:
        """All parameters with values."""
        return [weight for weight in self.weights if not weight.is_buffer and weight.has_values]

    @property
    def seen(self) -> Trace:
        """The trace, for rules that need one."""
        assert self.trace is not None
        return self.trace

    @cached_property
    def layers(self) -> list[Call]:
        """The outputs of linear maps with more than one unit, in the order in which they ran."""
        return [call for call in self.seen.calls if call.matrix]

    def opened(self, calls: Iterable[Call]) -> list[Call]:
        """The same calls where no branch starts next to closed; none if no branch does."""
        known = {} if self.seen.opened is None else self.seen.opened.calls
        return [known[call.name] for call in calls if call.name in known]


def behind_small_gains(evidence: Evidence) -> tuple[str, str]:
    """The last words, and the remedy, of a finding that small gains explain."""
    opened = evidence.seen.opened
    assert opened is not None
    many = len(opened.gains) > 1
    return (
        f"; not so once {listed(opened.gains)}, which start{'' if many else 's'} at {opened.size:.1g}, "
        f"{'are' if many else 'is'} 1",
        "nothing, if branches are meant to open slowly, as those of LayerScale do: these gains grow first",
    )


Find = Callable[[Evidence], Iterable[Finding]]


@dataclass(frozen=True)
class Rule:
    """A way to see that something is wrong.

    Attributes:
        code: a letter for the family and a number.
        name: in a few words.
        severity: of most of its findings.
        needs: ``"weights"`` alone, a ``"batch"`` and a forward pass, a ``"gradient"``, or an ``"optimizer"``.
        threshold: the threshold, in words.
        source: the source of the rule.
        find: gives the findings.
        explains: codes of rules, or their beginnings, whose findings follow from one of this rule and are notes beside it.
    """

    code: str
    name: str
    severity: Severity
    needs: Needs
    threshold: str
    source: str
    find: Find = field(repr=False)
    explains: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The words of the rule: what it is about, and the reason for its threshold."""
        return inspect.cleandoc(self.find.__doc__ or "")

    def finding(self, where: Sequence[str], text: str, remedy: str, severity: Severity | None = None) -> Finding:
        """A finding of this rule."""
        return Finding(self.code, severity or self.severity, tuple(where), text, remedy)


RULES: dict[str, Rule] = {}
"""All rules, by code."""


def rule(
    code: str, name: str, severity: Severity, *, needs: Needs, threshold: str, source: str, explains: Sequence[str] = ()
) -> Callable[[Callable[[Evidence, Rule], Iterable[Finding]]], Rule]:
    """Make a rule of a function of the evidence and the rule itself, whose docstring says what it is about."""

    def decorate(function: Callable[[Evidence, Rule], Iterable[Finding]]) -> Rule:
        def find(evidence: Evidence) -> Iterable[Finding]:
            return function(evidence, made)

        find.__doc__ = function.__doc__
        made = Rule(code, name, severity, needs, threshold, source, find, tuple(explains))
        assert code not in RULES, f"two rules {code}"
        RULES[code] = made
        return made

    return decorate


def found_in(
    evidence: Evidence,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
    needs: Sequence[Needs] = NEEDS,
) -> list[Finding]:
    """The findings of all rules that apply, the worst first.

    Args:
        evidence: what there is to look at.
        select: codes, or beginnings of codes, of the rules that are asked; all of them, by default.
        ignore: those of rules that are not.
        needs: what rules may need.

    Raises:
        ValueError: for a code that is the beginning of none.
    """
    chosen = chosen_rules(select, ignore)
    findings = [
        finding
        for each in RULES.values()
        if (each.code in chosen or each.explains)  # one that is not asked may wait for other processes
        and each.needs in needs
        and (each.needs == "weights" or evidence.trace is not None)
        for finding in each.find(evidence)
    ]
    explained = tuple({code for finding in notable(findings) for code in RULES[finding.rule].explains})
    left = [replace(f, severity="note") if f.rule.startswith(explained) else f for f in findings if f.rule in chosen]
    return sorted(left, key=lambda f: (SEVERITIES.index(f.severity), _FAMILIES.index(f.rule[0]), f.rule))


_FAMILIES = "WSDAGO"
"""Causes before what follows from them."""


def chosen_rules(select: Sequence[str] | None, ignore: Sequence[str] | None) -> list[str]:
    """The codes of the rules that are asked.

    >>> chosen_rules(["W10"], ["W101", "A"])[:2]
    ['W102', 'W103']
    """
    return [
        code
        for code in RULES
        if (select is None or _begins(code, select, "select")) and not _begins(code, ignore, "ignore")
    ]


def _begins(code: str, beginnings: Sequence[str] | None, argument: str) -> bool:
    given = [beginnings] if isinstance(beginnings, str) else list(beginnings or ())
    for beginning in given:
        if not any(known.startswith(beginning) for known in RULES):
            families = ", ".join(sorted({re.sub(r"\d+", "", known) for known in RULES}))
            raise ValueError(
                f"{argument}: there is no rule {beginning!r}; give codes such as 'A201', or their beginnings, of the "
                f"families {families} (docs/rules.md has all)"
            )
    return any(code.startswith(beginning) for beginning in given)


def share(value: float) -> str:
    """A share in per cent.

    >>> share(0.614), share(1.0), share(0.0004)
    ('61 %', '100 %', '0.04 %')
    """
    percent = 100 * value
    return f"{percent:.0f} %" if percent >= 1 or percent == 0 else f"{percent:.2g} %"


def counted_by_severity(findings: Iterable[Finding], severities: Sequence[Severity] = SEVERITIES) -> list[str]:
    """How many findings of each severity there are, in words, without those of which there is none.

    >>> counted_by_severity([Finding("W101", "error", (), "", ""), Finding("W102", "note", (), "", "")])
    ['1 error', '1 note']
    """
    counts = Counter(finding.severity for finding in findings)
    return [counted(counts[severity], severity) for severity in severities if counts[severity]]


def notable(findings: Iterable[Finding]) -> Iterator[Finding]:
    """The findings above a note."""
    return (finding for finding in findings if finding.severity != "note")
