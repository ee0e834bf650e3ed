"""Nothing that the user has is lost, however a run ends."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initopt
from initopt._support.interrupts import Terminated, all_or_nothing, terminable
from initopt.model.randomness import RandomState
from tests.helpers import Batch, make_batches, make_model, values


def random_draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


class Witness:
    """Everything about a model and the process that a run must leave alone."""

    def __init__(self, model: nn.Module) -> None:
        model.train()
        model[1].eval()  # one frozen norm
        model[4].bias.requires_grad_(False)
        model[0].weight.grad = torch.full_like(model[0].weight, 2.0)
        self.calls = 0
        self.hook = model[0].register_forward_hook(lambda *_: self.count())
        self.model = model
        self.modes = [module.training for module in model.modules()]
        self.flags = [p.requires_grad for p in model.parameters()]
        self.gradients = [p.grad for p in model.parameters()]
        self.buffers = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
        self.tracking = model[1].track_running_stats
        self.hooks = dict(model[0]._forward_hooks)
        self.weights = values(model)
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)
        state = RandomState.now()
        self.draws = random_draws()
        state.put_back()

    def count(self) -> None:
        self.calls += 1

    def check(self, weights_too: bool) -> None:
        assert [module.training for module in self.model.modules()] == self.modes
        assert [p.requires_grad for p in self.model.parameters()] == self.flags
        assert all(p.grad is g for p, g in zip(self.model.parameters(), self.gradients, strict=True))
        assert (self.model[0].weight.grad == 2.0).all()
        for name, buffer in self.model.named_buffers():
            assert buffer is self.buffers[name][0]
            assert torch.equal(buffer, self.buffers[name][1])
        assert self.model[1].track_running_stats == self.tracking
        assert dict(self.model[0]._forward_hooks) == self.hooks
        assert random_draws() == self.draws
        assert self.calls > 0
        same = {name: torch.equal(value, self.weights[name]) for name, value in self.model.state_dict().items()}
        if weights_too:
            assert all(same.values())
        else:
            assert not same["0.weight"]


def test_a_run_changes_parameter_values_only() -> None:
    model = make_model(dropout=0.5)
    witness = Witness(model)
    initopt.nio(model, make_batches(), steps=4, measure_batches=2, train_mode=True)
    witness.check(weights_too=False)


def test_a_measurement_changes_nothing() -> None:
    model = make_model()
    witness = Witness(model)
    initopt.measure(model, make_batches())
    witness.check(weights_too=True)


def failing_loss(after: int, error: BaseException) -> Callable[[nn.Module, Batch], Tensor]:
    calls = 0

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        value = nn.functional.cross_entropy(model(batch[0]), batch[1])
        if calls > after:
            raise error
        return value

    return loss


def failing_loader(after: int, error: BaseException) -> Iterator[Batch]:
    yield from make_batches(after)
    raise error


@pytest.mark.parametrize("error", [RuntimeError("out of cheese"), KeyboardInterrupt()], ids=["exception", "ctrl-c"])
@pytest.mark.parametrize("after", [0, 1, 5, 11, 23])
def test_a_failure_in_the_loss_puts_everything_back(error: BaseException, after: int) -> None:
    model = make_model()
    witness = Witness(model)
    with pytest.raises(type(error)):
        initopt.nio(model, make_batches(), failing_loss(after, error), steps=6, measure_batches=0)
    witness.check(weights_too=True)


@pytest.mark.parametrize("error", [RuntimeError("disk on fire"), KeyboardInterrupt()], ids=["exception", "ctrl-c"])
def test_a_failure_in_the_loader_puts_everything_back(error: BaseException) -> None:
    model = make_model()
    witness = Witness(model)
    with pytest.raises(type(error)):
        initopt.nio(model, failing_loader(4, error), steps=6, measure_batches=0)
    witness.check(weights_too=True)


def test_a_failure_in_the_model_after_it_wrote_into_a_buffer_puts_everything_back() -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("cache", torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.cache = x.detach().mean(0)
            if self.limit is not None and self.training is False and float(x.sum()) > self.limit:
                raise ValueError("too much")
            return self.layer(x)

        limit: float | None = None

    model = Moody()
    cache = model.cache
    weights = values(model)
    result_of = make_batches(6)
    initopt.nio(model, result_of, steps=3, measure_batches=0)
    assert model.cache is cache
    assert float(model.calls) == 0
    model.load_state_dict(weights)
    model.limit = -1e9
    with pytest.raises(ValueError, match="too much") as caught:
        initopt.nio(model, result_of, steps=3, measure_batches=0)
    assert "(in step 0)" in "".join(caught.value.__notes__)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_a_nan_in_the_third_batch_names_the_step_and_puts_everything_back() -> None:
    model = make_model()
    witness = Witness(model)
    batches = make_batches()
    batches[2][0][0, 0] = torch.nan
    with pytest.raises(initopt.NonFiniteError, match="in step 2: the loss of sub-batch 0 is nan"):
        initopt.nio(model, batches, steps=6, measure_batches=0)
    witness.check(weights_too=True)


def terminate(record: initopt.StepRecord) -> None:
    if record.step == 2:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.heavy
def test_a_bad_batch_that_is_held_back_costs_the_measurement_and_not_the_steps() -> None:
    batches = make_batches(6)
    expected = initopt.nio(make_model(), batches, steps=4, measure_batches=2, seed=0)
    batches[4][0][0, 0] = torch.nan
    model = make_model()
    with pytest.warns(UserWarning, match=r"all steps of nio are done, but .*batch 0 of the measurement: the loss of sub-"):
        result = initopt.nio(model, batches, steps=4, measure_batches=2, seed=0)
    assert result.scales == expected.scales
    assert (result.before, result.after) == (None, None)
    assert torch.equal(model[0].weight, result.weights["0.weight"])
    assert result.plot()


def test_sigterm_under_the_command_line_puts_everything_back() -> None:
    model = make_model()
    witness = Witness(model)
    with pytest.raises(Terminated) as caught, terminable():
        initopt.nio(model, make_batches(), steps=6, measure_batches=0, callbacks=[terminate])
    assert caught.value.code == 143
    witness.check(weights_too=True)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_handlers_of_a_process_are_its_own() -> None:
    seen: list[object] = []
    callbacks = [lambda record: seen.append(signal.getsignal(signal.SIGTERM))]
    initopt.nio(make_model(), make_batches(), steps=1, measure_batches=0, callbacks=callbacks)
    assert seen == [signal.SIG_DFL]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_program_that_handles_sigterm_itself_keeps_its_handler() -> None:
    arrived = []
    previous = signal.signal(signal.SIGTERM, lambda *_: arrived.append(True))
    try:
        initopt.nio(
            make_model(),
            make_batches(),
            steps=2,
            measure_batches=0,
            callbacks=[lambda record: os.kill(os.getpid(), signal.SIGTERM)],
        )
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert len(arrived) == 2


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.heavy
def test_ctrl_c_waits_for_the_clean_up() -> None:
    done: list[object] = []

    def settle(succeeded: bool) -> None:
        interrupt()
        done.append(succeeded)

    with pytest.raises(KeyboardInterrupt):
        all_or_nothing(interrupt, lambda: done.append("work"), settle)
    assert done == [False]  # it came before the work, and another one in the clean-up
    done.clear()
    with pytest.raises(KeyboardInterrupt):
        all_or_nothing(lambda: None, lambda: done.append("work"), settle)
    assert done == ["work", True, False]  # it came when the work was done
    done.clear()
    with pytest.raises(KeyboardInterrupt) as caught:
        all_or_nothing(lambda: None, lambda: 1 / 0, settle)
    assert isinstance(caught.value.__context__, ZeroDivisionError)
    assert done == [False]


def test_a_ctrl_c_that_is_swallowed_comes_again() -> None:
    """As one is that comes while an object is finalized."""
    calls: list[int] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            with suppress(KeyboardInterrupt):
                interrupt()
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    model = make_model()
    weights = values(model)
    with pytest.raises(KeyboardInterrupt):
        initopt.nio(model, make_batches(), loss, steps=6, measure_batches=0)
    assert len(calls) == 3
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_a_handler_that_does_not_raise_is_called_each_time() -> None:
    arrived: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda *_: arrived.append(1))
    try:
        result = initopt.nio(
            make_model(), make_batches(), steps=3, measure_batches=0, callbacks=[lambda record: interrupt()]
        )
    finally:
        signal.signal(signal.SIGINT, previous)
    assert len(arrived) == len(result.history) == 3


class Untidy(nn.Tanh):
    """Sends a signal when its training flag is put back for the last time, that is, in the clean-up itself."""

    left: int | None = None

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "training" and value and Untidy.left is not None:
            Untidy.left -= 1
            if Untidy.left == 0:
                interrupt()


@pytest.mark.heavy
@pytest.mark.parametrize("when", [1, 2])
def test_weights_and_result_belong_together(when: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), Untidy(), nn.Linear(16, 3))
    weights = values(model)
    Untidy.left = when
    with pytest.raises(KeyboardInterrupt):
        initopt.nio(model, make_batches(), steps=3, measure_batches=1)
    Untidy.left = None
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_a_parameter_that_cannot_be_put_back_does_not_keep_the_others() -> None:
    model = make_model()
    weights = values(model)

    def shrink(record: initopt.StepRecord) -> None:
        model[0].weight.data = model[0].weight.data[:1]
        model[1].running_mean.resize_(1)

    with pytest.raises(RuntimeError):
        initopt.nio(model, make_batches(), steps=3, measure_batches=0, callbacks=[shrink])
    same = {name: value.shape == weights[name].shape and torch.equal(value, weights[name])
            for name, value in model.state_dict().items()}  # fmt: skip
    assert all(same.values()), same


def test_a_run_in_another_thread_works() -> None:
    results = []
    thread = threading.Thread(
        target=lambda: results.append(initopt.nio(make_model(), make_batches(), steps=2, measure_batches=0))
    )
    thread.start()
    thread.join()
    assert len(results[0].history) == 2


def test_a_run_inside_no_grad_and_inference_mode_works() -> None:
    batches = make_batches()
    expected = initopt.nio(make_model(), batches, steps=2, measure_batches=0).scales
    with torch.no_grad():
        assert initopt.nio(make_model(), batches, steps=2, measure_batches=0).scales == expected
    model = make_model()
    with torch.inference_mode():
        assert initopt.nio(model, batches, steps=2, measure_batches=0).scales == expected


def test_weights_can_be_trained_afterwards() -> None:
    model = make_model()
    initopt.nio(model, make_batches(), steps=3, measure_batches=1)
    inputs, targets = make_batches()[0]
    nn.functional.cross_entropy(model(inputs), targets).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
