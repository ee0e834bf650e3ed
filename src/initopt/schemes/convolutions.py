"""Starts for convolutions: the identity, and whitened patches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from initopt._support._torch_private import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS
from initopt._support.checks import check_number
from initopt.schemes.attention import attention_layers
from initopt.schemes.base import Drawn, Scheme, Subject
from initopt.schemes.matrices import is_embedding

__all__ = ["Dirac", "Whitened"]


def _is_convolution(module: Any) -> bool:
    """Whether it is one, and not transposed."""
    return isinstance(module, CONVOLUTIONS) and not isinstance(module, TRANSPOSED_CONVOLUTIONS)


@dataclass(frozen=True, kw_only=True)
class Dirac(Scheme):
    """Convolutions that hand on their input, as :func:`torch.nn.init.dirac_` has it, and linear layers likewise.

    The first output channels of a convolution become its input channels, in each group of channels; output channels beyond
    these keep their values (as in Jordan, *94% on CIFAR-10 in 3.29 Seconds*, arXiv 2404.00498), so that they are not 0.
    Linear layers that keep the width become the identity. Their biases become 0. All else keeps its values: transposed
    convolutions, and attention (``nn.MultiheadAttention``, and layers in a module that are named like its projections).

    >>> Dirac().options()
    {}
    """

    name: ClassVar[str] = "dirac"

    def draw(self, subject: Subject) -> Drawn:
        values: dict[nn.Parameter, Tensor] = {}
        roles: dict[nn.Parameter, str] = {}
        kept = {parameter for layer in attention_layers(subject.model) for parameter in layer.parameters()}
        for parameter in subject.chosen:
            value = parameter.value
            if value in kept:
                continue
            modules: list[Any] = [module for name, module in parameter.holders if name.rpartition(".")[2] == "weight"]
            wide = torch.promote_types(value.dtype, torch.float32)
            if any(is_embedding(module) for module in modules):
                continue
            if any(isinstance(module, nn.Linear) for module in modules) and value.shape[0] == value.shape[1]:
                values[value] = torch.eye(len(value), dtype=wide, device="cpu")
                roles[value] = "identity"
            for module in modules:
                if _is_convolution(module):
                    values[value] = _dirac(value.detach().to("cpu", wide, copy=True), module.groups)
                    roles[value] = "identity of channels"
        if not values:
            raise ValueError(
                f"scheme 'dirac' found nothing to set in {type(subject.model).__name__}: it is for convolutions, and for "
                "linear layers with as many outputs as inputs, outside of attention, that train and that params selects"
            )
        layers: list[Any] = [m for m in subject.model.modules() if isinstance(m, nn.Linear) or _is_convolution(m)]
        biases = {id(layer.bias) for layer in layers if layer.weight in values}
        for parameter in subject.chosen:
            if id(parameter.value) in biases:
                values[parameter.value] = torch.zeros_like(parameter.value, device="cpu")
        return Drawn(values, roles=roles)


def _dirac(weight: Tensor, groups: int) -> Tensor:
    outputs, inputs, *kernel = weight.shape
    middle = tuple(size // 2 for size in kernel)
    for group in weight.view(groups, outputs // groups, inputs, *kernel):
        kept = min(outputs // groups, inputs)
        group[:kept] = 0
        for channel in range(kept):
            group[(channel, channel, *middle)] = 1
    return weight


@dataclass(frozen=True, kw_only=True)
class Whitened(Scheme):
    r"""A first convolution whose output channels are uncorrelated and of variance 1 on the batch.

    Its filters become the eigenvectors of the covariance of the patches that it sees in the batch, the largest eigenvalue
    first, each divided by :math:`\sqrt{\lambda + \text{eps}}` (Page, *How to Train Your ResNet*; Jordan, arXiv 2404.00498).
    If there are enough filters, the negatives follow; filters beyond these keep their values. If there are fewer filters
    than values in a patch, the first eigenvectors are taken. The bias, if there is one, takes away the mean of the patches.
    Padding is not part of the patches. All else keeps its values.

    Attributes:
        eps: added to the eigenvalues, in units of the squared inputs: directions of less variance are not blown up.

    Raises:
        ValueError: for an eps that cannot work.

    >>> Whitened(eps=0.01).options()
    {'eps': 0.01}
    """

    name: ClassVar[str] = "whitened"
    needs_batch: ClassVar[bool] = True

    eps: float = 5e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("eps", self.eps, above=0, finite=True)

    def draw(self, subject: Subject) -> Drawn:
        first: list[tuple[Any, Tensor]] = []
        subject.run(_watching(subject.model, first))
        model = type(subject.model).__name__
        if not first:
            raise ValueError(
                f"scheme 'whitened' found no convolution in {model}: it sets the first one whose module is called when the "
                "model runs on the batch"
            )
        layer, inputs = first[0]
        name = next(name for name, module in subject.model.named_modules() if module is layer) or model
        weight = layer.weight
        if weight not in subject.names:
            raise ValueError(
                f"scheme 'whitened' may not change the first convolution of {model}, {name!r}: its weight is frozen, "
                "parametrized or left out by params; let it train (requires_grad_()), and freeze it afterwards"
            )
        if layer.groups > 1:
            raise ValueError(f"scheme 'whitened' is for convolutions without groups; {name!r} has {layer.groups}")
        count, mean, covariance = _moments(layer, inputs.detach())
        size = len(mean)
        if count <= size:
            raise ValueError(
                f"scheme 'whitened' needs more patches than a patch of {name!r} has values, {size}; the batch has "
                f"{count}: give a larger one"
            )
        values = {weight: self._filters(weight, covariance)}
        if layer.bias is not None and layer.bias in subject.names:
            bias = layer.bias.detach().to("cpu", torch.float64, copy=True)
            made = min(len(weight), 2 * size)
            bias[:made] = -(values[weight].flatten(1) @ mean)[:made]
            values[layer.bias] = bias
        return Drawn(values, roles={weight: "whitened"})

    def _filters(self, weight: Tensor, covariance: Tensor) -> Tensor:
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        vectors = vectors.flip(1).T
        largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
        filters = vectors * largest.sign() / (eigenvalues.flip(0).clamp(min=0) + self.eps).sqrt()[:, None]
        filters = torch.cat([filters, -filters])[: len(weight)]
        new = weight.detach().to("cpu", torch.float64, copy=True)
        new[: len(filters)] = filters.view(-1, *weight.shape[1:])
        return new


@contextmanager
def _watching(model: nn.Module, first: list[tuple[Any, Tensor]]) -> Iterator[None]:
    """A block in which the first convolution that runs is noted, with its input."""

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not first:
            first.append((module, args[0] if args else kwargs["input"]))

    with ExitStack() as stack:
        for module in model.modules():
            if _is_convolution(module):
                stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        yield


_VALUES = 2**24
"""Of patches, at most, that are in memory at a time."""


def _moments(layer: Any, inputs: Tensor) -> tuple[int, Tensor, Tensor]:
    """How many patches a convolution sees, their mean and their covariance, in double precision."""
    if inputs.ndim == len(layer.kernel_size) + 1:  # without a batch dimension
        inputs = inputs[None]
    spans = [apart * (size - 1) + 1 for size, apart in zip(layer.kernel_size, layer.dilation, strict=True)]
    if any(places < span for places, span in zip(inputs.shape[2:], spans, strict=True)):
        size = layer.weight[0].numel()
        return 0, torch.zeros(size), torch.zeros(size, size)
    at_a_time = max(1, _VALUES // max(1, inputs[0].numel() * math.prod(layer.kernel_size)))
    parts = (_patches(layer, part.to("cpu", torch.float64)) for part in torch.split(inputs, at_a_time))
    count, shift, total, squares = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
    for part in parts:
        shift = part.mean(0) if count == 0 else shift  # near the mean, so that no digits are lost
        centred = part - shift
        count, total, squares = count + len(part), total + centred.sum(0), squares + centred.T @ centred
    offset = total / max(count, 1)
    return count, shift + offset, squares / max(count, 1) - offset.outer(offset)


def _patches(layer: Any, inputs: Tensor) -> Tensor:
    """The patches that a convolution sees, one a row, without padding."""
    spatial = len(layer.kernel_size)
    for i, (size, step, apart) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        inputs = inputs.unfold(2 + i, apart * (size - 1) + 1, step)[..., ::apart]
    # (B, channels, places..., kernel...) to (B, places..., channels, kernel...)
    places = range(2, 2 + spatial)
    kernel = range(2 + spatial, 2 + 2 * spatial)
    return inputs.permute(0, *places, 1, *kernel).flatten(0, spatial).flatten(1)
