"""W: what norms show by themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

from initopt.diagnosis.recording import real
from initopt.diagnosis.rules.base import Evidence, Finding, Rule, rule
from initopt.diagnosis.weights import is_norm

__all__: list[str] = []


@rule(
    "W114",
    "norm gains that were drawn at random",
    "warning",
    needs="weights",
    threshold="standard deviation above 0.5 of the mean, of 8 entries or more",
    source="an _init_weights that draws every tensor called weight: transformers #19341 and others",
)
def random_gains(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """The gains of norms start at 1, or all at 0 at the end of a residual branch.

    A loop that draws every ``weight`` with a standard deviation of 0.02 makes of each norm a random mask of either
    sign. Trained norms vary by less than half of their mean. Where less than a quarter of the gains are of the other sign,
    they were drawn around a number that somebody chose, as for the branches of RepVGG in timm (0.1, give or take 0.1): a
    note.
    """
    names = []
    opposite = total = 0
    for weight in evidence.parameters:
        norms = [m for own, m in weight.holders if own == "weight" and is_norm(m)]
        if norms and weight.local.numel() >= 8 and weight.trains:
            values = real(weight.local)
            if float(values.std()) > 0.5 * abs(float(values.mean())) and not weight.is_constant:
                names.append(weight.name)
                negative = int((values < 0).sum())
                opposite += min(negative, values.numel() - negative)
                total += values.numel()
    if names and 4 * opposite >= total:
        text = f"{len(names)} norms have gains that look drawn at random around 0: each is a mask of random signs"
        yield rule.finding(names, text, "set them to 1, and leave norms out of the loop that draws weights")
    elif names:
        text = f"{len(names)} norms have gains that vary by more than half of their mean"
        yield rule.finding(names, text, "nothing, if they were drawn so on purpose; norms mostly start at 1", "note")


@rule(
    "W115",
    "norms over a single number",
    "warning",
    needs="weights",
    threshold="a layer norm or RMS norm whose shape has one entry",
    source="CSATv2 in timm, whose spatial attention normalizes one channel",
    explains=("G305", "G306", "G307"),
)
def of_one_number(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """A layer norm over one number returns its bias, whatever comes in, since the number is its own mean.

    An RMS norm over one number returns its sign. What is in front of either gets no gradient through it. Nothing is
    measured.
    """
    names = [
        name
        for name, module in evidence.model.named_modules()
        if type(module).__name__.endswith(("LayerNorm", "RMSNorm")) and _length(module) == 1
    ]
    if names:
        many = (
            f"{len(names)} norms are over one number each, whose size is"
            if len(names) > 1
            else ("it normalizes one number, whose size is")
        )
        text = f"{many} lost there: no gradient comes through"
        yield rule.finding(names, text, "normalize over more than one channel, or leave the norm out")


def _length(module: nn.Module) -> int:
    """How many numbers a norm is over; 0 if it does not say."""
    shape = getattr(module, "normalized_shape", ())
    return math.prod(shape if isinstance(shape, (tuple, list)) else (shape,)) if shape else 0
