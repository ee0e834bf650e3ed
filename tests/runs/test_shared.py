"""What processes do in step: they begin with the same, and an error on one of them ends the work of all."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import initopt
from initopt.batches.subbatches import SubBatches
from initopt.methods import GradInit, MetaInit
from initopt.model.ranks import Alone
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
        if record.step == step:
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


def in_odd_ways() -> dict[str, Any]:
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
    return found


@pytest.mark.processes
def test_odd_ways() -> None:
    first, second = in_processes(in_odd_ways, 2)
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
        refuse_ranks(Several(), MetaInit(), None)
    with pytest.raises(ValueError, match="checkpoint='a' of a run on 2 processes is not supported; run it on one"):
        refuse_ranks(Several(), GradInit(), "a")
    refuse_ranks(Alone(), MetaInit(), "a")


def test_one_process_has_its_own_batches_and_windows() -> None:
    assert list(in_step(Alone(), iter([1, 2]))) == [1, 2]
    windows = SubBatches(count=2).windows(4)
    assert windows_of_all(Alone(), windows) is windows
