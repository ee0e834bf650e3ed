"""What processes do in step: they begin with the same, and an error on one of them ends the work of all."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import initopt
from initopt.batches.subbatches import SubBatches
from initopt.methods import GradInit, MetaInit
from initopt.model.ranks import Alone
from initopt.runs import resuming
from initopt.runs.checkpoint import Checkpoint
from initopt.runs.shared import in_step, refuse_ranks, windows_of_all
from tests.helpers import make_batches, make_model
from tests.processes import in_processes, share_of

WRONG = {
    "nan": ("NonFiniteError", "in step 2: the loss of sub-batch 0 is nan"),
    "callback": ("RankError", "on rank 1: ValueError: my callback"),
    "loader": ("RankError", "on rank 1: OSError: the disk"),
    "interrupt": ("KeyboardInterrupt", "on rank 1: KeyboardInterrupt"),
    "empty": ("RankError", "on rank 1: LoaderError: batches is empty"),
    "weights": ("RankError", "rank 0 and rank 1 differ in weights: '4.weight'. All ranks have to begin with"),
    "buffers": ("RankError", "rank 0 and rank 1 differ in weights: 'mask'"),
    "options": ("RankError", "rank 0 and rank 1 differ in options: 'lr' (0.03 here, 0.04 there). Give the same"),
    "length": ("RankError", "differ in the number of batches: 'len(batches)' (8 here, 7 there). Have the loader give"),
    "selection": ("RankError", "rank 0 and rank 1 differ in selected parameters: 'scale_params 4.weight'"),
}
"""What is wrong on rank 1, and what is raised on rank 0."""


class Broken:
    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        yield from self.batches[:4]
        raise OSError("the disk")


def stop_at(step: int, what: str) -> Any:
    def callback(record: Any) -> None:
        if record.step == step and what == "callback":
            raise ValueError("my callback")
        if record.step == step and what == "killed":
            raise RuntimeError("on all ranks")
        if record.step == step and what == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)

    return callback


def with_something_wrong() -> dict[str, Any]:
    """What is raised on this rank, whether its model is as before, and after how long; for everything in ``WRONG``."""
    rank, found = dist.get_rank(), {}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for wrong in WRONG:
        model = make_model()
        model.register_buffer("mask", torch.ones(3))
        batches = [share_of(batch, 4, rank, 2) for batch in make_batches(8)]
        options: dict[str, Any] = {"steps": 4, "overlap": 0.0, "measure_batches": 2, "seed": 0}
        if rank == 1:
            if wrong == "nan":
                batches[2][0][0] = torch.nan
            elif wrong in ("callback", "interrupt"):
                options["callbacks"] = stop_at(1, wrong)
            elif wrong == "weights":
                model[4].weight.data[0, 0] += 1e-7
            elif wrong == "buffers":
                model.mask[0] = 2
            elif wrong == "options":
                options["lr"] = 0.04
            elif wrong == "selection":
                options["scale_params"] = lambda name, parameter, module: name != "4.weight"
        given: Any = (
            {"loader": Broken(batches), "empty": [], "length": batches[:7]}.get(wrong, batches) if rank else batches
        )
        start = {name: value.clone() for name, value in model.state_dict().items()}
        begun = time.monotonic()
        try:
            initopt.nio(model, given, process_group=dist.group.WORLD, **options)
            error: BaseException | None = None
        except BaseException as caught:
            error = caught
        same = all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
        found[wrong] = (type(error).__name__, str(error), same, time.monotonic() - begun)
    return found


@pytest.fixture(scope="module")
def raised() -> list[dict[str, Any]]:
    return in_processes(with_something_wrong, 2)


@pytest.mark.processes
@pytest.mark.parametrize("wrong", WRONG)
def test_an_error_on_one_rank_ends_all_and_leaves_their_models_as_before(wrong: str, raised: list[dict[str, Any]]) -> None:
    kind, message = WRONG[wrong]
    assert raised[0][wrong][0] == kind
    assert message in raised[0][wrong][1]
    assert all(rank[wrong][2] for rank in raised)
    assert all(rank[wrong][3] < 30 for rank in raised)  # a group waits for half an hour


@pytest.mark.processes
def test_the_rank_that_fails_raises_its_own_error(raised: list[dict[str, Any]]) -> None:
    own = {wrong: raised[1][wrong][:2] for wrong in ("callback", "loader", "interrupt")}
    assert own["callback"] == ("ValueError", "my callback")
    assert own["loader"] == ("OSError", "the disk")
    assert own["interrupt"][0] == "KeyboardInterrupt"


RESUMED: dict[str, dict[str, Any]] = {"union": {}, "average": {"share": "average", "engine": "differences"}}


def shuffled(rank: int, own_generator: bool) -> DataLoader[Any]:
    """Of the samples of a rank, in an order that follows from the random state, or from a generator of the loader's."""
    inputs, targets = map(torch.cat, zip(*(share_of(batch, 4, rank, 2) for batch in make_batches(12)), strict=True))
    torch.manual_seed(100 + rank)
    generator = torch.Generator().manual_seed(200 + rank) if own_generator else None
    return DataLoader(TensorDataset(inputs, targets), 8, shuffle=True, generator=generator)


def resumed(path: Path, **options: Any) -> dict[str, Any]:
    """An unbroken run, and one that goes on after its end: scales, figures and weights of both."""
    rank, found = dist.get_rank(), {}
    options |= {"steps": 4, "measure_batches": 1, "train_mode": True, "diagnose": False, "process_group": dist.group.WORLD}

    def run(name: str, loader: Any, **more: Any) -> None:
        model = make_model(dropout=0.3)
        model[1].running_mean += rank  # which may differ
        result = initopt.nio(model, loader, **options, **more)
        figures = [(r.grad_norm, r.objective, r.grad_cosine) for r in result.history]
        weights = [p.detach() for p in model.parameters()]
        found[name] = (result.scales, figures, weights, result.before.gram, result.after.gram)

    loader = shuffled(rank, "share" in options)
    run("unbroken", loader)
    loader = shuffled(rank, "share" in options)
    with contextlib.suppress(RuntimeError):
        run("broken", loader, checkpoint=path, checkpoint_every=2, callbacks=stop_at(2, "killed"))
    torch.manual_seed(99)  # and the generator of the loader has moved on
    run("resumed", loader, checkpoint=path)
    return found


def error_of(function: Any, *arguments: Any, **options: Any) -> str:
    try:
        function(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def with_checkpoints(folder: Path) -> dict[str, Any]:
    rank = dist.get_rank()
    if rank == 1:  # which is on a machine without the file
        resuming._read = Checkpoint.write = lambda *arguments: pytest.fail("this is for rank 0")
    found: dict[str, Any] = {name: resumed(folder / name, **options) for name, options in RESUMED.items()}
    options = {"steps": 5, "measure_batches": 1, "train_mode": True}
    together = options | {"process_group": dist.group.WORLD}
    model = make_model(dropout=0.3)
    model[1].running_mean += rank
    nio = functools.partial(error_of, initopt.nio, model)
    path = folder / "union"
    found["alone"] = nio(shuffled(rank, False), checkpoint=path, **options, process_group=None) if rank == 0 else ""
    found["share"] = nio(shuffled(rank, False), checkpoint=path, **together, share="average")
    found["batches"] = nio(shuffled(0, False), checkpoint=path, **together)
    found["path"] = nio(shuffled(rank, False), checkpoint=folder / str(rank), **together)
    if rank == 0:
        path.write_bytes(b"nothing of the kind")
    found["damaged"] = nio(shuffled(rank, False), checkpoint=path, **together)
    return found


def in_odd_ways(folder: Path) -> dict[str, Any]:
    rank = dist.get_rank()
    batches = [share_of(batch, 4, rank, 2) for batch in make_batches(8)]
    found: dict[str, Any] = {}
    options: dict[str, Any] = {"steps": 3, "measure_batches": 3, "seed": 0, "process_group": dist.group.WORLD}
    # A batch that cannot be measured, on one rank, costs the measurements, not the steps.
    spoilt = [*batches[:4], tuple(part[:2] for part in batches[4])] if rank == 1 else batches[:5]
    model = make_model()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = initopt.nio(model, [*spoilt, batches[5]], **options)
    found["unmeasured"] = (result.before, len(result.history), [str(each.message) for each in told])
    # Iterators of different lengths are measured as long as all have a batch.
    count = 3 if rank else 5
    found["shortest"] = initopt.measure(model, iter(batches[:count]), process_group=dist.group.WORLD).num_batches
    apart = initopt.measure(model, batches[:3], seed=0, process_group=dist.group.WORLD, share="average")
    found["all"] = (apart.num_batches, apart.gram, initopt.measure(model, batches[:3], seed=0, process_group=None).gram)
    # Nobody said what group: this process alone, with a warning; a wrapper says.
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if rank == 0:
            initopt.measure(make_model(), batches[:2])
    found["alone"] = [str(each.message) for each in told]
    seen = initopt.check(DistributedDataParallel(make_model()), batches[0])
    found["check"] = [finding.where for finding in seen]
    found["diagnosis"] = str(initopt.diagnose(DistributedDataParallel(make_model()), batches[:2], tries=(), seed=0))
    found["checkpoints"] = with_checkpoints(folder)
    return found


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_processes(in_odd_ways, 2, tmp_path_factory.mktemp("checkpoints"))


@pytest.mark.heavy
@pytest.mark.processes
@pytest.mark.parametrize("share", RESUMED)
def test_a_run_that_was_broken_off_goes_on_to_the_same_end_on_all_ranks(share: str, odd: list[dict[str, Any]]) -> None:
    for rank in odd:
        found = rank["checkpoints"][share]
        assert set(found) == {"unbroken", "resumed"}
        for one, other in zip(found["unbroken"], found["resumed"], strict=True):
            assert str(one) == str(other)
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert odd[0]["checkpoints"][share]["resumed"][:2] == odd[1]["checkpoints"][share]["resumed"][:2]


@pytest.mark.processes
def test_a_checkpoint_of_another_run_is_refused_on_all_ranks(odd: list[dict[str, Any]]) -> None:
    first, second = (rank["checkpoints"] for rank in odd)
    assert "MismatchError: the checkpoint is that of a run on 2 processes, and this one is on 1;" in first["alone"]
    assert "share was 'union' and is 'average'" in first["share"]
    assert "MismatchError: the checkpoint belongs to another run" in second["batches"]
    assert "the first batch is another one" in second["batches"]
    assert "RankError: on rank 1: MismatchError" in first["batches"]
    assert all("differ in options: 'checkpoint'" in rank["path"] for rank in (first, second))
    assert "ValueError" in first["damaged"]
    assert "RankError: on rank 0: ValueError" in second["damaged"]


@pytest.mark.processes
def test_odd_ways(odd: list[dict[str, Any]]) -> None:
    first, second = odd
    for found in (first, second):
        before, steps, told = found["unmeasured"]
        assert before is None
        assert steps == 3
        assert any("could not be measured" in message for message in told)
        assert found["shortest"] == 3
        assert found["all"][0] == 6
        assert "module." not in str(found["check"]) + found["diagnosis"]
    assert torch.equal(first["all"][1], torch.cat([first["all"][2], second["all"][2]]))
    assert torch.equal(second["all"][1], first["all"][1])
    assert len(first["alone"]) == 1
    assert "this is one of 2 processes" in first["alone"][0]
    assert "process_group=torch.distributed.group.WORLD" in first["alone"][0]


class Several(Alone):
    size = 2


def test_what_several_processes_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match='metainit .* share="average" has each take its own'):
        refuse_ranks(Several(), MetaInit())
    refuse_ranks(Several(), GradInit())
    refuse_ranks(Alone(), MetaInit())


def test_one_process_has_its_own_batches_and_windows() -> None:
    assert list(in_step(Alone(), iter([1, 2]))) == [1, 2]
    windows = SubBatches(count=2).windows(4)
    assert windows_of_all(Alone(), windows) is windows
