"""A run that was killed goes on from its checkpoint and ends where an unbroken one does."""

from __future__ import annotations

import functools
import json
import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import initopt
from initopt.runs.checkpoint import Checkpoint
from tests.forks import python
from tests.helpers import make_batches, make_model, values

SCRIPT = """
import os, signal, sys, torch, initopt
from tests.runs._loader import make_loader
from tests.helpers import make_model

path, out, kill_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = make_model(dropout=0.3)
loader = make_loader()

def kill(record):
    if record.step == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint = None if path == "none" else path
result = initopt.nio(model, loader, steps=25, lr=0.05, measure_batches=2, train_mode=True, checkpoint=checkpoint,
                     checkpoint_every=4, callbacks=[kill])
result.save(out)
"""


def run_script(checkpoint: Path | str, out: Path, kill_at: int) -> int:
    return python(SCRIPT, str(checkpoint), str(out), str(kill_at)).returncode


@pytest.mark.processes
def test_a_run_killed_twice_ends_in_exactly_the_same_scales(tmp_path: Path) -> None:
    assert run_script("none", tmp_path / "unbroken", -1) == 0
    checkpoint = tmp_path / "run.ckpt"
    assert run_script(checkpoint, tmp_path / "broken", 9) == -signal.SIGKILL
    assert run_script(checkpoint, tmp_path / "broken", 21) == -signal.SIGKILL
    assert run_script(checkpoint, tmp_path / "broken", -1) == 0
    unbroken, broken = (initopt.Result.load(tmp_path / name) for name in ("unbroken", "broken"))
    assert broken.scales == unbroken.scales
    assert len(broken.history) == 25
    for mine, theirs in zip(broken.history, unbroken.history, strict=True):
        assert (mine.grad_cosine, mine.grad_norm, mine.objective) == (
            theirs.grad_cosine,
            theirs.grad_norm,
            theirs.objective,
        )
    assert all(torch.equal(broken.weights[name], value) for name, value in unbroken.weights.items())
    assert broken.before is not None
    assert unbroken.before is not None
    assert broken.after is not None
    assert unbroken.after is not None
    assert torch.equal(broken.before.gram, unbroken.before.gram)
    assert torch.equal(broken.after.gram, unbroken.after.gram)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def stop_at(step: int) -> object:
    def stop(record: initopt.StepRecord) -> None:
        if record.step == step:
            raise RuntimeError("stop")

    return stop


def broken_run(path: Path, **options: object) -> None:
    with pytest.raises(RuntimeError, match="stop"):
        initopt.nio(
            make_model(), make_batches(), steps=10, measure_batches=0, checkpoint=path, checkpoint_every=2,
            callbacks=[stop_at(6)], **options,
        )  # fmt: skip


@pytest.mark.heavy
def test_it_goes_on_from_the_stored_weights_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    broken_run(path)
    unbroken = initopt.nio(make_model(), make_batches(), steps=10, measure_batches=0)
    other = make_model(seed=7)
    with pytest.warns(UserWarning, match="began from other weights"):
        result = initopt.nio(other, make_batches(), steps=10, measure_batches=0, checkpoint=path)
    assert result.scales == unbroken.scales
    assert torch.equal(other[0].weight, unbroken.weights["0.weight"])


@pytest.mark.heavy
def test_a_loader_with_its_own_generator_is_played_again(tmp_path: Path) -> None:
    def loader() -> DataLoader:
        data = TensorDataset(*map(torch.cat, zip(*make_batches(), strict=True)))
        return DataLoader(data, batch_size=32, shuffle=True, generator=generator)

    generator = torch.Generator().manual_seed(11)
    unbroken = initopt.nio(make_model(), loader(), steps=10, measure_batches=0)
    generator = torch.Generator().manual_seed(11)
    path = tmp_path / "run.ckpt"
    with pytest.raises(RuntimeError, match="stop"):
        initopt.nio(
            make_model(), loader(), steps=10, measure_batches=0, checkpoint=path, checkpoint_every=1, callbacks=[stop_at(6)]
        )
    result = initopt.nio(make_model(), loader(), steps=10, measure_batches=0, checkpoint=path)  # generator moved on
    assert result.scales == unbroken.scales


@pytest.mark.heavy
def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    model = make_model()
    initopt.nio(model, make_batches(), steps=4, measure_batches=0, checkpoint=path)
    calls = []
    model = make_model()
    longer = initopt.nio(model, make_batches(), steps=9, measure_batches=0, checkpoint=path, callbacks=[calls.append])
    assert len(calls) == 5
    assert longer.scales == initopt.nio(make_model(), make_batches(), steps=9, measure_batches=0).scales
    assert longer.options["steps"] == 9


def test_a_finished_run_is_returned_without_a_step(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    done = initopt.nio(make_model(), make_batches(), steps=4, measure_batches=0, checkpoint=path)
    calls = []
    again = initopt.nio(make_model(), make_batches(), steps=4, measure_batches=0, checkpoint=path, callbacks=[calls.append])
    assert calls == []
    assert again.scales == done.scales


def test_a_finished_run_of_other_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    initopt.nio(make_model(), make_batches(), steps=4, measure_batches=0, checkpoint=path)
    model = make_model(seed=1)
    before = values(model)
    with pytest.raises(ValueError, match="finished run that began from other weights"):
        initopt.nio(model, make_batches(), steps=4, measure_batches=0, checkpoint=path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_other_options_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    broken_run(path)
    with pytest.raises(initopt.MismatchError, match=r"lr was 0\.03 and is 0\.5"):
        initopt.nio(make_model(), make_batches(), steps=10, lr=0.5, measure_batches=0, checkpoint=path)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    broken_run(path)
    model = torch.nn.Sequential(torch.nn.Linear(6, 3))
    with pytest.raises(initopt.MismatchError, match=r"'0\.weight' was float32 \[12, 6\] and is float32 \[3, 6\]"):
        initopt.nio(model, make_batches(), steps=10, measure_batches=0, checkpoint=path)


def test_fewer_steps_than_done_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    broken_run(path)
    with pytest.raises(ValueError, match="is at step 6, beyond steps=3"):
        initopt.nio(make_model(), make_batches(), steps=3, measure_batches=0, checkpoint=path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_foreign_or_truncated_file_is_refused_and_left(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="run.ckpt"):
        initopt.nio(make_model(), make_batches(), steps=3, measure_batches=0, checkpoint=path)
    assert path.read_bytes() == content


def test_a_write_that_fails_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.ckpt"
    broken_run(path)
    content = path.read_bytes()

    def full_disk(tensors: object, file: Path, metadata: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("initopt._support.tensorfile.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        initopt.nio(make_model(), make_batches(), steps=10, measure_batches=0, checkpoint=path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def small_run(path: Path | str | None, model: nn.Module | None = None, batches: Any = None, **options: Any) -> Any:
    options = {"steps": 2, "measure_batches": 0, "checkpoint": path, **options}
    return initopt.nio(make_model() if model is None else model, make_batches() if batches is None else batches, **options)


class WithFrozen(nn.Module):
    def __init__(self, frozen: float = 1.0, buffer: float = 1.0) -> None:
        super().__init__()
        self.body = make_model()
        self.gain = nn.Parameter(torch.full((6,), frozen), requires_grad=False)
        self.register_buffer("shift", torch.full((6,), buffer, dtype=torch.bfloat16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x * self.gain + self.shift)


def filtered(*names: str) -> Any:
    return lambda name, parameter, module: name in names


def as_floats(batches: list[Any]) -> list[Any]:
    return [(inputs.double(), targets) for inputs, targets in batches]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"scale_params": filtered("4.weight")}, {"scale_params": filtered("4.bias")}, r"params selected '4\.weight'"),
        ({}, {"grad_params": filtered("0.bias")}, r"grad_params selected '0\.weight' and does no longer"),
        ({}, {"loss_fn": nn.CrossEntropyLoss()}, r"loss_fn was None and is 'torch\.nn.*CrossEntropyLoss'"),
        ({}, {"model": make_model().double(), "batches": as_floats(make_batches())},
         r"parameter '0\.weight' was float32 \[12, 6\] and is float64 \[12, 6\]"),
        ({}, {"batches": make_batches(seed=2)}, "the first batch is another one"),
        ({}, {"batches": [(x, y.int()) for x, y in make_batches()]}, "the first batch is another one"),
        ({"model": WithFrozen()}, {"model": WithFrozen(frozen=2.0)}, "'gain', a buffer or frozen parameter, has"),
        ({"model": WithFrozen()}, {"model": WithFrozen(buffer=2.0)}, "'shift', a buffer or frozen"),
        ({"measure_batches": 1}, {"measure_batches": 2}, "measure_batches was 1 and is 2"),
        ({"seed": 1}, {"seed": 2}, "seed was 1 and is 2"),
    ],
)  # fmt: skip
def test_a_run_that_differs_is_refused_and_told_in_what(tmp_path: Path, first: Any, second: Any, message: str) -> None:
    path = tmp_path / "run.ckpt"
    small_run(path, **first)
    content = path.read_bytes()
    with pytest.raises(initopt.MismatchError, match=message):
        small_run(path, **{"steps": 4, **second})
    assert path.read_bytes() == content
    if "model" not in first:
        assert len(small_run(path, **{"steps": 4, **first}).history) == 4


def test_another_filter_that_selects_the_same_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    small_run(path, scale_params=filtered("4.weight"), grad_params=None)
    longer = small_run(path, steps=3, scale_params=functools.partial(lambda *_, n, **__: _[0] == n, n="4.weight"))
    assert list(longer.scales) == ["4.weight"]


def test_a_loader_that_gained_a_generator_is_refused(tmp_path: Path) -> None:
    data = TensorDataset(*map(torch.cat, zip(*make_batches(), strict=True)))
    small_run(tmp_path / "run.ckpt", batches=DataLoader(data, batch_size=16))
    with pytest.raises(
        initopt.MismatchError, match=r"generators of the loader was \[\] and is \['batch_sampler', 'loader', 'sampler'\]"
    ):
        loader = DataLoader(data, batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(0))
        small_run(tmp_path / "run.ckpt", batches=loader, steps=4)


@pytest.mark.heavy
def test_the_state_of_the_engine_goes_on_too(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    unbroken = small_run(None, steps=8, lr=0.05, engine="differences")
    small_run(path, steps=3, lr=0.05, engine="differences")
    assert small_run(path, steps=8, lr=0.05, engine="differences").scales == unbroken.scales


def test_a_path_that_cannot_be_written_is_found_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    calls: list[object] = []
    with pytest.raises((NotADirectoryError, FileExistsError)):
        small_run(tmp_path / "file" / "run.ckpt", callbacks=calls.append)
    assert calls == []
    with pytest.raises(ValueError, match="is a folder; give the path of a file"):
        small_run(tmp_path)


def broken_in_the_first_step(model: nn.Module, batch: Any, calls: list[int] = []) -> Any:  # noqa: B006
    """A loss that is none once the first batch has been looked at."""
    calls.append(len(batch[1]))
    return F.cross_entropy(model(batch[0]), batch[1]) if len(calls) < 10 else 1.0


def test_a_checkpoint_without_a_step_binds_to_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    with pytest.raises(initopt.LossError):
        small_run(path, loss_fn=broken_in_the_first_step, allow_trained=True)
    assert path.is_file()
    assert small_run(path).scales == small_run(None).scales


def test_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    result = small_run("~/run.ckpt")
    assert (tmp_path / "run.ckpt").is_file()
    result.save("~/out")
    assert initopt.Result.load("~/out").scales == result.scales
    assert initopt.Result.load("~/out/result.json").scales == result.scales


class Complex(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Parameter(torch.randn(6, 3, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.to(self.mix.dtype) @ self.mix).abs()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_parameters(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "run.ckpt"
    unbroken = small_run(None, Complex(dtype), steps=5)
    small_run(path, Complex(dtype), steps=2)
    result = small_run(path, Complex(dtype), steps=5)
    assert result.scales == unbroken.scales
    result.save(tmp_path / "out")
    model = Complex(dtype)
    initopt.Result.load(tmp_path / "out", model)
    assert torch.equal(model.mix, result.weights["mix"])
    assert model.mix.dtype == dtype


def test_numbers_that_are_not_finite_come_back_as_numbers(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    small_run(path)
    stored = Checkpoint.read(path)
    replace(stored, history=[replace(stored.history[0], objective=math.inf, grad_cosine=math.nan)]).write(path)
    record = Checkpoint.read(path).history[0]
    assert record.objective == math.inf
    assert math.isnan(record.grad_cosine)


def test_the_warning_is_about_the_users_line(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    broken_run(path)
    with pytest.warns(UserWarning, match="began from other weights") as caught:
        initopt.nio(make_model(seed=7), make_batches(), steps=10, measure_batches=0, checkpoint=path)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="different batches") as caught:
        initopt.measure(make_model(), make_batches(2), num_batches=np.int64(3))
    assert caught[0].filename == __file__


STORED = Path(__file__).parent / "stored"
"""Of version 0.1.0 before methods were objects: runs of three steps that were stopped after two, and results."""


@pytest.mark.parametrize("name", ["nio", "gradinit", "lsuv"])
def test_a_checkpoint_of_the_format_before_goes_on(name: str, tmp_path: Path) -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(16, 4, generator=generator), torch.randint(3, (16,), generator=generator)) for _ in range(12)]
    path = tmp_path / "run.ckpt"
    path.write_bytes((STORED / f"{name}_format_2.ckpt").read_bytes())
    options: dict[str, Any] = {"method": name, "steps": 3, "seed": 0, "measure_batches": 2, "on_harm": "warn"}
    numbers = []
    found = initopt.optimize(
        model(), batches, checkpoint=path, callbacks=lambda record: numbers.append(record.step), **options
    )
    assert set(numbers) == {2}
    assert found.scales == pytest.approx(initopt.optimize(model(), batches, **options).scales, rel=1e-6)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["initopt"])["format"] == "initopt checkpoint 3"
    path.write_bytes((STORED / f"{name}_format_2.ckpt").read_bytes())
    with pytest.raises(initopt.MismatchError, match="measure_batches was 2 and is 1"):
        initopt.optimize(model(), batches, checkpoint=path, **options | {"measure_batches": 1})
    if name != "nio":
        how = initopt.Measuring(num_subbatches=2, overlap=0.5)
        with pytest.raises(initopt.MismatchError, match="overlap was 0.0 and is 0.5\n  num_subbatches was 4 and is 2"):
            initopt.optimize(model(), batches, checkpoint=path, measuring=how, **options)


@pytest.mark.parametrize("name", ["gradinit", "lsuv"])
def test_a_result_of_before_loads(name: str) -> None:
    found = initopt.Result.load(STORED / f"{name}_result")
    assert found.options["num_subbatches"] == 4
    assert found.options["measure_steps"] == found.after.num_batches == 2
    assert {type(record) for record in found.history} == {initopt.LayerRecord if name == "lsuv" else initopt.StepRecord}
