"""What the first batch shows, before anything is made of a model's derivatives."""

from __future__ import annotations

import time
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initopt
from initopt.engines.first_batch import _compared, examine
from initopt.model.modes import measuring
from initopt.model.preserve import preserved
from tests.engines._tanh import TanhOnce
from tests.helpers import make_batches, make_model, make_problem


def network(middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), middle, nn.Linear(16, 3))


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_a_second_derivative_that_is_missing_without_a_word(dtype: torch.dtype | None) -> None:
    options: dict[str, Any] = {"steps": 4, "measure_batches": 0, "seed": 0}
    expected = initopt.nio(network(nn.Tanh()), make_batches(), **options)
    with pytest.warns(
        UserWarning, match=r"the second derivative of the model is not the derivative of its gradients .* by f"
    ):
        found = initopt.nio(network(TanhOnce(dtype=dtype)), make_batches(), **options)
    assert found.engine == "differences"
    assert found.scales == pytest.approx(expected.scales, rel=1e-3)
    with pytest.warns(UserWarning, match="'graph' takes it as it is; engine=\"differences\" does without"):
        assert initopt.nio(network(TanhOnce(dtype=dtype)), make_batches(), engine="graph", **options).engine == "graph"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        initopt.nio(network(TanhOnce(dtype=dtype)), make_batches(), engine="differences", **options)
        initopt.measure(network(TanhOnce(dtype=dtype)), make_batches())
        initopt.lsuv(network(TanhOnce(dtype=dtype)), make_batches(), measure_batches=0)


class Reversible(torch.autograd.Function):
    """Accumulates gradients itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: nn.Module) -> Tensor:
        ctx.block = block
        ctx.save_for_backward(x)
        with torch.no_grad():
            return x + block(x)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            torch.autograd.backward(ctx.block(leaf), slope)
        return slope + leaf.grad, None


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return Reversible.apply(x, self.layer)


@pytest.mark.gallery
@pytest.mark.parametrize("engine", ["auto", "graph", "groups", "differences"])
@pytest.mark.parametrize("run", ["measure", "nio", "metainit", "gradinit"])
def test_gradients_that_a_backward_pass_accumulates_itself_are_refused(run: str, engine: str) -> None:
    model = network(Block())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(
        RuntimeError, match=r"accumulates gradients by itself, those of parameter '1\.layer\.weight', '1\.la"
    ):
        how = {"engine": engine} if run in ("measure", "nio") else {"measuring": initopt.Measuring(engine=engine)}
        getattr(initopt, run)(model, make_batches(), **how)
    assert all((p.grad == 1).all() for p in model.parameters())
    found = initopt.measure(model, make_batches(), grad_params=lambda name, *_: name.startswith("2."), engine=engine)
    assert found.grad_norm > 0


class Noise(nn.Module):
    """Draws where nobody sees it."""

    def forward(self, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(time.perf_counter_ns() % 2**31)
        return x + torch.randn(x.shape, generator=generator)


@pytest.mark.parametrize("run", [initopt.measure, initopt.nio])
def test_two_equal_passes_that_differ_are_told(run: Any) -> None:
    with pytest.warns(
        UserWarning, match="two equal passes over the first sub-batch give the losses [0-9.]+ and [0-9.]+: the"
    ):
        run(network(Noise()), make_batches(), engine="recompute", **({"measure_batches": 0} if run is initopt.nio else {}))


def test_a_layer_that_takes_the_samples_for_time_is_told() -> None:
    class Last(nn.Module):
        def __init__(self, samples_first: bool) -> None:
            super().__init__()
            self.rnn, self.out, self.samples_first = nn.LSTM(6, 4), nn.Linear(4, 3), samples_first

        def forward(self, x: Tensor) -> Tensor:
            y = self.rnn(x.transpose(0, 1) if self.samples_first else x)[0]
            return self.out(y.transpose(0, 1) if self.samples_first else y)

    batches = [(torch.randn(20, 8, 6), torch.randint(3, (20, 8))) for _ in range(2)]
    with pytest.warns(
        UserWarning, match="'rnn', a LSTM with batch_first=False, takes the first dimension for time, and sub-"
    ):
        initopt.measure(Last(False), batches)
    initopt.measure(Last(True), batches)


class Passes(nn.Module):
    """Counts samples that go through it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = make_model()

    def forward(self, x: Tensor) -> Tensor:
        samples.append(len(x))
        return self.body(x)


samples: list[int] = []


def test_the_price_is_one_or_two_training_steps() -> None:
    model = Passes()
    batch = make_batches(1, size=64)[0]
    with preserved(model) as kept, measuring(model):
        problem = make_problem(model, state=kept.state)
        samples.clear()
        assert examine(problem, batch, second=False) == (None, None)
        assert sum(samples) == 2 * 16
        assert examine(problem, batch, second=True) == (None, None)
    assert sum(samples) <= 2 * 32 + 5 * 4 + 32


@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (lambda: network(nn.ReLU()), None),
        (lambda: network(nn.Hardsigmoid()), None),
        (lambda: network(nn.LayerNorm(16)), None),
        (lambda: network(nn.ReLU()).to(torch.bfloat16), lambda m, b: F.cross_entropy(m(b[0].bfloat16()).float(), b[1])),
        (lambda: network(Staircase())[1:], lambda m, b: F.cross_entropy(m(b[0].repeat(1, 3)[:, :16]), b[1])),
        (lambda: nn.Linear(6, 1), lambda m, b: m(b[0]).mean()),
    ],
    ids=["kinks", "plain kernels", "norm", "half precision", "staircase", "linear"],
)
def test_no_false_alarm(make: Any, loss: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        initopt.nio(make(), make_batches(), loss, steps=1, measure_batches=0, scale_invariant=True, centre=None)


class Staircase(nn.Module):
    """Quantized weights, with gradients as if they were not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        rounded = self.weight + ((self.weight * 8).round() / 8 - self.weight).detach()
        return torch.tanh(x @ rounded)


class InnerCasts(nn.Module):
    """As norms of language models do: single precision inside, whatever comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def test_no_false_alarm_where_single_precision_is_hard_coded() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        initopt.nio(network(nn.Sequential(InnerCasts(), nn.Tanh())), make_batches(), steps=1, measure_batches=0)


class Jump:
    """Directions in which a gradient jumps at the weights themselves: a difference over a step goes as one over it."""

    def exact(self) -> tuple[float, float]:
        return 1.8, 1.0

    def differences(self, step: float) -> tuple[float, float]:
        return 1.8 + 8e-6 / step, 1.8 + 8.1e-6 / step


class Wrong(Jump):
    """A second derivative that is not that of the gradients, at any step."""

    def differences(self, step: float) -> tuple[float, float]:
        return 9.9, 9.9


def test_no_false_alarm_beside_a_kink() -> None:
    assert _compared(Jump(), (1e-6,), 1e-3) is None
    assert "1.8 in place of 9.9" in _compared(Wrong(), (1e-6,), 1e-3)


class Branches(nn.Module):
    """Two residual branches, each behind a norm; as libraries have them, the norm may be zero at first."""

    def __init__(self, zero: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 12)
        self.inner = nn.ModuleList(nn.Linear(12, 12) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(12) for _ in range(2))
        self.head = nn.Linear(12, 3)
        if zero:
            for norm in self.norms:
                nn.init.zeros_(norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for inner, norm in zip(self.inner, self.norms, strict=True):
            x = x + norm(inner(x))
        return self.head(x)


class TestUnreached:
    def test_a_measurement_says_what_gets_no_gradient_and_why(self) -> None:
        torch.manual_seed(0)
        found = initopt.measure(Branches(zero=True), make_batches(2))
        inner = 2 * (12 * 12 + 12)
        total = sum(p.numel() for p in Branches(zero=True).parameters())
        assert found.unreached is not None
        assert found.unreached.startswith(f"4 tensors, {inner:,} of {total:,} parameters: inner.0.weight, inner.0.bias")
        assert "norms.0.weight, norms.1.weight are zero, so nothing before it gets a gradient" in found.unreached
        assert f"no gradient: {found.unreached}" in str(found)

    def test_nio_warns_where_it_is_much_of_the_network(self) -> None:
        torch.manual_seed(0)
        with pytest.warns(initopt.InitoptWarning, match=r"the gradient reaches \d+ of \d+ parameters: norms.0.weight"):
            initopt.nio(Branches(zero=True), make_batches(), steps=1, measure_batches=0)

    def test_nothing_is_said_of_a_network_that_the_gradient_reaches(self) -> None:
        torch.manual_seed(0)
        assert initopt.measure(Branches(zero=False), make_batches(2)).unreached is None
        initopt.nio(Branches(zero=False), make_batches(), steps=1, measure_batches=0)

    def test_a_part_that_is_not_used(self) -> None:
        torch.manual_seed(0)
        model = make_model()
        model.extra = nn.Linear(2, 2)
        model.forward = lambda x: nn.Sequential(*list(model.children())[:-1])(x)  # type: ignore[method-assign]
        found = initopt.measure(model, make_batches(2)).unreached
        assert found is not None
        assert found.startswith("2 tensors, 6 of")
