"""G: what the gradients show."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

import torch

from initopt.diagnosis.folding import listed
from initopt.diagnosis.rules.activations import per_layer
from initopt.diagnosis.rules.base import Evidence, Finding, Rule, Severity, behind_small_gains, rule, share
from initopt.diagnosis.seen import Call, TensorTrace
from initopt.diagnosis.weights import is_norm
from initopt.gram import functional
from initopt.model.parameters import is_bias

__all__: list[str] = []


def _slopes(evidence: Evidence) -> tuple[list[Call], float, float]:
    """The layers that a gradient comes back to, and its size in the first and in the last quarter of them."""
    layers = [call for call in evidence.layers if call.slope > 0 and math.isfinite(call.slope)]
    return layers, *_ends([call.slope for call in layers])


def _ends(slopes: Sequence[float]) -> tuple[float, float]:
    if len(slopes) < 4:
        return math.nan, math.nan
    count = max(2, len(slopes) // 4)
    return max(slopes[:count]), max(slopes[-count:])


@rule(
    "G301",
    "exploding gradient",
    "warning",
    needs="gradient",
    threshold="1e3 times as large at the first layers as at the last; an error from 1e6; 4 layers or more",
    source="Yang et al., A Mean Field Theory of Batch Normalization, arXiv 1902.08129; Philipp et al., arXiv 1712.05577",
    explains=("G308",),
)
def exploding(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """A gradient that grows on its way back makes the first layers jump while the last ones stand still.

    What is compared is the norm of the gradient of a sample's loss with respect to the outputs of layers. Networks
    with batch norm, which explode by 1.2 a layer as theory has it, stay below a thousand at the depths that are
    trained.
    """
    layers, first, last = _slopes(evidence)
    if first > 1e3 * last:
        factor = per_layer([call.slope for call in reversed(layers)])
        text = (
            f"the gradient grows by {factor:.2f} a layer on its way back, to {first / last:.1g} times its size over "
            f"{len(layers)} layers"
        )
        remedy = "smaller weights (lsuv, orthogonal), shortcuts, or clip the gradient until the first layers have settled"
        yield rule.finding([call.name for call in layers], text, remedy, "error" if first > 1e6 * last else "warning")


@rule(
    "G302",
    "vanishing gradient",
    "warning",
    needs="gradient",
    threshold="1e-4 of the gradient of the last layers comes to the first; an error from 1e-7; 4 layers or more",
    source="Hochreiter 1991; Glorot and Bengio 2010; SageMaker Debugger, rule VanishingGradient",
    explains=("G307", "G308", "O502"),
)
def vanishing(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """Layers that get 1e-4 of the gradient of others do not train at a rate that suits these.

    Adam evens out sizes, but not the noise of rounding, in which 1e-7 is lost. Where branches are multiplied by gains that
    start small, as by LayerScale, a few samples are run with these at 1: it is a note if the gradient then comes through.
    It is also a note where only the last layer keeps the gradient back: a head that starts small.
    """
    layers, first, last = _slopes(evidence)
    if first < 1e-4 * last:
        factor = per_layer([call.slope for call in reversed(layers)])
        text = (
            f"the gradient shrinks by {factor:.2f} a layer on its way back over {len(layers)} layers; the first get "
            f"{first / last:.1g} of it"
        )
        remedy = "weights that fit the nonlinearity (orthogonal, kaiming_normal), lsuv, shortcuts or norms"
        severity: Severity = "error" if first < 1e-7 * last else "warning"
        opened = _ends([call.slope for call in evidence.opened(layers)])
        inner = _ends([call.slope for call in layers[:-1]])
        if opened[0] >= 1e-4 * opened[1]:
            words, remedy = behind_small_gains(evidence)
            text, severity = text + words, "note"
        elif inner[0] >= 1e-4 * inner[1]:
            text, severity = f"{text}; up to {layers[-1].name} it is ordinary", "note"
            remedy = "nothing, if the last layer is meant to start small: it grows first"
        yield rule.finding([call.name for call in layers], text, remedy, severity)


@rule(
    "G303",
    "parameters that nothing uses",
    "warning",
    needs="gradient",
    threshold="no function was given the parameter, and no gradient came",
    source="DistributedDataParallel's find_unused_parameters; torchtitan and transformers issues on poolers",
)
def unused(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """A parameter that the forward pass never touches takes memory, and weight decay, and is often a mistake.

    Nothing is measured: the parameter was given to a function, or it was not.
    """
    names = [tensor.name for tensor in evidence.seen.tensors if tensor.fate == "unused"]
    if names:
        what, they = ("it takes", "it") if len(names) == 1 else (f"{len(names)} parameters take", "them")
        text = f"{what} no part in the loss: nothing uses {they}"
        yield rule.finding(names, text, "remove them, use them, or freeze them with requires_grad_(False)")


@rule(
    "G304",
    "parameters whose gradient is cut off",
    "error",
    needs="gradient",
    threshold="the parameter was used, and no gradient came back",
    source="minimind #858 (a router without gradient); .detach(), .item(), argmax and torch.no_grad() in forward passes",
)
def detached(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """A parameter that is used, and that no path leads back to, will not train.

    Nothing is measured: autograd gives a gradient, or it does not.
    """
    names = [tensor.name for tensor in evidence.seen.tensors if tensor.fate == "detached"]
    if names:
        routers = [name for name in names if _is_router(name)]
        text = f"{len(names)} parameters are used, but no gradient comes back to them"
        if routers:
            text += f", the router {listed(routers)} among them"
        yield rule.finding(names, text, "look for detach(), item(), argmax, round or no_grad() between them and the loss")


def _is_router(name: str) -> bool:
    return any(word in part for part in name.lower().split(".") for word in ("router", "gate", "gating"))


@rule(
    "G305",
    "parameters that nothing can move",
    "error",
    needs="gradient",
    threshold="a gradient of exactly zero on all batches, and after three steps of the others",
    source="Goodfellow et al., Deep Learning, section 8.4; zero times zero",
    explains=("G306",),
)
def stuck(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """Behind two zeros in a row, or units that are all dead, a gradient is zero for good.

    A zero at the end of a residual branch is not meant: it moves in the first step, and what is behind it in the next.
    So three small steps are taken on a copy, and only what gets no gradient even then is reported. Biases are left out
    beside a weight that moves.
    """
    tensors = [tensor for tensor in evidence.seen.tensors if tensor.fate == "stuck"]
    names = [tensor.name for tensor in tensors if not is_bias(tensor.name) or tensor.rms > 0]
    if names:
        zeros = [tensor.name for tensor in tensors if tensor.rms == 0 and not is_bias(tensor.name)]
        why = f": {listed(zeros)} {'are' if len(zeros) > 1 else 'is'} zero" if zeros else ""
        text = f"{len(names)} parameters get a gradient of exactly zero, and still do after three steps{why}"
        remedy = (
            "of zeros in a row, draw all but one at random"
            if zeros
            else "look for dead units or a factor of zero between them and the loss"
        )
        yield rule.finding(names, text, remedy)


@rule(
    "G306",
    "parameters behind a zero",
    "note",
    needs="gradient",
    threshold="a gradient of exactly zero now, and not after a step",
    source="SkipInit, ReZero, Fixup: branches that end in a zero",
)
def behind_zero(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """A branch or head that starts at zero passes no gradient on in the first step, which can be meant so."""
    names = [tensor.name for tensor in evidence.seen.tensors if tensor.fate == "zero" and not is_bias(tensor.name)]
    if names:
        text = (
            f"{len(names)} parameters get no gradient in the first step, since what follows them is zero, and do in "
            f"the next"
        )
        yield rule.finding(names, text, "nothing, if it is meant so")


@rule(
    "G307",
    "a tensor that hardly gets a gradient",
    "warning",
    needs="gradient",
    threshold="root mean square below 1e-6 of the median over the weights, of 4 or more",
    source="minimind #858 (a router gradient of 7e-10, and a mixture worse than a dense model)",
)
def hardly(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """A weight whose gradient is a millionth of that of others is in effect not trained: often a router, or a gate.

    Queries and keys of small weights get a thousandth, rightly so. Biases in front of norms, and of keys, get nothing but
    rounding noise, and are left out, and so are weights of norms: where another norm comes next, channel by channel, it
    undoes them. A weight that gets an ordinary gradient once the gains that start small, as those of LayerScale, are 1 is a
    note.
    """
    tensors = [t for t in evidence.seen.tensors if t.fate == "trains" and not is_bias(t.name) and t.slope > 0]
    if len(tensors) < 4:
        return
    usual = statistics.median(tensor.slope for tensor in tensors)
    opened = {} if evidence.seen.opened is None else evidence.seen.opened.slopes
    enough = 1e-6 * statistics.median(opened.values()) if opened else math.inf
    norms = {name for name, module in evidence.model.named_modules() if is_norm(module)}
    few = [t for t in tensors if t.slope < 1e-6 * usual and t.name.rpartition(".")[0] not in norms]
    behind = [tensor for tensor in few if opened.get(tensor.name, 0.0) >= enough]
    severities: tuple[Severity, ...] = ("warning", "note")
    for severity, some in zip(severities, ([t for t in few if t not in behind], behind), strict=True):
        if some:
            names = [tensor.name for tensor in some]
            many = f"{len(some)} tensors get" if len(some) > 1 else "it gets"
            what = "the router gets" if all(map(_is_router, names)) else many
            least = min(tensor.slope for tensor in some)
            text = f"{what} a gradient of {least:.1g}, and the others of some {usual:.1g}"
            words, remedy = "", "look at what divides it, or at a weight in the loss that is too small"
            if severity == "note":
                words, remedy = behind_small_gains(evidence)
            yield rule.finding(names, text + words, remedy, severity)


@rule(
    "G308",
    "one tensor with all the gradient",
    "warning",
    needs="gradient",
    threshold="99 % of the squared norm, of 8 tensors or more",
    source="icefall #558 (a gradient explosion in one layer)",
)
def one_tensor(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """Where one tensor has all the gradient, a bound on its norm, and a common rate, are of that tensor alone.

    In healthy networks the largest share is 10 to 80 %. Embeddings and the last layer, which have large ones by
    nature, make it a note, and so do gains that start small, if they keep the gradient from the others.
    """
    tensors = [tensor for tensor in evidence.seen.tensors if tensor.fate == "trains"]
    if len(tensors) < 8:
        return
    largest = max(tensors, key=lambda tensor: tensor.share if tensor.share > 0 else 0.0)
    if largest.share > 0.99:
        text, severity = f"it has {share(largest.share)} of the squared norm of the gradient", rule.severity
        remedy = "look at its scale and at what comes into it"
        if _share_opened(evidence, largest) < 0.99:
            words, remedy = behind_small_gains(evidence)
            text, severity = text + words, "note"
        elif largest.name in _of_frequencies(evidence) or largest in tensors[-2:]:
            severity = "note"
        yield rule.finding([largest.name], text, remedy, severity)


def _share_opened(evidence: Evidence, tensor: TensorTrace) -> float:
    """The share of a tensor where no branch starts next to closed; nan if none does."""
    slopes = {} if evidence.seen.opened is None else evidence.seen.opened.slopes
    squares = {t.name: slopes[t.name] ** 2 * math.prod(t.shape) for t in evidence.seen.tensors if t.name in slopes}
    total = sum(squares.values())
    return squares.get(tensor.name, math.nan) / total if total > 0 else math.nan


def _of_frequencies(evidence: Evidence) -> set[str]:
    """Tensors whose gradient tells how frequent labels are: the last layer's bias, embeddings, and heads tied to one."""
    found = {weight.name for weight in evidence.parameters if weight.is_embedding}
    calls = [call for call in evidence.layers if call.parameters]
    if calls:
        found |= {name for name in calls[-1].parameters if is_bias(name)}
    return found


@rule(
    "G309",
    "a gradient of frequencies only",
    "warning",
    needs="gradient",
    threshold="GradCosine above 0.3, 90 % of the squared norm in these tensors; for embeddings, a third without them",
    source="initopt.model.centring; Yang et al., arXiv 2210.05956",
    explains=("G308",),
)
def only_frequencies(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """Samples agree on how frequent labels are: what output biases and embeddings of tokens learn first.

    Where they agree on nothing else, GradCosine says nothing of the network. Language models start so, for which it is
    a note; where it is only the bias of the last layer, the rest of the network is deaf.
    """
    trace = evidence.seen
    names = _of_frequencies(evidence)
    some = [tensor for tensor in trace.tensors if tensor.name in names and tensor.fate == "trains"]
    others = [tensor for tensor in trace.tensors if tensor.name not in names and tensor.fate == "trains"]
    if not some or not others or not trace.whole.cosine > 0.3:
        return
    rest = float(functional.grad_cosine(torch.stack([tensor.gram for tensor in others]).sum(0)).mean())
    held = sum(tensor.share for tensor in some)
    bias = all(is_bias(tensor.name) for tensor in some)
    if held > 0.9 and (bias or rest < trace.whole.cosine / 3):
        what = "the bias of the last layer" if bias else "what tells frequencies of tokens"
        text = (
            f"{what} has {share(held)} of the gradient: GradCosine is {trace.whole.cosine:.2f} with it and {rest:.2f} "
            f"without"
        )
        remedy = "set the bias to the logarithms of the class shares, and look whether the network depends on its input"
        yield rule.finding([tensor.name for tensor in some], text, remedy, "warning" if bias else "note")


@rule(
    "G310",
    "no signal above the noise",
    "note",
    needs="gradient",
    threshold="no positive estimate of the squared expected gradient",
    source="McCandlish et al., An Empirical Model of Large-Batch Training, arXiv 1812.06162",
)
def no_signal(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """On a few batches, the mean gradient may not stand out of its noise; more batches, or larger ones, would tell."""
    if evidence.seen.whole.signal_to_noise == 0:
        text = "the gradients of the sub-batches have nothing in common that stands out of their noise on these batches"
        yield rule.finding(
            [], text, "look at more or larger batches; if it lasts, at labels that do not belong to their inputs"
        )


@rule(
    "G311",
    "gradients below half precision",
    "warning",
    needs="gradient",
    threshold="80 % of the entries of a layer's gradient below 6e-5, the least normal number, in half of the layers",
    source="Micikevicius et al., Mixed Precision Training, arXiv 1710.03740, section 3.2",
    explains=("G302", "G307", "G305", "G306"),
)
def underflow(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """float16 has no numbers below 6e-8 and few below 6e-5, so that small gradients become zero.

    The rule is for models that run in float16. A ReLU makes half of the entries zero by itself, hence 80 %. A loss that is
    multiplied by 2 to the power of 16, as GradScaler does, shifts all of them into range.
    """
    layers = [call for call in evidence.layers if not math.isnan(call.tiny_slopes)]
    few = [call for call in layers if call.tiny_slopes > 0.8]
    if evidence.seen.half and len(few) > len(layers) / 2:
        text = f"{share(statistics.fmean(call.tiny_slopes for call in few))} of the gradient is below what float16 holds"
        yield rule.finding(
            [call.name for call in few], text, "use bfloat16, or torch.amp.GradScaler with parameters in float32"
        )


@rule(
    "G312",
    "gradients that are not finite",
    "error",
    needs="gradient",
    threshold="one entry that is infinite or not a number",
    source="NeMo Automodel #2991; sqrt and norm at zero, whose derivatives are infinite",
)
def not_finite(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """A gradient can be infinite, or not a number, where the loss is not: at a root or a norm of zero."""
    names = [tensor.name for tensor in evidence.seen.tensors if tensor.broken]
    if names:
        text = f"the gradients of {len(names)} tensors are infinite or not a number"
        yield rule.finding(
            names, text, "look for a root, norm, logarithm or division at zero; a where() does not help behind it"
        )
