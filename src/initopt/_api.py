"""The entry points that run a method."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from initopt._support.checks import check_choice, check_flag, check_integer, suggesting
from initopt._support.files import check_file
from initopt._support.progress import Progress
from initopt.batches.stream import check_batches
from initopt.gram.objectives import Objective
from initopt.methods import Method, create_method
from initopt.methods.gradinit import InnerOptimizer
from initopt.methods.metainit import Inputs, Norms
from initopt.model.centring import Centre
from initopt.model.losses import LossFunction, as_loss
from initopt.model.parameters import ParameterFilter, trainable_parameters
from initopt.model.preserve import preserving
from initopt.model.problem import BatchNorm, Split
from initopt.runs.result import Result
from initopt.runs.run import Callback, Run, Settings
from initopt.runs.verdict import ON_HARM, OnHarm

__all__ = ["gradinit", "lsuv", "metainit", "nio", "optimize"]


def optimize(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFunction | None = None,
    *,
    method: str | Method = "nio",
    measure_steps: int = 10,
    seed: int | None = None,
    progress: Progress = None,
    callbacks: Callback | Iterable[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 10,
    on_harm: OnHarm = "restore",
    allow_trained: bool = False,
    **options: Any,
) -> Result:
    """Improve the initial weights of a model with any method, in place.

    Args:
        model: the model; only its parameter values change. After an exception, Ctrl-C included, they are as before.
        batches: an iterable of batches, as for :func:`initopt.measure`. The steps take them in their order. One that can
            be iterated over again and is shorter than the steps is cycled.
        loss_fn: as for :func:`initopt.measure`.
        method: a name in :func:`initopt.methods.method_names`, or a :class:`initopt.methods.Method` with its options.
        measure_steps: how many batches to hold back from the steps and measure on, with the original and with the new
            weights: those after the last one that a step takes. They are kept in memory meanwhile. 0 measures nothing.
            Steps never take one of these batches; but if a loader that shuffles anew in each pass is cycled, its later
            passes bring their samples in other batches.
        seed: base of the seeds for what the model itself draws (dropout in ``train_mode``, sampling layers); follows from
            torch's random state if not given.
        progress: whether to show a progress bar; by default, if standard error is a terminal.
        callbacks: a function, or several, that is called with the :class:`initopt.StepRecord` of each step.
        checkpoint: a file into which the state is written, the first time before the first step; a call that finds it goes
            on from there, with the loader played again from its start, and ends in the same scales as an unbroken run. It
            stays when the run is done, and a later call with more ``steps`` goes on.
        checkpoint_every: steps between two checkpoints; the end always makes one.
        on_harm: what to do if the network is worse for it on the batches held back: its outputs no longer depend on its
            inputs, scales stand at their minimum, the gradient norm is beyond its bound, or the loss has more than doubled.
            ``"restore"`` puts the weights back, with a warning, also (without one) where nothing is gained beyond noise;
            ``"warn"`` keeps the new ones; ``"raise"`` raises a :class:`initopt.HarmError`. ``Result.verdict`` says what
            came of it.
        allow_trained: whether a model may have been trained: one whose loss is less than half of that with the targets of
            other samples is refused otherwise.
        **options: the options of the method.

    Returns:
        The history, the scales, the weights, and the measurements.

    Raises:
        ValueError, TypeError: for arguments that cannot work, before any work; the message says what is allowed.
        LoaderError: if the batches run out.
        LossError: if the loss function returns no loss.
        TrainedModelError: if the model looks trained.
        HarmError: if the network is worse for it, with ``on_harm="raise"``.
        MismatchError: if the checkpoint belongs to another run: other options, parameters, loss, selected tensors,
            buffers, frozen parameters or first batch. The message says which.
        NonFiniteError: if a loss or gradient is not finite; the message names step and parameter.
        ZeroGradientError: if all gradients of a batch are zero.

    Warns:
        UserWarning: if an engine chosen by itself has to go over to another one, with the operator that is the reason; if
            the steps are done and the batches held back cannot be measured, in which case ``before`` and ``after`` are
            ``None``.

    >>> import torch, initopt
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    >>> batches = [(torch.randn(32, 8), torch.randint(3, (32,))) for _ in range(10)]
    >>> result = initopt.optimize(model, batches, method="nio", steps=20, measure_steps=2)
    >>> list(result.scales)
    ['0.weight', '0.bias', '2.weight', '2.bias']
    """
    chosen = create_method(method, options)
    settings = Settings(
        measure_steps=check_integer("measure_steps", measure_steps, 0),
        seed=None if seed is None else check_integer("seed", seed, 0),
        progress=progress,
        callbacks=_functions(callbacks),
        checkpoint=None if checkpoint is None else _file(checkpoint),
        checkpoint_every=check_integer("checkpoint_every", checkpoint_every, 1),
        on_harm=on_harm,
        allow_trained=allow_trained,
    )
    check_choice("on_harm", on_harm, ON_HARM)
    check_flag("allow_trained", allow_trained)
    check_batches(batches)
    as_loss(loss_fn)
    trainable_parameters(model)
    return preserving(model, lambda kept: Run(model, batches, loss_fn, chosen, settings, kept).result(), loss_fn, batches)


def _functions(callbacks: Callback | Iterable[Callback]) -> tuple[Callback, ...]:
    several = (callbacks,) if callable(callbacks) else tuple(callbacks)
    for callback in several:
        if not callable(callback):
            raise TypeError(f"a callback is a function of a step record; got {type(callback).__name__}")
    return several


def _file(checkpoint: str | os.PathLike[str]) -> Path:
    path = Path(checkpoint).expanduser().absolute()
    check_file(path, f"checkpoint={str(checkpoint)!r}")
    return path


@suggesting
def nio(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFunction | None = None,
    *,
    steps: int = 100,
    num_subbatches: int = 4,
    overlap: float = 0.2,
    split: Split = "cyclic",
    batch_norm: BatchNorm = "subbatch",
    objective: str | Objective = "cosine+lognorm",
    norm_weight: float = 0.3,
    centre: Centre | None = "output",
    max_grad_norm: float = 7.0,
    lr: float = 0.03,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    scale_grad_clip: float = 1.0,
    min_scale: float = 0.01,
    min_bias_scale: float = 0.0,
    scale_params: ParameterFilter | None = None,
    scale_biases: bool = False,
    scale_invariant: bool = False,
    grad_params: ParameterFilter | None = None,
    scheme: str | None = None,
    engine: str = "auto",
    train_mode: bool = False,
    microbatch: int | None = None,
    memory_budget: float | None = None,
    measure_steps: int = 10,
    seed: int | None = None,
    progress: Progress = None,
    callbacks: Callback | Iterable[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 10,
    on_harm: OnHarm = "restore",
    allow_trained: bool = False,
) -> Result:
    """Neural Initialization Optimization: learn one scale per parameter tensor, in place.

    In each step, if the mean gradient norm of the sub-batches exceeds ``max_grad_norm``, the scales move so as to lower
    it, otherwise so as to lower the objective (Yang, Wang, Yuan, Lin, NeurIPS 2022, arXiv 2210.05956, algorithm 3). The
    direction of every tensor stays; a tensor that is zero, frozen or without gradient is left alone; tied parameters are
    one tensor with one scale.

    Args:
        model: the model; only its parameter values change. After an exception, Ctrl-C included, they are as before.
        batches: as for :func:`initopt.optimize`; the same batches as for training, 64 samples or more each.
        loss_fn: as for :func:`initopt.measure`.
        steps: number of steps.
        num_subbatches: D, the number of sub-batches that each batch is split into, 2 to the batch size.
        overlap: share by which sub-batches overlap, in [0, 1).
        split: ``"cyclic"``, equal windows, or ``"published"``, those of the published code.
        batch_norm: ``"subbatch"``: batch norms use the statistics of each sub-batch; ``"batch"``: of the whole batch.
        objective: what is minimized: a name in :data:`initopt.objectives.NAMES` or a function of a Gram matrix.
        norm_weight: w, the weight of the norm term in the objectives that have one.
        centre: ``"output"``: the objective is that of centred gradients, which leave out what a bias of the model's outputs
            would take care of (:mod:`initopt.model.centring`). Without it (``None``, as in the paper), GradCosine can be
            had by ignoring the input. The mean is that of each sub-batch, over samples and positions.
        max_grad_norm: the bound gamma on the gradient norm of the sub-batches: of their mean, or, where gradients are
            centred, of the whole gradient of one of them, each in its turn.
        lr: learning rate of the scales.
        betas: decay rates of the scale optimizer's moments.
        eps: added to its denominator.
        scale_grad_clip: bound on the derivative with respect to a scale.
        min_scale: least scale of a tensor.
        min_bias_scale: least scale of a bias (by its name).
        scale_params: a function of (qualified name, parameter, owning module) that says which tensors get a scale; all
            that train, by default, but for those that the next two options leave out.
        scale_biases: whether biases (by their name) are scaled, too.
        scale_invariant: whether tensors whose scale does not change the loss (weights in front of a norm) are scaled, too.
            Their scale is but a learning rate of their own. The first batch shows which these are, for the price of a
            training step.
        grad_params: the same as ``scale_params``, for the parameters whose gradients are compared.
        scheme: one of :data:`initopt.schemes.NAMES`, whose weights, drawn with ``seed``, are the start to which the scales
            refer; the model's own weights by default. ``Result.before`` is of the model's own in either case.
        engine: how derivatives are computed: ``"auto"``, ``"exact"`` or a name in :data:`initopt.engines.ENGINES`.
        train_mode: run the model wholly in training mode, dropout included; by default, everything that only adds noise
            is off.
        microbatch: most samples of a sub-batch to run at a time, whose gradients are accumulated: for sub-batches that do
            not fit into memory. Whole sub-batches by default. Where memory runs out, it is halved, with a warning. Needs a
            loss that is a mean over samples, and no batch norm on the statistics of the sub-batch.
        memory_budget: bytes that ``engine="auto"`` may take beside the model and the batch; by default, what is free.
        measure_steps: how many batches to hold back and measure on, before and after; see :func:`initopt.optimize`.
        seed: base of the seeds for what the model itself draws.
        progress: whether to show a progress bar; by default, if standard error is a terminal.
        callbacks: a function, or several, that is called with the record of each step.
        checkpoint: a file to which the state is written and from which a killed run goes on.
        checkpoint_every: steps between two checkpoints.
        on_harm: ``"restore"``, ``"warn"`` or ``"raise"``, if the network is worse for it; see :func:`initopt.optimize`.
        allow_trained: whether a model that looks trained is not refused.

    Returns:
        The history, the scales, the weights, and the measurements before and after.

    Raises:
        ValueError, TypeError, NonFiniteError, ZeroGradientError: as for :func:`initopt.optimize`.

    >>> import torch, initopt
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    >>> batches = [(torch.randn(32, 8), torch.randint(3, (32,))) for _ in range(30)]
    >>> result = initopt.nio(model, batches, steps=20, measure_steps=10)
    >>> result.after.grad_norm > result.before.grad_norm
    True
    """
    return optimize(
        model,
        batches,
        loss_fn,
        method="nio",
        measure_steps=measure_steps,
        seed=seed,
        progress=progress,
        callbacks=callbacks,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        on_harm=on_harm,
        allow_trained=allow_trained,
        steps=steps,
        num_subbatches=num_subbatches,
        overlap=overlap,
        split=split,
        batch_norm=batch_norm,
        objective=objective,
        norm_weight=norm_weight,
        centre=centre,
        max_grad_norm=max_grad_norm,
        lr=lr,
        betas=betas,
        eps=eps,
        scale_grad_clip=scale_grad_clip,
        min_scale=min_scale,
        min_bias_scale=min_bias_scale,
        scale_params=scale_params,
        scale_biases=scale_biases,
        scale_invariant=scale_invariant,
        grad_params=grad_params,
        scheme=scheme,
        engine=engine,
        train_mode=train_mode,
        microbatch=microbatch,
        memory_budget=memory_budget,
    )


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
