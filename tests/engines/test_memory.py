"""Steps and measurements in little memory: micro-batches, a budget, running out, and measuring without gradients."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import initopt
from initopt._support.devices import free_memory
from initopt.engines.auto import Need
from initopt.engines.stacked import contributions as uses
from initopt.model.modes import measuring
from initopt.model.preserve import preserved
from tests.engines.test_derivatives import BEYOND_GROUPS, GRAM_TOLERANCE, Session, assert_close
from tests.gallery import ENTRIES
from tests.helpers import Batch, make_batches, make_model
from tests.truth import truth


def network(largest: int = 10**6) -> nn.Sequential:
    """A network that runs out of memory with more than ``largest`` samples."""

    class Limited(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > largest:
                raise torch.OutOfMemoryError("tried to allocate too much")
            return x

    torch.manual_seed(0)
    return nn.Sequential(Limited(), nn.Linear(6, 12), nn.Tanh(), nn.LayerNorm(12), nn.Linear(12, 3)).double()


def batches(size: int = 28) -> list[Batch]:
    return [(inputs.double(), targets) for inputs, targets in make_batches(size=size)]


def quick(model: nn.Module, **options: Any) -> initopt.Result:
    return initopt.nio(model, batches(), **{"steps": 4, "measure_batches": 2, "lr": 0.05, **options})


def values(result: initopt.Result) -> list[float]:
    assert result.after is not None
    return [*result.scales.values(), result.after.grad_cosine, result.after.grad_norm]


@pytest.mark.parametrize("size", [1, 3, 4, 100])
@pytest.mark.parametrize(("engine", "tolerance"), [("recompute", 1e-10), ("differences", 1e-5), ("auto", 1e-10)])
def test_micro_batches_add_up(engine: str, tolerance: float, size: int) -> None:
    """Sub-batches of 8 and, without overlap, 7 samples."""
    result = quick(network(), engine=engine, microbatch=size)
    assert values(result) == pytest.approx(values(quick(network(), engine="plain")), rel=tolerance)
    if engine == "auto":
        assert (result.engine, result.engine_reason) == ("recompute", f"exact, and runs {size} samples at a time")


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


@pytest.mark.parametrize("engine", ["auto", "recompute", "differences"])
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
    expected = quick(network(), engine="differences" if engine == "differences" else "recompute", microbatch=2)
    assert values(result) == pytest.approx(values(expected), rel=1e-9)


def test_running_out_of_memory_in_the_second_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    from initopt.engines import per_subbatch as separate

    along = separate._Recompute._along

    def limited(self: Any, part: Any, vector: Any) -> Tensor:
        if len(part.indices) > 4:
            raise torch.OutOfMemoryError("tried to allocate too much")
        return along(self, part, vector)

    expected = quick(network(), engine="recompute")
    monkeypatch.setattr(separate._Recompute, "_along", limited)
    with pytest.warns(UserWarning, match="out of memory with 8 samples at a time; going on with 4"):
        result = quick(network(), engine="recompute")
    assert values(result) == pytest.approx(values(expected), rel=1e-9)


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


def test_a_failed_allocation_of_a_cpu_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Greedy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 4:
                torch.empty(1 << 60, dtype=torch.uint8)
            return super().forward(x)

    model = nn.Sequential(Greedy(6, 3)).double()
    with pytest.warns(UserWarning, match="going on with 4 samples at a time"):
        quick(model, engine="recompute")


def test_auto_keeps_to_its_budget() -> None:
    free = quick(network())
    assert free.engine == "groups"
    tight = quick(network(), memory_budget=25_000)
    assert tight.engine == "recompute"
    assert tight.engine_reason.startswith("the graphs of all sub-batches, some ")
    assert tight.engine_reason.endswith("exceed 0 MB")
    tiny = quick(network(), memory_budget=9_000)
    assert tiny.engine == "recompute"
    assert "samples are run at a time" in tiny.engine_reason
    for result in (tight, tiny):
        assert values(result) == pytest.approx(values(free), rel=1e-9)


def test_a_budget_does_not_split_batch_norm() -> None:
    result = initopt.nio(make_model(), make_batches(), steps=2, measure_batches=0, memory_budget=1)
    assert result.engine == "recompute"
    assert "samples are run at a time" not in result.engine_reason


def test_needs_grow_as_they_should() -> None:
    need = Need(saved=100, parameters=10, count=4, samples=8)
    assert need.keeping_graphs > need.recomputing > 80
    assert [need.microbatch(budget) for budget in (0, need.recomputing / 2, need.recomputing, 1e9)] == [1, 3, 8, 8]


def test_this_machine_has_memory() -> None:
    free = free_memory(torch.device("cpu"))
    assert free is None or free > 1e6
    assert free_memory(torch.device("meta")) is None


MEASURED = [name for name, entry in ENTRIES.items() if "subbatch" in entry.modes and name not in BEYOND_GROUPS]


@pytest.mark.parametrize("name", MEASURED)
def test_measuring_without_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same Gram matrix, also by single rows."""
    session = Session(name, "subbatch", "groups")
    expected = truth(name, "subbatch").gram
    for rows in (uses._ROWS, 1):
        monkeypatch.setattr(uses, "_ROWS", rows)
        with preserved(session.model), measuring(session.model, session.entry.train_mode):
            found = session.evaluate(differentiate=False).gram
        assert_close(found, expected, GRAM_TOLERANCE["groups"], f"{name}, {rows} entries at a time")


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.untyped_storage().nbytes() > 0:
            self.numel = max(self.numel, result.untyped_storage().nbytes() // result.element_size())
        return result


@pytest.mark.parametrize("length", [1, 5])
def test_measuring_makes_no_gradient_of_every_sample(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uses, "_ROWS", 1000)
    torch.manual_seed(0)

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(1)

    model = nn.Sequential(nn.Embedding(300, 40), nn.Linear(40, 80), nn.Tanh(), nn.Linear(80, 40), Mean(), nn.Linear(40, 3))
    data = [(torch.randint(300, (32, length)), torch.randint(3, (32,)))]
    expected = initopt.measure(model, data, num_subbatches=32, engine="plain")
    with Largest() as largest:
        found = initopt.measure(model, data, num_subbatches=32)
    torch.testing.assert_close(found.gram, expected.gram, rtol=1e-5, atol=1e-9)
    activations = 32 * length * 80
    assert largest.numel <= max(2 * activations, 300 * 40, 32 * 3 * 40)  # of all samples: 588,000


def test_measuring_puts_back_what_the_forward_pass_writes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 6, max_norm=0.5), nn.Flatten(), nn.Linear(18, 3))
    before = model[0].weight.detach().clone()
    initopt.measure(model, [(torch.randint(11, (16, 3)), torch.randint(3, (16,))) for _ in range(3)])
    assert torch.equal(model[0].weight, before)


def test_a_parameter_that_is_written_to_late_is_told() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)
            if len(calls) == 7:
                with torch.no_grad():
                    self.linear.weight.mul_(0.5)
            return self.linear(x)

    calls: list[int] = []
    with pytest.raises(RuntimeError, match=r"wrote to parameter 'linear\.weight', and not yet in its first run"):
        initopt.measure(Late(), make_batches(), engine="graph")
