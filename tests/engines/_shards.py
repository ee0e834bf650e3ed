"""What tests of models in parts share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from initopt.engines.auto import create_engine
from initopt.methods import Measuring
from initopt.methods.nio import NIO
from initopt.model.losses import as_loss
from initopt.model.modes import measuring
from initopt.model.parameters import Parameters
from initopt.model.preserve import preserved
from initopt.model.problem import Problem
from initopt.model.ranks import Ranks
from initopt.runs.shared import weights_at_hand

COUNT = 3
"""Sub-batches of a batch."""

OPTIONS: dict[str, Any] = {
    "steps": 2,
    "overlap": 0.0,
    "num_subbatches": COUNT,
    "measure_batches": 1,
    "seed": 0,
    "diagnose": False,
}
"""Of a short run."""

LARGE: dict[str, Any] = OPTIONS | {"scale_grad_clip": 1e6, "on_harm": "warn"}
"""Of one with scales that move as far as they will."""


def derivatives(
    model: nn.Module, batch: Any, loss_fn: Any, ranks: Ranks, engine: str, microbatch: int | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Gram matrix of a batch and derivatives of a function of it, of whole and of centred gradients."""
    how = Measuring(num_subbatches=COUNT, engine=engine, microbatch=microbatch)
    found = {}
    with ranks.together(), weights_at_hand(model, ranks, how, loss_fn, NIO()) as (_, passes), preserved(model) as kept:
        parameters = Parameters.of(model, in_parts=passes is not None)
        problem = Problem(
            model, as_loss(loss_fn), parameters, how.subbatches(), 0, state=kept.state, ranks=ranks, shards=passes
        )
        with measuring(model):
            prepared = problem.prepare(batch, 0)
            problem.settle(prepared)
            at_work = create_engine(engine, problem)
            for centred in (False, True):
                evaluation = at_work.evaluate(replace(prepared, centred=centred), differentiate=True)
                by_gram = torch.arange(COUNT**2, dtype=torch.float64).cos().view(COUNT, COUNT)
                by_gram /= evaluation.gram.diagonal().mean()
                found["centred" if centred else "whole"] = evaluation.gram, evaluation.scale_derivatives(by_gram)
    return found
