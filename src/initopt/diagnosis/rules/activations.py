"""A: what the outputs of layers show in a forward pass."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence

from initopt.diagnosis.folding import listed
from initopt.diagnosis.rules.base import Evidence, Finding, Rule, Severity, behind_small_gains, rule, share
from initopt.diagnosis.seen import Call
from initopt.model.parameters import is_bias

__all__ = ["per_layer"]


def per_layer(values: Sequence[float]) -> float:
    """The factor by which values grow from one to the next, by least squares of their logarithms.

    >>> round(per_layer([8.0, 4.0, 2.0, 1.0]), 6)
    0.5
    """
    points = [(i, math.log(value)) for i, value in enumerate(values) if value > 0 and math.isfinite(value)]
    if len(points) < 2:
        return math.nan
    middle, height = (statistics.fmean(column) for column in zip(*points, strict=True))
    return math.exp(sum((i - middle) * (y - height) for i, y in points) / sum((i - middle) ** 2 for i, _ in points))


_SHARES: tuple[tuple[Severity, float, float], ...] = (("error", 0.9, 2.0), ("warning", 0.5, 0.9))
"""Ranges of the share of dead or saturated units, with their severity."""


_ALIKE = 0.2
"""The spread of the inputs of a layer below which a third of its units, or more, are on the same side of zero for all."""


def _graded(calls: Iterable[Call], of: Callable[[Call], float]) -> Iterator[tuple[Severity, list[Call], Call]]:
    """The calls whose share makes them an error, then those that it makes a warning, each with the worst."""
    every = list(calls)
    for severity, low, high in _SHARES:
        some = [call for call in every if low <= of(call) < high]
        if some:
            yield severity, some, max(some, key=of)


def _ends(layers: Sequence[Call]) -> tuple[list[Call], list[Call]]:
    """The first and the last quarter of layers, two or more each."""
    count = max(2, len(layers) // 4)
    return list(layers[:count]), list(layers[-count:])


@rule(
    "A201",
    "dead ReLUs",
    "warning",
    needs="batch",
    threshold="half of the units zero for every sample; an error from 90 %",
    source="SageMaker Debugger, rule DeadRelu; Lu et al., Dying ReLU and Initialization, arXiv 1903.06733",
    explains=("G305", "G306", "A204", "A205", "G302", "A212", "G307", "A209"),
)
def dead(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """A unit that is zero for all samples and positions gets no gradient, and stays so.

    In wide healthy networks a few per cent of the units are zero on a few hundred samples, and in deep plain ones, whose
    samples look alike, up to a third. SageMaker's rule asks for half, too. The rule needs 16 samples and 16 units. Units
    behind a layer whose inputs hardly differ are left out: half of them are zero for one sample, and so for all.
    """
    if evidence.seen.data.samples < 16:
        return
    every = evidence.seen.calls
    relus = [
        call
        for source, before, call in zip([None, None, *every], [None, *every], every, strict=False)
        if call.function in ("relu", "relu6")
        and (before is None or before.rms > 0)
        and (source is None or not source.spread < _ALIKE)
    ]
    for severity, calls, worst in _graded((c for c in relus if c.units >= 16), lambda call: call.dead):
        more = f"up to {share(worst.dead)} of their" if len(calls) > 1 else f"{share(worst.dead)} of its {worst.units}"
        text = f"{more} units are zero for every sample"
        remedy = "look at the biases in front (too negative?) and their inputs; kaiming_normal or lsuv revives units"
        yield rule.finding([c.name for c in calls], text, remedy, severity)


@rule(
    "A202",
    "saturated sigmoids or tanhs",
    "warning",
    needs="batch",
    threshold="half of the outputs where the slope is below a twentieth of the largest; an error from 90 %",
    source="SageMaker Debugger, rule SaturatedActivation; Glorot and Bengio 2010, section 3",
    explains=("G302", "G307", "A203", "A204", "A205", "A209", "A212"),
)
def saturated(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """At the flat ends of a sigmoid or tanh, hardly any gradient passes.

    Normal inputs of unit variance leave 3 % of a tanh's outputs beyond 0.975 and none of a sigmoid's beyond 0.987; for half
    of them to be there, inputs have to be three times as large, or more.
    """
    for severity, calls, worst in _graded(evidence.seen.calls, lambda call: call.saturated):
        text = (
            f"{'up to ' if len(calls) > 1 else ''}{share(worst.saturated)} of the outputs are at the flat ends of "
            f"{worst.function}"
        )
        remedy = "make the weights in front smaller (xavier_normal, lsuv), or normalize the inputs"
        yield rule.finding([c.name for c in calls], text, remedy, severity)


@rule(
    "A203",
    "exploding signal",
    "warning",
    needs="batch",
    threshold="a layer's output 1e3 times as large as that of the first layers; an error from 1e6; 4 layers or more",
    source="He et al., arXiv 1502.01852; Hanin and Rolnick, arXiv 1803.01719; SageMaker Debugger, ExplodingTensor",
    explains=("A208", "A211", "D408", "D404", "G308"),
)
def exploding(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """A signal that grows by a factor in every layer is beyond all bounds in a deep network.

    What counts is the part of an output that depends on the input. Residual networks without norms grow up to a
    hundredfold and train; a thousand is beyond what any healthy network of the zoo shows.
    """
    layers = [call for call in evidence.layers if call.deviation > 0]
    if len(layers) < 4:
        return
    first = max(call.deviation for call in _ends(layers)[0][:2])
    worst = max(layers, key=lambda call: call.deviation if math.isfinite(call.deviation) else math.inf)
    growth = worst.deviation / first
    if growth > 1e3:
        upto = layers[: layers.index(worst) + 1]
        factor = per_layer([call.deviation for call in upto])
        text = f"the signal grows by {factor:.2f} a layer, to {growth:.1g} times its size over {len(upto)} layers"
        remedy = (
            "a scheme with the gain of the nonlinearity (orthogonal, kaiming_normal), lsuv, or norms between the layers"
        )
        yield rule.finding([call.name for call in upto], text, remedy, "error" if growth > 1e6 else "warning")


@rule(
    "A204",
    "vanishing signal",
    "warning",
    needs="batch",
    threshold="1e-3 of the first layers' signal left in the last; an error from 1e-5, a note from 1e-2; 4 layers or more",
    source="Glorot and Bengio 2010; Schoenholz et al., Deep Information Propagation, arXiv 1611.01232",
    explains=("A205", "A209", "A212", "G309", "G310", "G308", "G302", "G307", "O502"),
)
def vanishing(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """A signal that shrinks by a factor in every layer is lost in the biases and in rounding.

    What counts is the part of an output that depends on the input: biases can keep outputs large that say nothing. A plain
    tanh network of 10 layers with PyTorch's weights, which trains slowly, has 0.01 left; with 1e-3 or less, it hardly
    trains.
    """
    layers = [call for call in evidence.layers if math.isfinite(call.deviation)]
    if len(layers) < 4:
        return
    start, end = _ends(layers)
    first, last = max(call.deviation for call in start[:2]), max(call.deviation for call in end)
    if first > 0 and 0 < last < 1e-2 * first:
        values = [call.deviation for call in layers]
        floor = max(1e-7 * call.rms for call in end)
        factor = per_layer([value for value in values if value > floor] or values)
        seen = evidence.seen
        slope = [call.slope for call in layers if call.slope > 0]
        fate = (
            f"; the first layers get {slope[0] / slope[-1]:.1g} of the gradient of the last"
            if seen and len(slope) > 1
            else ""
        )
        text = (
            f"the signal shrinks by {factor:.2f} a layer over {len(layers)} layers, to {last / first:.1g} of its size{fate}"
        )
        remedy = "weights that fit the nonlinearity (orthogonal or kaiming_normal with its gain), lsuv, or nio"
        severity: Severity = "error" if last < 1e-5 * first else "warning" if last < 1e-3 * first else "note"
        yield rule.finding([call.name for call in layers], text, remedy, severity)


@rule(
    "A205",
    "outputs that ignore the inputs",
    "error",
    needs="batch",
    threshold="1e-3 of the output depends on the input",
    source="initopt.gram.measurement.DEAF: plain networks that cannot be trained have 1e-8 to 1e-3, others 0.1 to 0.5",
    explains=("G309", "A209", "G310", "A212", "G302", "G307", "G308"),
)
def deaf(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """An output that is the same for every input can learn nothing but a mean.

    An output of zeros, from a last layer that starts at zero, is another matter. A class token that sees the input through
    gains that start small, as in CaiT, is a note.
    """
    trace = evidence.seen
    calls = [call for call in trace.calls if call.rms > 0 and math.isfinite(call.rms)]
    if not calls or trace.data.samples < 4 or calls[-1] is not trace.calls[-1] or not calls[-1].spread < 1e-3:
        return
    zeros = {tensor.name for tensor in trace.tensors if tensor.rms == 0}
    last = evidence.layers[-1] if evidence.layers else None
    if last is None or not any(not is_bias(name) and name in zeros for name in last.parameters):
        early = calls[-1]
        for call in reversed(calls):
            if not call.spread < 1e-3:
                break
            early = call
        place = early.name or "the model"
        text = f"only {calls[-1].spread:.1g} of the output depends on the input; it is lost from {place} on"
        if any(call.spread >= 1e-3 for call in evidence.opened([calls[-1]])):
            words, remedy = behind_small_gains(evidence)
            yield rule.finding([early.name], text + words, remedy, "note")
        else:
            yield rule.finding([early.name], text, "try lsuv, nio, or a scheme that fits the nonlinearity")


@rule(
    "A206",
    "uniform attention",
    "note",
    needs="batch",
    threshold="entropy above 0.9999 of that of uniform weights",
    source="Trockman and Kolter, Mimetic Initialization, arXiv 2305.09828",
)
def uniform_attention(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """Attention that weighs all positions alike is a mean over them.

    Small random weights start near that, and train, so this is a note. Above 0.9999 of the entropy, queries and keys do not
    matter at all.
    """
    paths = [path for path, entropy in evidence.seen.attention.items() if entropy > 0.9999]
    if paths:
        text = f"attention is uniform: its entropy is {max(evidence.seen.attention[p] for p in paths):.6f} of the largest"
        yield rule.finding(
            paths, text, "larger queries and keys, or a mimetic start, make positions count from the first step"
        )


@rule(
    "A207",
    "one-hot attention",
    "warning",
    needs="batch",
    threshold="entropy below 0.1 of that of uniform weights",
    source="Zhai et al., Stabilizing Transformer Training by Preventing Attention Entropy Collapse, arXiv 2303.06296",
    explains=("G307",),
)
def one_hot_attention(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """Attention to a single position passes no gradient to queries and keys, and training becomes unstable.

    At their start, networks of the zoo have 0.8 or more; collapses seen in training are below 0.2.
    """
    paths = [path for path, entropy in evidence.seen.attention.items() if entropy < 0.1]
    if paths:
        least = min(evidence.seen.attention[path] for path in paths)
        text = f"attention is all on one position: its entropy is {least:.2g} of that of uniform attention"
        yield rule.finding(
            paths, text, "scale scores by 1 over the root of the head's width, and draw queries and keys smaller"
        )


@rule(
    "A208",
    "logits far from the prior",
    "warning",
    needs="batch",
    threshold="a loss 1 above that of equal logits; an error at three times it",
    source="Karpathy, A Recipe for Training Neural Networks: verify the loss at init",
    explains=("D408",),
)
def logits(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """A network that knows nothing should say so: a cross-entropy of ln C, for C classes.

    Logits of unit variance add half a nat to it; a whole nat more than ln C takes logits of size 1.5 that have nothing to
    do with the targets, and the first steps are spent on taking them back.
    """
    trace = evidence.seen
    count = 2 if trace.data.task == "binary" else trace.output.channels if trace.data.task == "classes" else 0
    if count < 2 or not trace.loss > math.log(count) + 1:
        return
    wanted = math.log(count)
    size = trace.output.values.rms
    text = (
        f"the loss is {trace.loss:.3g} at the start, and ln {count} = {wanted:.3g} without any knowledge: logits of "
        f"size {size:.2g}"
    )
    head = evidence.layers[-1].name if evidence.layers else ""
    remedy = "make the last layer smaller, or zero; a norm in front of it keeps it so"
    yield rule.finding([head] if head else [], text, remedy, "error" if trace.loss > 3 * wanted + 1 else "warning")


@rule(
    "A209",
    "one class for all",
    "note",
    needs="batch",
    threshold="the same largest output for all of 64 samples, of 3 classes or more",
    source="a consequence of biases and of samples that look alike in deep networks",
)
def one_class(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """A start that predicts one class for every input is common in deep networks, and ends in the first steps.

    It is a note by itself. If it lasts, see whether the outputs depend on the inputs at all (A205).
    """
    chosen, channels = evidence.seen.output.chosen, evidence.seen.output.channels
    counts = evidence.seen.data.task == "classes" and channels > 2 and chosen.total() >= 64
    if counts and len(chosen) == 1 and evidence.seen.output.values.rms > 0:
        text = f"every sample is taken for class {next(iter(chosen))}"
        yield rule.finding([], text, "nothing, unless it lasts: then look whether outputs depend on inputs")


@rule(
    "A210",
    "outputs that are not finite",
    "error",
    needs="batch",
    threshold="one entry that is infinite or not a number",
    source="NeMo Automodel #2991 (NaN gradient at step 0)",
    explains=("G312", "A203", "A211", "A208"),
)
def not_finite(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """The first output with an entry that is infinite or not a number says where it went wrong.

    There is no threshold to choose.
    """
    first = next((call for call in evidence.seen.calls if call.broken > 0), None)
    if first is not None:
        before = [call for call in evidence.seen.calls if call.broken == 0]
        large = max((call.largest for call in before), default=0.0)
        text = f"{share(first.broken)} of its outputs are infinite or not a number; those before it go up to {large:.2g}"
        yield rule.finding(
            [first.name], text, "look for a division by zero, a logarithm or an overflow there, or in its weights"
        )
    elif any(not math.isfinite(loss) for loss in evidence.seen.losses):
        text = "the loss is not finite, and all outputs are"
        yield rule.finding([], text, "look at the loss: a logarithm of zero, or a mean over no target")


@rule(
    "A211",
    "near the end of half precision",
    "warning",
    needs="batch",
    threshold="an output above 6e3, a tenth of what float16 holds",
    source="Micikevicius et al., Mixed Precision Training, arXiv 1710.03740",
)
def near_overflow(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """float16 ends at 65504, and a few steps change an output by a factor of ten.

    The rule is for models that run in float16, by their parameters or autocast.
    """
    calls = [call for call in evidence.seen.calls if evidence.seen.half and call.largest > 6e3 and call.broken == 0]
    if calls:
        text = f"outputs go up to {max(call.largest for call in calls):.2g}, and float16 ends at 65504"
        yield rule.finding([call.name for call in calls], text, "use bfloat16, or make the weights in front smaller")


@rule(
    "A212",
    "collapsed rank",
    "warning",
    needs="batch",
    threshold="effective rank below 1.5 of 16 units or more, with 8 or more at the first layer",
    source="Daneshmand et al., arXiv 2003.01652; NEAR, arXiv 2408.08776; Noci et al., arXiv 2206.03126",
)
def collapsed(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """Outputs along one direction can tell samples apart by one number only.

    The rank is the exponential of the entropy of the singular values of a sample of 128 rows, centred. Healthy
    networks end with 5 or more.
    """
    layers = [call for call in evidence.layers if call.units >= 16 and not math.isnan(call.rank)]
    if len(layers) > 1 and layers[0].rank >= 8:
        calls = [call for call in layers[1:] if call.rank < 1.5 and call.deviation > 0]
        if calls:
            text = (
                f"the outputs of {listed([c.name for c in calls])} lie along one direction: effective rank "
                f"{calls[-1].rank:.1f}, {layers[0].rank:.0f} at first"
            )
            yield rule.finding(
                [c.name for c in calls], text, "orthogonal weights, shortcuts or norms keep directions apart"
            )
