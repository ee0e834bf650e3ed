"""The weights of a model as rules look at them, without any data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from initopt._support._torch_private import BATCH_NORMS, INSTANCE_NORMS, buffers_of, parameters_of
from initopt.diagnosis.recording import real, root_mean_square
from initopt.model.parameters import is_bias
from initopt.model.sharded import own_part
from initopt.schemes.matrices import is_embedding, matrices_of

__all__ = ["Weight", "weights_of"]


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm, by its class or its name."""
    kinds = (*BATCH_NORMS, *INSTANCE_NORMS, nn.LayerNorm, nn.GroupNorm)
    return isinstance(module, kinds) or type(module).__name__.endswith(("LayerNorm", "RMSNorm", "BatchNorm"))


@dataclass(frozen=True, eq=False)
class Weight:
    """A parameter or floating-point buffer, with everywhere it is held.

    Attributes:
        name: its first name.
        value: the tensor.
        holders: the modules that hold it, with its name there.
        is_buffer: whether it is a buffer.
    """

    name: str
    value: Tensor
    holders: tuple[tuple[str, nn.Module], ...]
    is_buffer: bool = False

    @property
    def trains(self) -> bool:
        """Whether it requires a gradient."""
        return self.value.requires_grad

    @property
    def is_bias(self) -> bool:
        """Whether it is a bias by its name."""
        return is_bias(self.name)

    @cached_property
    def has_values(self) -> bool:
        """Whether there are values to look at: a tensor on the meta device, or a lazy or empty one, has none.

        Nor has a sharded one of which this process holds nothing.
        """
        return not is_lazy(self.value) and not self.value.is_meta and self.local.numel() > 0

    @cached_property
    def local(self) -> Tensor:
        """The values, or those of them that this process holds."""
        return own_part(self.value)

    @cached_property
    def rms(self) -> float:
        """Root mean square."""
        return root_mean_square(self.local)

    @cached_property
    def is_constant(self) -> bool:
        """Whether all entries are the same."""
        flat = self.local.reshape(-1)
        return bool((flat == flat[0]).all())

    @cached_property
    def is_zero(self) -> bool:
        """Whether all entries are zero."""
        return not bool(self.local.any())

    @cached_property
    def is_embedding(self) -> bool:
        """Whether a module looks things up in it."""
        return any(is_embedding(module) for _, module in self.holders)

    @cached_property
    def matrices(self) -> list[Tensor]:
        """The matrices of linear maps in it, outputs along the first dimension; empty if it holds none."""
        for name, module in self.holders:
            for found in matrices_of(module):
                if found.name == name:
                    return found.blocks(self.local) if self.local.shape == self.value.shape else [self.local]
        return []

    @cached_property
    def gain(self) -> float:
        """Largest root mean square of a matrix, times the root of its fan in; nan if there is none."""
        gains = [root_mean_square(m) * math.sqrt(m[0].numel()) for m in self.matrices if m.ndim > 1 and len(m)]
        return max(gains, default=math.nan)

    @cached_property
    def fan_in(self) -> int:
        """Inputs of its matrices; 0 if there is none."""
        return self.matrices[0][0].numel() if self.matrices and self.matrices[0].ndim > 1 else 0

    @cached_property
    def rows(self) -> Tensor | None:
        """Its values as rows: one for each output, embedded thing or expert; ``None`` for vectors."""
        value = self.local
        return None if value.ndim < 2 or value.is_complex() else value.flatten(1)

    @cached_property
    def repeated_rows(self) -> int:
        """The number of rows that are equal to an earlier one, zeros aside."""
        rows = self.rows
        if rows is None or len(rows) < 2:
            return 0
        rows = real(rows)
        rows = rows[rows.any(1)]
        if len(rows) < 2:
            return 0
        # Equal rows have equal projections; those that share theirs are compared in full.
        generator = torch.Generator("cpu").manual_seed(0)
        direction = torch.randn(rows.shape[1], generator=generator, device="cpu").to(rows)
        marks = (rows @ direction).tolist()
        seen: dict[float, list[int]] = {}
        repeated = 0
        for index, mark in enumerate(marks):
            others = seen.setdefault(mark, [])
            if any(torch.equal(rows[index], rows[other]) for other in others[:4]):
                repeated += 1
            else:
                others.append(index)
        return repeated

    @cached_property
    def period(self) -> int:
        """The number of rows after which all repeat themselves; 0 if they do not."""
        rows = self.rows
        if rows is None or len(rows) < 2 or 2 * self.repeated_rows < len(rows):
            return 0
        count = len(rows)
        for period in range(1, count // 2 + 1):
            if count % period == 0 and torch.equal(rows[period:], rows[:-period]):
                return period
        return 0


def weights_of(model: nn.Module) -> list[Weight]:
    """All parameters and floating-point buffers, each once, in the order of the model."""
    found: dict[int, tuple[Tensor, bool, list[tuple[str, str, nn.Module]]]] = {}
    for prefix, module in model.named_modules():
        for own, tensor, is_buffer in _held(module):
            if tensor is None or not (tensor.is_floating_point() or tensor.is_complex()):
                continue
            name = f"{prefix}.{own}" if prefix else own
            found.setdefault(id(tensor), (tensor, is_buffer, []))[2].append((name, own, module))
    return [
        Weight(places[0][0], tensor, tuple((own, module) for _, own, module in places), is_buffer)
        for tensor, is_buffer, places in found.values()
    ]


def _held(module: nn.Module) -> Iterator[tuple[str, Tensor | None, bool]]:
    yield from ((name, parameter, False) for name, parameter in parameters_of(module).items())
    yield from ((name, buffer, True) for name, buffer in buffers_of(module).items())
