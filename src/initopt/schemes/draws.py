"""Schemes that draw every matrix of a model from one distribution."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from initopt._support._torch_private import parameters_of, reset_of, version_of
from initopt._support.checks import check_choice, check_number
from initopt.model.parameters import NamedParameter
from initopt.model.preserve import put_values
from initopt.model.randomness import seeded
from initopt.model.sharded import is_sharded, part_of
from initopt.schemes.base import Drawn, Scheme, Subject
from initopt.schemes.matrices import biases_of, matrices_in
from initopt.schemes.nonlinearities import Watch, gain_of

__all__ = [
    "Default",
    "Gain",
    "KaimingNormal",
    "KaimingUniform",
    "Mode",
    "Normal",
    "Orthogonal",
    "TruncNormal",
    "XavierNormal",
    "XavierUniform",
    "new_matrices",
    "reset_whole",
]

Mode = Literal["fan_in", "fan_out"]
Gain = float | Literal["auto"]
Fill = Callable[[nn.Parameter, Tensor, torch.Generator], object]
"""Fills a contiguous matrix of a parameter."""


def new_matrices(chosen: Iterable[NamedParameter], fill: Fill, generator: torch.Generator) -> dict[nn.Parameter, Tensor]:
    """New values of the matrices of linear maps, block by block, and zeros for the biases beside them.

    For a sharded parameter, they are the part of this rank: each is drawn whole, the same on all ranks, and one at a time.
    """
    values: dict[nn.Parameter, Tensor] = {}
    for parameter in chosen:
        value = parameter.value
        matrices = matrices_in(parameter)
        if matrices is not None:
            wide = torch.promote_types(value.dtype, torch.float32)
            staged = torch.empty(value.shape, dtype=wide, device="cpu")
            for block in matrices.blocks(staged):
                new = torch.empty(block.shape, dtype=wide, device="cpu")
                fill(value, new, generator)
                block.copy_(new)
            values[value] = part_of(value, staged)
        elif any(name.rpartition(".")[2] in biases_of(module) for name, module in parameter.holders):
            values[value] = part_of(value, torch.zeros(value.shape, dtype=value.dtype, device="cpu"))
    return values


@dataclass(frozen=True, kw_only=True)
class Default(Scheme):
    """The weights that ``reset_parameters()`` of each module draws, biases, embeddings and norms included."""

    name: ClassVar[str] = "default"
    one_by_one: ClassVar[bool] = True

    def draw(self, subject: Subject) -> Drawn:
        with subject.state.recording():
            written = _reset(subject.model, subject.chosen, subject.seed)
        return Drawn({parameter: parameter.detach().clone() for parameter in written})


def _reset(model: nn.Module, chosen: list[NamedParameter], seed: int) -> set[nn.Parameter]:
    """Have each module draw its parameters anew, those inside it first, and put back what is not to change."""
    kept = {p: (p.detach().clone(), version_of(p)) for p in model.parameters()}
    may_change = {p.value for p in chosen}
    written: set[nn.Parameter] = set()
    with seeded(seed):
        for module in reversed(list(model.modules())):
            reset = reset_of(module)
            if reset is not None and not may_change.isdisjoint(module.parameters()):
                written |= reset_whole(module, reset)
    written |= {
        p
        for p, (value, version) in kept.items()
        if not is_sharded(p) and (version_of(p) != version or not torch.equal(p, value))
    }
    put_values({p: value for p, (value, _) in kept.items() if p not in may_change})
    return written & may_change


def reset_whole(module: nn.Module, reset: Callable[[], None], all_of_it: bool = False) -> set[nn.Parameter]:
    """Have a module draw its parameters anew; sharded ones are drawn whole, the same on all ranks.

    Whole parameters on the CPU stand in for the sharded ones of the module and of all its submodules, which it may draw,
    too.

    Args:
        module: the module.
        reset: its function that does so.
        all_of_it: whether parameters that are not sharded are drawn on the CPU, too.

    Returns:
        Those drawn on the CPU that have new values.
    """
    places = [(parameters_of(part), name, p) for part in module.modules() for name, p in parameters_of(part).items()]
    apart = [p for _, _, p in places if p is not None and p.is_floating_point() and (all_of_it or is_sharded(p))]
    staged = {p: torch.full(p.shape, math.nan, dtype=p.dtype, device="cpu") for p in apart}
    whole = {p: nn.Parameter(value, requires_grad=p.requires_grad) for p, value in staged.items()}
    for own, name, p in places:
        if p in whole:
            own[name] = whole[p]
    try:
        reset()
    finally:
        for own, name, p in places:
            own[name] = p
    written = {p: value.detach() for p, value in whole.items() if not value.detach().isnan().all()}
    put_values({p: part_of(p, value) for p, value in written.items()})
    return set(written)


@dataclass(frozen=True, kw_only=True)
class _WithGain(Scheme):
    """A distribution with a gain.

    Attributes:
        gain: a number for all layers; or ``"auto"``: that of the stated nonlinearity, or of those that a batch shows, or
            of the one that the scheme is for: ReLU for Kaiming's, none for the others.
        nonlinearity: a name in :data:`initopt.schemes.nonlinearities.NONLINEARITIES`, for all layers.
    """

    textbook: ClassVar[str] = "linear"
    one_by_one: ClassVar[bool] = True

    gain: Gain = "auto"
    nonlinearity: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gain != "auto":
            check_number("gain", self.gain, above=0, finite=True)
        if self.nonlinearity is None:
            return
        gain_of(self.nonlinearity)
        if self.gain != "auto":
            raise ValueError(
                f"gain={self.gain!r} and nonlinearity={self.nonlinearity!r} both say what the gain is; give one of them"
            )

    @abstractmethod
    def fill(self, w: Tensor, gain: float, generator: torch.Generator) -> object:
        """Fill a matrix, whose outputs lie along its first dimension."""

    def draw(self, subject: Subject) -> Drawn:
        looked = subject.batch is not None and self.gain == "auto" and self.nonlinearity is None
        watch = Watch({p.value for p in subject.chosen})
        if looked:
            subject.run(watch)
        stated = self.nonlinearity or ("linear" if looked else self.textbook)
        fixed = gain_of(stated) if self.gain == "auto" else self.gain
        gains: Mapping[nn.Parameter, float] = {
            p.value: gain_of(*watch.followers[p.value]) if p.value in watch.followers else fixed for p in subject.chosen
        }
        drawn = []

        def fill(parameter: nn.Parameter, w: Tensor, generator: torch.Generator) -> None:
            drawn.append(parameter)
            self.fill(w, gains[parameter], generator)

        values = new_matrices(subject.chosen, fill, subject.generator())
        return Drawn(
            values,
            {parameter: gains[parameter] for parameter in drawn},
            {parameter: watch.followers[parameter][0] for parameter in drawn if parameter in watch.followers},
        )


@dataclass(frozen=True, kw_only=True)
class KaimingNormal(_WithGain):
    r"""Normal with standard deviation :math:`\gamma / \sqrt{\text{fan}}` (He et al., arXiv 1502.01852).

    Attributes:
        mode: ``"fan_in"`` keeps the variance of signals, ``"fan_out"`` that of gradients.
    """

    name: ClassVar[str] = "kaiming_normal"
    textbook: ClassVar[str] = "relu"

    mode: Mode = "fan_in"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("mode", self.mode, ("fan_in", "fan_out"))

    def deviation(self, w: Tensor, gain: float) -> float:
        """Standard deviation of a matrix."""
        outputs, inputs, *kernel = w.shape
        return float(gain / ((inputs if self.mode == "fan_in" else outputs) * math.prod(kernel)) ** 0.5)

    def fill(self, w: Tensor, gain: float, generator: torch.Generator) -> object:
        return w.normal_(0, self.deviation(w, gain), generator=generator)


@dataclass(frozen=True, kw_only=True)
class KaimingUniform(KaimingNormal):
    """Uniform with the deviation of :class:`KaimingNormal`."""

    name: ClassVar[str] = "kaiming_uniform"

    def fill(self, w: Tensor, gain: float, generator: torch.Generator) -> object:
        bound = self.deviation(w, gain) * 3**0.5
        return w.uniform_(-bound, bound, generator=generator)


@dataclass(frozen=True, kw_only=True)
class XavierNormal(_WithGain):
    r"""Normal with standard deviation :math:`\gamma \sqrt{2 / (\text{in} + \text{out})}` (Glorot and Bengio, 2010)."""

    name: ClassVar[str] = "xavier_normal"

    def fill(self, w: Tensor, gain: float, generator: torch.Generator) -> object:
        return nn.init.xavier_normal_(w, gain, generator=generator)


@dataclass(frozen=True, kw_only=True)
class XavierUniform(_WithGain):
    """Uniform with the deviation of :class:`XavierNormal`."""

    name: ClassVar[str] = "xavier_uniform"

    def fill(self, w: Tensor, gain: float, generator: torch.Generator) -> object:
        return nn.init.xavier_uniform_(w, gain, generator=generator)


@dataclass(frozen=True, kw_only=True)
class Orthogonal(_WithGain):
    """The gain times a matrix with orthonormal rows or columns (Saxe et al., arXiv 1312.6120)."""

    name: ClassVar[str] = "orthogonal"

    def fill(self, w: Tensor, gain: float, generator: torch.Generator) -> object:
        return nn.init.orthogonal_(w, gain, generator=generator)


@dataclass(frozen=True, kw_only=True)
class Normal(Scheme):
    """Normal with a fixed standard deviation.

    Attributes:
        std: the standard deviation.
    """

    name: ClassVar[str] = "normal"
    one_by_one: ClassVar[bool] = True

    std: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("std", self.std, above=0, finite=True)

    def draw(self, subject: Subject) -> Drawn:
        return Drawn(new_matrices(subject.chosen, lambda _, w, g: self.fill(w, g), subject.generator()))

    def fill(self, w: Tensor, generator: torch.Generator) -> object:
        """Fill a matrix."""
        return w.normal_(0, self.std, generator=generator)


@dataclass(frozen=True, kw_only=True)
class TruncNormal(Normal):
    """Normal with a fixed standard deviation, cut off at two of them."""

    name: ClassVar[str] = "trunc_normal"

    def fill(self, w: Tensor, generator: torch.Generator) -> object:
        return nn.init.trunc_normal_(w, std=self.std, a=-2 * self.std, b=2 * self.std, generator=generator)
