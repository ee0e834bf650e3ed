"""The record of one pass: calls of modules, tensors, and sums over them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from initopt._support.checks import data_frame
from initopt.diagnosis.data import DataFacts, OutputFacts
from initopt.gram import functional

__all__ = ["Block", "Call", "Opened", "TensorTrace", "Trace", "block_of"]


@dataclass(frozen=True)
class Call:
    """The output of a call of a module, or of an activation function, over all batches.

    Attributes:
        name: path of the module, with the function (``"block.relu()"``) or the number of the call (``"cell#2"``).
        path: of the module.
        kind: class of the module, or name of the function.
        function: the activation that it is; ``None`` for others.
        matrix: whether it is a linear map.
        parameters: names of the parameters of the module itself.
        shape: of the output, without its first dimension.
        units: number of channels or features.
        rms: root mean square.
        mean: mean.
        deviation: root mean square deviation of each unit from its mean over samples and positions: the part that depends
            on the input.
        zeros: share of entries that are zero.
        saturated: share at the flat ends of a sigmoid or tanh.
        broken: share that is infinite or not a number.
        largest: largest absolute value.
        dead: share of units that are zero for all samples and positions.
        still: share of units that are the same for all samples and positions of a pass.
        rank: effective rank of a sample of the outputs on the first batch, centred: the exponential of the entropy of the
            shares of the singular values; nan if there are too few samples.
        slope: norm of the gradient of a sample's loss with respect to its output; nan where none comes back.
        tiny_slopes: share of the entries of this gradient that half precision has no number for.
    """

    name: str
    path: str
    kind: str
    function: str | None
    matrix: bool
    parameters: tuple[str, ...]
    shape: tuple[int, ...]
    units: int
    rms: float
    mean: float
    deviation: float
    zeros: float
    saturated: float
    broken: float
    largest: float
    dead: float
    still: float
    rank: float
    slope: float
    tiny_slopes: float

    @property
    def spread(self) -> float:
        """The part of the output that depends on the input, in [0, 1]; nan of an output that is zero."""
        return self.deviation / self.rms if self.rms > 0 else math.nan


@dataclass(frozen=True, eq=False)
class Block:
    """Statistics of the gradients with respect to some tensors, which follow from their Gram matrices.

    Attributes:
        name: of the tensor or block.
        gram: Gram matrices of the sub-batch gradients, float64, shape ``(batches, D, D)``.
        share: share of the squared norm of the whole gradient; nan if there is none.
        small_batch: samples of a sub-batch.
        big_batch: samples of a batch.
    """

    name: str
    gram: Tensor = field(repr=False)
    share: float
    small_batch: float
    big_batch: float

    @property
    def norm(self) -> float:
        """Mean norm of a sub-batch gradient."""
        return float(functional.grad_norm(self.gram).mean())

    @property
    def cosine(self) -> float:
        """GradCosine."""
        return float(functional.grad_cosine(self.gram).mean())

    @property
    def signal_to_noise(self) -> float:
        """Squared norm of the expected gradient over the variance of that of a batch; none below zero."""
        if not self.small_batch < self.big_batch:
            return math.nan
        found = float(functional.signal_to_noise(self.gram, self.small_batch, self.big_batch))
        return found if math.isfinite(found) else math.nan

    @property
    def coherence(self) -> float:
        """m-coherence of the sub-batches, 0 to D."""
        return float(functional.coherence(self.gram).mean())


@dataclass(frozen=True, eq=False)
class TensorTrace(Block):
    """The facts about a parameter tensor.

    Attributes:
        shape: of the tensor.
        rms: root mean square of its values.
        fate: ``"trains"``; ``"frozen"``; ``"unused"``: nothing uses it; ``"detached"``: it is used, and no gradient comes
            back; ``"zero"``: its gradient is exactly zero, but not after a step; ``"stuck"``: after a step, too;
            ``"unseen"``: the first batch could not be differentiated.
        slope: root mean square of the mean gradient of the sub-batches.
        agreement: mean over the entries of the absolute value of the mean sign of the gradient over sub-batches.
        tiny: share of entries of the gradient that half precision has no number for, but for zeros.
        broken: whether an entry of the gradient is infinite or not a number.
        scale_invariant: whether the loss does not change with its scale, as in front of a norm.
        update: root mean square of the first update by the optimizer, before it is rounded away; 0 of a tensor that the
            optimizer does not have, nan without an optimizer.
    """

    shape: tuple[int, ...]
    rms: float
    fate: str
    slope: float
    agreement: float
    tiny: float
    broken: bool
    scale_invariant: bool
    update: float = math.nan

    @property
    def relative_update(self) -> float:
        """Size of the first update relative to the tensor; nan without one, and of a tensor that is zero."""
        return self.update / self.rms if self.rms > 0 else math.nan


@dataclass(frozen=True, eq=False)
class Opened:
    """A pass over a few samples in which the factors of branches that start small, as those of LayerScale, are 1.

    Attributes:
        gains: names of these factors.
        size: the largest of them.
        calls: what was seen, as in a :class:`Trace`, by name.
        slopes: root mean square of the gradient with respect to each parameter that has one.
    """

    gains: tuple[str, ...]
    size: float
    calls: dict[str, Call]
    slopes: dict[str, float]


@dataclass(frozen=True, eq=False)
class Trace:
    """The record of all that one pass has seen.

    Attributes:
        calls: the outputs of modules and activations, in the order in which they first ran.
        tensors: all parameters, in the order of the model.
        blocks: sums over the tensors of a block of the network.
        whole: the sum over all.
        losses: the loss of every sub-batch.
        data: the facts about inputs and targets.
        output: the facts about the output of the model.
        attention: mean entropy of attention weights relative to that of uniform ones, by the path of the module.
        warnings: warnings of initopt about the first batch.
        refusal: why the pass ended at the first batch; ``None`` if it did not.
        half: whether the model runs in half precision, float16, or autocast to it.
        num_batches: number of batches that were seen.
        opened: a pass in which branches that start next to closed are open; ``None`` if there are none.
    """

    calls: tuple[Call, ...]
    tensors: tuple[TensorTrace, ...]
    blocks: tuple[Block, ...]
    whole: Block
    losses: tuple[float, ...]
    data: DataFacts
    output: OutputFacts
    attention: dict[str, float]
    warnings: tuple[str, ...]
    refusal: str | None
    half: bool
    num_batches: int
    opened: Opened | None = None

    @property
    def sign_agreement(self) -> float:
        """Agreement of signs of all parameters that train (:func:`initopt.functional.sign_agreement`); nan without any."""
        known = [(t.agreement, math.prod(t.shape)) for t in self.tensors if not math.isnan(t.agreement)]
        entries = sum(count for _, count in known)
        return sum(value * count for value, count in known) / entries if entries else math.nan

    def to_dataframe(self) -> Any:
        """The tensors as a :class:`pandas.DataFrame`: what is known of the gradient of each, in the order of the model.

        Raises:
            ImportError: without pandas.
        """
        return data_frame([_of_tensor(tensor) for tensor in self.tensors])

    @property
    def extent(self) -> str:
        """The amount of data that was seen, in words."""
        return f"{self.num_batches} batch{'es' if self.num_batches > 1 else ''}, {self.data.samples} samples"

    @property
    def loss(self) -> float:
        """Mean loss."""
        return sum(self.losses) / len(self.losses) if self.losses else math.nan


def _of_tensor(tensor: TensorTrace) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "shape": tensor.shape,
        "fate": tensor.fate,
        "share": tensor.share,
        "grad_norm": tensor.norm,
        "grad_cosine": tensor.cosine,
        "coherence": tensor.coherence,
        "signal_to_noise": tensor.signal_to_noise,
        "sign_agreement": tensor.agreement,
    }


def block_of(name: str) -> str:
    """The block of the network that a tensor or call belongs to: its path up to the first number, or the first name.

    >>> block_of("encoder.layer.3.attention.weight"), block_of("head.weight"), block_of("weight")
    ('encoder.layer.3', 'head', 'weight')
    """
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else parts[0]
