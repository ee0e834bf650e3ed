"""The attack on a user's state: interrupts anywhere, and threads. A few of each here, and many in `make test-slow`.

What is promised: either the call has returned, and the model has the weights of the result, or it has raised, and all is
as before, to the last bit. No handler, hook, mode, flag or lock is left behind, and the next call works.
"""

from __future__ import annotations

import collections
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initopt
from initopt.model import modes as eager
from initopt.model import preserve, randomness
from initopt.model.preserve import TorchState
from tests.helpers import Batch, make_batches, make_model

pytestmark = pytest.mark.processes


class Victim:
    """A model and a loss with all kinds of state, and a call on them."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.model = make_model(dropout=0.3).train()
        self.model[1].eval()
        self.model.append(Stateful())
        self.model[0].weight.register_hook(lambda g: g)
        self.model[0].register_forward_hook(lambda *_: None)
        self.model[4].weight.grad = torch.ones(8, 12)
        self.model[6].bias.requires_grad_(False)
        self.generator = torch.Generator().manual_seed(4)
        self.batches = make_batches(6)
        self.before = self.state()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        noise = 0.1 * torch.randn(batch[0].shape, generator=self.generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=False):
            return F.cross_entropy(model(batch[0] + noise), batch[1], reduction="none")

    def call(self) -> Any:
        options: dict[str, Any] = {"seed": 0, "train_mode": True}
        if self.kind == "measure":
            return initopt.measure(self.model, self.batches[:3], self.loss, **options)
        run = getattr(initopt, self.kind)
        return run(self.model, self.batches, self.loss, steps=2, measure_batches=1, progress=False, **options)

    def state(self) -> dict[str, Any]:
        """All that is to be as before if the call fails."""
        model = self.model
        hooks = {
            name: list(value) for m in model.modules() for name, value in vars(m).items() if "_hooks" in name and value
        }
        return self.others() | {
            "values": [value.clone() for value in model.state_dict().values()],
            "hooks": hooks,
            "hooks of parameters": [list(p._backward_hooks or ()) for p in model.parameters()],
        }

    def others(self) -> dict[str, Any]:
        """All that is to be as before in any case."""
        model = self.model
        return {
            "modes": [module.training for module in model.modules()],
            "norm": (model[1].track_running_stats, model[1].momentum),
            "buffers": [buffer.clone() for buffer in model.buffers()],
            "attribute": (model[7].calls, model[7].kept.clone()),
            "flags": [p.requires_grad for p in model.parameters()],
            "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state()[1].tolist(),
            "python": random.getstate(),
            "torch's modes": TorchState.now(),
            "handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
            "attention": [torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()],
            "cudnn": torch.backends.cudnn.enabled,
            "at work": list(preserve._AT_WORK),
            "eager": eager._users,
        }

    def check(self, result: Any) -> None:
        """Hold everything against what is promised."""
        before, now = self.before, self.state()
        if result is not None and self.kind != "measure":
            now["values"] = before["values"]
            weights = [p for p in self.model.parameters() if p.requires_grad]
            assert all(torch.equal(p, w) for p, w in zip(weights, result.weights.values(), strict=True))
        for name, value in before.items():
            assert _same(value, now[name]), f"{name} is another"
        assert _can_be_taken(randomness._EXCLUSIVE)


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls, self.kept = 0, torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.kept = 0.9 * self.kept + x.detach().mean(0)
        return x + 0.01 * self.kept


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and torch.equal(left, right)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(_same(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)


def _can_be_taken(lock: Any) -> bool:
    """By another thread, that is."""
    found: list[bool] = []

    def take() -> None:
        found.append(lock.acquire(timeout=1))
        if found[0]:
            lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return found[0]


_LOOKED_AT = (os.path.dirname(initopt.__file__), os.path.join(os.path.dirname(os.__file__), "contextlib.py"))


class Tracer:
    """Does something at a line of ours, of the tests' callbacks, or of context managers, by its number."""

    def __init__(self, number: int | None, action: Callable[[], None]) -> None:
        self.count, self._number, self._action = 0, number, action

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_LOOKED_AT):
            return None
        if event == "line":
            self.count += 1
            if self.count == self._number:
                self._action()
        return self


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def attacked(victim: Victim, number: int | None) -> tuple[Any, int]:
    """The result, or None after an interrupt, and how many lines there were."""
    tracer = Tracer(number, interrupt)
    sys.settrace(tracer)
    try:
        result = victim.call()
    except KeyboardInterrupt:
        result = None
    finally:
        sys.settrace(None)
    return result, tracer.count


@pytest.fixture
def before() -> None:
    initopt.nio(make_model(), make_batches(), steps=1, measure_batches=1)  # what is imported or made only once is there


def interrupted_at_lines(kind: str, tries: int, seed: int) -> collections.Counter[str]:
    outcomes: collections.Counter[str] = collections.Counter()
    expected, lines = attacked(Victim(kind), None)
    draw = random.Random(seed)
    numbers = [draw.randrange(1, lines + 1) for _ in range(tries)] + list(
        range(max(1, lines - max(tries // 10, 3)), lines + 2)
    )
    for number in numbers:
        victim = Victim(kind)
        result, _ = attacked(victim, number)
        try:
            victim.check(result)
        except AssertionError as error:
            raise AssertionError(f"an interrupt at line {number} of {lines} of {kind}: {error}") from error
        outcomes["returned" if result is not None else "interrupted"] += 1
        if result is not None and kind != "measure":
            assert result.scales == expected.scales
    again = Victim(kind).call()
    assert again.scales == expected.scales if kind != "measure" else torch.equal(again.gram, expected.gram)
    return outcomes


@pytest.mark.heavy
@pytest.mark.usefixtures("before")
@pytest.mark.parametrize("kind", ["nio", "measure"])
def test_interrupts_at_lines(kind: str) -> None:
    assert interrupted_at_lines(kind, 4, seed=1)["interrupted"] > 2


@pytest.mark.slow
@pytest.mark.usefixtures("before")
@pytest.mark.parametrize("kind", ["nio", "measure", "lsuv", "gradinit"])
def test_a_thousand_interrupts_at_lines(kind: str) -> None:
    print(kind, dict(interrupted_at_lines(kind, 250, seed=2)))


SENDER = """
import os, signal, sys, time
for number, line in enumerate(sys.stdin):
    for pause in map(float, line.split()):
        time.sleep(pause)
        os.kill(int(sys.argv[1]), signal.SIGINT)
    with open(sys.argv[2], "w") as file:
        file.write(str(number))
"""


_attacked = False


def _raise_if_attacked(number: int, frame: FrameType | None) -> None:
    """The handler of a program that is only to be interrupted within the call."""
    if _attacked:
        raise KeyboardInterrupt


def _called(victim: Victim) -> Any:
    global _attacked
    try:
        try:
            _attacked = True
            return victim.call()
        finally:
            _attacked = False
    except KeyboardInterrupt:
        return None


def interrupted_for_real(kind: str, tries: int, seed: int, log: Path) -> collections.Counter[str]:
    """By another process, once or twice, at random times."""
    outcomes: collections.Counter[str] = collections.Counter()
    started = time.perf_counter()
    expected = Victim(kind).call()
    duration = time.perf_counter() - started
    draw = random.Random(seed)
    command = [sys.executable, "-S", "-c", SENDER, str(os.getpid()), str(log)]
    previous = signal.signal(signal.SIGINT, _raise_if_attacked)
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as sender:
            assert sender.stdin is not None
            for number in range(tries):
                victim = Victim(kind)
                pauses = [draw.random() * duration * 1.05] + ([draw.random() * 0.003] if number % 2 else [])
                sender.stdin.write(" ".join(map(str, pauses)) + "\n")
                sender.stdin.flush()
                result = _called(victim)
                while not log.exists() or log.read_text() != str(number):
                    time.sleep(0.001)
                try:
                    victim.check(result)
                except AssertionError as error:
                    raise AssertionError(f"try {number} of {kind}, {pauses}: {error}") from error
                outcomes["returned" if result is not None else "interrupted"] += 1
                if result is not None and kind != "measure":
                    assert result.scales == expected.scales
            sender.stdin.close()
    finally:
        signal.signal(signal.SIGINT, previous)
    return outcomes


@pytest.mark.usefixtures("before")
@pytest.mark.slow
def test_real_interrupts(tmp_path: Path) -> None:
    assert interrupted_for_real("nio", 12, 1, tmp_path / "log")["interrupted"] > 3


@pytest.mark.slow
@pytest.mark.usefixtures("before")
@pytest.mark.parametrize("kind", ["nio", "measure"])
def test_five_hundred_real_interrupts(kind: str, tmp_path: Path) -> None:
    print(kind, dict(interrupted_for_real(kind, 250, 2, tmp_path / "log")))


def dropping(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Hardsigmoid(), nn.Dropout(0.3), nn.Linear(16, 3))


def run_into(found: dict[int, Any], seed: int, model: nn.Module) -> None:
    options: dict[str, Any] = {"steps": 3, "measure_batches": 1, "seed": seed, "train_mode": True, "progress": False}
    try:
        found[seed] = initopt.nio(model, make_batches(seed=seed), **options)
    except Exception as error:
        found[seed] = error


def in_two_threads(rounds: int) -> None:
    alone: dict[int, Any] = {}
    for seed in range(2):
        run_into(alone, seed, dropping(seed))
    state = TorchState.now()
    for _ in range(rounds):
        found: dict[int, Any] = {}
        threads = [threading.Thread(target=run_into, args=(found, seed, dropping(seed))) for seed in range(2)]
        before = torch.get_rng_state()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for seed in range(2):
            assert isinstance(found[seed], initopt.Result), found[seed]
            assert found[seed].scales == alone[seed].scales
            assert found[seed].engine == alone[seed].engine
            assert torch.equal(found[seed].before.gram, alone[seed].before.gram)
        assert torch.equal(torch.get_rng_state(), before)
        assert TorchState.now() == state
        assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.heavy
def test_two_threads() -> None:
    in_two_threads(3)


@pytest.mark.slow
def test_forty_runs_in_two_threads() -> None:
    in_two_threads(20)
