"""The entry points that run a method."""

from __future__ import annotations

import os
import platform
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from initopt._version import __version__
from initopt.checkpoint import Checkpoint, loader_generators
from initopt.checks import check_integer
from initopt.engines import create_engine
from initopt.losses import LossFunction, as_loss
from initopt.measure import measure_batches
from initopt.measurement import Measurement
from initopt.methods import Method, create_method
from initopt.modes import measuring
from initopt.objectives import Objective
from initopt.parameters import ParameterFilter, trainable_parameters
from initopt.preserve import Originals, preserved
from initopt.problem import BatchNorm, Problem, Split
from initopt.progress import Progress, reporter
from initopt.randomness import RandomState, derive_seed
from initopt.result import Result, StepRecord
from initopt.storage import plain
from initopt.stream import BatchStream, check_batches
from initopt.where import located

__all__ = ["nio", "optimize"]

Callback = Callable[[StepRecord], object]
"""Is called with the record of each step when the step is done."""


def optimize(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFunction | None = None,
    *,
    method: str | Method = "nio",
    measure_steps: int = 10,
    seed: int | None = None,
    progress: Progress = None,
    callbacks: Iterable[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 10,
    **options: Any,
) -> Result:
    """Improve the initial weights of a model with any method, in place.

    Args:
        model: the model; only its parameter values change. After an exception, Ctrl-C or SIGTERM they are as before.
        batches: an iterable of batches, as for :func:`initopt.measure`. The steps take them in their order. One that can
            be iterated over again and is shorter than the steps is cycled.
        loss_fn: as for :func:`initopt.measure`.
        method: a name in :data:`initopt.methods.METHODS`, or a :class:`initopt.methods.Method` with its options.
        measure_steps: how many batches to hold back from the steps and measure on, with the original and with the new
            weights: those after the last one that a step takes. They are kept in memory meanwhile. 0 measures nothing.
        seed: base of the seeds for what the model itself draws (dropout in ``train_mode``, sampling layers); follows from
            torch's random state if not given.
        progress: whether to show a progress bar; by default, if standard error is a terminal.
        callbacks: functions that are called with the :class:`initopt.StepRecord` of each step.
        checkpoint: a file into which the state is written; a call that finds it goes on from there, with the loader
            played again from its start, and ends in the same scales as an unbroken run. It stays when the run is done,
            and a later call with more ``steps`` goes on.
        checkpoint_every: steps between two checkpoints; the end always makes one.
        **options: the options of the method.

    Returns:
        The history, the scales, the weights, and the measurements.

    Raises:
        ValueError, TypeError: for arguments that cannot work, before any work; the message says what is allowed.
        LoaderError: if the batches run out.
        LossError: if the loss function returns no loss.
        MismatchError: if the checkpoint belongs to another run.
        NonFiniteError: if a loss or gradient is not finite; the message names step and parameter.
        ZeroGradientError: if all gradients of a batch are zero.

    Warns:
        UserWarning: if an engine chosen by itself has to go over to another one, with the operator that is the reason.

    >>> import torch, initopt
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    >>> batches = [(torch.randn(32, 8), torch.randint(3, (32,))) for _ in range(10)]
    >>> result = initopt.optimize(model, batches, method="nio", steps=20, measure_steps=2)
    >>> list(result.scales)
    ['0.weight', '0.bias', '2.weight', '2.bias']
    """
    chosen = create_method(method, options)
    check_integer("measure_steps", measure_steps, 0)
    check_integer("checkpoint_every", checkpoint_every, 1)
    if seed is not None:
        check_integer("seed", seed, 0)
    callbacks = tuple(callbacks)
    for callback in callbacks:
        if not callable(callback):
            raise TypeError(f"a callback is a function of a step record; got {type(callback).__name__}")
    check_batches(batches)
    as_loss(loss_fn)
    names = {p.value: p.name for p in trainable_parameters(model)}
    path = None if checkpoint is None else Path(checkpoint).absolute()
    shown_options = plain({field.name: getattr(chosen, field.name) for field in fields(chosen)})
    kept_options = {name: value for name, value in shown_options.items() if name != "steps"}

    begun = time.perf_counter()
    with preserved(model) as originals:
        previous = Checkpoint.read(path) if path is not None and path.exists() else None
        generators = loader_generators(batches)
        randomness = RandomState.now()
        generator_states = {name: generator.get_state() for name, generator in generators.items()}
        seed = derive_seed(seed)
        if previous is not None:
            shapes = {names[parameter]: value.shape for parameter, value in originals.items()}
            previous.refuse_unless_same(chosen.name, kept_options, shapes)
            originals = _resume_weights(previous, originals, names, chosen.steps, path)
            seed, randomness, generator_states = previous.seed, previous.randomness, previous.generators
            randomness.put_back()
            for name, generator in generators.items():
                generator.set_state(generator_states[name])

        problem = Problem.create(
            model,
            loss_fn,
            num_subbatches=chosen.num_subbatches,
            overlap=chosen.overlap,
            split=chosen.split,
            batch_norm=chosen.batch_norm,
            grad_params=chosen.grad_params,
            scale_params=chosen.scale_params,
            seed=seed,
        )
        engine = create_engine(chosen.engine, problem)
        run = chosen.start(problem, engine, originals)
        history: list[StepRecord] = []
        if previous is not None:
            history = list(previous.history)
            run.load_state(previous.state)
            begun -= previous.seconds

        def save() -> None:
            if path is not None:
                start = {names[parameter]: value for parameter, value in originals.items()}
                seconds = time.perf_counter() - begun
                Checkpoint(
                    chosen.name, kept_options, seed, seconds, history, start, run.state(), randomness, generator_states
                ).write(path)

        per_step = chosen.batches_per_step
        stream = BatchStream(batches, chosen.steps * per_step, measure_steps, skip=len(history) * per_step)
        with measuring(model, chosen.train_mode):
            with reporter(progress, chosen.name, chosen.steps, len(history)) as report:
                taken: list[Any] = []
                for data in stream:
                    taken.append(data)
                    if len(taken) < per_step:
                        continue
                    with located(f"step {len(history)}"):
                        record, gram = run.step(len(history), taken)
                    taken = []
                    history.append(record)
                    if len(history) % checkpoint_every == 0 or len(history) == chosen.steps:
                        save()
                    report(gram)
                    for callback in callbacks:
                        callback(record)
            before = after = None
            if measure_steps:
                # Both at the end, on batches that no step has seen: a stream has no others to give at the start.
                before, after = _measure_both(
                    replace(problem, overlap=0.0), chosen.engine, originals, stream.held, progress
                )
        weights = {name: parameter.detach().to("cpu", copy=True) for parameter, name in names.items()}
        scales = run.scales()
    return Result(
        method=chosen.name,
        options=shown_options | {"measure_steps": measure_steps, "seed": seed},
        history=history,
        scales=scales,
        before=before,
        after=after,
        seconds=time.perf_counter() - begun,
        engine=engine.name,
        engine_reason=engine.reason,
        weights=weights,
        versions={"initopt": __version__, "torch": torch.__version__, "python": platform.python_version()},
    )


def _resume_weights(
    previous: Checkpoint, originals: Originals, names: dict[nn.Parameter, str], steps: int, path: Path | None
) -> Originals:
    """The original weights of a run that is resumed, in the place of the model's own."""
    stored = {p: previous.start[names[p]].to(device=value.device, dtype=value.dtype) for p, value in originals.items()}
    same = all(torch.equal(stored[parameter], value) for parameter, value in originals.items())
    if len(previous.history) > steps:
        raise ValueError(f"the checkpoint {path} is at step {len(previous.history)}, beyond steps={steps}; remove it")
    if not same and len(previous.history) == steps:
        raise ValueError(
            f"the checkpoint {path} holds a finished run that began from other weights than the model has; remove it, or "
            "choose another path for each run"
        )
    if not same:
        warnings.warn(
            f"going on from the checkpoint {path}, which began from other weights than the model has: those are replaced",
            stacklevel=3,
        )
    return stored


def _measure_both(
    problem: Problem, engine_name: str, originals: Originals, held: list[Any], progress: Progress
) -> tuple[Measurement, Measurement]:
    """Measure with the original and with the present weights on the same batches; the present ones stay."""
    engine = create_engine(engine_name, problem)
    with reporter(progress, "measuring", 2 * len(held)) as report, torch.no_grad():
        optimized = {parameter: parameter.detach().clone() for parameter in originals}
        for parameter, value in originals.items():
            parameter.copy_(value)
        with torch.enable_grad():
            before = measure_batches(engine, held, report)
        for parameter, value in optimized.items():
            parameter.copy_(value)
        with torch.enable_grad():
            after = measure_batches(engine, held, report)
    return before, after


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
    objective: str | Objective = "cosine+norm",
    norm_weight: float = 1.0,
    max_grad_norm: float = 5.0,
    lr: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    scale_grad_clip: float = 1.0,
    min_scale: float = 0.01,
    min_bias_scale: float = 0.0,
    scale_params: ParameterFilter | None = None,
    grad_params: ParameterFilter | None = None,
    engine: str = "auto",
    train_mode: bool = False,
    measure_steps: int = 10,
    seed: int | None = None,
    progress: Progress = None,
    callbacks: Iterable[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 10,
) -> Result:
    """Neural Initialization Optimization: learn one scale per parameter tensor, in place.

    In each step, if the mean gradient norm of the sub-batches exceeds ``max_grad_norm``, the scales move so as to lower
    it, otherwise so as to lower the objective (Yang, Wang, Yuan, Lin, NeurIPS 2022, arXiv 2210.05956, algorithm 1). The
    direction of every tensor stays; a tensor that is zero, frozen or without gradient is left alone; tied parameters are
    one tensor with one scale.

    Args:
        model: the model; only its parameter values change. After an exception, Ctrl-C or SIGTERM they are as before.
        batches: as for :func:`initopt.optimize`; the same batches as for training, 64 samples or more each.
        loss_fn: as for :func:`initopt.measure`.
        steps: number of steps.
        num_subbatches: D, the number of sub-batches that each batch is split into, 2 to the batch size.
        overlap: share by which sub-batches overlap, in [0, 1).
        split: ``"cyclic"``, equal windows, or ``"published"``, those of the published code.
        batch_norm: ``"subbatch"``: batch norms use the statistics of each sub-batch; ``"batch"``: of the whole batch.
        objective: what is minimized: a name in :data:`initopt.objectives.NAMES` or a function of a Gram matrix.
        norm_weight: w, the weight of the norm term in the objectives that have one.
        max_grad_norm: the bound gamma on the mean gradient norm of the sub-batches.
        lr: learning rate of the scales.
        betas: decay rates of the scale optimizer's moments.
        eps: added to its denominator.
        scale_grad_clip: bound on the derivative with respect to a scale.
        min_scale: least scale of a tensor.
        min_bias_scale: least scale of a bias (by its name).
        scale_params: a function of (qualified name, parameter, owning module) that says which tensors get a scale; all
            that train, by default.
        grad_params: the same, for the parameters whose gradients are compared.
        engine: how derivatives are computed: ``"auto"``, ``"exact"`` or a name in :data:`initopt.engines.ENGINES`.
        train_mode: run the model wholly in training mode, dropout included; by default, everything that only adds noise
            is off.
        measure_steps: how many batches to hold back and measure on, before and after; see :func:`initopt.optimize`.
        seed: base of the seeds for what the model itself draws.
        progress: whether to show a progress bar; by default, if standard error is a terminal.
        callbacks: functions that are called with the record of each step.
        checkpoint: a file to which the state is written and from which a killed run goes on.
        checkpoint_every: steps between two checkpoints.

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
        steps=steps,
        num_subbatches=num_subbatches,
        overlap=overlap,
        split=split,
        batch_norm=batch_norm,
        objective=objective,
        norm_weight=norm_weight,
        max_grad_norm=max_grad_norm,
        lr=lr,
        betas=betas,
        eps=eps,
        scale_grad_clip=scale_grad_clip,
        min_scale=min_scale,
        min_bias_scale=min_bias_scale,
        scale_params=scale_params,
        grad_params=grad_params,
        engine=engine,
        train_mode=train_mode,
    )
