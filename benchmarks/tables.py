"""Results as tables in Markdown, and pages of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from contenders import PUBLISHED, TRAINING
from networks import NETWORKS
from results import memory_of, ratios

__all__ = [
    "case_title",
    "contenders_of",
    "fill",
    "left_out",
    "markdown",
    "memory_cell",
    "memory_table",
    "spread",
    "time_cell",
    "time_table",
]

Cases = Iterable[dict[str, Any]]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table.

    >>> print(markdown(["engine", "time"], [["graph", "4"]]))
    | engine | time |
    | --- | --- |
    | graph | 4 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Collection[float], sign: str = "") -> str:
    """Mean, and standard deviation if there is one; ``"+"`` shows the sign of the mean.

    >>> spread([1.0, 2.0], "+")
    '+1.5 ± 0.7'
    """
    return f"{fmean(values):{sign}.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


_PLACE = "<!-- table: {} -->"


def fill(text: str, parts: Mapping[str, str]) -> str:
    """Put every part into its place in a page, and nothing else.

    Raises:
        ValueError: for a part without a place, or a place without a part.
    """
    for name, part in parts.items():
        place = _PLACE.format(name)
        if place not in text:
            raise ValueError(f"the text has no {place}")
        text = text.replace(place, part)
    if (start := text.find(_PLACE.partition("{")[0])) >= 0:
        raise ValueError(f"nothing to put into {text[start : text.find('-->', start) + 3]}")
    return text


def case_title(case: dict[str, Any]) -> str:
    """The network, and what it takes to tell cases of one network apart."""
    network = NETWORKS[case["network"]]
    mode = {"subbatch": " of the sub-batch", "batch": " of the batch"}[case["batch_norm"]] if network.coupled else ""
    overlap = f", overlap {case['overlap']:g}" if case["overlap"] else ""
    return f"{network.title}{mode}{overlap}"


def contenders_of(cases: Cases) -> list[str]:
    """The names of all but the training step, the published way last."""
    names = dict.fromkeys(name for case in cases for name in case["contenders"])
    return [name for name in names if name not in (TRAINING, PUBLISHED)] + [PUBLISHED] * (PUBLISHED in names)


def time_cell(contender: dict[str, Any], unit: list[float] | None) -> str:
    """Median and range in units of a training step."""
    if not contender.get("seconds") or not unit:
        return "-"
    median, low, high = ratios(contender["seconds"], unit)
    return f"{median:.3g} [{low:.3g}..{high:.3g}]"


def memory_cell(contender: dict[str, Any], unit: float | None) -> str:
    """Peak in MB, and in units of a training step's."""
    memory = memory_of(contender)
    if memory is None:
        return "-"
    return f"{memory:.{0 if memory >= 10 else 1}f} MB" + (f" ({memory / unit:.2g})" if unit else "")


def left_out(cases: Cases) -> str:
    """What was not measured, and why, as a list; empty if there is nothing."""
    lines = []
    for case in cases:
        for name, found in case["contenders"].items():
            why = found.get("skipped") or found.get("memory", {}).get("skipped")
            if why:
                what = "" if "skipped" in found else " (memory)"
                lines.append(f"- {case_title(case)}, D = {case['num_subbatches']}, `{name}`{what}: {why}")
    return "\n".join(lines)


def _table(cases: Cases, label: str, title: Callable[[dict[str, Any]], str], cell: Callable[..., str], unit: Any) -> str:
    cases = list(cases)
    names = contenders_of(cases)
    rows = []
    for case in cases:
        contenders: Mapping[str, Any] = case["contenders"]
        own = unit(contenders[TRAINING])
        cells = [cell(contenders[name], own[0]) if name in contenders else "" for name in names]
        rows.append([title(case), own[1], *cells])
    return markdown([label, TRAINING, *names], rows)


def time_table(cases: Cases, label: str, title: Callable[[dict[str, Any]], str]) -> str:
    """A row for each case: the training step in milliseconds, everything else in units of it."""

    def unit(training: dict[str, Any]) -> tuple[list[float] | None, str]:
        seconds = training.get("seconds")
        if not seconds:
            return None, "-"
        low, median, high = (
            f"{1000 * value:.3g}" for value in (min(seconds), sorted(seconds)[len(seconds) // 2], max(seconds))
        )
        return seconds, f"{median} [{low}..{high}] ms"

    return _table(cases, label, title, time_cell, unit)


def memory_table(cases: Cases, label: str, title: Callable[[dict[str, Any]], str]) -> str:
    """A row for each case that has memory: MB, and in units of the training step's."""

    def unit(training: dict[str, Any]) -> tuple[float | None, str]:
        return memory_of(training), memory_cell(training, None)

    return _table([case for case in cases if "memory" in case["contenders"][TRAINING]], label, title, memory_cell, unit)
