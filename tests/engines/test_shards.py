"""A model of ``fully_shard`` that stays in parts gives what it gives as a whole, and is left as it was."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

import initopt
from initopt.batches.nested import concatenate, map_tensors
from initopt.model.group import Group
from initopt.model.ranks import Alone
from initopt.testing import ENTRIES
from tests.engines._shards import COUNT, LARGE, OPTIONS, derivatives
from tests.processes import OneByOne, in_processes, share_of, whole

fsdp = pytest.importorskip("torch.distributed.fsdp", reason="fully_shard is public since PyTorch 2.6")
if not hasattr(fsdp, "fully_shard"):
    pytest.skip("fully_shard is public since PyTorch 2.6", allow_module_level=True)

NETWORKS = ("mlp", "segmentation", "causal_attention", "batch_norm_2d", "nested_outputs", "tied_embedding_and_output")
"""Networks of the gallery, in double precision."""

WAYS: dict[str, dict[str, Any]] = {"microbatch": {"microbatch": 2}, "single": {"dtype": torch.float32}, "replicas": {}}
"""Of the MLP."""


def sharded(model: nn.Module, mesh: Any = None) -> nn.Module:
    """With groups of parameters for two of its layers, if none is tied to that of another one, and one for the rest.

    Each group costs exchanges in each pass, which take long on a machine that has much else to do.
    """
    if len(list(model.named_parameters(remove_duplicate=False))) == len(list(model.named_parameters())):
        layers = [m for m in model.modules() if m is not model and not list(m.children()) and list(m.parameters())]
        for layer in layers[:2]:
            fsdp.fully_shard(layer, mesh=mesh)
    fsdp.fully_shard(model, mesh=mesh)
    return model


def batch_of(name: str, dtype: torch.dtype = torch.float64) -> Any:
    whole = concatenate([ENTRIES[name].batch(part) for part in range(4)])
    return map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, whole)


def in_parts(name: str, dtype: torch.dtype = torch.float64, mesh: Any = None, microbatch: int | None = None) -> Any:
    model = sharded(ENTRIES[name].model().to(dtype), mesh)
    own = share_of(batch_of(name, dtype), COUNT, dist.get_rank(), dist.get_world_size())
    return derivatives(model, own, ENTRIES[name].loss_fn(), Group(dist.group.WORLD, torch.device("cpu"), "union"),
                       "differences", microbatch)  # fmt: skip


# Runs of a network whose layers have other sizes than anything else has.

SIZES = (10, 38, 46, 3)


def build(zero_last: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    first, last = nn.Linear(*SIZES[:2], bias=False), nn.Linear(*SIZES[2:])
    layers = first, nn.LayerNorm(38), nn.Tanh(), nn.Linear(*SIZES[1:3]), nn.ReLU(), last
    if zero_last:
        nn.init.zeros_(last.weight)
    return nn.Sequential(*layers).double()


def batches(count: int = 3) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(18, 10, generator=generator).double(), torch.randint(3, (18,), generator=generator))
        for _ in range(count)
    ]


def own_batches() -> list[Any]:
    return [share_of(batch, COUNT, dist.get_rank(), dist.get_world_size()) for batch in batches()]


def settings(model: nn.Module) -> list[Any]:
    """All that a run sets for its while, and what hangs on modules and parameters."""
    found: list[Any] = []
    for module in model.modules():
        found.append((len(module._forward_pre_hooks), len(module._forward_hooks), module.training))
        if isinstance(module, fsdp.FSDPModule):
            state = module._get_fsdp_state()
            found.append(state._state_ctx.is_last_backward)
            for group in state._fsdp_param_groups:
                names = ("reduce_grads", "all_reduce_grads", "reshard_after_backward", "gradient_divide_factor")
                found.append([getattr(group, name) for name in names])
    return [found, [len(p._post_accumulate_grad_hooks or {}) for p in model.parameters()], torch.get_rng_state().tolist()]


def whole_tensors() -> list[tuple[int, ...]]:
    """Shapes of whole weights or gradients of the two larger layers that are in memory now."""
    shapes = {(38, 10), (46, 38)}
    plain = [t for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter)]
    return [tuple(t.shape) for t in plain if tuple(t.shape) in shapes and t.untyped_storage().size() > 0]


def a_run() -> dict[str, Any]:
    model, stepped = sharded(build()), []
    model[0].set_gradient_divide_factor(3.0)
    model.set_requires_gradient_sync(False)
    model.set_reshard_after_backward(False)
    model[0].weight.register_post_accumulate_grad_hook(lambda p: stepped.append(p))
    model[0].weight.grad = model[0].weight.detach().clone()
    gradient, before = model[0].weight.grad, settings(model)
    seen: list[Any] = []
    sums = Group.sum

    def looking(self: Group, values: Tensor, place: str) -> Tensor:
        if place in ("the Gram matrix", "derivatives") and len(seen) < 12:  # which takes long
            seen.append((whole_tensors(), [type(p).__name__ for p in model.parameters()]))
        return sums(self, values, place)

    Group.sum = looking  # type: ignore[method-assign]
    try:
        result = initopt.nio(model, own_batches(), engine="differences", **LARGE)
    finally:
        Group.sum = sums  # type: ignore[method-assign]
    kept = model[0].weight.grad is gradient, settings(model) == before, stepped == []
    model[0].weight.grad = None
    model.set_requires_gradient_sync(True)
    learned = whole(model)
    return {
        "scales": result.scales,
        "grams": (result.before.gram, result.after.gram),
        "engine": (result.engine, result.engine_reason),
        "apart": (result.weights, result.diagnosis),
        "kept": kept,
        "seen": seen,
        "weights": learned,
        "trains": train(model, own_batches()),
    }


def train(model: nn.Module, own: list[Any]) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for inputs, targets in own[:2]:
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return whole(model)


class WrongError(Exception):
    """What a user's own function raises."""


def failures() -> dict[str, tuple[str, str, bool, bool]]:
    """What each rank raises where rank 1 has something wrong, whether all is as before, and whether it trains on."""
    rank, own = dist.get_rank(), own_batches()

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        loss = F.cross_entropy(model(batch[0]), batch[1])
        if bool(batch[0].isinf().any()):
            raise WrongError("the loss")
        return loss

    def callback(record: Any) -> None:
        if rank == 1 and record.step == 0:
            raise WrongError("the callback")

    def with_second(inputs: Tensor, targets: Tensor) -> list[Any]:
        return [own[0], (inputs, targets) if rank == 1 else own[1], own[2]]

    cases: dict[str, dict[str, Any]] = {
        "nan": {"batches": with_second(own[1][0] * torch.nan, own[1][1])},
        "width": {"batches": with_second(own[1][0][:, :7], own[1][1])},
        "loss": {"batches": with_second(own[1][0] / 0, own[1][1]), "loss_fn": loss_fn},
        "callback": {"batches": own, "callbacks": callback} | OPTIONS,
    }
    found = {}
    for name, options in cases.items():
        model = sharded(build())
        before, start = settings(model), whole(model)
        call: Callable[..., Any] = initopt.nio if name == "callback" else initopt.measure
        try:
            call(model, engine="differences", **options)
        except Exception as error:
            kind, words = type(error).__name__, str(error)
        same = all(torch.equal(value, start[key]) for key, value in whole(model).items())
        found[name] = (kind, words, same and settings(model) == before, bool(train(model, own)))
    return found


def choices() -> dict[str, Any]:
    """Which engine is taken for what is given, and what is refused."""
    own, found = own_batches(), {}
    half = fsdp.MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    calls: dict[str, Callable[[], Any]] = {
        "enough": lambda: initopt.measure(sharded(build()), own[:1]).engine,
        "little": lambda: initopt.measure(sharded(build()), own[:1], memory_budget=2e4).engine,
        "half": lambda: initopt.nio(fsdp.fully_shard(build(), mp_policy=half), own, engine="differences", **OPTIONS),
        "optimizer": lambda: initopt.nio(sharded(build()), own, engine="differences", optimizer=sgd, **OPTIONS),
        "scheme": lambda: initopt.nio(sharded(build()), own, engine="differences", scheme="orthogonal", **OPTIONS),
        "checkpoint": lambda: initopt.nio(sharded(build()), own, engine="differences", checkpoint="kept.pt", **OPTIONS),
        "coupled": lambda: initopt.measure(sharded(build()), own, engine="differences", batch_norm="batch"),
        "microbatch": lambda: initopt.measure(
            sharded(build()), [(x[: 9 - 4 * dist.get_rank()], y[: 9 - 4 * dist.get_rank()]) for x, y in own],
            engine="differences", num_subbatches=2, microbatch=1,
        ),
        "little for nio": lambda: nio_of_zeros(own),
    }  # fmt: skip
    for name, call in calls.items():
        try:
            found[name] = call()
        except ValueError as error:
            found[name] = f"refused: {error}"
    return found


def nio_of_zeros(own: list[Any]) -> Any:
    with pytest.warns(initopt.InitoptWarning, match="exceed the memory of some rank, so the model stays in parts"):
        result = initopt.nio(sharded(build(zero_last=True)), own, memory_budget=2e4, **OPTIONS)
    return result.engine_reason, result.left_alone


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def all_of_it() -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh

    found: dict[str, Any] = {name: in_parts(name) for name in NETWORKS}
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicas", "parts"))
    for way, options in WAYS.items():
        found[way] = in_parts("mlp", mesh=mesh if way == "replicas" else None, **options)
    return found | {"run": a_run(), "failures": failures(), "choices": choices()}


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return in_processes(all_of_it, 2)


def alone(name: str) -> dict[str, tuple[Tensor, Tensor]]:
    model = ENTRIES[name].model().double()
    model = OneByOne(model, 2) if name.startswith("batch_norm") else model
    return derivatives(model, batch_of(name), ENTRIES[name].loss_fn(), Alone(), "plain")


@pytest.mark.heavy
@pytest.mark.processes
class TestTwoRanks:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_gradients_and_derivatives_are_those_of_one_process(self, name: str, found: list[dict[str, Any]]) -> None:
        for kind, (gram, derivative) in alone(name).items():
            for rank in found:
                torch.testing.assert_close(rank[name][kind][0], gram, rtol=0, atol=1e-14 * float(gram.abs().max()))
                apart = float((rank[name][kind][1] - derivative).abs().max() / derivative.abs().max())
                assert apart < 3e-9, (name, kind)
            assert torch.equal(found[0][name][kind][1], found[1][name][kind][1])

    @pytest.mark.parametrize(("way", "close"), [("microbatch", 3e-9), ("replicas", 3e-9), ("single", 3e-4)])
    def test_the_same_in_other_ways(self, way: str, close: float, found: list[dict[str, Any]]) -> None:
        for kind, (gram, derivative) in alone("mlp").items():
            torch.testing.assert_close(found[1][way][kind][0], gram, rtol=0, atol=close * float(gram.abs().max()))
            apart = float((found[1][way][kind][1] - derivative).abs().max() / derivative.abs().max())
            assert apart < close, kind

    def test_a_run_is_as_on_one_process(self, found: list[dict[str, Any]]) -> None:
        model = build()
        result = initopt.nio(model, batches(), engine="plain", **LARGE)
        assert result.before is not None
        assert result.after is not None
        assert max(abs(scale - 1) for scale in result.scales.values()) > 0.01
        for rank in found:
            run = rank["run"]
            assert list(run["scales"]) == list(result.scales)
            for name, parameter in model.named_parameters():
                assert run["scales"][name] == pytest.approx(result.scales[name], abs=1e-7)
                torch.testing.assert_close(run["weights"][name], parameter.detach(), rtol=1e-7, atol=1e-9)
                assert torch.equal(run["trains"][name], found[0]["run"]["trains"][name])
            torch.testing.assert_close(run["grams"][0], result.before.gram, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(run["grams"][1], result.after.gram, rtol=1e-6, atol=1e-9)
            assert run["engine"] == ("differences", "chosen by name, on the parts of the model")
            assert run["apart"] == ({}, None)

    def test_all_else_is_as_before(self, found: list[dict[str, Any]]) -> None:
        """Gradients of the user's own, settings of the reduction, hooks, and the random state; no hook has run."""
        assert [rank["run"]["kept"] for rank in found] == [(True, True, True)] * 2

    def test_no_weight_and_no_gradient_is_whole_between_passes(self, found: list[dict[str, Any]]) -> None:
        for rank in found:
            assert len(rank["run"]["seen"]) == 12
            for shapes, kinds in rank["run"]["seen"]:
                assert shapes == []
                assert set(kinds) == {"DTensor"}

    @pytest.mark.parametrize(
        ("case", "first", "second"),
        [
            ("nan", "NonFiniteError", "NonFiniteError"),
            ("width", "RankError: on rank 1: RuntimeError", "RuntimeError: mat1 and mat2"),
            ("loss", "RankError: on rank 1: WrongError: the loss", "WrongError: the loss"),
            ("callback", "RankError: on rank 1: WrongError: the callback", "WrongError: the callback"),
        ],
    )
    def test_what_fails_on_one_rank_ends_all(self, case: str, first: str, second: str, found: list[dict[str, Any]]) -> None:
        """Also within the forward pass, in which the other rank gathers weights."""
        for rank, expected in zip(found, (first, second), strict=True):
            kind, words, as_before, trains = rank["failures"][case]
            assert f"{kind}: {words}".startswith(expected)
            assert as_before
            assert trains

    def test_a_model_stays_in_parts_where_it_does_not_fit(self, found: list[dict[str, Any]]) -> None:
        for rank in found:
            assert rank["choices"]["enough"] == "graph"
            assert rank["choices"]["little"] == "differences"
            assert "the whole weights and gradients, some" in rank["choices"]["little for nio"][0]

    @pytest.mark.parametrize(
        ("case", "words"),
        [
            ("half", "computes in half precision"),
            ("optimizer", "leave it out, or engine="),
            ("scheme", "draw them before, by initopt.schemes.apply_"),
            ("checkpoint", "keeps whole weights, which a model in parts has nowhere"),
            ("coupled", 'use batch_norm="subbatch"'),
            ("microbatch", "needs 4 passes over the samples of one rank, and another one has 2"),
        ],
    )
    def test_refusals(self, case: str, words: str, found: list[dict[str, Any]]) -> None:
        for rank in found:
            assert rank["choices"][case].startswith("refused: ")
            assert words in rank["choices"][case]

    def test_tensors_in_front_of_a_norm_are_left_alone(self, found: list[dict[str, Any]]) -> None:
        """As the second order shows, for behind them are zeros."""
        with pytest.warns(initopt.InitoptWarning, match="is multiplied by others that are zero"):
            expected = initopt.nio(build(zero_last=True), batches(), engine="plain", **OPTIONS).left_alone
        assert expected["scale-invariant"] == ["0.weight"]
        assert [rank["choices"]["little for nio"][1] for rank in found] == [expected] * 2
