"""What is common to engines, and the choice between them; each engine has a file of its own for its numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from initopt import functional
from initopt.engines import ENGINES, create_engine
from initopt.model.modes import measuring
from initopt.model.preserve import preserved
from initopt.model.problem import Problem
from initopt.testing import ENTRIES, evaluate
from tests.engines._cases import Session, assert_close, engine_cases, engines_for, tolerance
from tests.helpers import make_problem

SMALL = ["mlp", "batch_norm_2d", "tied_embedding_and_output", "counter_buffer", "noise_in_any_mode"]
SMALL_CASES = [case for case in engine_cases() if case[0] in SMALL]


def problem_of(model: nn.Module, **options: Any) -> Problem:
    return make_problem(model, **{"num_subbatches": 3, **options})


def batch_of(size: int = 12, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(size, 6, generator=generator, dtype=torch.float64).to(dtype)
    return inputs, torch.randint(4, (size,), generator=generator)


def derivative_of(evaluation: Any, phi: Any = functional.grad_cosine) -> Tensor:
    gram = evaluation.gram.requires_grad_()
    return evaluation.scale_derivatives(torch.autograd.grad(phi(gram), gram)[0])


@pytest.mark.parametrize("mode", ["subbatch", "batch"])
def test_every_problem_has_an_engine(mode: str) -> None:
    problem = problem_of(ENTRIES["mlp"].model(), batch_norm=mode)
    working = engines_for(problem)
    assert working
    for name in ("auto", "exact"):
        assert create_engine(name, problem).name in working
    for name in working:
        engine = create_engine(name, problem)
        assert (engine.name, engine.problem) == (name, problem)


@pytest.mark.parametrize("mode", ["subbatch", "batch"])
def test_an_engine_that_cannot_work_says_why(mode: str) -> None:
    problem = problem_of(ENTRIES["mlp"].model(), batch_norm=mode)
    refusing = set(ENGINES) - set(engines_for(problem))
    assert refusing
    for engine in refusing:
        with pytest.raises(ValueError, match=rf"engine '{engine}' cannot be used here: .*batch_norm.*engine=\"auto\""):
            create_engine(engine, problem)


def test_an_unknown_engine_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=rf"unknown engine 'fast'.*'auto'.*'{list(ENGINES)[-1]}'"):
        create_engine("fast", problem_of(ENTRIES["mlp"].model()))


@pytest.mark.parametrize(("name", "mode", "engine"), SMALL_CASES)
def test_evaluating_twice_gives_the_same(name: str, mode: str, engine: str) -> None:
    """Also with the derivative in between, and where buffers are written to or noise is drawn."""
    session = Session(name, mode, engine)
    with preserved(session.model), measuring(session.model):
        first = session.evaluate()
        gram = first.gram.clone()
        derivative = derivative_of(first)
        torch.rand(3)
        second = session.evaluate()
        torch.testing.assert_close(second.gram, gram, rtol=1e-13, atol=0)
        torch.testing.assert_close(derivative_of(second), derivative, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize(("name", "mode", "engine"), SMALL_CASES)
def test_an_evaluation_leaves_weights_gradients_and_random_state_alone(name: str, mode: str, engine: str) -> None:
    session = Session(name, mode, engine)
    weights = {n: p.detach().clone() for n, p in session.model.named_parameters()}
    with measuring(session.model):
        state = torch.get_rng_state()
        derivative_of(session.evaluate())
        assert torch.equal(torch.get_rng_state(), state)
    for n, parameter in session.model.named_parameters():
        assert torch.equal(parameter, weights[n])
        assert parameter.grad is None


@pytest.mark.parametrize(("mode", "engine"), [(mode, engine) for name, mode, engine in engine_cases() if name == "mlp"])
def test_only_the_chosen_parameters_make_up_the_gradient(mode: str, engine: str) -> None:
    """K is a sum over parameters, and the derivative goes to every scale, also of one that is not in the gradient."""
    batch = batch_of()

    def evaluate(**filters: Any) -> tuple[Tensor, Tensor, list[str]]:
        problem = problem_of(ENTRIES["mlp"].model(), batch_norm=mode, **filters)
        evaluation = ENGINES[engine](problem).evaluate(problem.prepare(batch, 0), True)
        names = [p.name for p in problem.scale_params]
        return evaluation.gram.clone(), derivative_of(evaluation, lambda gram: gram[0, 0] + gram[0, 1]), names

    everything, derivatives, names = evaluate()
    weights_gram, of_weights, _ = evaluate(grad_params=lambda name, *_: name.endswith("weight"))
    biases_gram, of_biases, _ = evaluate(grad_params=lambda name, *_: name.endswith("bias"))
    allowed = tolerance(engine)
    assert_close(weights_gram + biases_gram, everything, 1e-10, "gram")
    assert_close(of_weights + of_biases, derivatives, 3 * allowed, "derivatives")
    assert float(of_biases[names.index("0.weight")].abs()) > 0

    _, of_some, some = evaluate(scale_params=lambda name, *_: name.startswith("2"))
    assert some == ["2.weight", "2.bias"]
    assert_close(of_some, derivatives[[names.index(n) for n in some]], allowed, "some scales")


@pytest.mark.parametrize(("name", "mode", "engine"), [c for c in engine_cases() if c[0] == "unused_parameters"])
def test_a_parameter_that_the_loss_does_not_reach_has_a_zero_derivative(name: str, mode: str, engine: str) -> None:
    found = evaluate(engine, ENTRIES[name], mode, ["cosine"]).derivatives["cosine"]
    assert found["never"] == found["unused.weight"] == 0
    assert found["first.weight"] != 0


@pytest.mark.parametrize(("mode", "engine"), [(mode, engine) for name, mode, engine in engine_cases() if name == "mlp"])
def test_single_precision(mode: str, engine: str) -> None:
    model = ENTRIES["mlp"].model()
    found = []
    for dtype in (torch.float64, torch.float32):
        problem = problem_of(model.to(dtype), batch_norm=mode)
        evaluation = ENGINES[engine](problem).evaluate(problem.prepare(batch_of(dtype=dtype), 0), True)
        assert evaluation.gram.dtype == torch.float64
        found.append((evaluation.gram.clone(), derivative_of(evaluation)))
    (gram, derivative), (single_gram, single_derivative) = found
    assert single_derivative.dtype == torch.float64
    assert_close(single_gram, gram, 1e-5, "gram")
    assert_close(single_derivative, derivative, max(1e-4, 1e3 * tolerance(engine)), "derivative")


@pytest.mark.parametrize(("mode", "engine"), [(mode, engine) for name, mode, engine in engine_cases() if name == "mlp"])
def test_derivatives_of_numbers_that_depend_on_no_scale(mode: str, engine: str) -> None:
    """The loss is linear in its one scaled parameter, so the gradient does not depend on it."""

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.weight).sum(-1)

    model = Linear()
    problem = make_problem(model, lambda model, batch: model(batch[0]), num_subbatches=3, batch_norm=mode)
    batch = batch_of()
    evaluation = ENGINES[engine](problem).evaluate(problem.prepare(batch, 0), True)
    means = batch[0].unflatten(0, (3, 4)).mean(1)
    torch.testing.assert_close(evaluation.gram, means @ means.T)
    assert derivative_of(evaluation).tolist() == [0.0]
