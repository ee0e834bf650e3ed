"""The entry point that measures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from initopt._support.checks import accepting, check_integer, renaming
from initopt._support.errors import LoaderError, ZeroGradientError, located, warn
from initopt._support.progress import Progress, reporter
from initopt.batches.stream import BatchStream, check_batches, length_of
from initopt.batches.subbatches import BatchNorm, Split
from initopt.engines import Engine, create_engine
from initopt.engines.first_batch import Unreached
from initopt.gram import functional
from initopt.gram.measurement import NOT_ASKED_FOR, Measurement
from initopt.methods import Measuring
from initopt.model.centring import Centre, check_centre
from initopt.model.group import ranks_of
from initopt.model.losses import LossFunction, as_loss
from initopt.model.modes import measuring
from initopt.model.outputs import Outputs, look
from initopt.model.parameters import ParameterFilter, Parameters
from initopt.model.preserve import Kept, unwritten
from initopt.model.problem import Batch, Problem
from initopt.model.randomness import derive_seed
from initopt.model.ranks import ProcessGroup, Share
from initopt.model.wrappers import bare
from initopt.runs.shared import compare_ranks, examine_all, in_step, weights_at_hand, windows_of_all

__all__ = ["measure", "measure_batches"]


@renaming(steps="num_batches")
@accepting()
def measure(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFunction | None = None,
    *,
    num_batches: int | None = None,
    num_subbatches: int = 4,
    overlap: float = 0.0,
    split: Split = "cyclic",
    batch_norm: BatchNorm = "subbatch",
    grad_params: ParameterFilter | None = None,
    engine: str = "auto",
    train_mode: bool = False,
    microbatch: int | None = None,
    memory_budget: float | None = None,
    centre: Centre | None = "output",
    seed: int | None = None,
    progress: Progress = None,
    process_group: ProcessGroup = "auto",
    share: Share = "union",
) -> Measurement:
    r"""Measure how well the gradients of different samples agree, without changing the model.

    Each batch is split into D sub-batches; GradCosine is the mean cosine similarity of their gradients (arXiv 2210.05956,
    section 3). With ``num_subbatches`` equal to the batch size it is the sample-wise GradCosine of the paper.

    Args:
        model: the model; afterwards it is as it was, also after an exception.
        batches: an iterable of batches. A batch is a nest of tensors that share their first dimension, the samples.
        loss_fn: ``None`` (cross-entropy of an (inputs, targets) batch, or the ``.loss`` that the model returns for a dict
            batch), a criterion module, called as ``criterion(model(inputs), targets)``, or a function of
            ``(model, batch)`` that returns a scalar mean or one loss per sample.
        num_batches: how many batches to measure; all of them, once, if not given. Fewer batches than this are cycled, with
            a warning, since then the standard errors are too small.
        num_subbatches: D, the number of sub-batches that each batch is split into, 2 to the batch size.
        overlap: share by which sub-batches overlap, in [0, 1). Shared samples raise GradCosine.
        split: ``"cyclic"``, equal windows, or ``"published"``, those of the published code
            (:class:`initopt.batches.subbatches.SubBatches`).
        batch_norm: ``"subbatch"``: batch norms use the statistics of each sub-batch; ``"batch"``: of the whole batch, as
            the published code does. Running statistics are neither used nor changed.
        grad_params: a function of (qualified name, parameter, owning module) that says which parameters make up the
            gradient; all that train, by default.
        engine: how gradients are computed: ``"auto"``, ``"exact"`` or a name in :data:`initopt.engines.ENGINES`.
        train_mode: run the model wholly in training mode, dropout included. By default, everything that only adds noise
            is off. What the model draws at random is the same each time it sees the same sub-batch, in either case.
        microbatch: most samples of a sub-batch to run at a time, whose gradients are accumulated: for sub-batches that do
            not fit into memory. Whole sub-batches by default. Where memory runs out, it is halved, with a warning. Needs a
            loss that is a mean over samples, and no batch norm on the statistics of the sub-batch.
        memory_budget: bytes that ``engine="auto"`` may take beside the model and the batch; by default, what is free.
        centre: ``"output"`` measures centred gradients, too, which leave out what a bias of the model's outputs would take
            care of, and so show whether samples agree on more than that (:mod:`initopt.model.centring`). ``None`` does not,
            for half the cost.
        seed: base of the seeds for what the model itself draws; follows from torch's random state if not given.
        progress: whether to show a progress bar; by default, if standard error is a terminal.
        process_group: the processes that measure together, each with its own part of the batches, when the call is made on
            all of them: see :func:`initopt.optimize`.
        share: ``"union"``: each batch is that of all processes together; ``"average"``: each process measures its own
            batches, and the result is of all of these.

    Returns:
        Means over the batches with standard errors, and the Gram matrices.

    Raises:
        ValueError, TypeError: for arguments that cannot work; the message says what is allowed.
        NonFiniteError: if a loss or gradient is not finite.
        ZeroGradientError: if all gradients of a batch are zero.

    >>> import torch, initopt
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    >>> batches = [(torch.randn(32, 8), torch.randint(3, (32,))) for _ in range(10)]
    >>> found = initopt.measure(model, batches)
    >>> -1 <= found.grad_cosine <= 1 and found.num_batches == 10
    True
    """
    if num_batches is not None:
        num_batches = check_integer("num_batches", num_batches, 1)
    how = Measuring(
        num_subbatches=num_subbatches,
        overlap=overlap,
        split=split,
        batch_norm=batch_norm,
        grad_params=grad_params,
        engine=engine,
        microbatch=microbatch,
        memory_budget=memory_budget,
    )
    check_centre(centre)
    check_batches(batches)
    own_seed = None if seed is None else check_integer("seed", seed, 0)
    ranks, model = ranks_of(model, process_group, share), bare(model)
    options = {"num_batches": num_batches, "train_mode": train_mode, "centre": centre, "seed": own_seed}
    with ranks.together(), weights_at_hand(model, ranks, how, loss_fn) as (_, passes):
        parameters = Parameters.of(model, grad_params=grad_params, in_parts=passes is not None)
        loss = as_loss(loss_fn)
        total = length_of(batches) if num_batches is None else num_batches
        stream = BatchStream(batches, num_batches) if num_batches is not None else None

        def work(kept: Kept) -> Measurement:
            compare_ranks(ranks, model, parameters, options | vars(how), batches)
            seed = ranks.broadcast(derive_seed(own_seed), "the seed")
            problem = Problem(model, loss, parameters, how.subbatches(), seed, state=kept.state, ranks=ranks, shards=passes)
            chosen = create_engine(engine, problem, how.memory_budget)
            shown = progress if ranks.leads else False
            with measuring(model, train_mode), reporter(shown, "measuring", total) as report:
                taken = batches if stream is None else stream
                found = measure_batches(
                    chosen, taken, report, first=True, centred=centre is not None, memory_budget=how.memory_budget
                )
            ranks.end()
            return found

        found = unwritten(model, work, loss_fn, batches)
    if stream is not None and stream.cycled:
        warn(
            f"there are fewer than num_batches={num_batches} different batches, so some were measured again and the "
            "standard errors are too small"
        )
    return found


def measure_batches(
    engine: Engine,
    batches: Iterable[Any],
    report: Any = None,
    first: bool = False,
    *,
    centred: bool = True,
    memory_budget: float | None = None,
) -> Measurement:
    """Measure every batch with an engine, its model being in measuring mode.

    Args:
        engine: the engine.
        batches: as the user gave them.
        report: is called with each Gram matrix.
        first: whether the model is run here for the first time, so that the first batch is looked at more closely.
        centred: whether to measure centred gradients, too.
        memory_budget: bytes that this closer look may take; by default, what is free.

    Raises:
        LoaderError: if there is no batch.
    """
    problem = engine.problem
    grams, small, big = [], [], []
    centred_grams: list[Tensor] = []
    outputs: list[Outputs] = []
    unreached: Unreached | None = None
    ranks = problem.ranks
    for index, data in enumerate(in_step(ranks, batches)):
        with located(f"batch {index} of the measurement"):
            batch = problem.prepare(data, index)
            if first and index == 0:
                _, unreached = examine_all(problem, data, second=False, memory_budget=memory_budget)
            grams.append(engine.evaluate(batch, differentiate=False).gram)
            problem.settle(batch, engine.microbatch)
            outputs.append(look(problem, batch, engine.microbatch))
            if centred and problem.centring.active:
                centred_grams.append(_centred_gram(engine, replace(batch, centred=True)))
        windows = windows_of_all(ranks, batch.windows)
        small.append(windows.small_batch)
        big.append(windows.big_batch)
        if report is not None:
            report(_figures(grams[-1]))
    if not grams:
        raise LoaderError("batches is empty: iterating over it gave no batch, and at least one is needed")
    if ranks.size > 1 and not ranks.union:
        of_each = ranks.gather((grams, small, big, centred_grams, outputs), "what was measured")
        grams, small, big, centred_grams, outputs = (list(itertools.chain(*parts)) for parts in zip(*of_each, strict=True))
    return Measurement.from_grams(
        grams,
        small,
        big,
        engine.name,
        centred=centred_grams,
        losses=[found.loss for found in outputs],
        spreads=[found.spread for found in outputs if not math.isnan(found.spread)],
        uncentred=problem.centring.off if centred else NOT_ASKED_FOR,
        unreached=None if unreached is None else str(unreached),
    )


def _centred_gram(engine: Engine, batch: Batch) -> Tensor:
    """The Gram matrix of centred gradients; zero in a network that ignores its input."""
    try:
        return engine.evaluate(batch, differentiate=False).gram
    except ZeroGradientError:
        return torch.zeros(len(batch.windows), len(batch.windows), dtype=torch.float64, device="cpu")


def _figures(gram: Tensor) -> str:
    cosine, norm = float(functional.grad_cosine(gram)), float(functional.grad_norm(gram))
    return f"GradCosine {cosine:+.3f}  gradient norm {norm:.3g}"
