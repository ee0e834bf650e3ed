"""Starts of well-known language models."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from initopt._support.checks import check_number
from initopt.model.parameters import KINDS, NamedParameter
from initopt.schemes.base import Drawn, Scheme, Subject
from initopt.schemes.branches import Branches
from initopt.schemes.draws import new_matrices
from initopt.schemes.matrices import is_embedding, matrices_in
from initopt.schemes.residual import find_branches

__all__ = ["GPT2", "LlamaDepth", "SmallInit"]


@dataclass(frozen=True, kw_only=True)
class _LanguageModel(Scheme):
    """Normal weights: one deviation for most matrices, a smaller one for those that end a branch.

    Branches are found by running the model. The biases of linear maps become 0, norms keep their values, and so do ends of
    branches that are norms or learned scales. A table that is the output layer, too, counts as an embedding.
    """

    needs_batch: ClassVar[bool] = True
    cut: ClassVar[float | None] = None
    """At how many standard deviations matrices are cut off."""
    small_up: ClassVar[bool] = False
    """Whether, in a gated perceptron, the matrix beside that of the gate has the deviation of the end."""

    def draw(self, subject: Subject) -> Drawn:
        branches = find_branches(subject, self.name)
        deviations = self._deviations(subject, branches)
        generator = subject.generator()

        def fill(parameter: nn.Parameter, w: Tensor, generator: torch.Generator) -> None:
            _normal(w, deviations[parameter][0], self.cut, generator)

        values = new_matrices(subject.chosen, fill, generator)
        for parameter in subject.chosen:
            value = parameter.value
            if value in deviations and value not in values:  # tables
                wide = torch.promote_types(value.dtype, torch.float32)
                table = torch.empty(value.shape, dtype=wide, device="cpu")
                values[value] = _normal(table, deviations[value][0], None, generator)
                for row in _padding(parameter):
                    values[value][row] = 0
        return Drawn(values, roles={p: role for p, (_, role) in deviations.items() if role})

    def _deviations(self, subject: Subject, branches: Branches) -> dict[nn.Parameter, tuple[float, str]]:
        """The standard deviation of every matrix and table, and what it is, if it is not an ordinary matrix."""
        width = branches.found[0].width
        ends: dict[Any, int] = {}
        ups: dict[Any, int] = {}
        for number, branch in enumerate(branches.found):
            ends |= {end.weight: number for end in branch.ends if end.is_matrix and end.weight not in ends}
            ups |= {end.up: number for end in branch.ends if self.small_up and end.up is not None and end.up not in ups}
        found: dict[nn.Parameter, tuple[float, str]] = {}
        for parameter in subject.chosen:
            value = parameter.value
            if _is_position(parameter):
                found[value] = self.position(width), "positions"
            elif any(is_embedding(module) for _, module in parameter.holders):
                tied = value is branches.last_matrix
                found[value] = (self.last if tied else self.embedding)(width), "embedding"
            elif matrices_in(parameter) is None:
                continue
            elif value in ends:
                found[value] = self.end(width, ends[value], len(branches.found)), "end of a branch"
            elif value in ups:
                found[value] = self.end(width, ups[value], len(branches.found)), "beside a gate"
            elif value is branches.last_matrix:
                found[value] = self.last(width), "last matrix"
            else:
                found[value] = self.matrix(width), ""
        return found

    @abstractmethod
    def matrix(self, width: int) -> float:
        """Standard deviation of an ordinary matrix in a stream of this width."""

    @abstractmethod
    def end(self, width: int, number: int, count: int) -> float:
        """That of the end of a branch, the ``number``-th from 0 of ``count``."""

    def last(self, width: int) -> float:
        """That of the matrix that runs last."""
        return self.matrix(width)

    def embedding(self, width: int) -> float:
        """That of a table of embeddings."""
        return self.matrix(width)

    def position(self, width: int) -> float:
        """That of a table of positions."""
        return self.embedding(width)


def _normal(w: Tensor, std: float, cut: float | None, generator: torch.Generator) -> Tensor:
    if cut is None:
        return w.normal_(0, std, generator=generator)
    return nn.init.trunc_normal_(w, std=std, a=-cut * std, b=cut * std, generator=generator)


def _is_position(parameter: NamedParameter) -> bool:
    named = any(KINDS["positions"](name, parameter.value, module) for name, module in parameter.holders)
    return named and parameter.value.ndim > 1 and matrices_in(parameter) is None


def _padding(parameter: NamedParameter) -> list[int]:
    found = [getattr(module, "padding_idx", None) for _, module in parameter.holders]
    return [row for row in found if isinstance(row, int)]


@dataclass(frozen=True, kw_only=True)
class GPT2(_LanguageModel):
    r"""The start of GPT-2 (Radford et al., *Language Models are Unsupervised Multitask Learners*).

    Matrices and embeddings are normal with standard deviation ``std``; matrices that end a residual branch have
    :math:`1 / \sqrt N` of it, where N is the number of branches, 2 L in L layers. Biases become 0; norms keep their values.

    Attributes:
        std: standard deviation.
        position_std: that of a table of positions, 0.01 in OpenAI's code; transformers and nanoGPT have 0.02.

    >>> round(GPT2().end(768, 0, 24), 5)
    0.00408
    """

    name: ClassVar[str] = "gpt2"

    std: float = 0.02
    position_std: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("std", self.std, above=0, finite=True)
        check_number("position_std", self.position_std, above=0, finite=True)

    def matrix(self, width: int) -> float:
        return self.std

    def end(self, width: int, number: int, count: int) -> float:
        return float(self.std / count**0.5)

    def position(self, width: int) -> float:
        return self.position_std


@dataclass(frozen=True, kw_only=True)
class LlamaDepth(_LanguageModel):
    r"""The start that OLMo-core has for Llama, ``llama_depth`` there.

    Matrices are normal with standard deviation ``std``, cut off at three of them. Those that end a residual branch have
    :math:`1 / \sqrt{2 (l + 1)}` of it in layer l, from 0; a layer is two branches. So have, in a gated perceptron
    ``down(silu(gate(x)) * up(x))``, those of ``up``, found by running the model; where one matrix holds gate and up, it has
    ``std``. The last matrix has :math:`1 / \sqrt d`; embeddings have ``embedding_std``, or, where they are the output
    layer, too, the deviation of that.

    torchtitan has the same deviations, but cuts all matrices except the last off at 2, which is 100 deviations or more.
    OLMo-core also makes the router and all matrices of a mixture of experts smaller, which this does not.

    Attributes:
        std: standard deviation.
        embedding_std: that of a table of embeddings.

    >>> [round(LlamaDepth().end(512, number, 8), 4) for number in range(4)]
    [0.0141, 0.0141, 0.01, 0.01]
    """

    name: ClassVar[str] = "llama_depth"
    cut: ClassVar[float | None] = 3.0
    small_up: ClassVar[bool] = True

    std: float = 0.02
    embedding_std: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("std", self.std, above=0, finite=True)
        check_number("embedding_std", self.embedding_std, above=0, finite=True)

    def matrix(self, width: int) -> float:
        return self.std

    def end(self, width: int, number: int, count: int) -> float:
        return float(self.std / (2 * (number // 2 + 1)) ** 0.5)

    def last(self, width: int) -> float:
        return float(width**-0.5)

    def embedding(self, width: int) -> float:
        return self.embedding_std


@dataclass(frozen=True, kw_only=True)
class SmallInit(_LanguageModel):
    r"""SmallInit (Nguyen and Salazar, *Transformers without Tears*, arXiv 1910.05895), with Wang's deviation at the ends.

    Matrices and embeddings are normal with standard deviation :math:`\sqrt{2 / (5 d)}` in a stream of width d; matrices
    that end a residual branch have :math:`2 / (L \sqrt d)` in L layers (``small_init`` and ``wang_init`` of GPT-NeoX). A
    layer is two branches.

    >>> round(SmallInit().matrix(1000), 3), round(SmallInit().end(100, 0, 8), 3)
    (0.02, 0.05)
    """

    name: ClassVar[str] = "small_init"

    def matrix(self, width: int) -> float:
        return float((2 / (5 * width)) ** 0.5)

    def end(self, width: int, number: int, count: int) -> float:
        return float(4 / (count * width**0.5))
