"""The entry points that run a method."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

from torch import nn

from initopt._support.checks import accepting, renaming
from initopt._support.progress import Progress
from initopt.batches.stream import check_batches
from initopt.batches.subbatches import BatchNorm, Split
from initopt.gram.objectives import Objective
from initopt.methods import LSUV, NIO, GradInit, Measuring, MetaInit, Method, create_method
from initopt.methods.registry import ONCE_OF_ALL, with_old_options
from initopt.model.centring import Centre
from initopt.model.group import ranks_of
from initopt.model.losses import LossFunction, as_loss
from initopt.model.parameters import ParameterFilter, Parameters
from initopt.model.preserve import preserving
from initopt.model.ranks import ProcessGroup, Share, check_share
from initopt.model.shard_passes import ShardPasses
from initopt.model.sharded import has_shards
from initopt.model.wrappers import bare, hides_layers
from initopt.runs.result import Result
from initopt.runs.run import run
from initopt.runs.shared import refuse_ranks, weights_at_hand
from initopt.runs.task import Callback, Settings, Task
from initopt.runs.trial import check_training
from initopt.runs.verdict import OnHarm
from initopt.schemes import Scheme
from initopt.training.optimizers import OptimizerFactory

__all__ = ["gradinit", "lsuv", "metainit", "nio", "optimize"]

_RENAMED = {"measure_steps": "measure_batches"}


@renaming(**_RENAMED)
def optimize(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFunction | None = None,
    method: str | Method = "nio",
    *,
    measuring: Measuring | None = None,
    measure_batches: int = 10,
    seed: int | None = None,
    progress: Progress = None,
    callbacks: Callback | Iterable[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 10,
    on_harm: OnHarm = "restore",
    allow_trained: bool = False,
    process_group: ProcessGroup = "auto",
    share: Share = "union",
    diagnose: bool = True,
    **options: Any,
) -> Result:
    """Improve the initial weights of a model with any method, in place.

    Args:
        model: the model; only its parameter values change. After an exception, Ctrl-C included, they are as before.
        batches: an iterable of batches, as for :func:`initopt.measure`. The steps take them in their order. One that can
            be iterated over again and is shorter than the steps is cycled.
        loss_fn: as for :func:`initopt.measure`.
        method: a :class:`initopt.methods.Method` with its options, or a name in :func:`initopt.methods.method_names`.
        measuring: how gradients are computed in the measurements before and after: for methods that have no options for
            that, as :class:`initopt.methods.NIO` has.
        measure_batches: how many batches to hold back from the steps and measure on, with the original and with the new
            weights: those after the last one that a step takes. They are kept in memory meanwhile. 0 measures nothing.
            Steps never take one of these batches; but if a loader that shuffles anew in each pass is cycled, its later
            passes bring their samples in other batches.
        seed: base of the seeds for what the model itself draws (dropout in ``train_mode``, sampling layers), and of the
            scheme; follows from torch's random state if not given.
        progress: whether to show a progress bar; by default, if standard error is a terminal.
        callbacks: a function, or several, that is called with the record of each step, an :class:`initopt.StepRecord` of
            most methods.
        checkpoint: a file into which the state is written, the first time before the first step; a call that finds it goes
            on from there, with the loader played again from its start, and ends in the same scales as an unbroken run. It
            stays when the run is done, and a later call with more ``steps`` goes on. Of several processes, rank 0 writes
            and reads it, and as many have to go on.
        checkpoint_every: steps between two checkpoints; the end always makes one.
        on_harm: what to do if the network has become worse on the batches held back: its outputs no longer depend on its
            inputs, scales stand at their minimum, the gradient norm is beyond its bound, the loss has more than doubled, or
            it trains worse, where the method knows the optimizer. ``"restore"`` puts the weights back, with a warning;
            without one, it also does so where nothing is gained beyond noise; ``"warn"`` keeps the new ones; ``"raise"``
            raises a :class:`initopt.HarmError`. ``Result.verdict`` says what came of it.
        allow_trained: whether a model that looks trained is accepted. By default it is refused: a model looks trained if
            its loss is less than half of that with the targets of other samples.
        process_group: the processes of ``torch.distributed`` that do this together, each with its own part of the data,
            when the call is made on all of them: a group; ``"auto"``, that of a ``DistributedDataParallel`` or of a sharded
            model; ``None`` for this process alone. Under tensor parallelism, those that share layers are given the same
            data. All end with the same weights and the same result, and an exception on one ends it on all.
        share: what processes have in common. ``"union"``: each sub-batch has a part on every process, so that the result
            is that of one process with all the data. ``"average"``: each has sub-batches of its own, and only norms and
            derivatives are averaged, where gradients are too large to be sent.
        diagnose: whether to look at the layers before and after, on up to 4 of the batches held back, in the time of
            12 to 16 training steps: ``Result.diagnosis``.
        **options: the options of a method that is given by its name.

    Returns:
        The history, the scales, the weights, and the measurements.

    Raises:
        ValueError, TypeError: for arguments that cannot work, before any work; the message says what is allowed.
        LoaderError: if the batches run out.
        LossError: if the loss function returns no loss.
        TrainedModelError: if the model looks trained.
        HarmError: if the network has become worse, with ``on_harm="raise"``.
        MismatchError: if the checkpoint belongs to another run: other options, parameters, loss, selected tensors,
            buffers, frozen parameters, first batch or number of processes. The message says which.
        NonFiniteError: if a loss or gradient is not finite; the message names step and parameter.
        ZeroGradientError: if all gradients of a batch are zero.
        RankError: if processes that work together differ in weights, options or number of batches, or another one fails.

    Warns:
        InitoptWarning: if an engine chosen by itself has to go over to another one, with the operator that is the reason;
            if the steps are done and the batches held back cannot be measured, in which case ``before`` and ``after`` are
            ``None``.

    >>> import torch, initopt
    >>> from initopt.methods import NIO
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    >>> batches = [(torch.randn(32, 8), torch.randint(3, (32,))) for _ in range(10)]
    >>> result = initopt.optimize(model, batches, method=NIO(steps=20), measure_batches=2)
    >>> list(result.scales)
    ['0.weight', '0.bias', '2.weight', '2.bias']
    """
    if isinstance(method, str):
        measuring = with_old_options(measuring, method, options)
    chosen = create_method(method, options)
    settings = Settings.checked(
        measuring=measuring,
        measure_batches=measure_batches,
        seed=seed,
        progress=progress,
        callbacks=callbacks,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        on_harm=on_harm,
        allow_trained=allow_trained,
        diagnose=diagnose,
    )
    how = chosen.measuring(measuring)
    check_share(share)
    ranks = ranks_of(model, process_group, share)
    refuse_ranks(ranks, chosen)
    model = bare(model)
    if hides_layers(model):
        settings = replace(settings, diagnose=False)

    def improved(passes: ShardPasses | None) -> Result:
        check_batches(batches)
        loss = as_loss(loss_fn)
        filters = {"grad_params": how.grad_params, "scale_params": chosen.scale_params}
        parameters = Parameters.of(model, **filters, in_parts=passes is not None)
        if chosen.training is not None:
            check_training(chosen.training, parameters)
        task = Task(model, batches, loss, chosen, how, parameters, settings, ranks, passes)
        return preserving(model, lambda kept: run(task, kept), loss_fn, batches)

    if ranks.size == 1 and not has_shards(model):
        return improved(None)  # nothing comes after it, so that an interrupt finds all of it done, or none
    with ranks.together():
        with weights_at_hand(model, ranks, how, loss_fn, chosen, settings.checkpoint) as (shards, passes):
            result = improved(passes)
        if shards is not None and result.tried_scales is None:
            if chosen.scheme is None:
                shards.scale(result.scales)
            else:
                shards.put(result.weights)
        return result


@renaming(**_RENAMED)
@accepting()
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
    optimizer: OptimizerFactory | None = None,
    clip_grad_norm: float | None = None,
    trial_steps: int = 20,
    max_decrease: float | None = None,
    grad_params: ParameterFilter | None = None,
    scheme: str | Scheme | None = None,
    engine: str = "auto",
    train_mode: bool = False,
    microbatch: int | None = None,
    memory_budget: float | None = None,
    measure_batches: int = 10,
    seed: int | None = None,
    progress: Progress = None,
    callbacks: Callback | Iterable[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 10,
    on_harm: OnHarm = "restore",
    allow_trained: bool = False,
    process_group: ProcessGroup = "auto",
    share: Share = "union",
    diagnose: bool = True,
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
        overlap: share by which sub-batches overlap, in [0, 1). Shared samples raise GradCosine.
        split: ``"cyclic"``, equal windows, or ``"published"``, those of the published code
            (:class:`initopt.batches.subbatches.SubBatches`).
        batch_norm: ``"subbatch"``: batch norms use the statistics of each sub-batch; ``"batch"``: of the whole batch, as
            the published code does. Running statistics are neither used nor changed.
        objective: what is minimized: a name in :data:`initopt.objectives.NAMES` or a function of a Gram matrix.
        norm_weight: w, the weight of the norm term in the objectives that have one.
        centre: ``"output"``: the objective is that of centred gradients, which leave out what a bias of the model's outputs
            would take care of (:mod:`initopt.model.centring`). Without it (``None``, as in the paper), GradCosine can be
            raised by ignoring the input. The mean is that of each sub-batch, over samples and positions.
        max_grad_norm: the bound gamma on the gradient norm of the sub-batches: of their mean, or, where gradients are
            centred, of the whole gradient of one of them, each in its turn.
        lr: learning rate of the scales.
        betas: decay rates of the scale optimizer's moments.
        eps: added to its denominator.
        scale_grad_clip: bound on the derivative with respect to a scale.
        min_scale: least scale of a tensor.
        min_bias_scale: least scale of a bias (by its name).
        scale_params: a function of (qualified name, parameter, owning module) that says which tensors get a scale; all
            that train, by default.
        scale_biases: whether biases (by their name) are scaled, too.
        scale_invariant: whether tensors whose scale does not change the loss (weights in front of a norm) are scaled, too.
            Their scale only acts as a learning rate of their own. The first batch shows which these are, for the price of a
            training step.
        optimizer: how the network is going to be trained: a function of parameters that makes the optimizer, such as
            ``functools.partial(torch.optim.AdamW, lr=3e-4)``, or the optimizer itself. The new weights are then tried: old
            and new ones are trained on the same batches, at the optimizer's learning rate, and the old ones are put back if
            they come out clearly lower in the loss of the batches held back (:class:`initopt.runs.trial.Trial`).
        clip_grad_norm: the norm that the training clips gradients to; none, by default.
        trial_steps: training steps from old and new weights each, on the batches of the last steps, and so ``steps`` at
            most; 0 for no trial.
        max_decrease: kappa, a bound that replaces ``max_grad_norm``, in the geometry of the optimizer: on the share of the
            loss that its first step is predicted to take off. The predicted decrease is the learning rate times the squared
            2-norm of the gradient for SGD, and times the 1-norm for Adam.
        grad_params: a function of (qualified name, parameter, owning module) that says which parameters make up the
            gradient; all that train, by default.
        scheme: one of :data:`initopt.schemes.NAMES`, or a :class:`initopt.schemes.Scheme` with its options, whose weights,
            drawn with ``seed``, are the start to which the scales refer; the model's own weights by default.
            ``Result.before`` is of the model's own in either case.
        engine: how gradients are computed: ``"auto"``, ``"exact"`` or a name in :data:`initopt.engines.ENGINES`.
        train_mode: run the model wholly in training mode, dropout included; by default, everything that only adds noise
            is off.
        microbatch: most samples of a sub-batch to run at a time, whose gradients are accumulated: for sub-batches that do
            not fit into memory. Whole sub-batches by default. Where memory runs out, it is halved, with a warning. Needs a
            loss that is a mean over samples, and no batch norm on the statistics of the sub-batch.
        memory_budget: bytes that ``engine="auto"`` may take beside the model and the batch; by default, what is free.
        measure_batches: how many batches to hold back and measure on, before and after; see :func:`initopt.optimize`.
        seed: base of the seeds for what the model itself draws.
        progress: whether to show a progress bar; by default, if standard error is a terminal.
        callbacks: a function, or several, that is called with the record of each step.
        checkpoint: a file to which the state is written and from which a killed run goes on.
        checkpoint_every: steps between two checkpoints.
        on_harm: ``"restore"``, ``"warn"`` or ``"raise"``, if the network has become worse; see :func:`initopt.optimize`.
        allow_trained: whether a model that looks trained is accepted; see :func:`initopt.optimize`.
        process_group: ``"auto"``, ``None``, or the processes that do this together; see :func:`initopt.optimize`.
        share: ``"union"`` or ``"average"``: what these have in common.
        diagnose: whether to look at the layers before and after; see :func:`initopt.optimize`.

    Returns:
        The history, the scales, the weights, and the measurements before and after.

    Raises:
        ValueError, TypeError, NonFiniteError, ZeroGradientError: as for :func:`initopt.optimize`.

    >>> import torch, initopt
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    >>> batches = [(torch.randn(32, 8), torch.randint(3, (32,))) for _ in range(30)]
    >>> result = initopt.nio(model, batches, steps=20, measure_batches=10)
    >>> result.after.grad_norm > result.before.grad_norm
    True
    """
    method = NIO(
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
        optimizer=optimizer,
        clip_grad_norm=clip_grad_norm,
        trial_steps=trial_steps,
        max_decrease=max_decrease,
        grad_params=grad_params,
        scheme=scheme,
        engine=engine,
        train_mode=train_mode,
        microbatch=microbatch,
        memory_budget=memory_budget,
    )
    return optimize(
        model,
        batches,
        loss_fn,
        method,
        measure_batches=measure_batches,
        seed=seed,
        progress=progress,
        callbacks=callbacks,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        on_harm=on_harm,
        allow_trained=allow_trained,
        process_group=process_group,
        share=share,
        diagnose=diagnose,
    )


_SETTINGS = [name for name, p in inspect.signature(optimize).parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY]


def _options_of(method: type[Method]) -> list[str]:
    return [*(option.name for option in fields(method)), *_SETTINGS, *ONCE_OF_ALL]


@renaming(**_RENAMED)
@accepting(*_options_of(GradInit))
def gradinit(model: nn.Module, batches: Iterable[Any], loss_fn: LossFunction | None = None, **options: Any) -> Result:
    """GradInit: learn one scale per parameter tensor so that the optimizer's first step lowers the loss, in place.

    ``optimize(model, batches, loss_fn, method=GradInit(...))``: :class:`initopt.methods.GradInit` says what it does.

    Args:
        model: the model; only its parameter values change.
        batches: as for :func:`initopt.optimize`, each of half of the batch size that you are going to train with.
        loss_fn: as for :func:`initopt.measure`.
        **options: those of :class:`initopt.methods.GradInit` and the settings of :func:`initopt.optimize`.

    >>> import torch, initopt
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    >>> batches = [(torch.randn(16, 8), torch.randint(3, (16,))) for _ in range(30)]
    >>> result = initopt.gradinit(model, batches, steps=20, measure_batches=2)
    >>> result.history[0].constrained, len(result.scales)
    (False, 4)
    """
    return optimize(model, batches, loss_fn, "gradinit", **options)


@renaming(**_RENAMED)
@accepting(*_options_of(MetaInit))
def metainit(model: nn.Module, batches: Iterable[Any], loss_fn: LossFunction | None = None, **options: Any) -> Result:
    """MetaInit: learn one scale per parameter tensor so that the gradient changes little along itself, in place.

    ``optimize(model, batches, loss_fn, method=MetaInit(...))``: :class:`initopt.methods.MetaInit` says what it does.

    Args:
        model: the model; only its parameter values change.
        batches: as for :func:`initopt.optimize`.
        loss_fn: as for :func:`initopt.measure`.
        **options: those of :class:`initopt.methods.MetaInit` and the settings of :func:`initopt.optimize`.

    Raises:
        LossError: if the batches do not go with ``inputs="random"``.

    >>> import torch, initopt
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    >>> batches = [(torch.randn(32, 8), torch.randint(3, (32,)))]
    >>> result = initopt.metainit(model, batches, steps=20, measure_batches=0)
    >>> result.history[-1].objective < result.history[0].objective
    True
    """
    return optimize(model, batches, loss_fn, "metainit", **options)


@renaming(**_RENAMED)
@accepting(*_options_of(LSUV))
def lsuv(model: nn.Module, batches: Iterable[Any], loss_fn: LossFunction | None = None, **options: Any) -> Result:
    """LSUV: orthogonal weights, scaled layer by layer to outputs of unit variance, in place.

    ``optimize(model, batches, loss_fn, method=LSUV(...))``: :class:`initopt.methods.LSUV` says what it does.

    Args:
        model: the model; only its parameter values change.
        batches: as for :func:`initopt.optimize`; large batches are better.
        loss_fn: as for :func:`initopt.measure`; it runs the model.
        **options: those of :class:`initopt.methods.LSUV` and the settings of :func:`initopt.optimize`.

    Returns:
        As :func:`initopt.optimize`; the history has a :class:`initopt.LayerRecord` per layer.

    Raises:
        ValueError: if there is no layer.

    Warns:
        InitoptWarning: that names the layers that were left alone, and those that ``max_iterations`` were not enough for.

    >>> import torch, initopt
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    >>> batches = [(torch.randn(64, 8), torch.randint(3, (64,)))]
    >>> result = initopt.lsuv(model, batches, seed=0, measure_batches=0)
    >>> [record.layer for record in result.history if 0.9 <= record.variance_after <= 1.1]
    ['0', '2']
    """
    return optimize(model, batches, loss_fn, "lsuv", **options)
