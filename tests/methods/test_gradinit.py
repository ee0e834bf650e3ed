"""GradInit: its steps and its bounds, and what it differentiates, on the gallery."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import initopt
from initopt._gallery.truth import (
    along,
    as_real,
    fresh_buffers,
)
from initopt.methods import GradInit
from initopt.testing import ENTRIES, SEED
from tests.helpers import Batch, make_batches, make_model, values
from tests.methods._helpers import (
    JOINABLE,
    Definition,
    assert_close,
    derivatives_of,
    joined,
    refuses,
    right_second_derivatives,  # noqa: F401 - an autouse fixture
    run,
)


def test_the_default_bounds() -> None:
    """1 for SGD and none for Adam, whose 1-norm is far above 1."""
    batches = make_batches()
    sgd = run(initopt.gradinit, make_model(), batches, eta=0.1)
    assert [record.constrained for record in sgd.history] == [record.grad_norm > 1 for record in sgd.history]
    adam = run(initopt.gradinit, make_model(), batches, optimizer="adam", eta=1e-3)
    assert all(record.grad_norm > 1 and not record.constrained for record in adam.history)


@pytest.mark.heavy
def test_how_many_batches_steps_take() -> None:
    """Two if constrained, three if free, four with a fresh second batch; those held back are the next ones."""
    for options, expected in (
        ({"max_grad_norm": 1e-9}, 2),
        ({"max_grad_norm": 1e9}, 3),
        ({"max_grad_norm": 1e9, "fresh_second_batch": True}, 4),
    ):
        given = 0

        def stream() -> Any:
            nonlocal given
            for batch in make_batches(40):
                given += 1
                yield batch

        result = run(initopt.gradinit, make_model(), stream(), steps=3, measure_batches=2, **options)
        assert given == 3 * expected + 2
        own = initopt.measure(make_model(), make_batches(40)[3 * expected : 3 * expected + 2], seed=SEED)
        assert result.before.grad_norm == pytest.approx(own.grad_norm)
        method = GradInit(**options)
        assert method.batches_taken(result.history) == 3 * expected
    with pytest.raises(initopt.LoaderError, match="ended after 5 of the 11 that are needed"):
        run(initopt.gradinit, make_model(), iter(make_batches(5)), max_grad_norm=1e9, measure_batches=2)


def mixed_bound(batches: list[Batch]) -> float:
    norms = sorted(r.grad_norm for r in run(initopt.gradinit, make_model(), batches, steps=9, max_grad_norm=1e9).history)
    return 0.98 * norms[4]


@pytest.mark.heavy
def test_a_killed_run_goes_on_at_the_right_batch(tmp_path: Any) -> None:
    """Though how many batches a step takes depends on what it finds."""
    batches = make_batches(30)
    options: dict[str, Any] = {
        "steps": 10,
        "max_grad_norm": mixed_bound(batches),
        "measure_batches": 3,
        "checkpoint_every": 1,
    }
    expected = run(initopt.gradinit, make_model(), batches, **options)
    assert 2 <= sum(record.constrained for record in expected.history) <= 8
    for last in (2, 5, 8):
        path = tmp_path / str(last)

        def stop(record: Any, last: int = last) -> None:
            if record.step == last:
                raise KeyboardInterrupt

        model = make_model()
        before = values(model)
        with pytest.raises(KeyboardInterrupt):
            run(initopt.gradinit, model, batches, checkpoint=path, callbacks=stop, **options)
        assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())
        found = run(initopt.gradinit, model, batches, checkpoint=path, **options)
        assert found.scales == expected.scales
        assert [r.objective for r in found.history] == [r.objective for r in expected.history]
        assert found.after.grad_norm == expected.after.grad_norm
        again = run(initopt.gradinit, make_model(), batches, checkpoint=path, **options)  # finished
        assert again.after.grad_norm == expected.after.grad_norm
    with pytest.raises(initopt.MismatchError, match="eta was 0.1 and is 0.2"):
        run(initopt.gradinit, make_model(), batches, checkpoint=path, **options, eta=0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 0}, "eta must be a number above 0; got 0"),
        ({"eta": math.inf}, "eta must be a finite number above 0; got inf"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion'; known are 'sgd', 'adam'"),
        ({"normalize_grad": "yes"}, "normalize_grad must be True or False; got 'yes'"),
        ({"fresh_second_batch": 1}, "fresh_second_batch must be True or False; got 1"),
        ({"max_grad_norm": 0}, "max_grad_norm must be a number above 0; got 0"),
    ],
)
def test_bad_options_of_gradinit(options: dict[str, Any], message: str) -> None:
    refuses(initopt.gradinit, options, message)


def test_a_step_of_the_optimizer_that_goes_too_far() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    before = values(model)
    with pytest.raises(
        initopt.NonFiniteError, match=r"in step 0: after the optimizer's step, the loss is (nan|inf); try a small"
    ):
        run(initopt.gradinit, model, make_batches(), eta=1e38, max_grad_norm=1e9)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


ETA = 0.05


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
