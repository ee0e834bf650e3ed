"""Derivatives along vectors that are given, for what is not a function of the Gram matrix."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from torch import Tensor, nn

from initopt._gallery.truth import along, as_real, gradients, plain_operations, prepared, trained
from initopt.engines import create_engine
from initopt.model.modes import measuring
from initopt.model.preserve import preserved
from initopt.testing import ENTRIES, INDEX, Entry, relative_error

EXACT, INEXACT = 1e-9, 1e-4


def drawn(model: nn.Module, count: int) -> list[list[Tensor]]:
    """A vector for each sub-batch, in the form of a gradient."""
    generator = torch.Generator().manual_seed(7)
    some = [p for p in model.parameters() if p.requires_grad]
    return [[torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in some] for _ in range(count)]


def expected(entry: Entry, batch_norm: str, vectors: list[list[Tensor]]) -> dict[str, float]:
    model, batch = prepared(entry)
    named = trained(model)
    with plain_operations():
        rows = gradients(entry, model, batch, batch_norm, create_graph=True)
        pairs = zip(chain.from_iterable(rows), chain.from_iterable(vectors), strict=True)
        total = torch.stack([(g * as_real(v).flatten()).sum() for g, v in pairs]).sum()
        slopes = torch.autograd.grad(total, list(named.values()), materialize_grads=True, allow_unused=True)
    return along(named, slopes)


def found(engine: str, entry: Entry, batch_norm: str, vectors: list[list[Tensor]]) -> dict[str, float]:
    model = entry.model()
    problem = entry.problem(model, batch_norm)
    with preserved(model), measuring(model, entry.train_mode):
        evaluation = create_engine(engine, problem).evaluate(problem.prepare(entry.batch(), INDEX), differentiate=True)
        values = evaluation.vector_derivatives(vectors)
    return dict(zip((p.name for p in problem.scale_params), values.tolist(), strict=True))


def error(engine: str, entry: Entry, batch_norm: str) -> float:
    vectors = drawn(entry.model(), entry.num_subbatches)
    wanted, got = expected(entry, batch_norm, vectors), found(engine, entry, batch_norm, vectors)
    assert list(wanted) == list(got)
    return relative_error(torch.tensor(list(got.values())), torch.tensor(list(wanted.values())), 1e-12)


@pytest.mark.parametrize("name", ["mlp", "tied_layers", "batch_norm_residual", "language_model"])
@pytest.mark.parametrize("engine", ["graph", "recompute", "groups", "plain", "auto", "differences"])
def test_by_each_engine(engine: str, name: str) -> None:
    assert error(engine, ENTRIES[name], "subbatch") < (INEXACT if engine == "differences" else EXACT)


@pytest.mark.parametrize("engine", ["coupled", "differences"])
def test_through_the_statistics_of_the_whole_batch(engine: str) -> None:
    assert error(engine, ENTRIES["batch_norm_residual"], "batch") < (INEXACT if engine == "differences" else EXACT)


@pytest.mark.gallery
@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.double_backward and entry.conservative])
def test_on_the_gallery(name: str) -> None:
    assert error("exact", ENTRIES[name], ENTRIES[name].modes[0]) <= EXACT


def test_sub_batches_without_a_vector_count_for_nothing() -> None:
    entry = ENTRIES["mlp"]
    vectors = drawn(entry.model(), entry.num_subbatches)
    zero: list[list[Tensor | None]] = [[torch.zeros_like(v) for v in vectors[0]], *vectors[1:]]
    none = [[None] * len(vectors[0]), *vectors[1:]]
    for engine in ("graph", "recompute", "groups"):
        assert found(engine, entry, "subbatch", none) == pytest.approx(found(engine, entry, "subbatch", zero), rel=1e-12)


def test_an_evaluation_without_derivatives_says_so() -> None:
    entry = ENTRIES["mlp"]
    model = entry.model()
    for engine in ("graph", "groups"):
        problem = entry.problem(model, "subbatch")
        evaluation = create_engine(engine, problem).evaluate(problem.prepare(entry.batch(), INDEX), differentiate=False)
        with pytest.raises(RuntimeError, match="differentiate=False"):
            evaluation.vector_derivatives(drawn(model, entry.num_subbatches))
