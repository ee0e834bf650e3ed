"""Runs of GradInit and MetaInit, which both take the gradient of whole batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import initopt
from initopt._gallery.truth import (
    along,
    as_real,
    cross_entropy,
    differences_along,
    fresh_buffers,
    plain_operations,
    prepared,
    trained,
)
from initopt.methods import scales as scales_run
from initopt.model.randomness import seeded
from initopt.testing import ENTRIES, SEED, Entry
from tests.helpers import make_batches, make_model, values

Method = Callable[..., initopt.Result]


both = pytest.mark.parametrize("method", [initopt.gradinit, initopt.metainit], ids=["gradinit", "metainit"])


RUNNABLE = [name for name, entry in ENTRIES.items() if entry.double_backward and name != "matrix_products"]


RESUMED = {"mlp", "batch_norm_residual", "tied_embedding_and_output", "numpy_and_python_noise", "moving_average_buffer"}
"""Entries on which a run is also stopped and resumed: what takes longer on all."""


def run(method: Method, model: nn.Module, batches: Any, loss_fn: Any = None, **options: Any) -> initopt.Result:
    return method(model, batches, loss_fn, **{"steps": 3, "measure_batches": 0, "seed": SEED, **options})


def refuses(method: Method, options: dict[str, Any], message: str) -> None:
    model = make_model()
    before = values(model)
    with pytest.raises(ValueError, match=message):
        run(method, model, make_batches(), **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


CASES = [name for name, entry in ENTRIES.items() if entry.double_backward]


JOINABLE = [name for name in CASES if name != "matrix_products"]
"""Without one that works for batches of one size only."""


def derivatives_of(method: str, entry: Entry, batches: list[Any], **options: Any) -> tuple[dict[str, float], Tensor]:
    """<dW_k, W_k> as a run has it in its first step, by name."""
    model, found = entry.model(), []

    def keep(self: scales_run.ScalesRun, along_weights: Tensor, kind: str = "objective") -> None:
        found.append((list(self.scales()), along_weights, kind))

    with patch.object(scales_run.ScalesRun, "descend", keep):
        result = initopt.optimize(
            model, batches, entry.loss_fn(), method=method, steps=1, seed=SEED, train_mode=entry.train_mode,
            measure_batches=0, **options,
        )  # fmt: skip
    ((names, values, kind),) = found
    assert kind == ("constraint" if result.history[0].constrained else "objective")
    return dict(zip(names, values.tolist(), strict=True)), result.history[0]


class Definition:
    """A model of the gallery and the loss of whole batches."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.model, _ = prepared(entry)
        self.named = trained(self.model)
        self.values = list(self.named.values())

    def loss(self, batch: Any, *number: int) -> Tensor:
        loss_fn = self.entry.loss_fn()
        with seeded(SEED, *number):
            if loss_fn is None:
                return (
                    self.model(**batch).loss if isinstance(batch, dict) else cross_entropy(self.model(batch[0]), batch[1])
                )
            if isinstance(loss_fn, nn.Module):
                return loss_fn(self.model(batch[0]), batch[1])
            return loss_fn(self.model, batch).mean()

    def gradient(self, batch: Any, *number: int, create_graph: bool = False) -> list[Tensor | None]:
        with fresh_buffers(self.model):
            found = torch.autograd.grad(
                self.loss(batch, *number), self.values, create_graph=create_graph, allow_unused=True
            )
        return [None if g is None else as_real(g.to_dense()) for g in found]

    def along(self, value: Tensor) -> dict[str, float]:
        return along(self.named, torch.autograd.grad(value, self.values, materialize_grads=True, allow_unused=True))

    def central(self, function: Callable[[], float], smooth: bool | None = None) -> dict[str, float]:
        """Central differences with respect to the scale of each parameter."""
        smooth = self.entry.smooth if smooth is None else smooth
        slopes = differences_along(self.named, lambda: {"": function()}, smooth)
        return {name: values[""] for name, values in slopes.items()}


def joined(left: Any, right: Any) -> Any:
    if isinstance(left, Tensor):
        return torch.cat([left, right])
    if isinstance(left, dict):
        return type(left)({key: joined(left[key], right[key]) for key in left})
    return type(left)(joined(a, b) for a, b in zip(left, right, strict=True))


def assert_close(found: dict[str, float], expected: dict[str, float], tolerance: float) -> None:
    assert list(found) == list(expected)
    largest = max(abs(value) for value in expected.values())
    for name, value in expected.items():
        assert abs(found[name] - value) <= tolerance * largest + 1e-12, (name, found[name], value)


@pytest.fixture(autouse=True)
def right_second_derivatives() -> Iterator[None]:
    with plain_operations():
        yield
