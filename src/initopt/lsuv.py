"""The entry point of LSUV."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from torch import nn

from initopt.losses import LossFunction
from initopt.optimize import optimize
from initopt.parameters import ParameterFilter
from initopt.progress import Progress
from initopt.result import Result
from initopt.run import Callback
from initopt.suggestions import suggesting
from initopt.verdict import OnHarm

__all__ = ["lsuv"]


@suggesting
def lsuv(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFunction | None = None,
    *,
    steps: int = 1,
    tolerance: float = 0.1,
    max_iterations: int = 10,
    scale_params: ParameterFilter | None = None,
    grad_params: ParameterFilter | None = None,
    num_subbatches: int = 4,
    scheme: str | None = "orthogonal",
    engine: str = "auto",
    train_mode: bool = False,
    measure_steps: int = 10,
    seed: int | None = None,
    progress: Progress = None,
    callbacks: Callback | Iterable[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 10,
    on_harm: OnHarm = "restore",
    allow_trained: bool = False,
) -> Result:
    """LSUV: orthogonal weights, scaled layer by layer to outputs of unit variance, in place.

    The model runs on a batch. Each layer, when it is its turn, has its weight divided by the standard deviation of its
    output over all samples, channels and places, until the variance is 1 within ``tolerance``; the layers after it see the
    new output (layer-sequential unit variance; Mishkin and Matas, ICLR 2016, arXiv 1511.06422, algorithm 1). So the order
    is that in which the layers really run, in any model.

    Layers are linear and bilinear ones and convolutions, transposed ones too, whose module is called. A layer that runs
    more than once, or shares its weight with another, is scaled for its first output. Left alone, with a warning that names
    them: what is used without its module being called (attention's projections, in ``nn.MultiheadAttention``), recurrent
    layers, weights shared with an embedding, and layers whose output is constant. Left alone, too: parametrized weights,
    embeddings, norms, what is frozen.

    Args:
        model: the model; only its parameter values change. After an exception, Ctrl-C included, they are as before.
        batches: as for :func:`initopt.optimize`; a large one is a good one.
        loss_fn: as for :func:`initopt.measure`; it runs the model.
        steps: number of passes over the network, each on the next batch.
        tolerance: how far from 1 a variance may be, in (0, 1).
        max_iterations: most rescalings of a layer. A layer without bias needs one.
        scale_params: a function of (qualified name, parameter, owning module) that says which weights may be scaled; all
            that train, by default.
        grad_params: the same, for the parameters whose gradients are measured before and after.
        num_subbatches: D, the number of sub-batches in these measurements.
        scheme: one of :data:`initopt.schemes.NAMES`, whose weights, drawn with ``seed``, are the start to which the scales
            refer, with biases of 0; ``None`` for the model's own weights. ``Result.before`` is of the model's own.
        engine: how the measurements are computed: ``"auto"``, ``"exact"`` or a name in :data:`initopt.engines.ENGINES`.
        train_mode: run the model wholly in training mode, dropout included; by default, everything that only adds noise
            is off.
        measure_steps: how many batches to hold back and measure on, before and after; see :func:`initopt.optimize`.
        seed: of the scheme, and base of the seeds for what the model itself draws.
        progress: whether to show a progress bar; by default, if standard error is a terminal.
        callbacks: a function, or several, that is called with the record of each layer when its pass is done.
        checkpoint: a file to which the state is written and from which a killed run goes on.
        checkpoint_every: steps between two checkpoints.
        on_harm: ``"restore"``, ``"warn"`` or ``"raise"``, if the network is worse for it; see :func:`initopt.optimize`.
        allow_trained: whether a model that looks trained is not refused.

    Returns:
        The history, a :class:`initopt.LayerRecord` per layer; the scales, the weights, and the measurements.

    Raises:
        ValueError: if there is no layer.
        ValueError, TypeError, NonFiniteError: as for :func:`initopt.optimize`.

    Warns:
        UserWarning: that names the layers that were left alone, and those that ``max_iterations`` were not enough for.

    >>> import torch, initopt
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    >>> batches = [(torch.randn(64, 8), torch.randint(3, (64,)))]
    >>> result = initopt.lsuv(model, batches, seed=0, measure_steps=0)
    >>> [record.layer for record in result.history if 0.9 <= record.variance_after <= 1.1]
    ['0', '2']
    """
    return optimize(
        model,
        batches,
        loss_fn,
        method="lsuv",
        measure_steps=measure_steps,
        seed=seed,
        progress=progress,
        callbacks=callbacks,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        on_harm=on_harm,
        allow_trained=allow_trained,
        steps=steps,
        tolerance=tolerance,
        max_iterations=max_iterations,
        scale_params=scale_params,
        grad_params=grad_params,
        num_subbatches=num_subbatches,
        scheme=scheme,
        engine=engine,
        train_mode=train_mode,
    )
