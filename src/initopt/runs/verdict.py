"""Whether a method has done the network good, from measurements before and after."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from initopt._support.words import counted, first_few
from initopt.gram.measurement import TITLES, Measurement
from initopt.methods.records import StepRecord, steps_taken
from initopt.runs.trial import Trial

if TYPE_CHECKING:
    from initopt.runs.result import Result

__all__ = ["ON_HARM", "TRAINED", "OnHarm", "Verdict", "judge", "summary", "with_trial"]

OnHarm = Literal["restore", "warn", "raise"]
ON_HARM = ("restore", "warn", "raise")

TRAINED = 0.5
"""A loss below this share of the loss with other samples' targets is that of a network that has been trained."""

_RISE = 2.0
"""Factor by which the loss may rise: good starts raise it by up to a third."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on a network after a run.

    Attributes:
        word: ``"improved"``, ``"applied"`` (by a method whose gain is not judged, so that nothing says whether it is
            better), ``"left alone"`` or ``"harmed"``.
        why: the reason, as a sentence without its full stop.
        instead: what to do where it was harmed, if that is known better than in general.
    """

    word: Literal["improved", "applied", "left alone", "harmed"]
    why: str
    instead: str | None = None


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
        return Verdict("left alone", "no scale has moved")
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


def with_trial(found: Verdict, trial: Trial) -> Verdict:
    """A verdict on new weights that are good by themselves, once some training steps have been done from them."""
    if trial.outcome == "worse":
        return Verdict("harmed", str(trial), trial.advice())
    return Verdict(found.word, f"{found.why}; {trial}")


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


_MOVED = 5
"""Scales that are shown."""

_MEAN_OF = 10
"""Steps over which GradCosine is averaged, since it swings from batch to batch."""


def summary(result: Result) -> str:
    """Verdict, figures before and after, what moved and what did not, the cost, and what to do next."""
    blocks = [f"{result.method}: {result.verdict}"]
    if result.before is not None and result.after is not None:
        blocks.append(_table(result.before, result.after))
    blocks.append("\n".join(_scales(result)))
    blocks.append(f"Next: {_next(result)}")
    return "\n\n".join(blocks)


def _table(before: Measurement, after: Measurement) -> str:
    names = [name for name in before.measured() if name in after.sem]
    lines = [f"{'':24}{'before':>19}{'after':>19}"]
    lines += [f"{TITLES[name]:24}{_figure(before, name):>19}{_figure(after, name):>19}" for name in names]
    lines.append(f"(means and standard errors over {before.num_batches} held-back batches)")
    return "\n".join(lines)


def _figure(found: Measurement, name: str) -> str:
    return f"{getattr(found, name):.3g} +- {found.sem[name]:.1g}"


def _scales(result: Result) -> list[str]:
    scales = result.scales if result.tried_scales is None else result.tried_scales
    moved = sorted((n for n, s in scales.items() if s != 1 and s > 0), key=lambda n: -abs(math.log(scales[n])))
    lines = []
    if moved:
        what = "moved most" if result.tried_scales is None else "tried, and given up"
        shown = first_few([f"{name} x {scales[name]:.3g}" for name in moved], _MOVED)
        lines.append(f"{what + ':':13} {shown}")
    for why, names in result.left_alone.items():
        lines.append(f"{'left alone:':14}{counted(len(names), 'tensor')}, {why}: {first_few(names, 1)}")
    lines += _agreement(result)
    if result.diagnosis is not None:
        tried = "" if result.tried_scales is None else " (after: with the scales that were given up)"
        lines.append(f"{'layers:':14}{result.diagnosis}{tried}")
    steps = steps_taken(result.history)
    tried = "" if result.trial is None else f", a trial of {result.trial.training_steps} training steps"
    cost = f"{'cost:':14}{counted(steps, 'step')}{tried} and the measurements in {result.seconds:.1f} s"
    if result.training_step_seconds:
        cost += f", as long as {result.seconds / result.training_step_seconds:.0f} training steps"
    return [*lines, f"{cost} (engine {result.engine!r})"]


def _agreement(result: Result) -> list[str]:
    """GradCosine while the steps were done, beside what the samples that sub-batches share make of it."""
    steps = [record for record in result.history if isinstance(record, StepRecord)]
    found = [record.grad_cosine for record in steps if record.grad_cosine is not None]
    floor = next((record.noise_cosine for record in steps if record.noise_cosine), None)
    if floor is None or not found:
        return []
    first, last = (sum(part) / len(part) for part in (found[:_MEAN_OF], found[-_MEAN_OF:]))
    return [f"{'in the steps:':14}GradCosine {first:.2f} to {last:.2f}; shared samples alone give {floor:.2f}"]


def _next(result: Result) -> str:
    word, trial = result.verdict.partition(":")[0], result.trial
    if trial is not None and trial.outcome == "worse":
        kept = "train with what you have" if word == "restored" else "train at a lower rate, or from the weights of before"
        return f"{kept}. {trial.advice()}."
    if trial is not None and trial.outcome == "neither":
        return f"look for a learning rate before anything else, as nothing trains at {trial.old.lr:g}. {trial.advice()}."
    if word in ("restored", "harmed"):
        return (
            "look for a layer that is dead or a rate that is too high before you train; initopt.lsuv(model, batches) or "
            'scheme="orthogonal" may cure what scales cannot.'
        )
    if word in ("left alone", "not improved"):
        return "train with what you have; another start would have to be shown to be better (initopt.compare)."
    if word == "not judged":
        return "have the new weights judged before you train, on batches held back (measure_batches=10)."
    if trial is not None and trial.outcome == "better":
        return (
            f"train at your learning rate {trial.new.lr:g}; initopt.find_lr(model, loader, optimizer) says whether another "
            "fits better, and initopt.compare what the new start is worth in the end."
        )
    return (
        "train, but ask for the learning rate again, as the one of before may no longer fit: "
        "initopt.find_lr(model, loader, optimizer) says which one does. initopt.compare shows what the new start is worth."
    )
