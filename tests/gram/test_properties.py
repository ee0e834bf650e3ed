"""Properties that hold for all gradients, and for all models."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import initopt
from initopt import functional, objectives
from initopt.engines.base import gram_matrix, weighted_sums

PUBLISHED_NAMES = {
    "gc": "cosine",
    "gc_gn_sqrt": "cosine+norm",
    "gc_gn": "cosine+sqnorm",
    "gv": "variance",
    "gv_gn_sqrt": "variance+norm",
    "gv_gn": "variance+sqnorm",
}
FUNCTIONS = {
    "grad_cosine": functional.grad_cosine,
    "grad_norm": functional.grad_norm,
    "grad_variance": functional.grad_variance,
    **{name: objectives.get(name, 0.7) for name in objectives.NAMES},
}


@st.composite
def gradient_vectors(draw: st.DrawFn, zeros: bool = True) -> Tensor:
    """D gradients as rows, of any sizes relative to each other, some of them parallel, opposite or zero."""
    count, length = draw(st.integers(2, 6)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows = torch.randn(count, length, generator=generator, dtype=torch.float64)
    kinds = ["own", "own", "copy", "opposite"] + (["zero"] if zeros else [])
    for d in range(1, count):
        kind = draw(st.sampled_from(kinds))
        if kind != "own":
            rows[d] = rows[0] * {"copy": 1, "opposite": -1, "zero": 0}[kind]
    sizes = draw(st.lists(st.floats(1e-3, 1e3), min_size=count, max_size=count))
    return rows * torch.tensor(sizes, dtype=torch.float64)[:, None]


@st.composite
def sparse_gradients(draw: st.DrawFn) -> list[list[Tensor | None]]:
    """Gradients of three parameters, real and complex, of any shape, absent here and there."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shapes: list[tuple[tuple[int, ...], torch.dtype]] = [
        ((), torch.float32),
        ((2, 3), torch.float64),
        ((2,), torch.complex128),
    ]
    return [
        [None if draw(st.booleans()) else torch.randn(shape, generator=generator, dtype=dtype) for shape, dtype in shapes]
        for _ in range(draw(st.integers(2, 4)))
    ]


def flat(gradients: list[Tensor | None]) -> list[float]:
    sizes = (1, 6, 4)
    parts = [[0.0] * n if g is None else as_numbers(g) for g, n in zip(gradients, sizes, strict=True)]
    return list(itertools.chain(*parts))


def as_numbers(tensor: Tensor) -> list[float]:
    if not tensor.is_complex():
        return [float(x) for x in tensor.flatten()]
    return [part for x in tensor.flatten().tolist() for part in (x.real, x.imag)]


@given(gradient_vectors())
def test_bounds_of_grad_cosine(rows: Tensor) -> None:
    found = float(functional.grad_cosine(rows @ rows.T))
    assert -1 / (len(rows) - 1) - 1e-9 <= found <= 1 + 1e-9


def test_bounds_of_grad_cosine_are_reached() -> None:
    for count in (2, 3, 5):
        assert float(functional.grad_cosine(torch.ones(count, count))) == pytest.approx(1)
        simplex = torch.eye(count, dtype=torch.float64) - 1 / count
        assert float(functional.grad_cosine(simplex @ simplex.T)) == pytest.approx(-1 / (count - 1))


@given(gradient_vectors(zeros=False))
def test_grad_cosine_is_the_mean_cosine_similarity_of_pairs(rows: Tensor) -> None:
    pairs = [F.cosine_similarity(a, b, dim=0, eps=0) for a, b in itertools.combinations(rows, 2)]
    found = functional.grad_cosine(rows @ rows.T)
    torch.testing.assert_close(found, torch.stack(pairs).mean(), rtol=1e-9, atol=1e-12)


@given(gradient_vectors())
def test_grad_norm_and_variance_are_those_of_the_vectors(rows: Tensor) -> None:
    gram = rows @ rows.T
    torch.testing.assert_close(functional.grad_norm(gram), rows.norm(dim=1).mean(), rtol=1e-9, atol=0)
    variance = rows.var(0, correction=0).sum()
    torch.testing.assert_close(
        functional.grad_variance(gram), variance, rtol=1e-9, atol=float(gram.diagonal().max()) * 1e-13
    )


@given(gradient_vectors(), st.integers(0, 5), st.floats(1e-3, 1e3))
def test_grad_cosine_does_not_see_the_size_of_a_gradient(rows: Tensor, which: int, factor: float) -> None:
    scaled = rows.clone()
    scaled[which % len(rows)] *= factor
    before, after = functional.grad_cosine(rows @ rows.T), functional.grad_cosine(scaled @ scaled.T)
    torch.testing.assert_close(before, after, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", FUNCTIONS)
@given(rows=gradient_vectors(), data=st.data())
def test_the_order_of_sub_batches_does_not_matter(name: str, rows: Tensor, data: st.DataObject) -> None:
    gram = rows @ rows.T
    order = data.draw(st.permutations(range(len(rows))))
    torch.testing.assert_close(FUNCTIONS[name](gram), FUNCTIONS[name](gram[order][:, order]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in objectives.NAMES])
@given(rows=gradient_vectors())
def test_a_stack_of_gram_matrices_gives_a_number_each(name: str, rows: Tensor) -> None:
    other = rows.sin() + 0.5
    grams = torch.stack([rows @ rows.T, other @ other.T])
    torch.testing.assert_close(FUNCTIONS[name](grams), torch.stack([FUNCTIONS[name](gram) for gram in grams]))


@pytest.mark.parametrize("name", FUNCTIONS)
@given(rows=gradient_vectors(zeros=False), data=st.data())
def test_derivatives_are_finite_beside_a_zero_gradient(name: str, rows: Tensor, data: st.DataObject) -> None:
    """A zero gradient has no direction, so cosines and norms pass nothing on to it."""
    zero = data.draw(st.integers(0, len(rows) - 1))
    rows[zero] = 0
    gram = (rows @ rows.T).requires_grad_()
    (derivative,) = torch.autograd.grad(FUNCTIONS[name](gram), gram)
    assert torch.isfinite(derivative).all()
    if name in ("grad_cosine", "cosine", "cosine+norm", "grad_norm"):
        assert not derivative[zero].any()
        assert not derivative[:, zero].any()


@given(gradient_vectors(), st.floats(0, 3))
def test_objectives_are_what_they_are_called(rows: Tensor, weight: float) -> None:
    gram = rows @ rows.T
    norms = rows.norm(dim=1)
    spreads = {"cosine": -functional.grad_cosine(gram), "variance": functional.grad_variance(gram)}
    sizes = {
        "": 0.0,
        "norm": norms.sum(),
        "sqnorm": norms.square().sum(),
        "lognorm": norms.clamp_min(torch.finfo(norms.dtype).tiny).log().mean(),
    }
    for name in objectives.NAMES:
        spread, _, size = name.partition("+")
        torch.testing.assert_close(objectives.get(name, weight)(gram), spreads[spread] - weight * sizes[size])


def test_published_names_mean_the_same() -> None:
    assert {*PUBLISHED_NAMES.values(), "cosine+lognorm", "variance+lognorm"} == set(objectives.NAMES)
    gram = torch.tensor([[4.0, 3.0], [3.0, 9.0]])
    for published, ours in PUBLISHED_NAMES.items():
        assert float(objectives.get(published, 0.3)(gram)) == float(objectives.get(ours, 0.3)(gram))


@given(sparse_gradients())
def test_gram_matrix_is_that_of_the_long_vectors(gradients: list[list[Tensor | None]]) -> None:
    rows = torch.tensor([flat(g) for g in gradients], dtype=torch.float64)
    gram = gram_matrix(gradients)
    torch.testing.assert_close(gram, rows @ rows.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gram, gram.T, rtol=0, atol=0)
    assert float(torch.linalg.eigvalsh(gram).min()) >= -1e-9 * (1 + float(gram.trace()))


@given(sparse_gradients(), st.integers(0, 2**31))
def test_weighted_sums_are_the_rows_of_the_product(gradients: list[list[Tensor | None]], seed: int) -> None:
    count = len(gradients)
    weights = torch.randn(count, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = torch.tensor([flat(g) for g in gradients], dtype=torch.float64)
    found = torch.tensor([flat(v) for v in weighted_sums(gradients, weights)], dtype=torch.float64)
    torch.testing.assert_close(found, weights @ rows, rtol=1e-5, atol=1e-5)


# Models

LossFn = Callable[[nn.Module, Any], Tensor]


def make(seed: int, size: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    inputs = torch.randn(size, 4, generator=generator, dtype=torch.float64)
    return model, (inputs, torch.randint(3, (size,), generator=generator))


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int]:
    count = draw(st.integers(2, 5))
    return count * draw(st.integers(1, 4)), count


@pytest.mark.heavy
@pytest.mark.parametrize("batch_norm", ["subbatch", "batch"])
@settings(max_examples=15)
@given(seed=st.integers(0, 1000), size=sizes(), factor=st.floats(0.01, 100), which=st.integers(0, 4))
def test_scaling_the_loss_of_a_sub_batch_leaves_grad_cosine_alone(
    batch_norm: Any, seed: int, size: tuple[int, int], factor: float, which: int
) -> None:
    model, (inputs, targets) = make(seed, size[0])
    length = size[0] // size[1]
    weights = torch.ones(size[0], dtype=torch.float64)
    weights[(which % size[1]) * length :][:length] = factor

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none") * batch[2]

    def measured(weights: Tensor) -> initopt.Measurement:
        options: dict[str, Any] = {"num_subbatches": size[1], "batch_norm": batch_norm}
        return initopt.measure(model, [(inputs, targets, weights)], loss_fn, **options)

    plain, scaled = measured(torch.ones_like(weights)), measured(weights)
    assert scaled.grad_cosine == pytest.approx(plain.grad_cosine, abs=1e-9)
    if abs(factor - 1) > 0.1:
        assert scaled.grad_norm != pytest.approx(plain.grad_norm, rel=1e-6)


@pytest.mark.heavy
@pytest.mark.parametrize("batch_norm", ["subbatch", "batch"])
@settings(max_examples=15)
@given(seed=st.integers(0, 1000), size=sizes(), data=st.data())
def test_the_order_of_samples_inside_a_sub_batch_does_not_matter(
    batch_norm: Any, seed: int, size: tuple[int, int], data: st.DataObject
) -> None:
    model, (inputs, targets) = make(seed, size[0])
    length = size[0] // size[1]
    order = [
        d * length + i for d in range(size[1]) for i in data.draw(st.permutations(range(length)), label=f"sub-batch {d}")
    ]
    options: dict[str, Any] = {"num_subbatches": size[1], "batch_norm": batch_norm}
    plain = initopt.measure(model, [(inputs, targets)], **options)
    shuffled = initopt.measure(model, [(inputs[order], targets[order])], **options)
    torch.testing.assert_close(shuffled.gram, plain.gram, rtol=1e-9, atol=1e-12)


@pytest.mark.heavy
@pytest.mark.parametrize("batch_norm", ["subbatch", "batch"])
@settings(max_examples=15)
@given(seed=st.integers(0, 1000), size=st.integers(2, 8))
def test_as_many_sub_batches_as_samples_compare_samples(batch_norm: Any, seed: int, size: int) -> None:
    model, (inputs, targets) = make(seed, size)
    rows = []
    for i in range(size):
        model.zero_grad()
        F.cross_entropy(model(inputs[i : i + 1]), targets[i : i + 1]).backward()
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    model.zero_grad()
    cosines = [F.cosine_similarity(a, b, dim=0) for a, b in itertools.combinations(rows, 2)]
    options: dict[str, Any] = {"num_subbatches": size, "batch_norm": batch_norm}
    found = initopt.measure(model, [(inputs, targets)], **options)
    assert found.grad_cosine == pytest.approx(float(torch.stack(cosines).mean()), abs=1e-9)
    assert found.grad_norm == pytest.approx(float(torch.stack(rows).norm(dim=1).mean()), rel=1e-9)
    assert found.small_batch == (1,)
    assert found.big_batch == pytest.approx((size,))


def test_one_batch_after_another_is_averaged() -> None:
    model, first = make(0, 8)
    _, second = make(1, 8)
    apart = [initopt.measure(model, [batch]) for batch in (first, second)]
    together = initopt.measure(model, [first, second])
    assert together.num_batches == 2
    assert together.grad_cosine == pytest.approx(sum(m.grad_cosine for m in apart) / 2)
    assert together.sem["grad_cosine"] == pytest.approx(abs(apart[0].grad_cosine - apart[1].grad_cosine) / 2)
    assert math.isnan(apart[0].sem["grad_cosine"])
