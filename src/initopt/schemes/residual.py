"""Schemes for the ends of residual branches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from initopt._support.checks import check_number
from initopt._support.errors import warn
from initopt._support.words import counted, first_few
from initopt.schemes.base import Drawn, Scheme, Subject
from initopt.schemes.branches import HOMOGENEOUS, THROUGH_ZERO, Branches, BranchTrace

__all__ = ["ScaledBranches", "ZeroBranches", "find_branches"]


def find_branches(subject: Subject, scheme: str, through: Collection[str] = HOMOGENEOUS | THROUGH_ZERO) -> Branches:
    """The residual branches of a model, found by running it.

    Args:
        subject: the model.
        scheme: the name of the scheme, for messages.
        through: nonlinearities that may stand behind the end of a branch.

    Raises:
        ValueError: if there is none whose end is found.

    Warns:
        InitoptWarning: if the ends of some are not found.
    """
    trace = BranchTrace(subject.model)
    subject.run(trace)
    branches = trace.branches(through)
    reasons = first_few(list(dict.fromkeys(branches.unknown)), 3, "; ")
    if not branches.found:
        seen = f"of {counted(len(branches.unknown), 'sum')} that may join one, the branch is none: {reasons}"
        raise ValueError(
            f"scheme {scheme!r} found no residual branch in {type(subject.model).__name__}: it looks for sums x + f(x) "
            "while the model runs on the batch, and there is none whose f ends in a linear map, a norm or a learned scale"
            + (f" ({seen})" if branches.unknown else "")
        )
    if branches.unknown:
        warn(
            f"initopt: {scheme}: left alone, beside {len(branches.found)} residual branches, {len(branches.unknown)} whose "
            f"end was not found: {reasons}"
        )
    return branches


@dataclass(frozen=True, kw_only=True)
class _BranchEnds(Scheme):
    needs_batch: ClassVar[bool] = True
    through: ClassVar[Collection[str]]
    """Nonlinearities that may stand behind an end."""

    @abstractmethod
    def factor(self, count: int) -> float:
        """What the ends are multiplied by, if branches start at ``count`` places."""

    def draw(self, subject: Subject) -> Drawn:
        branches = find_branches(subject, self.name, self.through)
        factor, names = self.factor(len(branches.found)), subject.names
        values: dict[nn.Parameter, Tensor] = {}
        roles: dict[nn.Parameter, str] = {}
        for end in (end for branch in branches.found for end in branch.ends):
            for parameter in (end.weight, *end.biases):
                if isinstance(parameter, nn.Parameter) and parameter in names and parameter not in values:
                    wide = torch.promote_types(parameter.dtype, torch.float32)
                    values[parameter] = parameter.detach().to("cpu", wide) * factor
            if end.weight in values:
                roles[end.weight] = "end of a branch"  # type: ignore[index]
        if not values:
            raise ValueError(
                f"scheme {self.name!r} found residual branches, but the weights at their ends are frozen or left out by "
                "params"
            )
        return Drawn(values, roles=roles)


@dataclass(frozen=True, kw_only=True)
class ZeroBranches(_BranchEnds):
    """Residual branches that start as 0, so that a network starts as its shortcuts.

    The end of each branch becomes 0, with its bias: the weight of its last linear map; where a norm follows that, the
    norm's (as Goyal et al., arXiv 1706.02677, have it for ResNets); where a learned scale follows (LayerScale), that. All
    else keeps its values. A branch is a tensor that is added to the one that it was computed from; branches are found by
    running the model.

    Layers inside a branch have no gradient in the first step, and methods that learn scales, such as NIO, leave a tensor
    alone that is 0. A branch that ends in ReLU is left alone: after a layer that is 0, it would never let a gradient
    through.

    >>> ZeroBranches().needs_batch
    True
    """

    name: ClassVar[str] = "zero_branches"
    through: ClassVar[Collection[str]] = THROUGH_ZERO

    def factor(self, count: int) -> float:
        return 0.0


@dataclass(frozen=True, kw_only=True)
class ScaledBranches(_BranchEnds):
    r"""Residual branches that are smaller the more there are of them, so that their sum is of the size of one.

    The end of each branch, with its bias, is multiplied by :math:`1 / \sqrt N`, where N is the number of branches: 2 L in a
    transformer of L layers (Radford et al., *Language Models are Unsupervised Multitask Learners*, have it for GPT-2). Ends
    are those of :class:`ZeroBranches`; all else keeps its values. A gate that is computed from the end (squeeze and
    excitation) sees the smaller one, so that such a branch is not scaled exactly.

    Attributes:
        scale: the factor, in the place of :math:`1 / \sqrt N`.

    >>> ScaledBranches().factor(16)
    0.25
    """

    name: ClassVar[str] = "scaled_branches"
    through: ClassVar[Collection[str]] = HOMOGENEOUS

    scale: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale is not None:
            check_number("scale", self.scale, above=0, finite=True)

    def factor(self, count: int) -> float:
        return float(count**-0.5) if self.scale is None else self.scale
