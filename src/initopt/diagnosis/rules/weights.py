"""W: what the weights show by themselves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from initopt._support._torch_private import CONVOLUTIONS
from initopt.diagnosis.folding import listed
from initopt.diagnosis.recording import real
from initopt.diagnosis.rules.base import Evidence, Finding, Rule, Severity, rule, share
from initopt.diagnosis.weights import Weight, is_norm, weights_of

__all__: list[str] = []

_INITIALIZE = (
    "initialize it (reset_parameters(), or a scheme of initopt.schemes); look for torch.empty without a fill after it"
)


@rule(
    "W101",
    "not finite",
    "error",
    needs="weights",
    threshold="one entry that is infinite or not a number",
    source="transformers #28073 (heads of 1e37, then NaN), NeMo Automodel #2991",
    explains=("W102", "W103", "W105", "W108", "W111", "W114", "A", "G", "D404", "D408"),
)
def not_finite(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """A weight or buffer that is infinite or not a number makes every output that depends on it so, too.

    There is no threshold to choose: one entry is enough. Buffers with infinities that are meant are left out: bounds, and
    masks of them and one other number; the statistics of norms are not.
    """
    for weight in evidence.weights:
        if weight.has_values and not weight.local.is_complex() and not _is_mask(weight):
            broken = float((~torch.isfinite(weight.local)).float().mean())
            if broken:
                yield rule.finding(
                    [weight.name], f"{share(broken)} of its entries are infinite or not a number", _INITIALIZE
                )


def _is_mask(weight: Weight) -> bool:
    """Whether a buffer, but for those of norms, has infinities and, beside them, no more than one number."""
    if not weight.is_buffer or any(is_norm(module) for _, module in weight.holders):
        return False
    finite = weight.local[torch.isfinite(weight.local)]
    return not bool(torch.isnan(weight.local).any()) and (len(finite) == 0 or bool((finite == finite[0]).all()))


@rule(
    "W102",
    "memory never written",
    "error",
    needs="weights",
    threshold="an entry beyond 1e6, or 1 % of the entries between 0 and 1e-20",
    source="transformers #35437, #38987, #39239; InternVL #874 (8e-29, nan, 4e18); Megatron-LM #6799",
    explains=("W108", "W111", "W114", "A", "G", "D404", "D408"),
)
def never_written(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """``torch.empty`` leaves in memory what was there: bits that as numbers are of any magnitude.

    No initialization in use has entries beyond 1e6, and a normal distribution with a standard deviation above 1e-18 does
    not have one entry in a hundred below 1e-20. Masks of -1e9 and the like are buffers, which are not looked at.
    """
    for weight in evidence.parameters:
        values = weight.local.abs()
        if weight.value.is_complex() or not bool(torch.isfinite(values).all()):
            continue
        largest = float(values.max())
        tiny = float(((values > 0) & (values < 1e-20)).float().mean())
        if largest > 1e6 or tiny > 0.01:
            seen = f"entries up to {largest:.1g}" if largest > 1e6 else f"{share(tiny)} of its entries are below 1e-20"
            yield rule.finding([weight.name], f"it looks like memory that was never written: {seen}", _INITIALIZE)


@rule(
    "W103",
    "layers that are copies",
    "error",
    needs="weights",
    threshold="two weights of 9 entries or more, bit for bit",
    source="pytorch #72253, #86274, #120396 (nn.TransformerEncoder copies its layer); torchtitan #3106",
    explains=("G307",),
)
def copies(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """Layers made by ``copy.deepcopy`` start with the same weights, and so compute much the same.

    Two tensors of random numbers are never equal bit for bit. Those of fewer than 9 entries, constant ones, vectors,
    patterns such as the identity, and a frozen copy beside one that trains (a target network, a moving average) are left
    out.
    """
    groups: dict[tuple[object, ...], list[list[Weight]]] = {}
    for weight in evidence.parameters:
        value = weight.local
        is_vector = value.numel() == max(value.shape, default=1)
        if is_vector or value.numel() < 9 or not weight.trains or weight.is_constant or _is_pattern(value):
            continue
        key = (value.shape, value.dtype, value.device, float(real(value).sum()))
        for group in groups.setdefault(key, []):
            if torch.equal(group[0].local, value):
                group.append(weight)
                break
        else:
            groups[key].append([weight])
    same: dict[tuple[str, ...], list[str]] = {}
    for group in (group for several in groups.values() for group in several if len(group) > 1):
        names = [weight.name for weight in group]
        if any(weight.is_embedding for weight in group) and not all(weight.is_embedding for weight in group):
            text = f"{listed(names)} hold equal values and are not one parameter: tied weights that came untied"
            yield RULE_UNTIED.finding(names, text, "assign the same nn.Parameter to both again (tie_weights())")
        else:
            same.setdefault(tuple(name.rpartition(".")[2] for name in names), []).extend(names)
    for names in same.values():
        text = f"{len(names)} tensors that start as copies of one another: {listed(names)}"
        yield rule.finding(
            names, text, "draw each anew: call reset_parameters() on every copy, or make each layer by itself"
        )


def _is_pattern(value: Tensor) -> bool:
    """Whether a tensor repeats a few numbers, as an identity does, and draws hardly do."""
    distinct: Tensor = torch.unique(value)
    return distinct.numel() <= min(16, value.numel() // 2)


def _is_kernel(weight: Weight) -> bool:
    return any(isinstance(module, CONVOLUTIONS) for _, module in weight.holders)


@rule(
    "W104",
    "experts or heads that are copies",
    "error",
    needs="weights",
    threshold="all blocks of rows of a tensor the same, with two rows or more, or slices of three dimensions",
    source="torchtitan #3106 (shards bit-identical); mixtures of experts made by stacking one expert",
    explains=("W105",),
)
def same_slices(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """Experts, heads or shards in one tensor that are the same get the same gradients, and may never part.

    Rows of random numbers never repeat with a period.
    """
    for weight in evidence.parameters:
        if not weight.trains or weight.is_constant or weight.local.numel() < 9:
            continue
        period = weight.period
        stacked = weight.local.ndim > 2 and not _is_kernel(weight)
        if period > 1 or (period == 1 and stacked):
            count = len(weight.local) // period
            rows = "slices" if stacked and period == 1 else f"blocks of {period} rows"
            text = f"its {count} {rows} are copies of one another, as of experts, heads or shards that were drawn alike"
            yield rule.finding([weight.name], text, "draw each of them anew, with a random state of its own")


@rule(
    "W105",
    "rows that are equal",
    "warning",
    needs="weights",
    threshold="two equal rows of 3 entries or more, zeros aside",
    source="LlamaFactory #10547, composer #3719 (rows of new tokens); Goodfellow et al., Deep Learning, section 8.4",
    explains=("A212",),
)
def equal_rows(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """Units with the same incoming weights compute the same, and their gradients can be the same, too.

    An initialization has to break the symmetry between units; random rows never agree in 3 entries.
    """
    for weight in evidence.parameters:
        if not weight.trains or weight.is_constant or not (weight.matrices or weight.is_embedding):
            continue
        rows = weight.rows
        period = weight.period
        if rows is None or rows.shape[1] < 3 or rows.element_size() < 2 or period > 1:
            continue
        if weight.repeated_rows:
            every = weight.repeated_rows == len(rows) - 1
            text = (
                f"{weight.repeated_rows + 1 if every else weight.repeated_rows} of its {len(rows)} rows are equal to others"
            )
            remedy = "draw them at random; new rows of an embedding differ if some noise is added to their mean"
            yield rule.finding([weight.name], text, remedy, "error" if every else "warning")


@rule(
    "W106",
    "constant weights",
    "error",
    needs="weights",
    threshold="all entries of a matrix or embedding the same, not zero",
    source="EasyLM #114 (a default of 1.0); Goodfellow et al., Deep Learning, section 8.4",
    explains=("W108", "W111", "A203", "A208", "D408", "A212", "D404"),
)
def constant(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """A matrix of one number makes all its outputs the same, and gives all its rows the same gradient.

    A matrix of zeros can be meant so, at the end of a residual branch; whether it trains is for G305 and W107.
    """
    for weight in evidence.parameters:
        if weight.local.numel() < 4 or not (weight.matrices or weight.is_embedding) or weight.is_zero or not weight.trains:
            continue
        inner = weight.matrices or [weight.local]
        if all(bool((m == m.reshape(-1)[0]).all()) for m in inner) and len(inner[0]) > 1:
            number = float(real(weight.local).reshape(-1)[0])
            yield rule.finding([weight.name], f"all its entries are {number:.4g}", "draw it at random")


@rule(
    "W107",
    "two zeros in a row",
    "error",
    needs="weights",
    threshold="both matrices of a low-rank pair exactly zero",
    source="LoRA, arXiv 2106.09685, section 4.1: one of the two is random",
    explains=("G305", "G306"),
)
def zero_pair(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """Of two factors, one may be zero; if both are, neither ever gets a gradient.

    Pairs are known by their names here (``lora_A`` and ``lora_B``, ``down`` and ``up``); G305 finds the others by
    running.
    """
    zeros = {weight.name for weight in evidence.parameters if weight.trains and weight.local.ndim > 1 and weight.is_zero}
    for name in zeros:
        for one, other in (("lora_A", "lora_B"), ("lora_down", "lora_up"), ("down", "up"), ("lora_a", "lora_b")):
            partner = ".".join(other if part == one else part for part in name.split("."))
            if partner != name and partner in zeros:
                text = f"{name} and {partner} are both zero, so that neither gets a gradient"
                yield rule.finding([name, partner], text, "draw one of the two at random")


_LOW, _HIGH, _FAR = 0.02, 10.0, 30.0


@rule(
    "W108",
    "wrong scale for the fan",
    "warning",
    needs="weights",
    threshold=f"root mean square times the root of the fan in below {_LOW} or above {_HIGH:g}; an error above {_FAR:g}",
    source="He et al., arXiv 1502.01852; EasyLM #114; transformers #19341; siren-pytorch #1",
    explains=("A203", "A204", "A205", "A208", "G301", "G302", "D408", "A212", "A201", "A202", "D404"),
)
def wrong_scale(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """A linear map multiplies the size of a signal by the standard deviation of its weights times the root of its fan in.

    That is 0.58 for PyTorch's default, 1 for Xavier's, 1.41 for He's, and from 0.1 to 1 for the standard deviation of 0.02
    of transformers. Below 0.02, fifty times too small, no scheme in use goes, except for the last layer, which is left out
    (policies and zero-like heads); above 10, which is more than the 7 of squeeze-and-excitation layers that start by their
    fan out, a signal gains a digit in every layer. Fans below 8, norms after the layer (where a run shows one: the scale
    then does not matter), matrices of zeros, and small ones beside biases of 1 (a gate that starts open, as gMLP's) are
    left out.
    """
    layers = [w for w in evidence.parameters if not math.isnan(w.gain) and not w.is_embedding and w.trains]
    before_norm = _scale_invariant(evidence)
    ones = [w for w in evidence.parameters if w.is_bias and w.is_constant and float(w.local.reshape(-1)[0]) == 1]
    open_gates = {bias.name for bias in ones}
    small: list[Weight] = []
    large: list[Weight] = []
    for number, weight in enumerate(layers):
        if weight.fan_in < 8 or weight.is_zero or weight.is_constant or not math.isfinite(weight.gain):
            continue
        if weight.name in before_norm:
            continue
        if (
            weight.gain < _LOW
            and number + 1 < len(layers)
            and weight.name.removesuffix("weight") + "bias" not in open_gates
        ):
            small.append(weight)
        elif weight.gain > _HIGH:
            large.append(weight)
    if large:
        worst = max(large, key=lambda weight: weight.gain)
        wanted = 1.41 / math.sqrt(worst.fan_in)
        more = "" if len(large) == 1 else f" ({len(large)} layers do so by {_HIGH:g} or more)"
        text = (
            f"{worst.name} multiplies the size of signals by about {worst.gain:.3g}{more}: its root mean square is "
            f"{worst.rms:.3g}, where a fan in of {worst.fan_in} asks for some {wanted:.2g}"
        )
        severity: Severity = "error" if worst.gain > _FAR else "warning"
        yield rule.finding([weight.name for weight in large], text, _SCHEME, severity)
    if small:
        gains = sorted(weight.gain for weight in small)
        each = f"{gains[0]:.2g}" if len(gains) == 1 else f"{gains[0]:.2g} to {gains[-1]:.2g}"
        text = f"{len(small)} layers multiply the size of signals by {each}" if len(small) > 1 else (
            f"it multiplies the size of signals by about {each}"
        )  # fmt: skip
        yield rule.finding([weight.name for weight in small], text, _SCHEME)


_SCHEME = 'use a scheme that goes by the fan: initopt.schemes.apply_(model, "kaiming_normal", batch)'


def _scale_invariant(evidence: Evidence) -> set[str]:
    if evidence.trace is None:
        return set()
    return {tensor.name for tensor in evidence.trace.tensors if tensor.scale_invariant}


@rule(
    "W109",
    "an embedding too large for its tied head",
    "warning",
    needs="weights",
    threshold="root mean square times the root of the width above 4, and, where a run shows them, logits above 3",
    source="nn.Embedding draws with variance 1; GPT-2 and BERT with 0.02; nanoGPT",
    explains=("A208", "D408", "W111"),
)
def tied_embedding(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """A head that is tied to an embedding of unit variance gives logits as large as the root of the width.

    The logits of features of unit size are then of size 8 with 64 features, and the loss starts far above ln C. Models
    that scale their features down before the head are in order; where there is a run, its logits decide.
    """
    for weight in evidence.parameters:
        holds_linear = any(isinstance(module, nn.Linear) for _, module in weight.holders)
        if not weight.is_embedding or not holds_linear or weight.local.ndim != 2:
            continue
        size = weight.rms * math.sqrt(weight.local.shape[1])
        if size > 4 and (evidence.trace is None or evidence.trace.output.values.rms > 3):
            text = (
                f"it is both embedding and head, and its root mean square of {weight.rms:.2g} makes logits of some "
                f"{size:.2g}"
            )
            yield rule.finding(
                [weight.name], text, "draw it with a standard deviation of 0.02, or 1 over the root of the width"
            )


@rule(
    "W110",
    "tied weights that came untied",
    "error",
    needs="weights",
    threshold="two parameters where the configuration says one, or an embedding and a head with equal values",
    source="transformers tie_weights(); pytorch #90465 (to_empty parts what is tied)",
)
def untied(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """Tied weights come untied when a model is moved, sharded or loaded part by part, and then drift apart.

    Nothing is measured: either the two are one parameter or they are not.
    """
    for name, module in evidence.model.named_modules():
        config = getattr(module, "config", None)
        inputs, outputs = getattr(module, "get_input_embeddings", None), getattr(module, "get_output_embeddings", None)
        if not getattr(config, "tie_word_embeddings", False) or not callable(inputs) or not callable(outputs):
            continue
        try:
            one, other = inputs(), outputs()
        except (NotImplementedError, AttributeError):
            continue
        one, other = getattr(one, "weight", None), getattr(other, "weight", None)
        if isinstance(one, Tensor) and isinstance(other, Tensor) and one is not other and one.shape == other.shape:
            names = [n for n, p in evidence.model.named_parameters(remove_duplicate=False) if p is one or p is other]
            text = "the configuration ties embedding and head, and they are two parameters"
            yield rule.finding(names or [name], text, "call tie_weights() after the model is moved or loaded")


RULE_UNTIED = untied


@rule(
    "W111",
    "a head out of scale with its backbone",
    "warning",
    needs="weights",
    threshold="gain of the last matrix above 10 times the median of the others, of 4 or more",
    source="new heads on pretrained backbones: transformers #265, jiant #1097",
    explains=("A208", "D408", "D404"),
)
def head_scale(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """A new head that is drawn far larger than what is below it makes logits that are wrong with certainty.

    Heads in use have gains of at most three times the median of their networks. A head that is too small does no harm.
    """
    layers = [w for w in evidence.parameters if not math.isnan(w.gain) and not w.is_zero and math.isfinite(w.gain)]
    if len(layers) < 5:
        return
    usual, head = statistics.median(weight.gain for weight in layers[:-1]), layers[-1]
    if usual > 0 and head.gain > 10 * usual and head.gain > 2:
        text = f"its gain is {head.gain:.3g}, and that of the other layers {usual:.2g}"
        yield rule.finding([head.name], text, "draw the new part as the old one was, or smaller: a last layer can be zero")


@rule(
    "W120",
    "a start unlike that of another implementation",
    "warning",
    needs="weights",
    threshold="root mean squares that differ by a factor of 1.5, of tensors of the same shape with 64 entries or more",
    source="transformers #19341 (a ViT that trained worse than that of timm); mmsegmentation #1067",
)
def unlike_another(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """Two libraries may start one architecture in different ways, and one of them trains worse.

    The rule needs another model to compare with (``against``). Names differ between libraries, so the tensors of a shape
    are paired in the order in which they stand in the two models. 64 random numbers tell their size to 9 per cent, and a
    factor of 1.5 is what Kaiming's and Xavier's schemes differ by.
    """
    if evidence.against is None:
        return
    others: dict[torch.Size, list[Weight]] = {}
    for weight in weights_of(evidence.against):
        if not weight.is_buffer and weight.has_values:
            others.setdefault(weight.value.shape, []).append(weight)
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    alone = []
    for weight in evidence.parameters:
        same = others.get(weight.value.shape, [])
        if not same:
            alone.append(weight.name)
            continue
        other = same.pop(0)
        low, high = sorted((weight.rms, other.rms))
        if weight.value.numel() >= 64 and high > 1.5 * low:
            groups.setdefault((f"{weight.rms:.2g}", f"{other.rms:.2g}"), []).append((weight.name, other.name))
    for (own, theirs), pairs in groups.items():
        text = f"their root mean square is {own}, and {theirs} in the other model ({listed([name for _, name in pairs])})"
        yield rule.finding(
            [name for name, _ in pairs], text, "see which of the two the paper has, and train both: initopt.compare"
        )
    left = [weight.name for several in others.values() for weight in several]
    if alone or left:
        text = f"{len(alone)} tensors have no partner of their shape in the other model, and {len(left)} of that none here"
        yield rule.finding(alone, text, "see whether the two are of one architecture and size", "note")
