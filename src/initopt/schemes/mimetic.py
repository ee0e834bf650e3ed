"""Mimetic initialization (arXiv 2305.09828): self-attention that looks as if it had been trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from initopt._support.checks import check_choice, check_number
from initopt._support.errors import warn
from initopt._support.words import first_few
from initopt.model.parameters import KINDS, NamedParameter
from initopt.schemes.attention import Attention, Projection, find_attention, looked_for
from initopt.schemes.base import Drawn, Scheme, Subject
from initopt.schemes.layouts import misread

__all__ = ["Mimetic"]

Positions = Literal["keep", "sinusoidal", "sinusoidal_2d"]


@dataclass(frozen=True, kw_only=True)
class Mimetic(Scheme):
    r"""Self-attention whose products of weights are near the identity, as in trained transformers.

    Trockman and Kolter, ICML 2023 (arXiv 2305.09828). For each head, with a matrix Z of its own whose entries have the
    variance 1 / d in a stream of width d,

    .. math:: W_q W_k^\top \approx \alpha_1 Z + \beta_1 I, \qquad W_v W_o \approx \alpha_2 Z - \beta_2 I

    where the second is that of all heads together. The factors are those of the singular value decomposition, each with the
    root of the singular values; query and key of a head keep as many of these as a head has features. The biases of the
    projections become 0; all else keeps its values.

    With a batch, one layer for queries, keys and values is tried on it, and left alone where it has them in another order;
    without one, that order is taken for granted.

    Heads that share keys and values (grouped queries) have one key matrix, from the mean of their products, and each has
    the queries that come nearest to its own product.

    Attributes:
        query_key: alpha and beta of the first product. The default is the paper's for vision.
        value_output: alpha and beta of the second. The negative beta is the paper's for vision; ``(0.4, 0.4)`` has
            the sign that others report for trained language models.
        positions: what becomes of a learned table of absolute positions. ``"keep"`` leaves it; ``"sinusoidal"`` has sines
            and cosines of the number of the position; ``"sinusoidal_2d"`` of row and column on a square grid, after up to
            two tokens without a place, which get 0. Near-identity products make tokens attend to those that are like them;
            with such positions, to their neighbours.

    Raises:
        ValueError: for options that cannot work.

    >>> Mimetic(value_output=(0.4, 0.4)).options()
    {'value_output': (0.4, 0.4)}
    """

    name: ClassVar[str] = "mimetic"

    query_key: tuple[float, float] = (0.7, 0.7)
    value_output: tuple[float, float] = (0.4, -0.4)
    positions: Positions = "keep"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("query_key", "value_output"):
            pair = getattr(self, name)
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise ValueError(f"{name} must be a pair of alpha and beta, such as (0.7, 0.7); got {pair!r}")
            check_number(f"alpha of {name}", pair[0], minimum=0, finite=True)
            check_number(f"beta of {name}", pair[1], finite=True)
            object.__setattr__(self, name, tuple(pair))
        check_choice("positions", self.positions, ("keep", "sinusoidal", "sinusoidal_2d"))

    def draw(self, subject: Subject) -> Drawn:
        found, refused = find_attention(subject.model)
        names = subject.names
        attentions = []
        for attention in found:
            parts = (attention.query, attention.key, attention.value, attention.output)
            if all(part.weight in names for part in parts):
                attentions.append(attention)
            else:
                refused[attention.name] = "some of its weights are frozen, parametrized or left out by params"
        if subject.batch is not None:
            wrong = misread(subject, attentions)
            attentions = [attention for attention in attentions if attention.name not in wrong]
            refused |= wrong
        reasons = [f"{name!r}: {why}" for name, why in refused.items()]
        if not attentions:
            beside = f" What looks like it: {first_few(reasons, 3, '; ')}." if reasons else ""
            raise ValueError(
                f"scheme 'mimetic' found no self-attention in {type(subject.model).__name__}.{beside} It "
                f"knows {looked_for()}"
            )
        if reasons:
            warn(f"initopt: mimetic left attention alone that it could not make out: {first_few(reasons, 3, '; ')}")
        generator = subject.generator()
        tables = self._tables(subject)
        values: dict[nn.Parameter, Tensor] = {}
        roles: dict[nn.Parameter, str] = {}
        for attention in attentions:
            self._set(attention, values, generator)
            for part in (attention.query, attention.key, attention.value):
                roles[part.weight] = "query, key, value"
            roles[attention.output.weight] = "output of attention"
        return Drawn(
            {p: value for p, value in (values | tables).items() if p in names},
            roles=roles | dict.fromkeys(tables, "positions"),
        )

    def _set(self, attention: Attention, values: dict[nn.Parameter, Tensor], generator: torch.Generator) -> None:
        width, heads, key_heads = attention.width, attention.heads, attention.key_heads
        together = heads // key_heads
        alpha, beta = self.query_key
        size = attention.query.outputs // heads
        queries, keys = [], []
        for _ in range(key_heads):
            products = torch.stack([_near_identity(width, alpha, beta, generator) for _ in range(together)])
            right = _factors(products.mean(0), size, generator)[1]
            keys.append(right.T)
            inverse = torch.linalg.pinv(right @ right.T)
            queries += [product @ right.T @ inverse for product in products]
        _put(attention.query, torch.cat(queries, 1).T, values)
        _put(attention.key, torch.cat(keys, 1).T, values)
        left, right = _factors(_near_identity(width, *self.value_output, generator), key_heads * size, generator)
        _put(attention.value, left.T, values)
        shared = right.reshape(key_heads, 1, size, width).expand(-1, together, -1, -1) / together
        _put(attention.output, shared.reshape(heads * size, width).T, values)

    def _tables(self, subject: Subject) -> dict[nn.Parameter, Tensor]:
        """New tables of positions."""
        if self.positions == "keep":
            return {}
        tables = [p for p in subject.chosen if _is_table(p)]
        if not tables:
            raise ValueError(
                f"positions={self.positions!r} is for a learned table of absolute positions, and "
                f"{type(subject.model).__name__} has none that trains and is named like one (pos_embed, positions, wpe); "
                "positions='keep' does without"
            )
        make = _sinusoidal if self.positions == "sinusoidal" else _sinusoidal_2d
        return {p.value: make(p.name, *p.value.shape[-2:]).reshape(p.value.shape) for p in tables}


def _is_table(parameter: NamedParameter) -> bool:
    shape = parameter.value.shape
    named = any(KINDS["positions"](name, parameter.value, module) for name, module in parameter.holders)
    return named and len(shape) >= 2 and math.prod(shape[:-2]) == 1


def _near_identity(width: int, alpha: float, beta: float, generator: torch.Generator) -> Tensor:
    noise = torch.randn(width, width, generator=generator, dtype=torch.float64, device="cpu")
    return alpha / math.sqrt(width) * noise + beta * torch.eye(width, dtype=torch.float64, device="cpu")


def _factors(product: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two matrices (d, rank) and (rank, d) whose product is the one given, or the nearest one of this rank."""
    u, s, vt = torch.linalg.svd(product)
    kept = min(rank, len(s))
    left, right = u[:, :kept] * s[:kept].sqrt(), s[:kept].sqrt()[:, None] * vt[:kept]
    if kept == rank:
        return left, right
    # More features than the stream is wide: the same product through a rotation into more dimensions.
    rows = torch.empty(kept, rank, dtype=torch.float64, device="cpu")
    nn.init.orthogonal_(rows, generator=generator)
    return left @ rows, rows.T @ right


def _put(projection: Projection, rows: Tensor, values: dict[nn.Parameter, Tensor]) -> None:
    """Set the rows of a projection, and its biases to 0, in the new values of its parameters."""
    for parameter, matrix in ((projection.weight, True), (projection.bias, False)):
        if parameter is None:
            continue
        wide = torch.promote_types(parameter.dtype, torch.float32)
        staged = values.setdefault(parameter, parameter.detach().to("cpu", wide, copy=True))
        if matrix:
            projection.rows(staged).copy_(rows)
        else:
            staged[projection.start : projection.stop] = 0


def _sinusoidal(name: str, count: int, width: int) -> Tensor:
    """Sines and cosines as in *Attention is all you need*: of frequencies from 1 to 1 / 10000, in turn."""
    return _waves(torch.arange(count, dtype=torch.float64, device="cpu"), name, width)


def _waves(place: Tensor, name: str, width: int) -> Tensor:
    if width % 2:
        raise ValueError(f"sinusoidal positions need an even width; {name!r} has {width}")
    frequency = 10000.0 ** -(torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width)
    angle = place[:, None] * frequency
    waves: Tensor = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
    return waves


def _sinusoidal_2d(name: str, count: int, width: int) -> Tensor:
    """Half of the features for the row, half for the column of a square grid."""
    side = math.isqrt(count)
    beside = count - side**2
    if beside > 2 or width % 4:
        raise ValueError(
            f"positions='sinusoidal_2d' needs a square grid, with up to two tokens before it, and a width that 4 divides; "
            f"{name!r} has {count} positions of width {width}"
        )
    row, column = torch.meshgrid(*2 * [torch.arange(side, dtype=torch.float64, device="cpu")], indexing="ij")
    grid = torch.cat([_waves(each.flatten(), name, width // 2) for each in (row, column)], 1)
    return torch.cat([torch.zeros(beside, width, dtype=torch.float64, device="cpu"), grid])
