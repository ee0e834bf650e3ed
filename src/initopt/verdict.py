"""Whether a method has done the network good, from measurements before and after."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from initopt.measurement import Measurement

__all__ = ["ON_HARM", "TRAINED", "OnHarm", "Verdict", "judge"]

OnHarm = Literal["restore", "warn", "raise"]
ON_HARM = ("restore", "warn", "raise")

TRAINED = 0.5
"""A loss below this share of the loss with other samples' targets is that of a network that has been trained."""

_RISE = 2.0
"""Factor by which the loss may rise: good starts raise it by up to a third."""


@dataclass(frozen=True)
class Verdict:
    """What became of a network.

    Attributes:
        word: ``"improved"``, ``"applied"`` (by a method that minimizes nothing, so that nothing says whether it is better),
            ``"left alone"`` or ``"harmed"``.
        why: the reason, as a sentence without its full stop.
    """

    word: Literal["improved", "applied", "left alone", "harmed"]
    why: str


def judge(before: Measurement, after: Measurement, harm: str | None, gain: Tensor | None, anything: bool) -> Verdict:
    """Judge new weights by what both weights show on the same batches.

    Args:
        before: with the old weights.
        after: with the new ones.
        harm: why they are worse by the standard of the method, if they are.
        gain: by how much the method's objective has come down, on each batch.
        anything: whether a scale has changed.
    """
    if not anything:
        return Verdict("left alone", "nothing to scale")
    why = _common_harm(before, after) or harm
    if why is not None:
        return Verdict("harmed", why)
    changes = _changes(before, after)
    if gain is None:
        return Verdict("applied", changes)
    mean = float(gain.mean())
    error = float(gain.std(correction=1)) / math.sqrt(len(gain)) if len(gain) > 1 else 0.0
    if not mean > 2 * error:
        noise = f"beyond the noise of {len(gain)} batches" if len(gain) > 1 else "on the one batch that was held back"
        return Verdict("left alone", f"nothing to gain {noise} ({changes})")
    return Verdict("improved", changes)


def _common_harm(before: Measurement, after: Measurement) -> str | None:
    if after.is_deaf:
        spread = f"their spread over the inputs is {after.output_spread:.1g} of their size"
        if before.is_deaf:
            return f"the outputs hardly depend on the inputs, as before: {spread}"
        return f"the outputs no longer depend on the inputs: {spread}, and was {before.output_spread:.2g}"
    if before.loss > 0 and after.loss > _RISE * before.loss:
        return f"the loss rises from {before.loss:.3g} to {after.loss:.3g}, by more than a factor of {_RISE:g}"
    return None


def _changes(before: Measurement, after: Measurement) -> str:
    norms = f"gradient norm {before.grad_norm:.2g} to {after.grad_norm:.2g}"
    if before.is_deaf and not after.is_deaf:
        spreads = f"{before.output_spread:.1g} to {after.output_spread:.2g} of their size"
        return f"the outputs depend on the inputs now, with a spread of {spreads}, and {norms}"
    centred = not math.isnan(before.centred_grad_cosine) and not math.isnan(after.centred_grad_cosine)
    cosine = ("centred_grad_cosine", "centred GradCosine") if centred else ("grad_cosine", "GradCosine")
    name, title = cosine
    return f"{title} {getattr(before, name):.2f} to {getattr(after, name):.2f} and {norms}"
