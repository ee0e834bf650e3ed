"""What GradInit and MetaInit differentiate, on the gallery, against plain autograd and central differences."""

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

ETA = 0.05
CASES = [name for name, entry in ENTRIES.items() if entry.double_backward]
JOINABLE = [name for name in CASES if name != "matrix_products"]
"""Without one that works for batches of one size only."""

WITHOUT_THIRD_DERIVATIVE = {"transposed_convolution": "output_padding is not supported for non-transposed"}
"""Where torch fails (seen in 2.13), and with what."""


def derivatives_of(method: str, entry: Entry, batches: list[Any], **options: Any) -> tuple[dict[str, float], Tensor]:
    """<dW_k, W_k> as a run has it in its first step, by name."""
    model, found = entry.model(), []

    def keep(self: scales_run.ScalesRun, along_weights: Tensor, kind: str = "objective") -> None:
        found.append((list(self.scales()), along_weights, kind))

    with patch.object(scales_run.ScalesRun, "descend", keep):
        result = initopt.optimize(
            model, batches, entry.loss_fn(), method=method, steps=1, seed=SEED, train_mode=entry.train_mode,
            measure_steps=0, **options,
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


NORMS: dict[str, Callable[[list[Tensor | None]], Tensor]] = {
    "sgd": lambda gradient: torch.stack([g.square().sum() for g in gradient if g is not None]).sum().sqrt(),
    "adam": lambda gradient: torch.stack([g.abs().sum() for g in gradient if g is not None]).sum(),
}


@pytest.mark.gallery
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", JOINABLE)
def test_gradinit_constraint(name: str, optimizer: str) -> None:
    entry = ENTRIES[name]
    batches = [entry.batch(seed) for seed in (1, 2, 3)]
    found, record = derivatives_of("gradinit", entry, batches, optimizer=optimizer, max_grad_norm=1e-12)
    assert record.constrained
    definition, batch = Definition(entry), joined(*batches[:2])
    norm = NORMS[optimizer](definition.gradient(batch, 0, 0, create_graph=True))
    assert record.grad_norm == pytest.approx(float(norm.detach()), rel=1e-10)
    assert_close(found, definition.along(norm), 1e-9)
    if entry.conservative and optimizer == "sgd":
        central = definition.central(lambda: float(NORMS[optimizer](definition.gradient(batch, 0, 0))))
        assert_close(found, central, 1e-6)


@pytest.mark.gallery
@pytest.mark.parametrize(
    ("optimizer", "normalize", "fresh"), [("sgd", True, False), ("sgd", False, True), ("adam", True, False)]
)
@pytest.mark.parametrize("name", JOINABLE)
def test_gradinit_objective(name: str, optimizer: str, normalize: bool, fresh: bool) -> None:
    entry = ENTRIES[name]
    batches = [entry.batch(seed) for seed in (1, 2, 3, 4)]
    options = {"optimizer": optimizer, "normalize_grad": normalize, "fresh_second_batch": fresh, "max_grad_norm": 1e9}
    found, record = derivatives_of("gradinit", entry, batches, eta=ETA, **options)
    assert not record.constrained

    definition = Definition(entry)
    gradient = definition.gradient(joined(*batches[:2]), 0, 0)
    length = 1.0
    if optimizer == "sgd" and normalize:
        length = float(NORMS["sgd"](gradient))
    direction = [None if g is None else g.sign() if optimizer == "adam" else g / length for g in gradient]
    second = joined(batches[3 if fresh else 0], batches[2])
    parameters = list(definition.named.values())

    def objective() -> Tensor:
        """With the weights moved by what is added here, and nowhere else."""
        with torch.no_grad():
            kept = [p.clone() for p in parameters]
            for p, u in zip(parameters, direction, strict=True):
                if u is not None:
                    as_real(p).sub_(u, alpha=ETA)
        try:
            with fresh_buffers(definition.model):
                value = definition.loss(second, 0, 1) / ETA
                slopes = torch.autograd.grad(value, parameters, materialize_grads=True, allow_unused=True)
        finally:
            with torch.no_grad():
                for p, k in zip(parameters, kept, strict=True):
                    p.copy_(k)
        objective.slopes = slopes  # type: ignore[attr-defined]
        return value.detach()

    value = objective()
    assert record.objective == pytest.approx(float(value), rel=1e-10)
    slopes = objective.slopes  # type: ignore[attr-defined]
    expected = along(definition.named, slopes)
    if not any(p._backward_hooks for p in parameters):
        assert_close(found, expected, 1e-9)
    if entry.conservative:
        assert_close(found, definition.central(lambda: float(objective())), 1e-6)


THIRD_DERIVATIVE_WRONG_IN_TORCH = {"sparse_embedding"}


def quotient_of(definition: Definition, gradient: list[Tensor | None], eps: float) -> Tensor:
    half = torch.stack([g.square().sum() for g in gradient if g is not None]).sum() / 2
    products = torch.autograd.grad(half, definition.values, create_graph=True, materialize_grads=True, allow_unused=True)
    total, count = torch.zeros(()), 0
    for g, product in zip(gradient, products, strict=True):
        if g is not None:
            sign = 2 * (g.detach() >= 0).float() - 1
            total = total + ((g - as_real(product.to_dense())) / (g + eps * sign) - 1).abs().sum()
            count += g.numel()
    return total / count


@pytest.mark.gallery
@pytest.mark.parametrize(
    "name", [name for name in CASES if name not in {*WITHOUT_THIRD_DERIVATIVE, *THIRD_DERIVATIVE_WRONG_IN_TORCH}]
)
def test_metainit(name: str) -> None:
    entry = ENTRIES[name]
    batch = entry.batch()
    eps = 1e-3
    found, record = derivatives_of("metainit", entry, [batch], quotient_eps=eps, norms="fused")
    definition = Definition(entry)

    value = quotient_of(definition, definition.gradient(batch, 0, create_graph=True), eps)
    assert record.objective == pytest.approx(float(value.detach()), rel=1e-8)
    assert_close(found, definition.along(value), 1e-8)


@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        "tied_embedding_and_output",
        "causal_attention",
        "complex_weight",
        "batch_norm_1d",
        "batch_norm_2d",
        "batch_norm_residual",
        "batch_norm_frozen",
        "layer_norm",
        "instance_norm",
        "encoder_post_norm",
        "language_model",
    ],
)
def test_metainit_by_central_differences(name: str) -> None:
    entry = ENTRIES[name]
    batch, eps = entry.batch(), 0.1
    found, _ = derivatives_of("metainit", entry, [batch], quotient_eps=eps)
    definition = Definition(entry)

    def quotient() -> float:
        gradient = definition.gradient(batch, 0, create_graph=True)
        return float(quotient_of(definition, gradient, eps).detach())

    # A short step: the quotient jumps where an entry of the gradient changes its sign.
    assert_close(found, definition.central(quotient, smooth=False), 1e-5)


@pytest.mark.parametrize("name", WITHOUT_THIRD_DERIVATIVE)
def test_a_failing_third_derivative_is_explained(name: str) -> None:
    with pytest.raises(RuntimeError, match=WITHOUT_THIRD_DERIVATIVE[name]) as caught:
        derivatives_of("metainit", ENTRIES[name], [ENTRIES[name].batch()])
    assert any("third derivative" in note for note in caught.value.__notes__)
