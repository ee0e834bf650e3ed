"""The page of a diagnosis: one file that needs nothing else, for a bright or a dark screen, and for paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from initopt._support.files import write_json
from initopt._support.pages import write_page, write_rows
from initopt.diagnosis.folding import fold
from initopt.diagnosis.rows import plain_row
from initopt.diagnosis.rules import RULES, Finding

if TYPE_CHECKING:
    from initopt.diagnosis.diagnosis import Diagnosis
    from initopt.diagnosis.rows import Row

__all__ = ["fragment", "write_all"]

_STYLE = """
.initopt-diagnosis { --ink: #1b1f24; --faint: #667; --line: #d5d9de; --ground: #fff; --panel: #f5f7f9;
  --signal: #0072b2; --part: #56b4e9; --gradient: #009e73; --error: #c2410c; --warning: #a16207; --note: #667;
  color: var(--ink); background: var(--ground); font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 0 auto;
  padding: 1rem; }
@media (prefers-color-scheme: dark) { .initopt-diagnosis { --ink: #e6e8eb; --faint: #9aa3ad; --line: #3a4149;
  --ground: #14171a; --panel: #1d2125; --signal: #56b4e9; --part: #2f7fb0; --gradient: #3ccf9e; --error: #ff8a5c;
  --warning: #f0c04a; --note: #9aa3ad; } }
.initopt-diagnosis h1 { font-size: 1.4rem; margin: 0 0 .3rem; } .initopt-diagnosis h2 { font-size: 1.1rem; margin: 1.6rem
0 .5rem; }
.initopt-diagnosis .verdict { font-weight: 600; } .initopt-diagnosis .faint { color: var(--faint); }
.initopt-diagnosis .finding { border-left: 4px solid var(--note); background: var(--panel); padding: .5rem .8rem; margin:
.5rem 0;
  break-inside: avoid; }
.initopt-diagnosis .error { border-color: var(--error); } .initopt-diagnosis .warning { border-color: var(--warning); }
.initopt-diagnosis code { font: 13px/1.4 ui-monospace, monospace; overflow-wrap: anywhere; }
.initopt-diagnosis .scroll { overflow-x: auto; } .initopt-diagnosis table { border-collapse: collapse; font-size: 13px;
width: 100%; }
.initopt-diagnosis th, .initopt-diagnosis td { padding: .2rem .5rem; border-bottom: 1px solid var(--line); text-align:
right; white-space: nowrap; }
.initopt-diagnosis th:first-child, .initopt-diagnosis td:first-child, .initopt-diagnosis th:nth-child(2),
.initopt-diagnosis td:nth-child(2), .initopt-diagnosis td:last-child { text-align: left; }
.initopt-diagnosis svg { width: 100%; height: auto; } .initopt-diagnosis svg text { fill: var(--faint); font-size: 11px; }
@media print { .initopt-diagnosis { --ink: #000; --faint: #444; --ground: #fff; --panel: #fff; --line: #999; font-size:
11px; }
  .initopt-diagnosis .scroll { overflow: visible; } }
"""

_HEAD = (
    '<meta name="color-scheme" content="light dark">'
    "<style>body { margin: 0; } @media (prefers-color-scheme: dark) { body { background: #14171a; } }</style>"
)


def write_all(diagnosis: Diagnosis, folder: Path) -> None:
    """Write the page, the JSON and the table into a folder that is there."""
    title = f"initopt diagnosis of {diagnosis.model}"
    write_page(folder / "diagnosis.html", title, fragment(diagnosis), _HEAD)
    write_json(folder / "diagnosis.json", diagnosis.to_dict())
    write_rows(folder / "rows.csv", list(map(plain_row, diagnosis.rows)))


def fragment(diagnosis: Diagnosis) -> str:
    """The HTML that a notebook shows."""
    trace = diagnosis.trace
    parts = [
        f"<style>{_STYLE}</style><div class='initopt-diagnosis'>",
        f"<h1>{escape(diagnosis.model)}</h1>",
        f"<p class='verdict'>{escape(diagnosis.verdict)}</p>",
        f"<p>{escape(diagnosis.advice)}</p>",
        f"<p class='faint'>{len(trace.calls)} layers, seen on {trace.extent}; loss {trace.loss:.4g}</p>",
        _chart(diagnosis.rows),
    ]
    if diagnosis.findings:
        parts += ["<h2>Findings</h2>", *map(_finding, diagnosis.findings)]
    if diagnosis.tried:
        tried = "".join(f"<li><b>{escape(t.name)}</b>: {escape(t.changes)}</li>" for t in diagnosis.tried)
        parts.append(f"<h2>Tried on a copy</h2><ul>{tried}</ul>")
    elif diagnosis.untried and not diagnosis.healthy:
        parts.append(f"<p class='faint'>No remedy was tried: {escape(diagnosis.untried)}.</p>")
    parts += ["<h2>Layers</h2>", _table(diagnosis.rows), "</div>"]
    return "\n".join(parts)


def _finding(finding: Finding) -> str:
    places = ", ".join(f"<code>{escape(name)}</code>" for name in fold(finding.where)[:12])
    return (
        f"<div class='finding {finding.severity}'><b>{finding.rule} {escape(RULES[finding.rule].name)}</b> "
        f"<span class='faint'>{finding.severity}</span> {places}<br>{escape(finding.text)}.<br>"
        f"<span class='faint'>To do:</span> {escape(finding.remedy)}.</div>"
    )


_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("layer", lambda row: f"<code>{escape(row.name)}</code>"),
    ("kind", lambda row: escape(row.kind)),
    ("output", lambda row: "x".join(map(str, row.output))),
    ("parameters", lambda row: str(row.parameters or "")),
    ("rms", lambda row: _number(row.rms)),
    ("spread", lambda row: _number(row.spread)),
    ("dead", lambda row: _number(row.dead)),
    ("rank", lambda row: _number(row.rank)),
    ("slope", lambda row: _number(row.slope)),
    ("share", lambda row: _number(row.gradient_share)),
    ("GradCosine", lambda row: _number(row.grad_cosine)),
    ("update", lambda row: _number(row.update)),
    ("rules", lambda row: escape(" ".join(row.rules))),
)


def _table(rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{name}</th>" for name, _ in _COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{cell(row)}</td>" for _, cell in _COLUMNS) + "</tr>\n" for row in rows)
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"


_WIDTH, _HEIGHT, _LEFT, _TOP = 960, 150, 62, 24


def _chart(rows: Sequence[Row]) -> str:
    """Signals and gradients through the network, as a drawing that takes the colours of the page."""
    calls = [row for row in rows if row.kind != "parameter"]
    if not calls:
        return ""
    forward = _panel(calls, 0, "size of the outputs, and of their part that depends on the input (light)", (
        ("signal", [row.rms for row in calls]), ("part", [row.rms * row.spread for row in calls])), "WADOS")  # fmt: skip
    backward = _panel(calls, _HEIGHT + 50, "gradient of a sample's loss with respect to the output", (
        ("gradient", [row.slope for row in calls]),), "G")  # fmt: skip
    height = 2 * _HEIGHT + 90
    label = "Signals forwards and gradients backwards through the layers, on logarithmic scales; circles are findings"
    return f"<svg viewBox='0 0 {_WIDTH} {height}' role='img' aria-label='{label}'>{forward}{backward}</svg>"


def _panel(rows: Sequence[Row], top: int, title: str, lines: Sequence[tuple[str, Sequence[float]]], families: str) -> str:
    values = [value for _, line in lines for value in line if value > 0 and math.isfinite(value)]
    if not values:
        return ""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    step = max(1, round((high - low) / 4))

    def x(i: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - 20) * (i / max(len(rows) - 1, 1))

    def y(value: float) -> float:
        return top + _TOP + _HEIGHT * (high - math.log10(value)) / (high - low)

    parts = [f"<text x='{_LEFT}' y='{top + 14}'>{escape(title)}</text>"]
    for power in range(low, high + 1, step):
        place = y(10.0**power)
        parts.append(f"<line x1='{_LEFT}' x2='{_WIDTH - 20}' y1='{place:.1f}' y2='{place:.1f}' stroke='var(--line)'/>")
        parts.append(f"<text x='{_LEFT - 8}' y='{place + 4:.1f}' text-anchor='end'>1e{power}</text>")
    for name, line in lines:
        points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(line) if v > 0 and math.isfinite(v))
        parts.append(f"<polyline points='{points}' fill='none' stroke='var(--{name})' stroke-width='2'/>")
    for i, (row, value) in enumerate(zip(rows, lines[0][1], strict=True)):
        rules = [rule for rule in row.rules if rule[0] in families]
        if rules and row.severity in ("error", "warning") and value > 0 and math.isfinite(value):
            name = f"<title>{escape(row.name)}: {' '.join(rules)}</title>"
            drawn = f"r='5' fill='none' stroke='var(--{row.severity})' stroke-width='2'"
            parts.append(f"<circle cx='{x(i):.1f}' cy='{y(value):.1f}' {drawn}>{name}</circle>")
    return "".join(parts)
