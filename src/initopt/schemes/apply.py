"""Give a whole model new weights by a scheme."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from initopt._support._torch_private import reset_of, version_of
from initopt._support.checks import check_integer, check_number
from initopt.batches.nested import batch_size, map_tensors, to_device
from initopt.model.losses import LossFunction, as_loss
from initopt.model.modes import measuring
from initopt.model.parameters import NamedParameter, ParameterFilter, select, trainable_parameters
from initopt.model.preserve import Kept, preserving, put_values
from initopt.model.randomness import seeded
from initopt.model.state import StateGuard
from initopt.model.wrappers import bare
from initopt.schemes.draws import Draw, Mode, check_scheme, make_draw
from initopt.schemes.matrices import Matrices, biases_of, is_embedding, matrices_of
from initopt.schemes.nonlinearities import Follower, Watch, gain_of

__all__ = ["Applied", "Gain", "apply_"]

Gain = float | Literal["auto"]


@dataclass(frozen=True)
class Applied:
    """What a scheme has set.

    Attributes:
        gains: the gain of every tensor that was drawn, by name; empty for the schemes that have none.
        nonlinearities: what follows each, as far as it was looked for and found.
        set: the names of all tensors that have new values, biases included.
        left: the names of the trainable tensors that have their old ones.
    """

    gains: dict[str, float]
    nonlinearities: dict[str, str]
    set: tuple[str, ...]
    left: tuple[str, ...]


def apply_(
    model: nn.Module,
    scheme: str,
    batch: Any = None,
    loss_fn: LossFunction | None = None,
    *,
    gain: Gain = "auto",
    nonlinearity: str | None = None,
    mode: Mode = "fan_in",
    std: float = 0.02,
    params: ParameterFilter | None = None,
    seed: int | None = None,
) -> Applied:
    r"""Give a model new weights by a scheme of :mod:`torch.nn.init`, in place, by the type of its modules.

    The weights of linear maps are drawn: of linear and bilinear layers, convolutions (transposed ones with their fans the
    right way round), attention (query, key and value each) and recurrent layers (gate by gate). The biases of these modules
    become 0. Everything else keeps its values: embeddings, and weights that are tied to one; norms; parametrized weights,
    since what can be drawn there is not the weight; parameters of modules of other types; what is frozen; buffers.

    =====================  =====================================================================================
    scheme                 weights, with fans in and out and the gain :math:`\gamma`
    =====================  =====================================================================================
    ``"default"``          what ``reset_parameters()`` of each module draws, biases, embeddings and norms included
    ``"kaiming_normal"``   normal with standard deviation :math:`\gamma / \sqrt{\text{fan}}`, and ``mode`` says which fan
    ``"kaiming_uniform"``  uniform with the same deviation
    ``"xavier_normal"``    normal with standard deviation :math:`\gamma \sqrt{2 / (\text{in} + \text{out})}`
    ``"xavier_uniform"``   uniform with the same deviation
    ``"orthogonal"``       :math:`\gamma` times a matrix with orthonormal rows or columns
    ``"normal"``           normal with standard deviation ``std``
    ``"trunc_normal"``     the same, cut off at two of them
    =====================  =====================================================================================

    Args:
        model: the model; only its parameter values change. After an exception they are as before.
        scheme: one of :data:`initopt.schemes.NAMES`.
        batch: a batch on which the model can run, to see which nonlinearity follows each layer. A layer that none follows
            (the last one, those before attention) has the gain 1.
        loss_fn: as for :func:`initopt.measure`; runs the model on the batch.
        gain: a number for all layers; or ``"auto"``: that of the stated nonlinearity, or of those that a batch shows, or
            of the one that the scheme is for: ReLU for Kaiming's, none for the others.
        nonlinearity: a name in :data:`initopt.schemes.nonlinearities.NONLINEARITIES`, for all layers.
        mode: ``"fan_in"`` keeps the variance of signals, ``"fan_out"`` that of gradients; for Kaiming's.
        std: standard deviation of ``"normal"`` and ``"trunc_normal"``.
        params: which parameters may change: a function of (qualified name, parameter, owning module), or names of kinds
            (:data:`initopt.model.parameters.KINDS`), such as ``["convolutions", "biases"]``; all that train, by default.
        seed: of a generator of its own, with which the weights are the same on every device (``"default"`` draws on the
            model's); without it, the draws follow from torch's random state and advance it.

    Returns:
        What was set, with which gain, and what was left.

    Raises:
        ValueError, TypeError: for arguments that cannot work, before any work; the message says what is allowed.

    >>> import torch, initopt
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.GELU(), torch.nn.Linear(64, 3))
    >>> batch = torch.randn(16, 8), torch.randint(3, (16,))
    >>> applied = initopt.schemes.apply_(model, "xavier_normal", batch, seed=0)
    >>> applied.nonlinearities, round(applied.gains["0.weight"], 3), applied.gains["2.weight"]
    ({'0.weight': 'gelu'}, 1.534, 1.0)
    """
    check_scheme(scheme)
    draw = None if scheme == "default" else make_draw(scheme, mode, std)
    if gain != "auto":
        check_number("gain", gain, above=0, finite=True)
    if nonlinearity is not None:
        gain_of(nonlinearity)
        if gain != "auto":
            raise ValueError(f"gain={gain!r} and nonlinearity={nonlinearity!r} both say what the gain is; give one of them")
    model = bare(model)
    parameters = trainable_parameters(model)
    chosen = select(parameters, params, "params")
    loss = as_loss(loss_fn)
    loss.look_at(batch)
    number = int(torch.randint(2**31, ())) if seed is None else check_integer("seed", seed, 0)
    gains: dict[str, float] = {}
    found: dict[nn.Parameter, Follower] = {}

    def work(kept: Kept) -> set[nn.Parameter]:
        if draw is None:
            with kept.state.recording():
                return _reset(model, chosen, number)
        looked = batch is not None and gain == "auto" and nonlinearity is None and draw.uses_gain
        if looked:
            found.update(_followers(model, loss, batch, chosen, number, kept.state))
        stated = nonlinearity or ("linear" if looked else draw.textbook)
        fixed = gain_of(stated) if gain == "auto" else gain
        each = {p.value: gain_of(*found[p.value]) if p.value in found else fixed for p in chosen}
        values, drawn = _drawn(chosen, draw, each, number)
        put_values(values)
        gains.update({p.name: each[p.value] for p in chosen if p.value in drawn and draw.uses_gain})
        return set(values)

    changed = preserving(model, work, loss_fn)
    names = {p.value: p.name for p in parameters}
    return Applied(
        gains=gains,
        nonlinearities={names[p]: follower[0] for p, follower in found.items() if names[p] in gains},
        set=tuple(p.name for p in parameters if p.value in changed),
        left=tuple(p.name for p in parameters if p.value not in changed),
    )


def _drawn(
    chosen: list[NamedParameter], draw: Draw, gains: dict[nn.Parameter, float], seed: int
) -> tuple[dict[nn.Parameter, Tensor], set[nn.Parameter]]:
    """New values of parameters, and which of them are matrices."""
    generator = torch.Generator("cpu").manual_seed(seed)
    values: dict[nn.Parameter, Tensor] = {}
    drawn = set()
    for parameter in chosen:
        value = parameter.value
        matrices = _matrices(parameter)
        if matrices is not None:
            staged = torch.empty(value.shape, dtype=torch.promote_types(value.dtype, torch.float32), device="cpu")
            for block in matrices.blocks(staged):
                block.copy_(draw.matrix(block.shape, value.dtype, gains[value], generator))
            values[value] = staged
            drawn.add(value)
        elif any(name.rpartition(".")[2] in biases_of(module) for name, module in parameter.holders):
            values[value] = torch.zeros_like(value, device="cpu")
    return values, drawn


def _matrices(parameter: NamedParameter) -> Matrices | None:
    """How matrices lie in a parameter, if it holds some and nothing looks things up in it."""
    if parameter.value.is_complex() or any(is_embedding(module) for _, module in parameter.holders):
        return None
    for name, module in parameter.holders:
        for matrices in matrices_of(module):
            if matrices.name == name.rpartition(".")[2]:
                return matrices
    return None


def _followers(
    model: nn.Module, loss: Any, batch: Any, chosen: list[NamedParameter], seed: int, state: StateGuard
) -> dict[nn.Parameter, Follower]:
    """The nonlinearity after each layer that has one, from running the model on a batch."""
    data = map_tensors(torch.clone, to_device(batch, next(model.parameters()).device))
    watch = Watch({p.value for p in chosen})
    with measuring(model), seeded(seed), state.running(), watch:
        loss(model, data, batch_size(data))
    return {p.value: watch.followers[p.value] for p in chosen if p.value in watch.followers}


def _reset(model: nn.Module, chosen: list[NamedParameter], seed: int) -> set[nn.Parameter]:
    """Have each module draw its parameters anew, those inside it first, and put back what is not to change."""
    kept = {p: (p.detach().clone(), version_of(p)) for p in model.parameters()}
    may_change = {p.value for p in chosen}
    with seeded(seed):
        for module in reversed(list(model.modules())):
            reset = reset_of(module)
            if reset is not None and not may_change.isdisjoint(module.parameters()):
                reset()
    written = {p for p, (value, version) in kept.items() if version_of(p) != version or not torch.equal(p, value)}
    put_values({p: value for p, (value, _) in kept.items() if p not in may_change})
    return written & may_change
