"""Processes that choose a start, and find a learning rate, together: as one with all the batches would."""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.fsdp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import initopt
from initopt.methods import NIO, MetaInit
from tests.choice.races import SGD, batches
from tests.processes import in_processes, share_of

RACE: dict[str, Any] = {
    "starts": {"kaiming": "kaiming_normal", "both": ["lsuv", NIO(steps=2, overlap=0.0)]},
    "steps": 8,
    "seeds": 2,
    "more_seeds": 3,
    "held_out": 2,
    "clip_grad_norm": 0.5,
    "seed": 5,  # with which seeds are added
    "progress": False,
}
RATES: dict[str, Any] = {
    "seeds": 1,
    "steps": 6,
    "sweep_steps": 20,
    "warmup_steps": 0,
    "precision": 1.5,
    "budget": 150,
    "seed": 3,
    "progress": False,
}


def make() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def with_a_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def whole(count: int = 10) -> list[Any]:
    return [(inputs.double(), targets) for inputs, targets in batches(count)]


def start() -> nn.Module:
    torch.manual_seed(5)
    return make()


def sgd_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def by_the_data(model: nn.Module, batches: Any, loss_fn: Any) -> None:
    """Other weights on each rank, but for what is done about it."""
    with torch.no_grad():
        model[0].weight.mul_(next(iter(batches))[0].std())


def broken_on_one(model: nn.Module, batches: Any, loss_fn: Any) -> None:
    if dist.get_rank() == 1:
        raise ValueError("not here")


def torn(kind: type[BaseException], model: nn.Module, batches: Any, loss_fn: Any) -> None:
    """Fails on rank 1 while rank 0 waits for it in other work."""
    if dist.get_rank() == 1:
        raise kind("not here, either")
    initopt.nio(model, batches, process_group=dist.group.WORLD, steps=1, measure_batches=0)


def in_two_passes(model: nn.Module, optimizer: Any, batch: Any) -> Tensor:
    """A step of a user's own that accumulates gradients."""
    inputs, targets = batch
    optimizer.zero_grad()
    half = len(targets) // 2
    parts = [F.cross_entropy(model(inputs[rows]), targets[rows]) / 2 for rows in (slice(half), slice(half, None))]
    for part in parts:
        part.backward()
    optimizer.step()
    return sum(parts)


def without_a_pass(model: nn.Module, optimizer: Any, batch: Any) -> Tensor:
    loss = F.cross_entropy(model(batch[0]), batch[1])
    for parameter, gradient in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
        parameter.grad = gradient
    optimizer.step()
    return loss


class Fragile(nn.Module):
    """Fails on rank 1 after a while."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        Fragile.calls += 1
        if Fragile.calls == 30 and dist.get_rank() == 1:
            raise ZeroDivisionError("the thirtieth")
        return self.layer(inputs)


def error_of(function: Any, *arguments: Any, **options: Any) -> tuple[str, float]:
    begun = time.monotonic()
    try:
        function(*arguments, **options)
    except BaseException as error:
        return f"{type(error).__name__}: {error}", time.monotonic() - begun
    return "", 0.0


def applied(choice: Any, start_name: str, model: nn.Module, **options: Any) -> list[Tensor]:
    row = next(row for row in choice.rows if row.start == start_name)
    dataclasses.replace(choice, best=row).apply(model, **options)
    return [parameter.detach() for parameter in model.parameters()]


def rates_of(found: Any) -> Any:
    runs = [(run.lr, run.losses, run.gains, run.stable) for run in found.runs]
    return found.suggested, found.largest_stable, found.why, runs, found.sweeps[0].losses, found.steps_spent


def seeds_of(row: Any) -> tuple[int, int]:
    return row.seeds, row.lower


def rows_of(choice: Any) -> Any:
    return [
        (row.start, row.outcome, row.loss, row.difference, row.low, row.high, row.training_loss, *seeds_of(row), row.curves)
        for row in choice.rows
    ]


def together() -> dict[str, Any]:
    rank, group = dist.get_rank(), dist.group.WORLD
    own = [share_of(batch, 4, rank, 2) for batch in whole()]
    floats = [(inputs.float(), targets) for inputs, targets in own]
    found: dict[str, Any] = {}
    choice = initopt.choose(make, own, SGD, process_group=group, **RACE)
    found["rows"], found["verdict"], found["cost"] = rows_of(choice), choice.verdict, choice.cost
    found["applied"] = applied(choice, "both", DistributedDataParallel(start()))
    model = DistributedDataParallel(start())
    found["rates"] = rates_of(initopt.find_lr(model, own, sgd_of(model), **RATES))
    found["left"] = [parameter.detach() for parameter in model.parameters()]
    steps = {"step": in_two_passes, "steps": 3, "clip_grad_norm": None}
    found["own step"] = rows_of(initopt.choose(start(), own, SGD, process_group=group, **RACE | steps))
    odd = {"mine": by_the_data, "broken": broken_on_one, "torn": partial(torn, ValueError), "metainit": MetaInit(steps=1)}
    few = RACE | {"starts": odd, "steps": 2}
    torch.manual_seed(rank)
    unequal = iter(floats if rank else floats[:8])
    choice = initopt.choose(with_a_norm, unequal, SGD, process_group=group, **few | {"seed": None})
    found["odd"], found["seed"] = rows_of(choice), choice.seed
    found["why"] = {row.start: row.why for row in choice.rows}
    found["mine"] = applied(choice, "mine", start().float(), batches=floats)

    torch.manual_seed(0)
    fragile, apart = Fragile(), nn.Linear(16, 2)
    apart.weight.data[0, 0] += 1e-7 * rank

    def failing() -> Any:
        yield from own[:5]
        raise OSError("the disk")

    interrupted = {"starts": {"torn": partial(torn, KeyboardInterrupt)}}
    errors = {
        "loader": partial(initopt.choose, make, failing() if rank else iter(own), SGD, process_group=group, **RACE),
        "options": partial(initopt.choose, make, own, SGD, process_group=group, **RACE | {"steps": 8 + rank}),
        "lengths": partial(initopt.find_lr, start(), own[rank:], SGD, process_group=group, **RATES),
        "weights": partial(initopt.choose, apart, floats, SGD, process_group=group, **RACE),
        "model": partial(initopt.find_lr, fragile, floats, SGD, process_group=group, **RATES),
        "step": partial(initopt.choose, make, own, SGD, process_group=group, **RACE | steps | {"step": without_a_pass}),
        "interrupt": partial(initopt.choose, make, own, SGD, process_group=group, **RACE | interrupted),
        "workers": partial(initopt.choose, make, own, SGD, workers=2, process_group=group, **RACE),
    }
    found["errors"] = {name: error_of(function) for name, function in errors.items()}
    return found


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return in_processes(together, 2)


def close(one: Any, other: Any) -> None:
    """The same to 1e-9, all the way down."""
    if dataclasses.is_dataclass(one):
        one, other = dataclasses.astuple(one), dataclasses.astuple(other)
    if isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            close(a, b)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-9, nan_ok=True)
    else:
        assert one == other


@pytest.mark.heavy
@pytest.mark.processes
class TestTogether:
    def test_all_ranks_come_to_the_same_choice(self, found: list[dict[str, Any]]) -> None:
        first, second = found
        for what in ("rows", "verdict", "cost", "own step", "odd", "seed", "rates"):
            assert str(first[what]) == str(second[what]), what  # in which not a number is itself
        for what in ("applied", "mine", "left"):
            assert all(map(torch.equal, first[what], second[what])), what

    def test_it_is_that_of_one_process_with_all_the_batches(self, found: list[dict[str, Any]]) -> None:
        alone = initopt.choose(make, whole(), SGD, **RACE)
        close(found[0]["rows"], rows_of(alone))
        assert alone.own.seeds == 5
        assert found[0]["verdict"] == alone.verdict
        for one, other in zip(found[0]["applied"], applied(alone, "both", start()), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)

    @pytest.mark.filterwarnings("ignore:of 5 batches, one alone judges")
    def test_gradients_of_a_step_of_the_users_own_are_averaged(self, found: list[dict[str, Any]]) -> None:
        alone = initopt.choose(start(), whole(), SGD, **RACE | {"step": in_two_passes, "steps": 3, "clip_grad_norm": None})
        close(found[0]["own step"], rows_of(alone))

    def test_rates_are_those_of_one_process_with_all_the_batches(self, found: list[dict[str, Any]]) -> None:
        model = start()
        close(found[0]["rates"], rates_of(initopt.find_lr(model, whole(), sgd_of(model), **RATES)))
        assert all(map(torch.equal, found[0]["left"], start().parameters()))

    def test_a_start_that_fails_on_one_rank_is_left_out_on_all(self, found: list[dict[str, Any]]) -> None:
        outcomes = {row[0]: row[1] for row in found[0]["odd"]}
        assert {name for name, outcome in outcomes.items() if outcome == "failed"} == {"broken", "torn"}
        for rank in found:
            assert rank["why"]["broken"] == "ValueError: not here"
            assert rank["why"]["torn"] == "ValueError: not here, either"

    @pytest.mark.parametrize(
        ("wrong", "own", "others"),
        [
            ("loader", "OSError: the disk", "RankError: on rank 1: OSError: the disk"),
            (
                "options",
                "rank 0 differ in options: 'steps' (9 here, 8 there)",
                "differ in options: 'steps' (8 here, 9 there)",
            ),
            ("lengths", "differ in the number of batches", "'len(batches)' (10 here, 9 there)"),
            ("weights", "RankError: rank 1 and rank 0 differ in weights", "RankError: rank 0 and rank 1 differ in weights"),
            ("model", "ZeroDivisionError: the thirtieth", "RankError: on rank 1: ZeroDivisionError: the thirtieth"),
            ("step", "differ in the weights that training has left", "backward() of the loss, which a step of your own"),
            ("interrupt", "KeyboardInterrupt: not here", "KeyboardInterrupt: on rank 1: KeyboardInterrupt: not here"),
            ("workers", "ValueError: workers=2 has other", "and here 2 do each run together; leave workers out"),
        ],
    )
    def test_an_error_on_one_rank_ends_all(self, found: list[dict[str, Any]], wrong: str, own: str, others: str) -> None:
        for message, (said, seconds) in zip((others, own), (rank["errors"][wrong] for rank in found), strict=True):
            assert message in said
            assert seconds < 300  # on a busy machine; a group waits for half an hour


def in_parts() -> dict[str, Any]:
    """Rates of a model of ``fully_shard``, of one under tensor parallelism, and what is left of each."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    found: dict[str, Any] = {}
    own = [share_of(batch, 1, dist.get_rank(), 2) for batch in whole()]
    model = start()
    fully_shard(model[0])
    fully_shard(model)
    rows = parallelize_module(start(), init_device_mesh("cpu", (2,)), {"0": ColwiseParallel(), "2": RowwiseParallel()})
    for name, made, data in (("fully_shard", model, own), ("tensor parallel", rows, whole())):
        made[0].weight.grad = gradient = made[0].weight.detach().clone()
        found[name] = rates_of(initopt.find_lr(made, data, SGD, **RATES))
        same = all(map(torch.equal, (p.full_tensor() for p in made[:1].parameters()), start()[:1].parameters()))
        found[f"{name}, left"] = same, made[0].weight.grad is gradient
    mixed_up = [(inputs + dist.get_rank(), targets) for inputs, targets in whole()]
    found["errors"] = [
        error_of(partial(initopt.find_lr, rows, mixed_up, SGD, **RATES)),
        error_of(partial(initopt.find_lr, model, own, SGD, process_group=None, **RATES)),
        error_of(partial(initopt.choose, model, own, SGD, **RACE)),
    ]
    return found


@pytest.mark.heavy
@pytest.mark.processes
@pytest.mark.skipif(not hasattr(torch.distributed.fsdp, "fully_shard"), reason="fully_shard is public since PyTorch 2.6")
def test_rates_of_a_model_in_parts_are_those_of_one_process() -> None:
    expected = rates_of(initopt.find_lr(start(), whole(), SGD, **RATES))
    for rank in in_processes(in_parts, 2):
        for name in ("fully_shard", "tensor parallel"):
            close(rank[name], expected)
            assert rank[f"{name}, left"] == (True, True)
        batches_differ, alone, race = (words for words, _ in rank["errors"])
        assert "rank 0 and rank 1 have other batches" in batches_differ
        assert "cannot be trained here: its parameters have to be in parts on the very processes" in alone
        assert "call this before it is sharded" in race
