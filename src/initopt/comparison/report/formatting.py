"""Numbers and names as a reader wants them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from initopt.comparison.analysis.outcome import Outcome
from initopt.comparison.analysis.statistics import Estimate
from initopt.comparison.report.content import Strong

__all__ = [
    "difference",
    "epoch_name",
    "interval",
    "markdown_table",
    "markdown_text",
    "mean_and_spread",
    "number",
    "outcome_name",
    "p_value",
    "score",
    "seeds_named",
    "unit",
]

NOTHING = "-"


def number(value: float, digits: int = 3) -> str:
    """A number to some digits, without exponents where they can be done without.

    >>> number(1234.5), number(0.0123456), number(1.5e-7), number(math.inf)
    ('1234', '0.0123', '1.5e-07', 'inf')
    """
    if math.isfinite(value) and 10**digits <= abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def score(value: float, outcome: Outcome) -> str:
    """A value of what runs are judged by.

    >>> score(0.9701, Outcome("test", "accuracy", 0.1)), score(0.12346, Outcome("test", "loss", 2.3))
    ('97.0 %', '0.1235')
    """
    if not math.isfinite(value):
        return NOTHING
    return f"{100 * value:.1f} %" if outcome.measure == "accuracy" else number(value, 4)


def mean_and_spread(found: Estimate, outcome: Outcome | None = None) -> str:
    """Mean and standard deviation, as percentages if they are of an accuracy.

    >>> mean_and_spread(Estimate(0.97, 0.012, 0.96, 0.98, 5), Outcome("test", "accuracy", 0.1))
    '97.0 ± 1.2 %'
    >>> mean_and_spread(Estimate(0.00194, 0.000094, 0.0018, 0.0021, 5))
    '0.00194 ± 0.00009'
    >>> mean_and_spread(Estimate(0.123, math.nan, math.nan, math.nan, 1))
    '0.123'
    """
    if not found.count:
        return NOTHING
    spread = not math.isnan(found.std)
    if outcome is not None and outcome.measure == "accuracy":
        return f"{100 * found.mean:.1f}" + (f" ± {100 * found.std:.1f}" if spread else "") + " %"
    if not spread:
        return number(found.mean)
    # Both to the place of the third digit of the larger one.
    size = max(abs(found.mean), found.std)
    places = 2 - math.floor(math.log10(size)) if size else 0
    if not 0 <= places <= 6:
        return f"{number(found.mean)} ± {number(found.std, 2)}"
    return f"{found.mean:.{places}f} ± {found.std:.{places}f}"


def difference(value: float, outcome: Outcome) -> str:
    """A difference, in percentage points if it is of accuracies.

    >>> difference(0.0123, Outcome("test", "accuracy", 0.1)), difference(-0.0123, Outcome("test", "loss", 2.3))
    ('+1.2', '-0.0123')
    """
    if not math.isfinite(value):
        return NOTHING
    if outcome.measure == "accuracy":
        return f"{100 * value:+z.1f}"
    return f"{'+' if value >= 0 else ''}{number(value)}"


def interval(found: Estimate, outcome: Outcome) -> str:
    """A mean difference with its interval.

    >>> interval(Estimate(0.012, 0.01, -0.001, 0.02, 5), Outcome("test", "accuracy", 0.1))
    '+1.2 [-0.1, +2.0]'
    """
    if not found.count:
        return NOTHING
    text = difference(found.mean, outcome)
    if not math.isnan(found.low):
        text += f" [{difference(found.low, outcome)}, {difference(found.high, outcome)}]"
    return text


def unit(outcome: Outcome) -> str:
    """The unit in which :func:`difference` counts, after a space; nothing if there is none."""
    return " points" if outcome.measure == "accuracy" else ""


def p_value(p: float | None) -> str:
    """A p-value.

    >>> p_value(0.0312), p_value(1e-9), p_value(1.0), p_value(None)
    ('0.031', '< 0.001', '1', '-')
    """
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def outcome_name(outcome: Outcome) -> str:
    """What runs are judged by.

    >>> outcome_name(Outcome("test", "accuracy", 0.1))
    'test accuracy'
    """
    return f"{outcome.subset} {outcome.measure}"


def epoch_name(epoch: float) -> str:
    """When something was looked at.

    >>> epoch_name(1.0), epoch_name(1.28)
    ('epoch 1', 'epoch 1.28')
    """
    return f"epoch {number(epoch)}"


def seeds_named(seeds: Sequence[int]) -> str:
    """Some seeds.

    >>> seeds_named([3]), seeds_named([0, 1])
    ('seed 3', 'seeds 0, 1')
    """
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"


def markdown_text(text: str) -> str:
    r"""Text of which nothing is taken for markup.

    >>> print(markdown_text("a|b <c> *d* xavier_normal _e_"))
    a\|b \<c\> \*d\* xavier_normal \_e\_
    """
    escaped = re.sub(r"([\\`*|<>\[\]$~])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, whose first column is on the left and the others on the right.

    >>> print(markdown_table(["method", "steps"], [["nio", Strong("30")]]))
    | method | steps |
    | --- | ---: |
    | nio | **30** |
    """
    cells = [[f"**{markdown_text(c)}**" if isinstance(c, Strong) else markdown_text(c) for c in row] for row in rows]
    lines = [list(map(markdown_text, columns)), ["---", *["---:"] * (len(columns) - 1)], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
