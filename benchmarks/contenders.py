"""What is timed: a plain training step, a NIO step by every engine, and one the published way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from cases import Case
from networks import NETWORKS, build
from published import losses_of_samples, published_step
from torch import Tensor, nn
from torch.nn import functional as F

from initopt import objectives
from initopt.batches.subbatches import SubBatches
from initopt.engines import ENGINES, Engine
from initopt.model.losses import as_loss
from initopt.model.modes import measuring
from initopt.model.parameters import Parameters
from initopt.model.preserve import preserved
from initopt.model.problem import Problem

__all__ = [
    "OBJECTIVE",
    "PUBLISHED",
    "TRAINING",
    "Contender",
    "Step",
    "contender",
    "contender_names",
    "make_problem",
    "model_and_batch",
]

TRAINING = "training step"
PUBLISHED = "published"
OBJECTIVE = "cosine+norm"

Step = Callable[[], Any]
Contender = Callable[[], AbstractContextManager[Step]]
"""Brings the model into the state for its steps, and out of it again."""


def make_problem(model: nn.Module, case: Case, num_subbatches: int | None = None) -> Problem:
    """What the steps of a case work on."""
    loss = as_loss(None if case.precision == "float32" else _loss_in_bf16)
    count = num_subbatches or case.num_subbatches
    subbatches = SubBatches(count=count, overlap=case.overlap, batch_norm=case.batch_norm)  # type: ignore[arg-type]
    return Problem(model, loss, Parameters.of(model), subbatches, seed=0)


def contender_names(case: Case) -> list[str]:
    """The training step, every engine that does not refuse, and the published way where it computes the same thing.

    The published way normalizes by the statistics of the whole batch.
    """
    problem = make_problem(nn.Linear(1, 1), case)
    engines = [name for name, engine in ENGINES.items() if engine.refusal(problem) is None]
    differs = case.batch_norm == "subbatch" and NETWORKS[case.network].coupled
    return [TRAINING, *engines, *([] if differs else [PUBLISHED])]


def contender(name: str, case: Case, model: nn.Module, data: Any, *, num_subbatches: int | None = None) -> Contender:
    """A contender of a name.

    Args:
        name: one of ``contender_names(case)``.
        case: what is measured.
        model: its network.
        data: a batch for it, on its device.
        num_subbatches: in the place of the case's, to warm up with.
    """
    if name == TRAINING:
        return lambda: _training(model, data, case)
    problem = make_problem(model, case, num_subbatches)
    objective = objectives.get(OBJECTIVE)
    if name == PUBLISHED:
        return lambda: _measured(model, lambda: _published(case, problem, data, objective))
    engine = ENGINES[name](problem)
    return lambda: _measured(model, lambda: _engine_step(engine, data, objective))


def _engine_step(engine: Engine, data: Any, objective: objectives.Objective) -> Tensor:
    evaluation = engine.evaluate(engine.problem.prepare(data, 0), differentiate=True)
    gram = evaluation.gram.requires_grad_()
    (gram_derivative,) = torch.autograd.grad(objective(gram), gram)
    return evaluation.scale_derivatives(gram_derivative)


def _published(case: Case, problem: Problem, data: Any, objective: objectives.Objective) -> tuple[Tensor, Tensor]:
    with _autocast(case, problem.device):
        return published_step(problem, problem.prepare(data, 0), objective)


def _autocast(case: Case, device: torch.device) -> AbstractContextManager[Any]:
    return nullcontext() if case.precision == "float32" else torch.autocast(device.type, torch.bfloat16)


def _loss_in_bf16(model: nn.Module, batch: Any) -> Tensor:
    with torch.autocast(batch[0].device.type, torch.bfloat16):
        return losses_of_samples(model, *batch)


@contextmanager
def _measured(model: nn.Module, step: Step) -> Iterator[Step]:
    with preserved(model), measuring(model):
        yield step


@contextmanager
def _training(model: nn.Module, data: Any, case: Case) -> Iterator[Step]:
    """Forward and backward on the whole batch, by whatever kernels training takes; no optimizer."""
    inputs, targets = data
    was_training = model.training
    model.train()

    def step() -> None:
        with _autocast(case, targets.device):
            loss = F.cross_entropy(model(inputs).movedim(-1, 1), targets)
        loss.backward()

    try:
        yield step
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)


def model_and_batch(case: Case, device: str) -> tuple[nn.Module, Any]:
    """The network of a case and a batch for it."""
    model = build(case.network, device)
    inputs, targets = (tensor.to(device) for tensor in NETWORKS[case.network].batch(case.batch_size))
    if case.channels_last:
        model, inputs = model.to(memory_format=torch.channels_last), inputs.to(memory_format=torch.channels_last)
    return model, (inputs, targets)
