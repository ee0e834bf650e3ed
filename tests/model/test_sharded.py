"""Models of ``fully_shard``, and DTensors of tensor parallelism."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

import initopt
from initopt.model.sharded import part_of, unsharded
from initopt.schemes import apply_, materialize_
from tests.helpers import make_batches
from tests.processes import in_processes, share_of, whole

fsdp = pytest.importorskip("torch.distributed.fsdp", reason="fully_shard is public since PyTorch 2.6")
if not hasattr(fsdp, "fully_shard"):
    pytest.skip("fully_shard is public since PyTorch 2.6", allow_module_level=True)


def build() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(6, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 3)
    return nn.Sequential(*layers).double()


def sharded(model: nn.Sequential) -> nn.Sequential:
    for layer in model:
        if isinstance(layer, nn.Linear):
            fsdp.fully_shard(layer)
    fsdp.fully_shard(model)
    return model


RUNS: dict[str, dict[str, Any]] = {
    "nio": {"steps": 4, "overlap": 0.0},
    "nio with a scheme": {"steps": 2, "overlap": 0.0, "scheme": "xavier_normal"},
    "lsuv": {"method": "lsuv"},
}
OPTIONS: dict[str, Any] = {"measure_batches": 2, "seed": 0, "on_harm": "warn"}
SCHEMES = ("kaiming_normal", "orthogonal", "default", "trunc_normal")


def batches() -> list[Any]:
    return [(inputs.double(), targets) for inputs, targets in make_batches(6)]


def meta_model() -> nn.Sequential:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))
        model.token = nn.Parameter(torch.empty(5, 2))
    return model


def fill(name: str, tensor: torch.Tensor) -> None:
    assert name == "token"
    tensor.normal_()


def stop(record: initopt.StepRecord) -> None:
    if record.step == 2:
        raise RuntimeError("stop")


def resumed(own: list[Any], path: Path) -> dict[str, Any]:
    """A run that goes on from its checkpoint, and one that has other weights than it began with."""
    options = {**OPTIONS, **RUNS["nio"], "checkpoint": path, "checkpoint_every": 1}
    found: dict[str, Any] = {}
    for name, more in {"broken": {"callbacks": stop}, "resumed": {}}.items():
        model = sharded(build())
        try:
            found[name] = (initopt.optimize(model, own, **options | more).scales, whole(model))
        except RuntimeError as error:
            found[name] = str(error)
    model = build()
    model[0].weight.data *= 2
    try:
        initopt.optimize(sharded(model), own, **options | {"steps": 5})
    except ValueError as error:
        found["other"] = str(error)
    return found


def on_shards(folder: Path) -> dict[str, Any]:
    rank, size = dist.get_rank(), dist.get_world_size()
    own = [share_of(batch, 4, rank, size) for batch in batches()]
    found: dict[str, Any] = {}
    for name, options in RUNS.items():
        model = sharded(build())
        states = [module._get_fsdp_state() for module in model.modules() if isinstance(module, fsdp.FSDPModule)]
        before = [[g.post_forward_mesh_info for g in state._fsdp_param_groups] for state in states]
        result = initopt.optimize(model, own, **OPTIONS | options)
        after = [[g.post_forward_mesh_info for g in state._fsdp_param_groups] for state in states]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        learned = whole(model)
        for inputs, targets in own[:2]:
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
        trained = whole(model)
        same = [a is b for one, other in zip(before, after, strict=True) for a, b in zip(one, other, strict=True)]
        found[name] = (result.scales, learned, trained, all(same), hasattr(model[0].weight, "device_mesh"))
    model = sharded(build())
    found["measure"] = initopt.measure(model, own, seed=0).gram
    start = whole(model)
    try:
        initopt.nio(model, [*own[:2], *[(own[0][0] * torch.nan, own[0][1])] * 3], **OPTIONS, steps=3, overlap=0.0)
    except initopt.NonFiniteError:
        found["failed"] = all(torch.equal(value, start[name]) for name, value in whole(model).items())
    F.cross_entropy(model(own[0][0]), own[0][1]).backward()  # trains on after it
    for scheme in SCHEMES:
        model = sharded(build())
        found[scheme] = (apply_(model, scheme, seed=3).set, whole(model))
    model = sharded(meta_model())
    applied = materialize_(model, "kaiming_normal", otherwise=fill, seed=4)
    found["meta"] = (applied.set, whole(model), model[1].running_var.tolist())
    for wrong, options in {"mimetic": {}, "kaiming_normal": {"batch": own[0]}}.items():
        try:
            apply_(sharded(build()), wrong, **options)
        except TypeError as error:
            found[f"refused {wrong}"] = str(error)
    found["checkpoint"] = resumed(own, folder / "run.ckpt")
    try:
        initopt.choose(sharded(build()), own, partial(torch.optim.SGD, lr=0.1))
    except TypeError as error:
        found["refused choose"] = str(error)
    found["parallel"] = in_parallel(own)
    return found


def in_parallel(own: list[Any]) -> Any:
    """Tensor parallelism: schemes work, and the rest is refused with words."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model = build()
    plan = {"0": ColwiseParallel(output_layouts=None), "3": RowwiseParallel()}
    parallelize_module(model, init_device_mesh("cpu", (dist.get_world_size(),)), plan)
    apply_(model, "orthogonal", seed=3)
    try:
        initopt.measure(model, own[:1], process_group=None)
    except TypeError as error:
        return whole(model), str(error)
    return whole(model), "measured"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_processes(on_shards, 2, tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.heavy
@pytest.mark.processes
class TestTwoRanks:
    @pytest.mark.parametrize("name", RUNS)
    def test_a_run_is_as_on_one_process(self, name: str, found: list[dict[str, Any]]) -> None:
        model = build()
        result = initopt.optimize(model, batches(), **OPTIONS | RUNS[name])
        for rank in found:
            scales, learned, trained, as_before, is_sharded = rank[name]
            assert list(scales) == list(result.scales)
            assert as_before
            assert is_sharded
            for parameter, value in model.named_parameters():
                assert scales[parameter] == pytest.approx(result.scales[parameter], abs=1e-9)
                torch.testing.assert_close(learned[parameter], value.detach(), rtol=1e-9, atol=1e-12)
                assert torch.equal(trained[parameter], found[0][name][2][parameter])

    def test_measurements_are_those_of_one_process(self, found: list[dict[str, Any]]) -> None:
        torch.testing.assert_close(
            found[0]["measure"], initopt.measure(build(), batches(), seed=0).gram, rtol=1e-9, atol=1e-12
        )

    def test_a_failure_leaves_the_shards_as_they_were(self, found: list[dict[str, Any]]) -> None:
        assert found[0]["failed"]
        assert found[1]["failed"]

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_schemes_draw_the_same_for_any_number_of_ranks(self, scheme: str, found: list[dict[str, Any]]) -> None:
        model = build()
        applied = apply_(model, scheme, seed=3)
        for rank in found:
            assert rank[scheme][0] == applied.set
            assert all(torch.equal(value, rank[scheme][1][name]) for name, value in model.named_parameters())

    def test_a_model_on_the_meta_device_gets_the_same_weights(self, found: list[dict[str, Any]]) -> None:
        model = meta_model()
        applied = materialize_(model, "kaiming_normal", otherwise=fill, seed=4)
        for rank in found:
            assert rank["meta"][0] == applied.set == ("0.weight", "0.bias", "3.weight", "3.bias")
            assert all(torch.equal(value, rank["meta"][1][name]) for name, value in model.named_parameters())
            assert rank["meta"][2] == [1.0] * 12

    def test_a_run_goes_on_from_its_checkpoint(self, found: list[dict[str, Any]]) -> None:
        for rank in found:
            scales, weights = rank["checkpoint"]["resumed"]
            assert rank["checkpoint"]["broken"] == "stop"
            assert scales == rank["nio"][0]
            assert all(torch.equal(value, rank["nio"][1][name]) for name, value in weights.items())
            assert "whose shards it does not replace; give the model the weights" in rank["checkpoint"]["other"]

    def test_refusals(self, found: list[dict[str, Any]]) -> None:
        assert "call this before it is sharded, with process_group=" in found[0]["refused choose"]
        assert "'mimetic' looks at whole weights" in found[0]["refused mimetic"]
        assert "leave the batch out" in found[0]["refused kaiming_normal"]

    def test_tensor_parallel_models_take_schemes(self, found: list[dict[str, Any]]) -> None:
        model = build()
        apply_(model, "orthogonal", seed=3)
        for rank in found:
            weights, message = rank["parallel"]
            assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())
            assert "is sharded over devices (DTensor), and not by fully_shard" in message


def test_plain_models_are_whole() -> None:
    model = build()
    with unsharded(model) as shards:
        assert shards is None
    assert part_of(model[0].weight, torch.ones(12, 6)).shape == (12, 6)
