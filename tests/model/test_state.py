"""What a call can reach is put back, wherever it is: before every pass, and afterwards."""

from __future__ import annotations

import copy
import random
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import initopt
from initopt.model.reach import Reach
from initopt.model.state import StateGuard
from tests.helpers import Batch, make_batches, make_model, values
from tests.quick import quick


def small(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


class Following(nn.Module):
    """A frozen copy follows by a moving average, in any mode."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.slow, self.how = small(), small(1).requires_grad_(False), how

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for slow, fast in zip(self.slow.parameters(), self.body.parameters(), strict=True):
                if self.how == "in place":
                    slow.lerp_(fast, 0.1)
                elif self.how == "data in place":
                    slow.data.mul_(0.9).add_(fast.data, alpha=0.1)
                else:
                    slow.data = 0.9 * slow.data + 0.1 * fast.data
        return self.body(x) + self.slow(x)


class Remembering(nn.Module):
    """State in attributes of every kind; each enters the output."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small()
        self.hidden: Any = 0
        self.calls = 0
        self.queue: deque[Tensor] = deque(maxlen=2)
        self.store: dict[str, list[Tensor]] = {"all": []}
        self.center = torch.zeros(3)
        self.helper = Helper()

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y = y + self.hidden + self.calls + sum(self.queue) + sum(self.store["all"]) + self.center + self.helper.total
        self.hidden = self.hidden + y.detach().mean(0)
        self.calls += 1
        self.queue.append(y.detach().mean(0))
        self.store["all"].append(y.detach().mean(0))
        self.center.mul_(0.9).add_(y.detach().mean(0))
        self.helper.add(y.detach().mean(0))
        if not hasattr(self, "made"):
            self.made = torch.ones(3)
        return y * self.made


class Helper:
    """No module, and keeps a tensor."""

    def __init__(self) -> None:
        self.total: Any = torch.zeros(3)

    def add(self, value: Tensor) -> None:
        self.total = self.total + value


class Metric(nn.Module):
    """As torchmetrics has them: states are attributes, replaced or appended to."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.count, self.rows = torch.zeros(3), 0, []

    def forward(self, y: Tensor) -> Tensor:
        self.seen, self.count = self.seen + y.detach().sum(0), self.count + len(y)
        self.rows.append(y.detach())
        return self.seen / self.count


class Criterion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.metric, self.weight = Metric(), nn.Parameter(torch.ones(3))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, y: Tensor, targets: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(y.detach().mean(0))
        with torch.no_grad():
            self.weight.mul_(0.99)
        return F.cross_entropy(self.weight * (y - self.mean + self.metric(y)), targets)


def in_closure(kept: Any) -> Callable[[nn.Module, Batch], Tensor]:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return kept(model(batch[0]), batch[1])

    return loss


def with_a_queue() -> Any:
    queue = torch.zeros(4, 3)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        y = model(batch[0])
        value = F.cross_entropy(y + queue.mean(0), batch[1])
        queue.copy_(torch.cat([y.detach().mean(0, keepdim=True), queue[:-1]]))
        return value

    return loss


CASES: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "frozen, in place": lambda: (Following("in place"), None),
    "frozen, data in place": lambda: (Following("data in place"), None),
    "frozen, data replaced": lambda: (Following("replaced"), None),
    "attributes": lambda: (Remembering(), None),
    "criterion": lambda: (small(), Criterion()),
    "criterion in a closure": lambda: (small(), in_closure(Criterion())),
    "criterion in a partial": lambda: (small(), partial(lambda c, m, b: c(m(b[0]), b[1]), Criterion())),
    "tensor in a closure": lambda: (small(), with_a_queue()),
}


def snapshot(*things: Any) -> Any:
    """All state that a deep copy shows, as plain values."""
    reach = Reach.of(*things)
    tensors = [t for m in reach.modules for t in (*m._parameters.values(), *m._buffers.values())] + reach.tensors
    plain = [{k: v for k, v in vars(m).items() if isinstance(v, int)} for m in reach.modules]
    return [t.detach().clone() for t in tensors if t is not None], plain


@pytest.mark.gallery
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("engine", ["auto", "recompute"])
def test_measuring_leaves_everything_and_sees_the_same_each_time(name: str, engine: str) -> None:
    model, loss = CASES[name]()
    before, plain = snapshot(model, loss)
    first = initopt.measure(model, make_batches(), loss, seed=0, engine=engine)
    after, plain_after = snapshot(model, loss)
    assert plain_after == plain
    assert len(after) == len(before)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    again = initopt.measure(model, make_batches(), loss, seed=0, engine=engine)
    assert torch.equal(first.gram, again.gram)
    # Each sub-batch is measured from the same state: that of the first batch does not depend on there being others.
    alone = initopt.measure(model, make_batches()[:1], loss, seed=0, engine=engine)
    assert torch.equal(alone.gram[0], first.gram[0])


@pytest.mark.parametrize("name", CASES)
def test_a_run_changes_the_weights_of_the_model_only(name: str) -> None:
    model, loss = CASES[name]()
    own = {id(p) for p in model.parameters() if p.requires_grad}
    reach = Reach.of(model, loss)
    others = [t for m in reach.modules for t in (*m._parameters.values(), *m._buffers.values())] + reach.tensors
    others = [t for t in others if t is not None and id(t) not in own]
    before = [t.detach().clone() for t in others]
    measured = initopt.measure(model, make_batches()[3:5], loss, seed=0)
    result = initopt.nio(model, make_batches(), loss, steps=3, measure_batches=2, seed=0, num_subbatches=4)
    assert all(torch.equal(t, value) for t, value in zip(others, before, strict=True))
    torch.testing.assert_close(result.before.gram, measured.gram, rtol=1e-4, atol=1e-7)


def test_a_state_of_the_size_of_a_batch_does_not_end_a_run() -> None:
    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.h = small(), 0

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x) + self.h
            self.h = y.detach()
            return y

    model = Stateful()
    initopt.nio(model, make_batches(), steps=2, measure_batches=1)
    initopt.measure(model, make_batches())
    assert model.h == 0


def test_a_write_after_the_first_pass_is_told() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.slow = small(), nn.Parameter(torch.zeros(3), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            if len(calls) > 5:
                with torch.no_grad():
                    self.slow.add_(1)
            calls.append(1)
            return self.body(x) + self.slow

    calls: list[int] = []
    with pytest.raises(RuntimeError, match="wrote to parameter 'slow', and not yet in its first run"):
        initopt.measure(Late(), make_batches())


def test_what_is_not_written_to_is_not_copied() -> None:
    model = nn.ModuleDict({"frozen": small(1).requires_grad_(False), "body": small()})
    guard = StateGuard(model, with_a_queue(), trainable=True)
    with guard.running():
        model["body"](model["frozen"][0].weight[:, :6])
    assert not any(watched.copy is not None for watched in (*guard._watched, *guard._moving))


GENERATORS: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], Tensor], Callable[[Any], Any]]] = {
    "torch": (lambda: torch.Generator().manual_seed(3), lambda g, x: torch.randn(x.shape, generator=g),
              lambda g: g.get_state().tolist()),
    "numpy": (lambda: np.random.default_rng(3), lambda g, x: torch.from_numpy(g.standard_normal(x.shape)).float(),
              lambda g: g.bit_generator.state),
    "numpy's old": (lambda: np.random.RandomState(3), lambda g, x: torch.from_numpy(g.randn(*x.shape)).float(),
                    lambda g: g.get_state()[1].tolist()),
    "python": (lambda: random.Random(3), lambda g, x: x * 0 + g.random(), lambda g: g.getstate()),
}  # fmt: skip


@pytest.mark.heavy
@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("engine", ["auto", "differences"])
def test_generators_of_the_user_s_own_are_replayed_and_put_back(kind: str, engine: str) -> None:
    make, draw, state_of = GENERATORS[kind]
    generator = make()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch[0] + draw(generator, batch[0])), batch[1], reduction="none")

    def fresh(model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch[0] + torch.randn(batch[0].shape)), batch[1], reduction="none")

    before = state_of(generator)
    grams = [initopt.measure(small(), make_batches(), loss, seed=0).gram for _ in range(2)]
    assert torch.equal(*grams)
    assert state_of(generator) == before
    assert not torch.equal(initopt.measure(small(), make_batches(), loss, seed=1).gram, grams[0])
    found = initopt.nio(small(), make_batches(), loss, steps=3, measure_batches=0, seed=0, engine=engine)
    exact = initopt.nio(small(), make_batches(), loss, steps=3, measure_batches=0, seed=0, engine="plain")
    assert found.scales == pytest.approx(exact.scales, rel=1e-2)
    assert state_of(generator) == before


def test_the_generators_of_a_loader_are_put_back() -> None:
    x, y = torch.randn(64, 6), torch.randint(3, (64,))
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(5))
    before = loader.generator.get_state()
    initopt.measure(small(), loader)
    assert torch.equal(loader.generator.get_state(), before)
    initopt.nio(small(), loader, steps=6, measure_batches=1)
    assert torch.equal(loader.generator.get_state(), before)


def test_reach_finds_what_functions_and_objects_hold() -> None:
    inner, metric, generator = nn.Linear(2, 2), Metric(), torch.Generator()

    class Loss:
        def __init__(self) -> None:
            self.parts = {"metric": [metric]}

        def __call__(self, model: nn.Module, batch: Any, noise: Any = generator) -> Tensor:
            return self.other(lambda: inner)

        def other(self, function: Any) -> Any:
            return function()

    found = Reach.of(small(), Loss())
    assert id(metric) in {id(m) for m in found.modules}
    assert Reach.of(partial(Loss().__call__)).modules
    assert Reach.of(Loss.__call__).generators == [generator]
    assert all(g is not torch.default_generator for g in Reach.of({"a": torch.default_generator}).generators)


@pytest.mark.heavy
def test_a_frozen_norm_is_frozen_in_a_callback_too() -> None:
    model = make_model()
    model.train()
    model[1].eval()
    found = []

    def callback(record: initopt.StepRecord) -> None:
        other = make_model().train()
        other[1].eval()
        other.load_state_dict(model.state_dict())
        for train_mode in (False, True):
            grams = [initopt.measure(m, make_batches(), seed=3, train_mode=train_mode).gram for m in (model, other)]
            found.append(torch.equal(*grams))
        assert not model.training

    initopt.nio(model, make_batches(), steps=2, measure_batches=1, callbacks=callback)
    assert found == [True] * 4
    assert model.training
    assert not model[1].training


def test_what_would_change_the_weights_under_way_is_refused_in_a_callback() -> None:
    model = make_model()
    weights = values(model)
    for inner in (partial(initopt.nio, steps=1, measure_batches=0), lambda m, b: initopt.schemes.apply_(m, "orthogonal")):
        with pytest.raises(RuntimeError, match="is being optimized, and this call, out of a callback"):
            initopt.nio(
                model, make_batches(), steps=2, measure_batches=0,
                callbacks=lambda record, inner=inner: inner(model, make_batches()),
            )  # fmt: skip
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    other = make_model()
    initopt.nio(model, make_batches(), steps=2, measure_batches=0,
                callbacks=lambda record: initopt.nio(other, make_batches(), steps=1, measure_batches=0))  # fmt: skip
    initopt.nio(model, make_batches(), steps=1, measure_batches=0, scheme="orthogonal")


def test_a_model_that_another_thread_works_on_is_refused() -> None:
    model, errors = make_model(), []

    def other() -> None:
        try:
            initopt.measure(model[0], make_batches(), nn.MSELoss())
        except RuntimeError as error:
            errors.append(str(error))

    def callback(record: initopt.StepRecord) -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    initopt.nio(model, make_batches(), steps=1, measure_batches=0, callbacks=callback)
    assert len(errors) == 1
    assert "is being measured or optimized in another thread" in errors[0]
    initopt.measure(model, make_batches())


@pytest.mark.heavy
def test_two_threads_on_two_models_give_what_each_gives_alone() -> None:
    def run(seed: int) -> initopt.Result:
        options: dict[str, Any] = {"steps": 3, "measure_batches": 1, "seed": seed, "train_mode": True}
        return initopt.nio(make_model(seed, dropout=0.5), make_batches(seed=seed), **options)

    alone = [run(seed) for seed in range(2)]
    torch.manual_seed(9)
    before = torch.get_rng_state()
    found: dict[int, initopt.Result] = {}
    models = {seed: make_model(seed, dropout=0.5) for seed in range(2)}
    torch.set_rng_state(before)
    options: dict[str, Any] = {"steps": 3, "measure_batches": 1, "train_mode": True}

    def go(seed: int) -> None:
        found[seed] = initopt.nio(models[seed], make_batches(seed=seed), seed=seed, **options)

    threads = [threading.Thread(target=go, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(2):
        assert found[seed].scales == alone[seed].scales
        assert torch.equal(found[seed].after.gram, alone[seed].after.gram)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_copy_of_the_model_is_not_the_model() -> None:
    model = make_model()

    def callback(record: initopt.StepRecord) -> None:
        initopt.nio(copy.deepcopy(model), make_batches(), steps=1, measure_batches=0)

    initopt.nio(model, make_batches(), steps=1, measure_batches=0, callbacks=callback)


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


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("wide", torch.ones(1).expand(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.wide


def test_an_expanded_buffer() -> None:
    model = Buffered()
    wide = model.wide
    quick(model, make_batches())
    assert model.wide is wide


class LateBuffer(nn.Module):
    """Registers a buffer in its first forward pass, and averages into it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if "average" not in self._buffers:
            self.register_buffer("average", y.mean(0), persistent=False)
        self.average = 0.9 * self.average + 0.1 * y.mean(0)
        return y + self.average


def test_a_buffer_that_forward_registers_is_gone_afterwards() -> None:
    model = LateBuffer()
    quick(model, make_batches())
    assert dict(model.named_buffers()) == {}
    assert model._non_persistent_buffers_set == set()
    assert list(values(model)) == ["layer.weight", "layer.bias"]
