"""Sub-batches whose samples lie on several ranks give what they give on one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import initopt
from initopt.batches.nested import concatenate
from initopt.engines.united import UnitedEngine
from initopt.testing import ENTRIES
from tests.helpers import make_model, make_problem
from tests.processes import OneByOne, in_processes, share_of

FEW = ("mlp", "batch_norm_2d", "causal_attention")
MORE = (
    "batch_norm_residual", "mixture_of_experts", "layer_norm", "group_norm", "tied_embedding_and_output", "lstm",
    "checkpointed_attention", "sparse_embedding", "complex_weight", "segmentation",
)  # fmt: skip
"""Networks of the gallery."""

OPTIONS: dict[str, Any] = {"steps": 3, "overlap": 0.0, "num_subbatches": 3, "measure_batches": 1, "seed": 0}


def batches_of(name: str) -> list[Any]:
    entry = ENTRIES[name]
    return [concatenate([entry.batch(10 * number + part) for part in range(4)]) for number in range(6)]


def found_of(model: Any, batches: list[Any], name: str, **options: Any) -> dict[str, Any]:
    result = initopt.nio(model, batches, ENTRIES[name].loss_fn(), **OPTIONS | options)
    measured = initopt.measure(model, batches[:2], ENTRIES[name].loss_fn(), num_subbatches=3, seed=0)
    return {
        "scales": torch.tensor(list(result.scales.values()), dtype=torch.float64),
        "history": result.history,
        "figures": torch.tensor([[r.grad_norm, r.objective or 0.0] for r in result.history], dtype=torch.float64),
        "weights": [p.detach().clone() for p in model.parameters()],
        "gram": measured.gram,
        "sizes": torch.tensor([measured.small_batch, measured.big_batch]),
        "outputs": torch.tensor([measured.loss, measured.output_spread], dtype=torch.float64),
        "names": list(result.scales),
        "engine": result.engine,
    }


def together(names: tuple[str, ...]) -> dict[str, Any]:
    """What is found in a group of processes, on each of them."""
    found = {}
    for name in names:
        model = DistributedDataParallel(ENTRIES[name].model())
        rank, size = dist.get_rank(), dist.get_world_size()
        found[name] = found_of(model, [share_of(batch, 3, rank, size) for batch in batches_of(name)], name)
    return found


def check_same_as_alone(name: str, by_rank: list[dict[str, Any]]) -> None:
    first, *others = by_rank
    for other in others:
        assert other["history"] == first["history"]
        assert all(map(torch.equal, other["weights"], first["weights"]))
    model = ENTRIES[name].model()
    normalized = name.startswith("batch_norm")
    alone = found_of(OneByOne(model, len(by_rank)) if normalized else model, batches_of(name), name, engine="plain")
    assert first["names"] == [each.removeprefix("model." if normalized else "") for each in alone["names"]]
    for what in ("scales", "figures", "gram", "outputs", "sizes"):
        torch.testing.assert_close(first[what], alone[what], rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def of_two_ranks() -> list[dict[str, Any]]:
    return in_processes(together, 2, FEW)


@pytest.mark.processes
@pytest.mark.parametrize("name", FEW)
def test_two_ranks_are_as_one(name: str, of_two_ranks: list[dict[str, Any]]) -> None:
    check_same_as_alone(name, [each[name] for each in of_two_ranks])


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("size", [2, 4])
def test_many_networks_on_more_ranks(size: int) -> None:
    found = in_processes(together, size, MORE)
    for name in MORE:
        check_same_as_alone(name, [each[name] for each in found])


def in_many_ways() -> dict[str, Any]:
    """The scales of one network in many ways, and whether the gradients of the ranks are in step afterwards."""
    rank, size = dist.get_rank(), dist.get_world_size()
    batches = [share_of(batch, 3, rank, size) for batch in batches_of("layer_norm")]
    found: dict[str, Any] = {}
    ways: dict[str, dict[str, Any]] = {
        "graph": {}, "recompute": {"engine": "recompute"}, "plain": {"engine": "plain"}, "microbatch": {"microbatch": 3},
        "uncentred": {"centre": None}, "half": {"share": "average"},
    }  # fmt: skip
    for way, options in ways.items():
        model = DistributedDataParallel(ENTRIES["layer_norm"].model(), static_graph=True)
        found[way] = found_of(model, batches, "layer_norm", **options)
        gradients = []
        for inputs, targets in batches[:2]:
            model.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        found[way]["gradients"] = gradients
    for way, options in {"lsuv": {}, "gradinit": {"steps": 3}, "metainit": {"steps": 2, "share": "average"}}.items():
        model = ENTRIES["layer_norm"].model()
        result = initopt.optimize(
            model, batches, method=way, measure_batches=2, seed=0, on_harm="warn", process_group=dist.group.WORLD, **options
        )
        found[way] = {"scales": list(result.scales.values()), "weights": [p.detach() for p in model.parameters()]}
    return found


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return in_processes(in_many_ways, 2)


@pytest.mark.heavy
@pytest.mark.processes
class TestManyWays:
    def test_engines_agree(self, found: list[dict[str, Any]]) -> None:
        for way in ("recompute", "plain", "microbatch"):
            torch.testing.assert_close(found[0][way]["scales"], found[0]["graph"]["scales"], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(found[0][way]["gram"], found[0]["graph"]["gram"], rtol=1e-9, atol=1e-9)
        assert [found[0][way]["engine"] for way in ("graph", "microbatch")] == ["graph", "recompute"]

    def test_ranks_end_with_the_same_weights_and_records(self, found: list[dict[str, Any]]) -> None:
        for way, one in found[0].items():
            assert all(map(torch.equal, one["weights"], found[1][way]["weights"])), way
            assert one.get("history") == found[1][way].get("history"), way

    def test_gradients_are_reduced_in_training_afterwards(self, found: list[dict[str, Any]]) -> None:
        """A static graph, and not only in the first step: what autograd.backward on the parameters would have spoilt."""
        for way, one in found[0].items():
            assert all(map(torch.equal, one.get("gradients", []), found[1][way].get("gradients", []))), way

    def test_without_centring_they_are_as_one_process_has_them(self, found: list[dict[str, Any]]) -> None:
        alone = found_of(ENTRIES["layer_norm"].model(), batches_of("layer_norm"), "layer_norm", centre=None, engine="plain")
        torch.testing.assert_close(found[0]["uncentred"]["scales"], alone["scales"], rtol=1e-9, atol=1e-9)

    def test_averaging_measures_the_batches_of_all(self, found: list[dict[str, Any]]) -> None:
        assert not torch.equal(found[0]["half"]["scales"], found[0]["graph"]["scales"])
        assert len(found[0]["half"]["gram"]) == len(found[0]["graph"]["gram"])  # measured in union all the same

    @pytest.mark.parametrize(("method", "options"), [("lsuv", {}), ("gradinit", {"steps": 3})])
    def test_other_methods_are_as_on_one_process(
        self, method: str, options: dict[str, Any], found: list[dict[str, Any]]
    ) -> None:
        model = ENTRIES["layer_norm"].model()
        result = initopt.optimize(
            model, batches_of("layer_norm"), method=method, measure_batches=2, seed=0, on_harm="warn", **options
        )
        apart = [abs(a - b) for a, b in zip(result.scales.values(), found[0][method]["scales"], strict=True)]
        assert max(apart) < 1e-9


def test_refusals() -> None:
    problem = make_problem(make_model(), num_subbatches=2, batch_norm="batch")
    with pytest.raises(ValueError, match='batch_norm="batch" couples sub-batches, over all ranks; use'):
        UnitedEngine.named(problem, "auto", None)
    with pytest.raises(ValueError, match="share=\"average\" takes engine='differences'"):
        UnitedEngine.named(make_problem(make_model()), "differences", None)
    with pytest.raises(ValueError, match='engine="recompute" can'):
        UnitedEngine.named(make_problem(torch.nn.Linear(2, 3), microbatch=1), "graph", None)
