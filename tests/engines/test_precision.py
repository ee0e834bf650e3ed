"""Lower precision and other memory formats: the same derivatives, as far as the precision goes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import initopt
from initopt.engines import ENGINES
from initopt.model.modes import measuring
from initopt.model.preserve import preserved
from tests.helpers import Batch, make_problem


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3, stride=2), nn.GELU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 4),
    )  # fmt: skip


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(32, 3, 8, 8, generator=generator), torch.randint(4, (32,), generator=generator)


def evaluate(
    model: nn.Module, engine: str, data: Batch | None = None, loss_fn: object = None, count: int = 4
) -> tuple[Tensor, Tensor]:
    """The Gram matrix, and the derivatives of GradCosine along every tensor."""
    with preserved(model), measuring(model):
        problem = make_problem(model, loss_fn, num_subbatches=count)
        evaluation = ENGINES[engine](problem).evaluate(problem.prepare(data or batch(), 0), differentiate=True)
        gram = evaluation.gram.requires_grad_()
        (derivative,) = torch.autograd.grad(initopt.functional.grad_cosine(gram), gram)
        return gram.detach(), evaluation.scale_derivatives(derivative)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def autocast_loss(model: nn.Module, data: Batch) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return nn.functional.cross_entropy(model(data[0]), data[1], reduction="none")


@pytest.mark.parametrize("engine", ["graph", "recompute", "plain", "groups", "differences"])
def test_autocast_inside_the_loss(engine: str) -> None:
    expected_gram, expected = evaluate(network(), "plain")
    if engine == "groups":  # its operations are not those of autocast: refused, never wrong
        with pytest.raises(NotImplementedError):
            evaluate(network(), engine, loss_fn=autocast_loss)
        return
    gram, derivatives = evaluate(network(), engine, loss_fn=autocast_loss)
    assert gram.dtype == torch.float64
    assert relative(gram, expected_gram) < 0.05
    # Differences of bfloat16 gradients are mostly rounding error; the engine says so itself (error_estimate).
    assert relative(derivatives, expected) < (0.1 if engine != "differences" else 3.0)


@pytest.mark.parametrize("engine", ["graph", "recompute", "plain", "groups"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float32, 1e-4)])
def test_parameters_in_lower_precision(engine: str, dtype: torch.dtype, tolerance: float) -> None:
    inputs, targets = batch()
    double = network().to(dtype).double()
    expected_gram, expected = evaluate(double, "plain", (inputs.to(dtype).double(), targets))
    gram, derivatives = evaluate(network().to(dtype), engine, (inputs.to(dtype), targets))
    assert relative(gram, expected_gram) < tolerance
    assert relative(derivatives, expected) < tolerance


@pytest.mark.parametrize("engine", ["graph", "recompute", "groups"])
def test_channels_last(engine: str) -> None:
    inputs, targets = batch()
    model = network().double().to(memory_format=torch.channels_last)
    data = (inputs.double().to(memory_format=torch.channels_last), targets)
    expected_gram, expected = evaluate(network().double(), "plain", (inputs.double(), targets))
    gram, derivatives = evaluate(model, engine, data)
    assert relative(gram, expected_gram) < 1e-12
    assert relative(derivatives, expected) < 1e-9
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_run_in_bfloat16_moves_the_weights() -> None:
    model = network().to(torch.bfloat16)
    inputs, targets = batch()
    result = initopt.nio(model, [(inputs.bfloat16(), targets)] * 4, steps=6, measure_batches=1, lr=0.05)
    assert {value.dtype for value in result.weights.values()} == {torch.bfloat16}
    assert result.before is not None
    assert result.after is not None
    assert result.after.grad_norm > result.before.grad_norm
