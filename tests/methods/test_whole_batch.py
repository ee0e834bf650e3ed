"""Runs of GradInit and MetaInit: what they take, leave, refuse and say."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initopt
from initopt.methods import GradInit
from tests.gallery import ENTRIES, SEED
from tests.helpers import Batch, make_batches, make_model, values

Method = Callable[..., initopt.Result]
both = pytest.mark.parametrize("method", [initopt.gradinit, initopt.metainit], ids=["gradinit", "metainit"])
RUNNABLE = [name for name, entry in ENTRIES.items() if entry.double_backward and name != "matrix_products"]


def run(method: Method, model: nn.Module, batches: Any, loss_fn: Any = None, **options: Any) -> initopt.Result:
    return method(model, batches, loss_fn, **{"steps": 3, "measure_batches": 0, "seed": SEED, **options})


@both
@pytest.mark.parametrize("name", RUNNABLE)
def test_a_run_changes_nothing_but_the_scales(method: Method, name: str) -> None:
    if name == "transposed_convolution" and method is initopt.metainit:
        pytest.skip("torch has no third derivative of it")
    entry = ENTRIES[name]
    model, batch = entry.model(), entry.batch()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    buffers = {n: (b, b.clone()) for n, b in model.named_buffers()}
    flags = [module.training for module in model.modules()]
    attributes = [set(vars(module)) for module in model.modules()]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    options = {"max_grad_norm": 0.1, "eta": 1e-3} if method is initopt.gradinit else {}
    result = run(method, model, [batch], entry.loss_fn(), steps=2, train_mode=entry.train_mode, **options)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == flags
    assert all(p.grad is None for p in model.parameters())
    for n, b in model.named_buffers():
        assert b is buffers[n][0]
        assert torch.equal(b, buffers[n][1]), n
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert list(result.scales) == [n for n, p in model.named_parameters() if p.requires_grad]
    for n, p in model.named_parameters():
        assert torch.equal(p, start[n] * result.scales.get(n, 1.0)), n
        if n in result.scales and not start[n].any():
            assert result.scales[n] == 1
    assert any(scale != 1 for scale in result.scales.values())


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


def test_the_default_bounds() -> None:
    """1 for SGD and none for Adam, whose 1-norm is far above 1."""
    batches = make_batches()
    sgd = run(initopt.gradinit, make_model(), batches, eta=0.1)
    assert [record.constrained for record in sgd.history] == [record.grad_norm > 1 for record in sgd.history]
    adam = run(initopt.gradinit, make_model(), batches, optimizer="adam", eta=1e-3)
    assert all(record.grad_norm > 1 and not record.constrained for record in adam.history)


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


def refuses(method: Method, options: dict[str, Any], message: str) -> None:
    model = make_model()
    before = values(model)
    with pytest.raises(ValueError, match=message):
        run(method, model, make_batches(), **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": "noise"}, "unknown inputs 'noise'; known are 'data', 'random'"),
        ({"norms": "fast"}, "unknown norms 'fast'; known are 'exact', 'fused'"),
        ({"quotient_eps": 0}, "quotient_eps must be a number above 0; got 0"),
    ],
)
def test_bad_options_of_metainit(options: dict[str, Any], message: str) -> None:
    refuses(initopt.metainit, options, message)


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


def test_a_step_of_the_optimizer_that_goes_too_far() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    before = values(model)
    with pytest.raises(
        initopt.NonFiniteError, match=r"in step 0: after the optimizer's step, the loss is (nan|inf); try a small"
    ):
        run(initopt.gradinit, model, make_batches(), eta=1e38, max_grad_norm=1e9)
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


def test_random_inputs() -> None:
    """Normal, others in each step, the same for the same seed; the data's own values do not matter, their targets do."""
    batches = make_batches(4)
    seen: list[Tensor] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        seen.append(batch[0].clone())
        return F.cross_entropy(model(batch[0]), batch[1])

    one = run(initopt.metainit, make_model(), batches, loss, inputs="random")
    other = run(initopt.metainit, make_model(), [(x + 100, t) for x, t in batches], loss, inputs="random")
    assert one.scales == other.scales
    half = len(seen) // 2
    steps = seen[half - 3 : half]  # after what is looked at on the first batch
    assert all(torch.equal(a, b) for a, b in zip(steps, seen[-3:], strict=True))
    drawn = torch.cat(steps)
    assert not torch.equal(steps[0], steps[1])
    assert abs(float(drawn.mean())) < 0.2
    assert float(drawn.std()) == pytest.approx(1, abs=0.15)
    assert run(initopt.metainit, make_model(), batches, inputs="random", seed=1).scales != one.scales
    shifted = [(x, (t + 1) % 3) for x, t in batches]
    assert run(initopt.metainit, make_model(), shifted, inputs="random").scales != one.scales


def test_batches_that_have_no_random_inputs() -> None:
    message = 'inputs="random" needs batches of the form .inputs, targets., of which it replaces the inputs; got dict'
    with pytest.raises(initopt.LossError, match=message):
        run(initopt.metainit, make_model(), [{"x": torch.randn(4, 6)}], inputs="random")
    with pytest.raises(initopt.LossError, match='draws normal inputs, but inputs is torch.int64; use inputs="data"'):
        run(initopt.metainit, nn.Embedding(5, 3), [(torch.tensor([1, 2]), torch.tensor([0, 1]))], inputs="random")


def test_exact_norms_differ_where_there_are_norms_only() -> None:
    batches = make_batches()
    for model, same in ((make_model, False), (lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), True)):
        torch.manual_seed(0)
        one = run(initopt.metainit, model(), batches)
        torch.manual_seed(0)
        other = run(initopt.metainit, model(), batches, norms="fused")
        assert (one.scales == other.scales) == same
    assert torch.batch_norm.__module__ != "initopt.model.double_backward"


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
