"""The entry point of GradInit."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from torch import nn

from initopt.losses import LossFunction
from initopt.methods.gradinit import InnerOptimizer
from initopt.optimize import optimize
from initopt.parameters import ParameterFilter
from initopt.progress import Progress
from initopt.result import Result
from initopt.run import Callback
from initopt.suggestions import suggesting
from initopt.verdict import OnHarm

__all__ = ["gradinit"]


@suggesting
def gradinit(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFunction | None = None,
    *,
    steps: int = 100,
    eta: float = 0.1,
    optimizer: InnerOptimizer = "sgd",
    normalize_grad: bool = True,
    fresh_second_batch: bool = False,
    max_grad_norm: float | None = None,
    lr: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    scale_grad_clip: float = 1.0,
    min_scale: float = 0.01,
    min_bias_scale: float = 0.0,
    scale_params: ParameterFilter | None = None,
    grad_params: ParameterFilter | None = None,
    num_subbatches: int = 4,
    scheme: str | None = None,
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
    r"""GradInit: learn one scale per parameter tensor so that the optimizer's first step lowers the loss, in place.

    Each step takes two batches and joins them; g is the gradient of their loss. If its norm exceeds ``max_grad_norm``, the
    scales move so as to lower the norm. Otherwise they move so as to lower

    .. math:: \frac1\eta L(W - \eta u)

    on a second batch, the first half of the first one joined with a third from the loader, where u is what the optimizer
    steps along, held fixed: g, or g over its length, for SGD; the sign of g for Adam (Zhu, Ni, Xu, Kong, Huang, Goldstein,
    NeurIPS 2021, arXiv 2102.08098, algorithm 1, as its published code has it). Batch norms use the statistics of these
    joined batches. A tensor keeps its direction; one that is zero, frozen or without gradient is left alone; tied
    parameters are one tensor with one scale.

    Args:
        model: the model; only its parameter values change. After an exception, Ctrl-C included, they are as before.
        batches: as for :func:`initopt.optimize`. A step takes three, two if it is constrained, and one more with
            ``fresh_second_batch``; give half of the batch size that you are going to train with.
        loss_fn: as for :func:`initopt.measure`.
        steps: number of steps.
        eta: learning rate of the optimizer's step, that of the training.
        optimizer: whose step it is, ``"sgd"`` or ``"adam"``.
        normalize_grad: whether SGD steps along the gradient over its length; Adam does not care.
        fresh_second_batch: whether the second batch shares no samples with the first, but takes one more of the loader's.
        max_grad_norm: the bound on the norm of g: the 2-norm for SGD, by default 1; for Adam the sum of absolute values,
            which grows with the number of parameters, by default without bound.
        lr: learning rate of the scales.
        betas: decay rates of the scale optimizer's moments.
        eps: added to its denominator.
        scale_grad_clip: bound on the derivative with respect to a scale.
        min_scale: least scale of a tensor.
        min_bias_scale: least scale of a bias (by its name).
        scale_params: a function of (qualified name, parameter, owning module) that says which tensors get a scale; all
            that train, by default.
        grad_params: the same, for the parameters that the optimizer's step moves and that make up g.
        num_subbatches: D, the number of sub-batches in the measurements before and after.
        scheme: one of :data:`initopt.schemes.NAMES`, whose weights, drawn with ``seed``, are the start to which the scales
            refer; the model's own weights by default. ``Result.before`` is of the model's own in either case.
        engine: how the measurements are computed: ``"auto"``, ``"exact"`` or a name in :data:`initopt.engines.ENGINES`.
        train_mode: run the model wholly in training mode, dropout included; by default, everything that only adds noise
            is off.
        measure_steps: how many batches to hold back and measure on, before and after; see :func:`initopt.optimize`.
        seed: base of the seeds for what the model itself draws.
        progress: whether to show a progress bar; by default, if standard error is a terminal.
        callbacks: a function, or several, that is called with the record of each step.
        checkpoint: a file to which the state is written and from which a killed run goes on.
        checkpoint_every: steps between two checkpoints.
        on_harm: ``"restore"``, ``"warn"`` or ``"raise"``, if the network is worse for it; see :func:`initopt.optimize`.
        allow_trained: whether a model that looks trained is not refused.

    Returns:
        The history, the scales, the weights, and the measurements before and after. A constrained step has no objective.

    Raises:
        ValueError, TypeError, NonFiniteError, ZeroGradientError: as for :func:`initopt.optimize`.

    >>> import torch, initopt
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    >>> batches = [(torch.randn(16, 8), torch.randint(3, (16,))) for _ in range(30)]
    >>> result = initopt.gradinit(model, batches, steps=20, measure_steps=2)
    >>> result.history[0].constrained, len(result.scales)
    (False, 4)
    """
    return optimize(
        model,
        batches,
        loss_fn,
        method="gradinit",
        measure_steps=measure_steps,
        seed=seed,
        progress=progress,
        callbacks=callbacks,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        on_harm=on_harm,
        allow_trained=allow_trained,
        steps=steps,
        eta=eta,
        optimizer=optimizer,
        normalize_grad=normalize_grad,
        fresh_second_batch=fresh_second_batch,
        max_grad_norm=max_grad_norm,
        lr=lr,
        betas=betas,
        eps=eps,
        scale_grad_clip=scale_grad_clip,
        min_scale=min_scale,
        min_bias_scale=min_bias_scale,
        scale_params=scale_params,
        grad_params=grad_params,
        num_subbatches=num_subbatches,
        scheme=scheme,
        engine=engine,
        train_mode=train_mode,
    )
