"""The rows of a diagnosis, one for every layer, and the table of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from initopt.diagnosis.rules import SEVERITIES, Finding
from initopt.diagnosis.seen import Block, Call, TensorTrace, Trace
from initopt.model.parameters import is_bias

__all__ = ["Row", "in_units", "plain_row", "rows_of", "shortened", "table"]


@dataclass(frozen=True)
class Row:
    """A call of a module or an activation, with the parameters of the module; or parameters that belong to no such module.

    Attributes:
        name: path of the module, with the function or the number of the call; the tensor's name for parameters alone.
        kind: class of the module, name of the function, or ``"parameter"``.
        output: shape of the output without its first dimension; that of the tensor for parameters alone.
        parameters: number of entries of the parameters that the module itself holds.
        weight_rms: root mean square of its largest parameter; nan without one.
        rms: root mean square of the output.
        mean: mean of the output.
        spread: the part of it that depends on the input, in [0, 1].
        dead: share of units that are zero for all samples.
        saturated: share of entries at the flat ends of a sigmoid or tanh.
        broken: share of entries that are infinite or not a number.
        rank: effective rank of the output on the first batch.
        slope: norm of the gradient of a sample's loss with respect to the output.
        gradient_rms: root mean square of the mean gradient with respect to the largest parameter.
        gradient_share: share of all its parameters in the squared norm of the whole gradient.
        grad_cosine: GradCosine of its parameters.
        signal_to_noise: signal-to-noise ratio of the gradient of a batch, for its parameters.
        sign_agreement: agreement of the signs of the gradients of sub-batches, for its largest parameter.
        scale_invariant: whether the loss does not change with the scale of its largest parameter.
        update: size of the first update relative to the largest parameter; nan without an optimizer.
        fate: what becomes of the largest parameter; see :class:`initopt.diagnosis.seen.TensorTrace`.
        rules: codes of the rules that found something here, the worst first.
        severity: the worst severity of what they found; ``""`` if there is none.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    weight_rms: float
    rms: float
    mean: float
    spread: float
    dead: float
    saturated: float
    broken: float
    rank: float
    slope: float
    gradient_rms: float
    gradient_share: float
    grad_cosine: float
    signal_to_noise: float
    sign_agreement: float
    scale_invariant: bool
    update: float
    fate: str
    rules: tuple[str, ...]
    severity: str


def plain_row(row: Row) -> dict[str, Any]:
    """The attributes of a row, by name."""
    return {f.name: getattr(row, f.name) for f in fields(row)}


def rows_of(trace: Trace, findings: Sequence[Finding]) -> tuple[Row, ...]:
    """The rows of a trace in the order in which layers ran, with the findings that concern them."""
    marks: dict[str, list[Finding]] = {}
    for finding in findings:
        for name in finding.where:
            marks.setdefault(name, []).append(finding)
    tensors = {tensor.name: tensor for tensor in trace.tensors}
    taken: set[str] = set()
    rows = []
    for call in trace.calls:
        own = [tensors[name] for name in call.parameters if name in tensors and name not in taken]
        taken.update(tensor.name for tensor in own)
        rows.append(_row(call, own, marks))
    rows += [_row(None, [tensor], marks) for tensor in trace.tensors if tensor.name not in taken]
    return tuple(rows)


def _row(call: Call | None, own: Sequence[TensorTrace], marks: dict[str, list[Finding]]) -> Row:
    largest = max(own, key=lambda tensor: (not is_bias(tensor.name), math.prod(tensor.shape)), default=None)
    name = call.name if call is not None else own[0].name
    found = {f for place in (name, *(tensor.name for tensor in own)) for f in marks.get(place, [])}
    ordered = sorted(found, key=lambda f: (SEVERITIES.index(f.severity), f.rule))
    block = None
    if own:
        gram = torch.stack([tensor.gram for tensor in own]).sum(0)
        held = [tensor.share for tensor in own if not math.isnan(tensor.share)]
        block = Block(name, gram, sum(held) if held else math.nan, own[0].small_batch, own[0].big_batch)
    nan = math.nan
    return Row(
        name=name or "model",
        kind="parameter" if call is None else call.kind,
        output=own[0].shape if call is None else call.shape,
        parameters=sum(math.prod(tensor.shape) for tensor in own),
        weight_rms=nan if largest is None else largest.rms,
        rms=nan if call is None else call.rms,
        mean=nan if call is None else call.mean,
        spread=nan if call is None else call.spread,
        dead=nan if call is None else call.dead,
        saturated=nan if call is None else call.saturated,
        broken=nan if call is None else call.broken,
        rank=nan if call is None else call.rank,
        slope=nan if call is None else call.slope,
        gradient_rms=nan if largest is None else largest.slope,
        gradient_share=nan if block is None else block.share,
        grad_cosine=nan if block is None else block.cosine,
        signal_to_noise=nan if block is None else block.signal_to_noise,
        sign_agreement=nan if largest is None else largest.agreement,
        scale_invariant=largest is not None and largest.scale_invariant,
        update=nan if largest is None else largest.relative_update,
        fate="" if largest is None else largest.fate,
        rules=tuple(dict.fromkeys(f.rule for f in ordered)),
        severity=ordered[0].severity if ordered else "",
    )


_HEAD = ("layer", "kind", "output", "params", "rms", "spread", "dead", "slope", "share", "cosine", "rules")


def table(rows: Sequence[Row], most: int | None = None) -> str:
    """Rows as text, at most some of them: the middle ones are left out."""
    shown: list[Row | None] = list(rows)
    if most is not None and len(rows) > most:
        shown = [*rows[: most // 2], None, *rows[len(rows) - (most - most // 2 - 1) :]]
    cells = [
        _cells(row) if row else ["", f"... {len(rows) - len(shown) + 1} more", *[""] * (len(_HEAD) - 2)] for row in shown
    ]
    widths = [max(len(line[column]) for line in [list(_HEAD), *cells]) for column in range(len(_HEAD))]
    left = {0, 1, len(_HEAD) - 1}
    lines = []
    for line in [list(_HEAD), *cells]:
        padded = (c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        lines.append("  ".join(padded).rstrip())
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:]])


def _cells(row: Row) -> list[str]:
    dead = row.dead if row.kind != "parameter" else math.nan
    figures = [_number(value) for value in (row.rms, row.spread)]
    shares = [
        _percent(dead if dead else math.nan),
        _number(row.slope),
        _percent(row.gradient_share),
        _number(row.grad_cosine),
    ]
    shape = "x".join(map(str, row.output)) or "1"
    size = in_units(row.parameters) if row.parameters else ""
    return [shortened(row.name, 34), shortened(row.kind, 18), shape, size, *figures, *shares, " ".join(row.rules[:4])]


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2g}"


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.0f} %" if value >= 0.005 or value == 0 else "<1 %"


def in_units(number: int) -> str:
    """A count in thousands, millions or billions.

    >>> in_units(11_100)
    '11.1 k'
    """
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return str(number)


def shortened(text: str, most: int) -> str:
    """A text without its middle, if it is too long."""
    return text if len(text) <= most else f"{text[: most // 2 - 2]}...{text[len(text) - (most - most // 2 - 1) :]}"
