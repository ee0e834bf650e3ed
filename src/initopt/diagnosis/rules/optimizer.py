"""O: what the optimizer would do in its first step."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

import torch

from initopt.diagnosis.rules.base import Evidence, Finding, Rule, Severity, rule, share
from initopt.diagnosis.seen import TensorTrace
from initopt.model.parameters import is_bias

__all__: list[str] = []


@rule(
    "O501",
    "a step larger than the tensor",
    "error",
    needs="optimizer",
    threshold="an update of the size of the tensor or more; a warning from 0.3; biases and vectors aside",
    source="Karpathy's recipe (updates of 1e-3); SageMaker Debugger, rule WeightUpdateRatio",
)
def too_large(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """A first step that changes a weight by its own size throws its initialization away.

    Adam moves every entry by its rate, whatever the gradient: 1e-3 is a twentieth of weights of 0.02. Steps of 0.3 and
    more are for weights that the network normalizes, if for any. Without warm-up the first step is as large as any.
    Matrices that start next to zero, as heads do (gain below 0.02), are left out as zeros are: they start from the step.
    """
    # A class token of shape (1, 1, C), which starts at next to nothing, is a vector, too.
    matrices = [t for t in evidence.seen.tensors if sum(size > 1 for size in t.shape) > 1 and _gain(t) > 0.02]
    tensors = [tensor for tensor in matrices if not math.isnan(tensor.relative_update)]
    steps: tuple[tuple[Severity, float, float], ...] = (("error", 1.0, math.inf), ("warning", 0.3, 1.0))
    for severity, low, high in steps:
        few = [t for t in tensors if low <= t.relative_update and (t.relative_update < high or high == math.inf)]
        if few:
            worst = max(few, key=lambda tensor: tensor.relative_update)
            text = f"the first step changes {worst.name} by {worst.relative_update:.2g} times its size"
            if len(few) > 1:
                text += f", and {len(few) - 1} others by {low:g} times or more"
            remedy = f"a learning rate {worst.relative_update / 0.01:.1g} times smaller gives 0.01; or warm it up"
            yield rule.finding([tensor.name for tensor in few], text, remedy, severity)


def _gain(tensor: TensorTrace) -> float:
    return tensor.rms * math.sqrt(math.prod(tensor.shape[1:]))


@rule(
    "O502",
    "steps lost in rounding",
    "warning",
    needs="optimizer",
    threshold="an update below an eighth of the spacing of the numbers of the tensor's precision, in half of the weights",
    source="Zamirai et al., Revisiting BFloat16 Training, arXiv 2010.06192",
)
def too_small(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """A step that is small beside the spacing of the numbers around a weight is rounded away.

    bfloat16 has 8 bits: a relative step below 0.001, an eighth of its spacing, is lost for nearly all entries.
    Optimizers that keep their own copy in single precision are in order.
    """
    tensors = {t.name: t for t in evidence.seen.tensors if len(t.shape) > 1 and t.rms > 0 and t.fate == "trains"}
    few = []
    for weight in evidence.parameters:
        tensor = tensors.get(weight.name)
        if tensor is None or not tensor.update > 0 or not weight.value.is_floating_point():
            continue
        if tensor.relative_update < torch.finfo(weight.value.dtype).eps / 8:
            few.append(tensor)
    if few and 2 * len(few) > len(tensors):
        usual = statistics.median(tensor.relative_update for tensor in few)
        text = (
            f"the first step changes {share(len(few) / len(tensors))} of the weights by {usual:.1g} of their size or "
            f"less, which their precision rounds away"
        )
        yield rule.finding(
            [tensor.name for tensor in few], text, "keep parameters in float32, and use autocast; or a larger learning rate"
        )


@rule(
    "O503",
    "parameters without an optimizer",
    "error",
    needs="optimizer",
    threshold="a gradient, and no update",
    source="optimizers that were made before layers were added or replaced",
)
def left_out(evidence: Evidence, rule: Rule) -> Iterator[Finding]:
    """A parameter with a gradient that a step does not change is not in the optimizer, or in a group with the rate zero.

    Warm-ups that start at a rate of zero leave all of them; then nothing is said.
    """
    moving = [t for t in evidence.seen.tensors if t.fate == "trains" and t.slope > 0]
    lost = [tensor.name for tensor in moving if not tensor.update > 0 and not is_bias(tensor.name)]
    if lost and any(tensor.update > 0 for tensor in moving):
        text = f"{len(lost)} parameters get a gradient, and the optimizer does not move them"
        yield rule.finding(lost, text, "make the optimizer after all layers are in place, of all parameters")
