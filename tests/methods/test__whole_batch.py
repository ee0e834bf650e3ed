"""What GradInit and MetaInit have in common: what they take, leave, refuse and say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initopt
from initopt.methods import GradInit, MetaInit
from initopt.testing import Entry, check_method
from tests.helpers import make_batches, make_model, values
from tests.methods._helpers import RESUMED, RUNNABLE, Method, both, refuses, run


@both
@pytest.mark.gallery
@pytest.mark.parametrize("name", RUNNABLE)
def test_a_run_changes_nothing_but_the_scales(method: Method, name: str) -> None:
    def chosen(entry: Entry) -> Any:
        if method is initopt.gradinit:
            return GradInit(steps=2, max_grad_norm=0.1, eta=1e-3, train_mode=entry.train_mode)
        return MetaInit(steps=2, train_mode=entry.train_mode)

    beyond = {"transposed_convolution": "output_padding"} if method is initopt.metainit else None
    changed = check_method(chosen, [name], resume=name in RESUMED, beyond=beyond)
    assert changed == (beyond is None or name not in beyond)


def test_each_lowers_what_it_minimizes() -> None:
    batches = make_batches(1, size=64)
    quotients = [record.objective for record in run(initopt.metainit, make_model(), batches, steps=30, lr=0.03).history]
    assert quotients[-1] < quotients[0]
    free = run(initopt.gradinit, make_model(), batches, steps=30, lr=0.03, max_grad_norm=math.inf).history
    assert free[-1].objective < free[0].objective
    bound = 0.5 * free[0].grad_norm
    held = run(initopt.gradinit, make_model(), batches, steps=60, lr=0.03, max_grad_norm=bound).history
    assert held[0].constrained
    assert not all(record.constrained for record in held)
    assert all((record.objective is None) == record.constrained for record in held)


@both
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be an integer of 1 or more; got 0"),
        ({"lr": 0}, "lr must be a number above 0; got 0"),
        ({"betas": 0.9}, r"betas must be a pair of numbers in \[0, 1\); got 0.9"),
        ({"min_scale": 2}, "min_scale must be a number 0 or more and 1 or less; got 2"),
        ({"scheme": "he"}, "unknown scheme 'he'; known are 'default'"),
        ({"scale_params": lambda *_: False}, "scale_params matches none"),
    ],
)
def test_bad_options(method: Method, options: dict[str, Any], message: str) -> None:
    refuses(method, options, message)


def test_batches_that_cannot_be_joined() -> None:
    x, t = torch.randn(8, 6), torch.randint(3, (8,))
    for others, message in (
        ([(torch.randn(8, 7), t)], r"in one, batch\[0\] is torch.float32 \(8, 6\), in another torch.float32 \(8, 7\); pad"),
        ([(x.double(), t)], r"in another torch.float64 \(8, 6\)"),
        ([{"x": x, "y": t}], r"one has batch\[0\], batch\[1\], another batch\['x'\], batch\['y'\]"),
    ):
        with pytest.raises(ValueError, match=f"batches cannot be joined: .*{message}"):
            run(initopt.gradinit, make_model(), [(x, t), *others])


def test_batches_of_any_form_are_joined() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x: Tensor, labels: Tensor, names: list[str], mode: str) -> dict[str, Tensor]:
            seen.append((len(x), names, mode))
            return {"loss": F.cross_entropy(self.layer(x[..., 0]), labels)}

    def batch(start: int, size: int) -> dict[str, Any]:
        names = [str(i) for i in range(start, start + size)]
        return {"x": torch.randn(size, 6, 1), "labels": torch.randint(3, (size,)), "names": names, "mode": "fast"}

    seen: list[Any] = []
    run(initopt.gradinit, Model(), [batch(0, 3), batch(3, 2), batch(5, 4)], steps=1, max_grad_norm=1e9)
    assert seen == [(5, list("01234"), "fast"), (7, list("0125678"), "fast")]


@both
def test_what_is_not_finite_is_named(method: Method) -> None:
    batches = make_batches()
    bad = [(torch.full_like(batches[0][0], math.nan), batches[0][1]), *batches]
    model = make_model()
    before = values(model)
    with pytest.raises(initopt.NonFiniteError, match="in step 0: the loss is nan"):
        run(method, model, bad)
    with pytest.raises(
        initopt.NonFiniteError, match="in step 0: the gradient is not finite for parameter '0.weight', '0.bias'"
    ):
        run(method, model, batches, lambda m, b: (F.cross_entropy(m(b[0]), b[1]) * 0).sqrt())
    with pytest.raises(initopt.ZeroGradientError, match="in step 0: the gradient is exactly zero"):
        run(method, model, batches, lambda m, b: 0.0 * m(b[0]).sum())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Distances(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, self.centres)


def test_a_missing_second_derivative_is_said_where_it_is_needed() -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), Distances(), nn.Linear(8, 3))

    for method, options in ((initopt.gradinit, {"max_grad_norm": 1e-9}), (initopt.metainit, {})):
        with pytest.raises(RuntimeError, match="is not implemented") as caught:
            run(method, model(), make_batches(size=8), **options)
        notes = " ".join(caught.value.__notes__)
        assert "_cdist_backward has no second derivative, which this method needs; nio can do without" in notes
    free = run(initopt.gradinit, model(), make_batches(size=8), max_grad_norm=1e9)
    assert any(scale != 1 for scale in free.scales.values())


@both
def test_results_are_stored_and_drawn(method: Method, tmp_path: Any) -> None:
    result = run(method, make_model(), make_batches(), measure_batches=2, steps=4)
    result.save(tmp_path / "out")
    loaded = initopt.Result.load(tmp_path / "out")
    assert loaded.history == result.history
    assert loaded.scales == result.scales
    assert all(record.grad_cosine is None and record.grad_variance is None for record in loaded.history)
    table = loaded.to_dataframe()
    assert table["grad_norm"].tolist() == [record.grad_norm for record in result.history]
    axes = loaded.plot().axes
    assert [a.get_title(loc="left") for a in axes[:2]] == ["objective", "gradient norm"]


@both
def test_tied_frozen_and_chosen_tensors(method: Method) -> None:
    model = make_model()
    model[6].weight.requires_grad_(False)
    chosen = run(
        method, model, make_batches(), scale_params=lambda n, p, m: p.ndim > 1, grad_params=lambda n, p, m: "0." in n
    )
    assert list(chosen.scales) == ["0.weight", "4.weight"]


def test_autocast_and_single_precision_agree_with_double() -> None:
    batches = [(x.double(), t) for x, t in make_batches()]
    for method in (initopt.gradinit, initopt.metainit):
        expected = run(method, make_model().double(), batches, steps=1)
        single = run(method, make_model(), make_batches(), steps=1)
        assert single.history[0].grad_norm == pytest.approx(expected.history[0].grad_norm, rel=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            low = run(method, make_model(), make_batches(), steps=1)
        assert low.history[0].grad_norm == pytest.approx(expected.history[0].grad_norm, rel=0.1)


@pytest.mark.heavy
def test_progress_shows_the_figures_of_each_kind_of_record(capsys: pytest.CaptureFixture[str]) -> None:
    for method, figure in (
        (initopt.gradinit, "objective "),
        (initopt.metainit, "gradient norm"),
        (initopt.lsuv, "variance"),
    ):
        options = {} if method is initopt.lsuv else {"steps": 2}
        method(make_model(), make_batches(), measure_batches=2, progress=True, **options)
        shown = capsys.readouterr().err
        assert figure in shown
        assert "GradCosine" in shown  # of the measurements
