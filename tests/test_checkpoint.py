"""A run that was killed goes on from its checkpoint and ends where an unbroken one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import initopt
from tests.helpers import make_batches, make_model, values

SCRIPT = """
import os, signal, sys, torch, initopt
from tests.test_checkpoint import make_loader
from tests.helpers import make_model

path, out, kill_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = make_model(dropout=0.3)
loader = make_loader()

def kill(record):
    if record.step == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint = None if path == "none" else path
result = initopt.nio(model, loader, steps=25, lr=0.05, measure_steps=2, train_mode=True, checkpoint=checkpoint,
                     checkpoint_every=4, callbacks=[kill])
result.save(out)
"""


def make_loader() -> DataLoader:
    """A shuffled loader, nine batches an epoch, that draws from torch's global state."""
    torch.manual_seed(3)
    data = TensorDataset(torch.randn(144, 6), torch.randint(3, (144,)))
    torch.manual_seed(4)
    return DataLoader(data, batch_size=16, shuffle=True)


def run_script(checkpoint: Path | str, out: Path, kill_at: int) -> int:
    command = [sys.executable, "-c", SCRIPT, str(checkpoint), str(out), str(kill_at)]
    return subprocess.run(command, check=False, env=dict(os.environ, PYTHONPATH=".")).returncode


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
            make_model(), make_batches(), steps=10, measure_steps=0, checkpoint=path, checkpoint_every=2,
            callbacks=[stop_at(6)], **options,
        )  # fmt: skip


def test_it_goes_on_from_the_stored_weights_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    broken_run(path)
    unbroken = initopt.nio(make_model(), make_batches(), steps=10, measure_steps=0)
    other = make_model(seed=7)
    with pytest.warns(UserWarning, match="began from other weights"):
        result = initopt.nio(other, make_batches(), steps=10, measure_steps=0, checkpoint=path)
    assert result.scales == unbroken.scales
    assert torch.equal(other[0].weight, unbroken.weights["0.weight"])


def test_a_loader_with_its_own_generator_is_played_again(tmp_path: Path) -> None:
    def loader() -> DataLoader:
        data = TensorDataset(*map(torch.cat, zip(*make_batches(), strict=True)))
        return DataLoader(data, batch_size=32, shuffle=True, generator=generator)

    generator = torch.Generator().manual_seed(11)
    unbroken = initopt.nio(make_model(), loader(), steps=10, measure_steps=0)
    generator = torch.Generator().manual_seed(11)
    path = tmp_path / "run.ckpt"
    with pytest.raises(RuntimeError, match="stop"):
        initopt.nio(
            make_model(), loader(), steps=10, measure_steps=0, checkpoint=path, checkpoint_every=1, callbacks=[stop_at(6)]
        )
    result = initopt.nio(make_model(), loader(), steps=10, measure_steps=0, checkpoint=path)  # generator moved on
    assert result.scales == unbroken.scales


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    model = make_model()
    initopt.nio(model, make_batches(), steps=4, measure_steps=0, checkpoint=path)
    calls = []
    model = make_model()
    longer = initopt.nio(model, make_batches(), steps=9, measure_steps=0, checkpoint=path, callbacks=[calls.append])
    assert len(calls) == 5
    assert longer.scales == initopt.nio(make_model(), make_batches(), steps=9, measure_steps=0).scales
    assert longer.options["steps"] == 9


def test_a_finished_run_is_returned_without_a_step(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    done = initopt.nio(make_model(), make_batches(), steps=4, measure_steps=0, checkpoint=path)
    calls = []
    again = initopt.nio(make_model(), make_batches(), steps=4, measure_steps=0, checkpoint=path, callbacks=[calls.append])
    assert calls == []
    assert again.scales == done.scales


def test_a_finished_run_of_other_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    initopt.nio(make_model(), make_batches(), steps=4, measure_steps=0, checkpoint=path)
    model = make_model(seed=1)
    before = values(model)
    with pytest.raises(ValueError, match="finished run that began from other weights"):
        initopt.nio(model, make_batches(), steps=4, measure_steps=0, checkpoint=path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_other_options_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    broken_run(path)
    with pytest.raises(initopt.MismatchError, match=r"lr was 0\.01 and is 0\.5"):
        initopt.nio(make_model(), make_batches(), steps=10, lr=0.5, measure_steps=0, checkpoint=path)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    broken_run(path)
    model = torch.nn.Sequential(torch.nn.Linear(6, 3))
    with pytest.raises(initopt.MismatchError, match=r"'0\.weight' was \[12, 6\] and is \[3, 6\]"):
        initopt.nio(model, make_batches(), steps=10, measure_steps=0, checkpoint=path)


def test_fewer_steps_than_done_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    broken_run(path)
    with pytest.raises(ValueError, match="is at step 6, beyond steps=3"):
        initopt.nio(make_model(), make_batches(), steps=3, measure_steps=0, checkpoint=path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_foreign_or_truncated_file_is_refused_and_left(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="run.ckpt"):
        initopt.nio(make_model(), make_batches(), steps=3, measure_steps=0, checkpoint=path)
    assert path.read_bytes() == content


def test_a_write_that_fails_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.ckpt"
    broken_run(path)
    content = path.read_bytes()

    def full_disk(tensors: object, file: Path, metadata: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("initopt.checkpoint.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        initopt.nio(make_model(), make_batches(), steps=10, measure_steps=0, checkpoint=path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]
