"""What an optimizer's first step is predicted to take off the loss, and its derivatives, against plain differences."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import initopt
from initopt._gallery.truth import differences_along, gradients, plain_operations, prepared, trained
from initopt.engines import create_engine
from initopt.engines.gradients import mean_gradient
from initopt.methods import NIO
from initopt.methods._first_step import FirstStep
from initopt.methods.base import Training
from initopt.model.modes import measuring
from initopt.model.preserve import preserved
from initopt.testing import ENTRIES, INDEX, Entry, relative_error
from tests.helpers import make_batches, make_model

SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
WAYS: dict[str, tuple[Any, float | None]] = {
    "sgd": (partial(SGD, lr=0.1), None),
    "sgd with momentum": (partial(SGD, lr=0.1, momentum=0.9, dampening=0.5), None),
    "nesterov": (partial(SGD, lr=0.1, momentum=0.9, nesterov=True), None),
    "sgd with decay": (partial(SGD, lr=0.1, weight_decay=0.3), None),
    "sgd clipped": (partial(SGD, lr=0.1), 0.01),
    "adam": (partial(ADAM, lr=0.01), None),
    "adam with a large eps": (partial(ADAM, lr=0.01, eps=0.01), None),
    "adamw with decay": (partial(ADAMW, lr=0.01, weight_decay=0.5), None),
    "adamw clipped": (partial(ADAMW, lr=0.01), 0.01),
    "rmsprop": (partial(torch.optim.RMSprop, lr=0.01), None),
    "adagrad": (partial(torch.optim.Adagrad, lr=0.01), None),
    "adamax": (partial(torch.optim.Adamax, lr=0.01), None),
    "groups with rates of their own": (lambda p: SGD([{"params": p[:1], "lr": 1.0}, {"params": p[1:]}], lr=0.1), None),
}


def plain_decrease(optimizer: Any, clip: float | None, values: list[Tensor], slopes: list[Tensor]) -> float:
    """<g, W - W'> after one step of an optimizer on copies."""
    copies = [nn.Parameter(value.detach().clone()) for value in values]
    for copy, slope in zip(copies, slopes, strict=True):
        copy.grad = slope.detach().reshape(copy.shape).clone()
    if clip is not None:
        nn.utils.clip_grad_norm_(copies, clip)
    optimizer(copies).step()
    moved = zip(values, copies, slopes, strict=True)
    return float(sum(((v - c).detach().flatten() * g.detach().flatten()).sum() for v, c, g in moved))


def expected(entry: Entry, batch_norm: str, optimizer: Any, clip: float | None) -> tuple[float, dict[str, float]]:
    """The decrease, and central differences of it along the scale of each tensor."""
    model, batch = prepared(entry)
    named = trained(model)

    def values() -> dict[str, float]:
        rows = gradients(entry, model, batch, batch_norm, create_graph=False)
        mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        return {"decrease": plain_decrease(optimizer, clip, list(named.values()), mean)}

    with plain_operations():
        slopes = differences_along(named, values, smooth=False)
        return values()["decrease"], {name: found["decrease"] for name, found in slopes.items()}


def found(entry: Entry, batch_norm: str, optimizer: Any, clip: float | None) -> tuple[float, dict[str, float]]:
    model = entry.model()
    problem = entry.problem(model, batch_norm)
    values = [p.value for p in problem.grad_params]
    with preserved(model), measuring(model, entry.train_mode):
        batch = problem.prepare(entry.batch(), INDEX)
        first = FirstStep(Training(optimizer=optimizer, clip_grad_norm=clip), problem)
        _, gradient = mean_gradient(problem, batch, values, None)
        decrease = first.differentiated(gradient)
        assert first.value(gradient) == pytest.approx(decrease.value, rel=1e-12)
        evaluation = create_engine("auto", problem).evaluate(batch, differentiate=True)
        vectors = [None if v is None else v / len(evaluation.gram) for v in decrease.vectors]
        slopes = evaluation.vector_derivatives([vectors] * len(evaluation.gram)) + decrease.along_weights
    return decrease.value, dict(zip((p.name for p in problem.scale_params), slopes.tolist(), strict=True))


@pytest.mark.gallery
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["mlp", "tied_layers", "batch_norm_residual"])
def test_value_and_derivatives(name: str, way: str) -> None:
    for batch_norm in ENTRIES[name].modes:
        value, slopes = found(ENTRIES[name], batch_norm, *WAYS[way])
        wanted, differences = expected(ENTRIES[name], batch_norm, *WAYS[way])
        assert value == pytest.approx(wanted, rel=1e-9)
        assert list(slopes) == list(differences)
        both = (torch.tensor(list(each.values()), dtype=torch.float64) for each in (slopes, differences))
        assert relative_error(*both) < (1e-3 if way == "adamw clipped" else 1e-5)  # which is not quite a potential's


def test_of_sgd_and_adam_it_is_the_norm_that_the_books_have() -> None:
    model = make_model()
    loss = nn.functional.cross_entropy(model(make_batches()[0][0]), make_batches()[0][1])
    slopes = torch.autograd.grad(loss, list(model.parameters()))
    whole = torch.cat([g.flatten() for g in slopes])
    problem = ENTRIES["mlp"].problem(model, "subbatch")

    def decrease(optimizer: Any, clip: float | None = None) -> float:
        return FirstStep(Training(optimizer=optimizer, clip_grad_norm=clip), problem).value(slopes)

    assert decrease(partial(SGD, lr=0.1, momentum=0.9)) == pytest.approx(0.1 * float(whole.square().sum()), rel=1e-5)
    assert decrease(partial(SGD, lr=0.1), clip=1e-3) == pytest.approx(1e-4 * float(whole.norm()), rel=1e-4)
    assert decrease(partial(ADAMW, lr=0.1, eps=1e-16, weight_decay=0)) == pytest.approx(
        0.1 * float(whole.abs().sum()), rel=1e-5
    )


class TestBoundOfTheOptimizer:
    def run(self, **options: Any) -> Any:
        settings: dict[str, Any] = {"steps": 40, "measure_batches": 2, "seed": 0, "on_harm": "warn", "trial_steps": 0}
        settings |= {"optimizer": partial(SGD, lr=0.1), "max_decrease": 0.05}
        return initopt.nio(make_model(), make_batches(), **settings | options)

    def test_it_is_kept(self) -> None:
        history = self.run().history
        assert any(record.constrained for record in history)
        assert all(record.predicted_decrease < 1.5 * 0.05 for record in history[-10:])
        assert all(record.constrained == (record.predicted_decrease > 0.05) for record in history)

    @pytest.mark.heavy
    def test_a_lower_rate_leaves_room_for_larger_gradients(self) -> None:
        norms = [self.run(optimizer=partial(SGD, lr=lr)).history[-1].grad_norm for lr in (0.3, 0.03)]
        assert norms[1] > 1.5 * norms[0]

    @pytest.mark.heavy
    def test_a_resumed_run_is_the_same(self, tmp_path: Any) -> None:
        unbroken = self.run()
        self.run(steps=20, checkpoint=tmp_path / "at")
        assert self.run(checkpoint=tmp_path / "at").scales == unbroken.scales

    @pytest.mark.heavy
    def test_it_is_drawn(self) -> None:
        titles = [axes.get_title(loc="left") for axes in self.run().plot().axes]
        assert "predicted decrease / loss" in titles

    @pytest.mark.heavy
    def test_without_it_the_optimizer_changes_no_step(self) -> None:
        assert self.run(max_decrease=None).scales == self.run(max_decrease=None, optimizer=None).scales

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"max_decrease": 0.5}, "max_decrease is about the training, and needs its optimizer"),
            ({"max_decrease": 0.0, "optimizer": partial(SGD, lr=0.1)}, "max_decrease must be a number above 0"),
        ],
    )
    def test_what_is_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            NIO(**options)

    def test_a_loss_that_may_be_negative_has_no_shares(self) -> None:
        def loss(model: nn.Module, batch: Any) -> Tensor:
            return nn.functional.cross_entropy(model(batch[0]), batch[1]) - 10

        with pytest.raises(ValueError, match=r"max_decrease is a share of the loss, which is -\d.*max_grad_norm"):
            initopt.nio(
                make_model(), make_batches(), loss, steps=2, optimizer=partial(SGD, lr=0.1), max_decrease=1.0,
                allow_trained=True,
            )  # fmt: skip
