"""MetaInit: its inputs and its norms, and what it differentiates, on the gallery."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initopt
from initopt._gallery.truth import (
    as_real,
)
from initopt.testing import ENTRIES
from tests.helpers import Batch, make_batches, make_model
from tests.methods._helpers import (
    CASES,
    Definition,
    assert_close,
    derivatives_of,
    refuses,
    right_second_derivatives,  # noqa: F401 - an autouse fixture
    run,
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": "noise"}, "unknown inputs 'noise'; known are 'data', 'random'"),
        ({"norms": "fast"}, "unknown norms 'fast'; known are 'exact', 'running', 'fused'"),
        ({"quotient_eps": 0}, "quotient_eps must be a number above 0; got 0"),
    ],
)
def test_bad_options_of_metainit(options: dict[str, Any], message: str) -> None:
    refuses(initopt.metainit, options, message)


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


WITHOUT_THIRD_DERIVATIVE = {"transposed_convolution": "output_padding is not supported for non-transposed"}
"""Where torch fails (seen in 2.13), and with what."""


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


class TestNormsOfMetaInit:
    """The published code puts batch norms into evaluation mode, in which those of a new network only scale and shift."""

    def network(self) -> nn.Sequential:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 3)).double()
        with torch.no_grad():
            model[1].weight.uniform_(0.5, 1.5)
        return model

    def batches(self) -> list[Batch]:
        return [(x.double(), y) for x, y in make_batches(6)]

    def test_running_statistics_are_those_of_norms_that_the_user_froze(self) -> None:
        frozen, model = self.network(), self.network()
        frozen[1].eval()
        expected = initopt.metainit(frozen, self.batches(), steps=4, measure_batches=0)
        found = initopt.metainit(model, self.batches(), steps=4, measure_batches=0, norms="running")
        assert found.scales == pytest.approx(expected.scales, rel=1e-12)
        assert model[1].training

    def test_a_new_norm_is_the_identity(self) -> None:
        model = self.network()
        with torch.no_grad():
            model[1].weight.fill_(1.0)
            model[1].eps = 0.0
        without = nn.Sequential(model[0], nn.Tanh(), model[3])
        state = {name: value.clone() for name, value in model.state_dict().items()}
        found = initopt.metainit(
            model, self.batches(), steps=3, measure_batches=0, norms="running", scale_params="linear", grad_params="linear"
        )
        model.load_state_dict(state)
        expected = initopt.metainit(without, self.batches(), steps=3, measure_batches=0)
        assert list(found.scales.values()) == pytest.approx(list(expected.scales.values()), rel=1e-10)

    def test_it_is_not_what_norms_on_the_batch_do(self) -> None:
        one = initopt.metainit(self.network(), self.batches(), steps=3, measure_batches=0)
        other = initopt.metainit(self.network(), self.batches(), steps=3, measure_batches=0, norms="running")
        assert one.scales != pytest.approx(other.scales, rel=1e-3)
