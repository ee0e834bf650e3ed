"""D: what the data show, and the loss beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from initopt.diagnosis.rules.base import Evidence, Finding, Rule, rule, share

__all__: list[str] = []


@rule(
    "D401",
    "inputs that are not normalized",
    "warning",
    needs="batch",
    threshold="root mean square above 20 or below 0.02, or features whose deviations differ by 1e3; no norm comes first",
    source="LeCun et al., Efficient BackProp, section 4.3",
    explains=("A201", "A202", "A203", "A208", "G308", "A209", "D404"),
)
def not_normalized(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """Schemes of weights take inputs of about unit variance for granted.

    Images in [0, 1] have a root mean square of 0.5, and are in order; those in [0, 255] have 130. If the first thing that a
    model does is to normalize, nothing is wrong.
    """
    calls = evidence.seen.calls
    if calls and "norm" in calls[0].kind.lower():
        return
    for name, values in evidence.seen.data.inputs.items():
        rms, spread = values.rms, [d for d in values.feature_deviations() if d > 0]
        if rms > 20 or 0 < rms < 0.02:
            text = f"{name} has the root mean square {rms:.3g} (from {values.low:.3g} to {values.high:.3g})"
        elif len(spread) > 1 and max(spread) > 1e3 * min(spread) and rms > 2:
            text = f"the features of {name} have standard deviations from {min(spread):.2g} to {max(spread):.2g}"
        else:
            continue
        scale = "divide by 255, or " if values.low >= 0 and 200 < values.high <= 255 else ""
        yield rule.finding([], text, f"{scale}subtract the mean and divide by the standard deviation of the training data")


@rule(
    "D402",
    "targets out of range",
    "error",
    needs="batch",
    threshold="a label without an output, or a probability outside of [0, 1]",
    source="PyTorch's device-side asserts, which end the process on a GPU",
    explains=("A208", "D408", "D404"),
)
def out_of_range(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """Labels count from 0 to the number of outputs less one; the targets of a binary cross-entropy are probabilities."""
    trace = evidence.seen
    if trace.refusal is not None:
        yield rule.finding([], trace.refusal, "make labels and the last layer fit")
    elif trace.data.task == "binary" and (trace.data.targets.low < 0 or trace.data.targets.high > 1):
        targets = trace.data.targets
        text = (
            f"the targets go from {targets.low:.3g} to {targets.high:.3g}, and a binary cross-entropy takes those in [0, 1]"
        )
        yield rule.finding([], text, "bring them into [0, 1]")


@rule(
    "D403",
    "constant targets",
    "error",
    needs="batch",
    threshold="one value, or one class, in 32 samples or more",
    source="loaders that read labels from the wrong place, or do not shuffle",
    explains=("D408", "D406", "D404"),
)
def constant_targets(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """Targets that are all the same can be learned by a bias alone.

    By chance, 32 samples of two classes with shares of 90 and 10 per cent are all of one in 3 % of cases.
    """
    data = evidence.seen.data
    if data.samples < 32:
        return
    if data.classes and len(data.classes) == 1:
        yield rule.finding([], f"all labels that were seen are {next(iter(data.classes))}", _LABELS)
    elif data.targets.count and data.targets.high == data.targets.low:
        yield rule.finding([], f"all targets that were seen are {data.targets.low:.4g}", _LABELS)


_LABELS = "look at how labels are read, and have the loader shuffle"


@rule(
    "D404",
    "outputs far from the targets",
    "warning",
    needs="batch",
    threshold="a mean squared error above 10 times the variance of the targets",
    source="Karpathy, A Recipe for Training Neural Networks: init well",
)
def far_targets(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """The mean squared error of a constant output at the mean of the targets is their variance.

    A start ten times worse has its outputs, or the mean of the targets, three standard deviations away, and the first
    steps are spent on that.
    """
    trace = evidence.seen
    variance = trace.data.targets.deviation**2
    if trace.data.task == "regression" and variance > 0 and trace.loss > 10 * variance:
        mean = trace.data.targets.mean
        off = abs(mean) > 3 * math.sqrt(variance)
        text = f"the loss is {trace.loss:.3g}, and the variance of the targets {variance:.3g}" + (
            f": their mean of {mean:.3g} is far from the outputs" if off else ": the outputs are too large"
        )
        remedy = (
            "set the last bias to the mean of the targets, or normalize these" if off else "make the last layer smaller"
        )
        yield rule.finding([], text, remedy)


@rule(
    "D405",
    "samples that repeat",
    "warning",
    needs="batch",
    threshold="5 % of the samples seen before, of 32 or more",
    source="workers that share a random state; the NumPy seed in DataLoader workers, pytorch #5059",
)
def repeats(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """The same sample in several batches of an epoch is a loader that shuffles wrongly, or workers that draw alike.

    By chance it happens only with inputs of few values, which 5 % allows for.
    """
    data = evidence.seen.data
    if data.samples >= 32 and data.repeated > 0.05 * data.samples:
        text = f"{data.repeated} of {data.samples} samples were seen before, to the bit"
        yield rule.finding(
            [], text, "look at the sampler and at how workers are seeded; duplicates in the data count twice"
        )


@rule(
    "D406",
    "samples sorted by class",
    "warning",
    needs="batch",
    threshold="every class of a batch in one run",
    source="initopt.batches.first_look",
)
def sorted_samples(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """A batch in the order of classes is one that was not shuffled, and its sub-batches are of one class each."""
    for text in evidence.seen.warnings:
        if "labels of the first batch" in text:
            yield rule.finding(
                [], text.partition(":")[0] if "in order" not in text else text.partition(". ")[0], "have the loader shuffle"
            )


@rule(
    "D407",
    "a softmax too many, or too few",
    "error",
    needs="batch",
    threshold="outputs that sum to 1 within 1e-3, and cross-entropy after",
    source="initopt.batches.first_look; a softmax before nn.CrossEntropyLoss",
)
def softmax_twice(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """Cross-entropy takes logits: with probabilities, its gradients are small, and the loss cannot fall to zero."""
    for text in evidence.seen.warnings:
        if "softmax" in text:
            yield rule.finding(
                [], text.partition(". ")[0], "leave out the softmax at the end, or use log_softmax with nn.NLLLoss"
            )


@rule(
    "D408",
    "a bias far from the prior",
    "warning",
    needs="batch",
    threshold="a loss 0.3 above the entropy of the class shares, with one class in more than half of 64 samples",
    source="Lin et al., Focal Loss, arXiv 1708.02002, section 4.1; Karpathy's recipe",
)
def prior(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """With imbalanced classes, the first steps go into how frequent classes are, which the last bias could say at once.

    A gap of 0.3 nats between the loss and the entropy of the shares is what 80 to 20 has with equal logits, less what
    64 samples leave open.
    """
    data, loss = evidence.seen.data, evidence.seen.loss
    mean = data.targets.mean
    top = max(mean, 1 - mean) if data.task == "binary" else max(data.prior, default=0.0)
    entropy = data.prior_entropy
    seen = sum(data.classes.values()) if data.task == "classes" else data.targets.count
    if seen >= 64 and 0.5 < top < 1 and loss > entropy + 0.3:
        text = (
            f"{share(top)} of the targets are of one class: the shares alone give a loss of {entropy:.2g}, and the "
            f"start has {loss:.3g}"
        )
        remedy = "set the last bias to the logarithms of the class shares (for one logit, to ln(p / (1 - p)))"
        yield rule.finding([_last_bias(evidence)] if _last_bias(evidence) else [], text, remedy)


def _last_bias(evidence: Evidence) -> str:
    calls = [call for call in evidence.layers if call.parameters]
    return next((name for name in calls[-1].parameters if name.endswith("bias")), "") if calls else ""


@rule(
    "D409",
    "inputs that are not finite",
    "error",
    needs="batch",
    threshold="one entry that is infinite or not a number",
    source="missing values in tables, divisions by a deviation of zero",
    explains=("A210", "G312", "A203", "A208"),
)
def broken_inputs(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """One value in a batch that is not a number makes the loss not a number, and after a step every weight."""
    for name, values in evidence.seen.data.inputs.items():
        if values.broken:
            text = f"{values.broken} of {values.count} values of {name} are infinite or not a number"
            yield rule.finding([], text, "fill or drop missing values before the batch is made")
    if evidence.seen.data.targets.broken:
        text = f"{evidence.seen.data.targets.broken} targets are infinite or not a number"
        yield rule.finding([], text, "drop these samples")


@rule(
    "D410",
    "inputs that say nothing",
    "warning",
    needs="batch",
    threshold="all samples the same; or half of the features constant",
    source="columns that were one-hot encoded and never set; images that were not read",
    explains=("A205", "D405", "A201", "A204", "A209", "A212"),
)
def constant_inputs(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """Features that are the same for every sample carry nothing.

    Pixels at the border of images are often so, in less than half of the features.
    """
    if evidence.seen.data.samples < 16:
        return
    for name, values in evidence.seen.data.inputs.items():
        deviations = values.feature_deviations()
        still = sum(d <= 1e-7 * max(values.rms, 1e-30) for d in deviations)
        if deviations and 2 * still > len(deviations):
            every = still == len(deviations)
            what = (
                "all samples are the same"
                if every
                else f"{still} of {len(deviations)} features are the same for every sample"
            )
            yield rule.finding([], f"{name}: {what}", "look at how inputs are read", "error" if every else "warning")
