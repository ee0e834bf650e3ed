"""The entry point of MetaInit."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from torch import nn

from initopt.losses import LossFunction
from initopt.methods.metainit import Inputs, Norms
from initopt.optimize import optimize
from initopt.parameters import ParameterFilter
from initopt.progress import Progress
from initopt.result import Result
from initopt.run import Callback
from initopt.suggestions import suggesting
from initopt.verdict import OnHarm

__all__ = ["metainit"]


@suggesting
def metainit(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFunction | None = None,
    *,
    steps: int = 100,
    inputs: Inputs = "data",
    quotient_eps: float = 1e-5,
    norms: Norms = "exact",
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
    r"""MetaInit: learn one scale per parameter tensor so that the gradient changes little along itself, in place.

    Each step takes one batch and lowers the gradient quotient, with the gradient g of its loss and the Hessian H,

    .. math:: \frac1N \sum_i \left| \frac{g_i - (H g)_i}{g_i + \epsilon \operatorname{sign}(g_i)} - 1 \right|

    (Dauphin and Schoenholz, *MetaInit: Initializing learning by learning to initialize*, NeurIPS 2019, equation 1). Adam
    moves the scales, of weights and biases, as in the MetaInit of GradInit's published code. The paper itself has norms of
    weights only, moved by the sign of the derivative with momentum; ``scale_params=lambda name, p, module: p.ndim > 1``
    leaves out what it leaves out.

    Warning:
        The derivative of the quotient is a third derivative of the loss, which PyTorch has wrong, silently, for its layer,
        batch and instance norms (seen in 2.13; 2.15 refuses it for batch norm). The published code uses these;
        ``norms="fused"`` does so, too.

    Args:
        model: the model; only its parameter values change. After an exception, Ctrl-C included, they are as before.
        batches: as for :func:`initopt.optimize`.
        loss_fn: as for :func:`initopt.measure`.
        steps: number of steps.
        inputs: ``"data"``, or ``"random"``: standard normal inputs in the place of those of each batch, whose targets stay,
            as the paper allows. The batches then have to be (inputs, targets), with floating-point inputs.
        quotient_eps: the epsilon of the quotient.
        norms: ``"exact"``, norms composed of elementary operations, with right derivatives, or ``"fused"``, PyTorch's own
            norms, as in the published code. There is no difference for models without such norms.
        lr: learning rate of the scales.
        betas: decay rates of the scale optimizer's moments.
        eps: added to its denominator.
        scale_grad_clip: bound on the derivative with respect to a scale.
        min_scale: least scale of a tensor.
        min_bias_scale: least scale of a bias (by its name).
        scale_params: a function of (qualified name, parameter, owning module) that says which tensors get a scale; all
            that train, by default.
        grad_params: the same, for the parameters whose gradients make up g.
        num_subbatches: D, the number of sub-batches in the measurements before and after.
        scheme: one of :data:`initopt.schemes.NAMES`, whose weights, drawn with ``seed``, are the start to which the scales
            refer; the model's own weights by default. ``Result.before`` is of the model's own in either case.
        engine: how the measurements are computed: ``"auto"``, ``"exact"`` or a name in :data:`initopt.engines.ENGINES`.
        train_mode: run the model wholly in training mode, dropout included; by default, everything that only adds noise
            is off.
        measure_steps: how many batches to hold back and measure on, before and after; see :func:`initopt.optimize`.
        seed: base of the seeds for what the model itself draws, and for random inputs.
        progress: whether to show a progress bar; by default, if standard error is a terminal.
        callbacks: a function, or several, that is called with the record of each step.
        checkpoint: a file to which the state is written and from which a killed run goes on.
        checkpoint_every: steps between two checkpoints.
        on_harm: ``"restore"``, ``"warn"`` or ``"raise"``, if the network is worse for it; see :func:`initopt.optimize`.
        allow_trained: whether a model that looks trained is not refused.

    Returns:
        The history, the scales, the weights, and the measurements before and after. The objective is the quotient.

    Raises:
        ValueError, TypeError, NonFiniteError, ZeroGradientError: as for :func:`initopt.optimize`.
        LossError: if the batches do not go with ``inputs="random"``.

    >>> import torch, initopt
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    >>> batches = [(torch.randn(32, 8), torch.randint(3, (32,)))]
    >>> result = initopt.metainit(model, batches, steps=20, measure_steps=0)
    >>> result.history[-1].objective < result.history[0].objective
    True
    """
    return optimize(
        model,
        batches,
        loss_fn,
        method="metainit",
        measure_steps=measure_steps,
        seed=seed,
        progress=progress,
        callbacks=callbacks,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        on_harm=on_harm,
        allow_trained=allow_trained,
        steps=steps,
        inputs=inputs,
        quotient_eps=quotient_eps,
        norms=norms,
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
