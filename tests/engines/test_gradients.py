"""Gradients are taken without accumulating them, and hooks on them act once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import initopt
from initopt.engines import ENGINES
from initopt.model.modes import measuring
from initopt.model.preserve import preserved
from tests.helpers import Batch, make_batches, make_problem
from tests.quick import doubled, exact, plain_model, quick


def stepping() -> tuple[nn.Sequential, list[int]]:
    """A model that trains itself as soon as somebody calls ``backward()``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizers = {p: torch.optim.SGD([p], lr=0.5) for p in model.parameters()}
    calls: list[int] = []

    def step(parameter: nn.Parameter) -> None:
        calls.append(1)
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    return model, calls


@pytest.mark.gallery
@pytest.mark.parametrize("engine", ["auto", "groups", "graph", "recompute", "differences"])
@pytest.mark.parametrize("run", ["measure", "nio", "lsuv", "gradinit", "metainit"])
def test_no_call_fires_a_hook_on_accumulated_gradients(run: str, engine: str) -> None:
    model, calls = stepping()
    before = [p.detach().clone() for p in model.parameters()]
    options: dict[str, Any] = {"engine": engine, "seed": 0}
    if run == "measure":
        initopt.measure(model, make_batches(), **options)
        assert all(torch.equal(p, value) for p, value in zip(model.parameters(), before, strict=True))
    else:
        how = options if run == "nio" else {"seed": 0, "measuring": initopt.Measuring(engine=engine)}
        getattr(initopt, run)(model, make_batches(), steps=2, measure_batches=1, **how)
    assert calls == []


def test_the_check_of_groups_sees_user_hooks_on_gradients() -> None:
    """As every other gradient: the engines' own have gone through them, too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 6, sparse=True), nn.Flatten(), nn.Linear(12, 3))
    seen: list[Tensor] = []
    model[2].weight.register_hook(lambda g: seen.append(g) or 0.5 * g)
    batches = [(torch.randint(9, (16, 2)), torch.randint(3, (16,))) for _ in range(3)]
    grams = [initopt.measure(model, batches, engine=engine, seed=0).gram for engine in ("auto", "plain")]
    torch.testing.assert_close(*grams, rtol=1e-4, atol=1e-6)
    assert seen


@exact
@pytest.mark.parametrize("where", ["weight", "bias"])
@pytest.mark.parametrize(
    "hook", [lambda g: g * 0.1, lambda g: g.clamp(-0.01, 0.01), lambda g: 10 * g * g], ids=["scale", "clamp", "square"]
)
def test_gradient_hooks_act_once(engine: str, where: str, hook: Any) -> None:
    model = plain_model()
    handle = getattr(model[0], where).register_hook(hook)
    batch = doubled(make_batches(1))[0]
    (central, found) = central_and_found(model, batch, engine)
    torch.testing.assert_close(found, central, rtol=1e-6, atol=1e-9)
    assert getattr(model[0], where)._backward_hooks
    handle.remove()


def central_and_found(model: nn.Module, batch: Batch, engine: str) -> tuple[Tensor, Tensor]:
    """The derivative of GradCosine along every tensor, by central differences and by an engine."""
    with preserved(model), measuring(model):
        problem = make_problem(model)
        chosen = ENGINES[engine](problem)

        def gram() -> Tensor:
            return chosen.evaluate(problem.prepare(batch, 0), differentiate=False).gram

        slopes = []
        for parameter in model.parameters():
            kept, ends = parameter.detach().clone(), []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter.copy_(kept * (1 + step))
                ends.append(initopt.functional.grad_cosine(gram()))
            with torch.no_grad():
                parameter.copy_(kept)
            slopes.append((ends[0] - ends[1]) / 2e-5)
        evaluation = chosen.evaluate(problem.prepare(batch, 0), differentiate=True)
        matrix = evaluation.gram.requires_grad_()
        (derivative,) = torch.autograd.grad(initopt.functional.grad_cosine(matrix), matrix)
        return torch.stack(slopes), evaluation.scale_derivatives(derivative)


def test_differences_refuse_gradient_hooks() -> None:
    model = plain_model()
    model[0].weight.register_hook(lambda g: g * 2)
    with pytest.raises(ValueError, match=r"parameter '0\.weight' has a gradient hook"):
        quick(model, doubled(make_batches()), engine="differences")
