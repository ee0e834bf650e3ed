"""Sub-batches in parts: the same numbers, within memory that runs out."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import initopt
from tests.engines._memory import batches, network, quick, values
from tests.helpers import Batch, make_batches, make_model


@functools.cache
def expected_values(engine: str, microbatch: int | None = None) -> list[float]:
    return values(quick(network(), engine=engine, microbatch=microbatch))


SIZES = [("recompute", 1), ("recompute", 3), ("recompute", 4), ("recompute", 100), ("differences", 3), ("auto", 3)]
MORE_SIZES = [(engine, size) for engine in ("differences", "auto") for size in (1, 4, 100)]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("engine", "size"), [*SIZES, *(pytest.param(*case, marks=pytest.mark.heavy) for case in MORE_SIZES)]
)
def test_micro_batches_add_up(engine: str, size: int) -> None:
    """Sub-batches of 8 and, without overlap, 7 samples."""
    result = quick(network(), engine=engine, microbatch=size)
    tolerance = 1e-5 if engine == "differences" else 1e-10
    assert values(result) == pytest.approx(expected_values("plain"), rel=tolerance)
    if engine == "auto":
        assert (result.engine, result.engine_reason) == ("recompute", f"exact, and runs {size} samples at a time")


@pytest.mark.heavy
def test_micro_batches_bound_what_the_model_sees() -> None:
    assert quick(network(largest=3), microbatch=3).scales  # would run out of memory otherwise
    whole = initopt.measure(network(), batches(), engine="recompute")
    parts = initopt.measure(network(largest=2), batches(), microbatch=2)
    torch.testing.assert_close(parts.gram, whole.gram, rtol=1e-12, atol=0)


def test_the_check_of_the_loss_sees_every_sample() -> None:
    """One target of many is ignored, so that its part has a mean over fewer samples."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], ignore_index=2)

    inputs, targets = batches()[0]
    targets = targets % 2
    targets[17] = 2
    with pytest.raises(ValueError, match="microbatch=4 needs a loss that is a mean over samples.*ignored targets"):
        initopt.measure(network(), [(inputs, targets)], loss, microbatch=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"microbatch": 0}, "microbatch must be an integer of 1 or more; got 0"),
        ({"microbatch": 2.5}, "microbatch must be an integer of 1 or more; got 2.5"),
        ({"memory_budget": 0}, "memory_budget must be a number above 0; got 0"),
        ({"microbatch": 4, "engine": "groups"}, "it runs sub-batches whole, and microbatch is to split them"),
        ({"microbatch": 4, "engine": "graph"}, "it runs sub-batches whole, and microbatch is to split them"),
        ({"microbatch": 4, "batch_norm": "batch"}, "microbatch=4 cannot be used here.*couples"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quick(network(), **options)
    with pytest.raises(ValueError, match=message):
        initopt.measure(network(), batches(), **options)


@pytest.mark.parametrize("engine", ["auto", "recompute", "differences"])
def test_batch_norm_is_not_split(engine: str) -> None:
    with pytest.raises(ValueError, match="batch norm couples the samples of a sub-batch"):
        initopt.nio(make_model(), make_batches(), microbatch=2, engine=engine)
    frozen = make_model().train()
    frozen[1].eval()
    assert initopt.nio(frozen, make_batches(), microbatch=2, engine=engine, steps=1, measure_batches=0).scales


@pytest.mark.parametrize("engine", [pytest.param("auto", marks=pytest.mark.heavy), "recompute", "differences"])
def test_running_out_of_memory_halves_the_micro_batch(engine: str) -> None:
    """From 8 samples to 4 to 2, as 3 are the most that fit."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = quick(network(largest=3), engine=engine, seed=0)
    said = [str(warning.message) for warning in caught]
    if engine == "auto":
        assert "did not fit into memory, so they are recomputed" in said.pop(0)
        assert result.engine == "recompute"
    assert said == [
        "initopt: out of memory with 8 samples at a time; going on with 4 samples at a time",
        "initopt: out of memory with 4 samples at a time; going on with 2 samples at a time",
    ]
    expected = expected_values("differences" if engine == "differences" else "recompute", microbatch=2)
    assert values(result) == pytest.approx(expected, rel=1e-9)


@pytest.mark.heavy
def test_running_out_of_memory_in_the_second_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    from initopt.engines import per_subbatch as separate

    along = separate.Recomputed._along

    def limited(self: Any, part: Any, vector: Any) -> Tensor:
        if len(part.indices) > 4:
            raise torch.OutOfMemoryError("tried to allocate too much")
        return along(self, part, vector)

    expected = expected_values("recompute")
    monkeypatch.setattr(separate.Recomputed, "_along", limited)
    with pytest.warns(UserWarning, match="out of memory with 8 samples at a time; going on with 4"):
        result = quick(network(), engine="recompute")
    assert values(result) == pytest.approx(expected, rel=1e-9)


@pytest.mark.heavy
def test_running_out_with_one_sample_is_an_error() -> None:
    model = network(largest=0)
    before = [p.detach().clone() for p in model.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(torch.OutOfMemoryError):
            quick(model)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_running_out_with_batch_norm_says_what_to_do() -> None:
    model = nn.Sequential(network(largest=3)[0], *make_model())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(torch.OutOfMemoryError) as caught:
            initopt.nio(model, make_batches())
    assert "batch norm couples the samples of a sub-batch, so they cannot be run in parts" in caught.value.__notes__[0]


@pytest.mark.heavy
def test_a_failed_allocation_of_a_cpu_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Greedy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 4:
                torch.empty(1 << 60, dtype=torch.uint8)
            return super().forward(x)

    model = nn.Sequential(Greedy(6, 3)).double()
    with pytest.warns(UserWarning, match="going on with 4 samples at a time"):
        quick(model, engine="recompute")
