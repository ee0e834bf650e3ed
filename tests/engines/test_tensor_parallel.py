"""A model under tensor parallelism is measured and scaled as it is, and gives what it gives as a whole."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.fsdp
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn import functional as F

import initopt
from initopt.model.group import Group
from initopt.model.ranks import Alone
from tests.engines._shards import COUNT, LARGE, derivatives
from tests.processes import in_processes, share_of, whole


class Attention(nn.Module):
    """Of as many heads of four as its projections have rows for, here."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v
        return self.o(mixed.transpose(1, 2).flatten(-2))


class Tokens(nn.Module):
    """A transformer as the tutorials of tensor parallelism have it, with norms on parts of the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 16)
        self.first, self.attention = nn.LayerNorm(16), Attention()
        self.second, self.up, self.act, self.down = nn.LayerNorm(16), nn.Linear(16, 38), nn.GELU(), nn.Linear(38, 16)
        self.last, self.head = nn.LayerNorm(16), nn.Linear(16, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + self.attention(self.first(x))
        x = x + self.down(self.act(self.up(self.second(x))))
        return self.head(self.last(x))


PARALLEL = {
    "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
    "first": SequenceParallel(),
    "attention": PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)),
    **{f"attention.{name}": ColwiseParallel() for name in "qkv"},
    "attention.o": RowwiseParallel(output_layouts=Shard(1)),
    "second": SequenceParallel(),
    "up": ColwiseParallel(input_layouts=Shard(1)),
    "down": RowwiseParallel(output_layouts=Shard(1)),
    "last": SequenceParallel(),
    "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
}


class Mixed(nn.Module):
    """With two layers that every process has whole, and dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.up, self.down = (
            nn.Linear(10, 16),
            nn.LayerNorm(16),
            nn.Linear(16, 38),
            nn.Linear(38, 16),
        )
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.first(x))
        return self.head(x + self.down(torch.tanh(self.up(self.norm(x)))))


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "tokens": (Tokens, PARALLEL),
    "mixed": (Mixed, {"up": ColwiseParallel(), "down": RowwiseParallel()}),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name][0]().double()


def parallel(name: str) -> nn.Module:
    return parallelize_module(build(name), init_device_mesh("cpu", (2,)), MODELS[name][1])


def batches(name: str) -> list[Any]:
    torch.manual_seed(1)
    if name == "tokens":
        return [(torch.randint(12, (9, 6)), torch.randint(6, (9, 6))) for _ in range(3)]
    return [(torch.randn(9, 10).double(), torch.randint(3, (9,))) for _ in range(3)]


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def said(call: Callable[[], Any]) -> str:
    try:
        call()
    except (ValueError, TypeError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def here() -> dict[str, Any]:
    found: dict[str, Any] = {}
    group = Group(dist.group.WORLD, torch.device("cpu"), "union")
    for name in MODELS:
        model = parallel(name)
        start = whole(model)
        found[name] = derivatives(model, batches(name)[0], loss_fn, group, "differences")
        found[name]["kept"] = all(torch.equal(value, start[key]) for key, value in whole(model).items())
        with pytest.warns(initopt.InitoptWarning, match="by tensor parallelism, so derivatives are taken by finite"):
            result = initopt.nio(model, batches(name), loss_fn, **LARGE)
        found[name]["run"] = result.scales, whole(model), (result.engine, result.engine_reason), result.before.gram
        found[name]["measured"] = initopt.measure(
            parallel(name), batches(name)[:1], loss_fn, num_subbatches=COUNT, seed=0
        ).gram
    alone = DeviceMesh("cpu", [[0], [1]], mesh_dim_names=("replicas", "parts"))["parts"]
    own = [(x + dist.get_rank(), y) for x, y in batches("mixed")]
    measure = functools.partial(initopt.measure, loss_fn=loss_fn)
    found["said"] = [
        said(lambda: measure(parallel("mixed"), own)),
        said(lambda: measure(parallel("mixed"), batches("mixed"), engine="exact")),
        said(lambda: measure(parallel("mixed"), batches("mixed"), process_group=None)),
        said(lambda: initopt.lsuv(parallel("mixed"), batches("mixed"), loss_fn)),
        said(lambda: initopt.nio(parallel("mixed"), batches("mixed"), loss_fn, checkpoint="kept.pt", **LARGE)),
        said(lambda: measure(parallelize_module(build("mixed"), alone, MODELS["mixed"][1]), batches("mixed"))),
    ]
    return found


def on_a_mesh(name: str) -> nn.Module:
    """On 2 x 2 processes: fully_shard over the first dimension, tensor parallelism over the second."""
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "parts"))
    model = parallelize_module(build(name), mesh["parts"], MODELS[name][1])
    fully_shard(model.head, mesh=mesh["data"])
    return fully_shard(model, mesh=mesh["data"])


def even_batches(name: str) -> list[Any]:
    """Of twelve samples, so that two shares have as many of each sub-batch."""
    return [tuple(torch.cat([part, part[:3]]) for part in batch) for batch in batches(name)]


def there() -> dict[str, Any]:
    group, found = Group(dist.group.WORLD, torch.device("cpu"), "union"), {}
    for name in MODELS:
        own = [share_of(batch, COUNT, dist.get_rank() // 2, 2) for batch in even_batches(name)]
        model = on_a_mesh(name)
        found[name] = derivatives(model, own[0], loss_fn, group, "differences")
    with pytest.warns(initopt.InitoptWarning, match="by tensor parallelism"):
        result = initopt.nio(model, own, loss_fn, **LARGE)
    found["run"] = name, result.scales, whole(model)
    mixed_up = [(x + dist.get_rank(), y) for x, y in own]
    found["said"] = said(lambda: initopt.measure(on_a_mesh(name), mixed_up, loss_fn))
    return found


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return in_processes(here, 2)


@pytest.mark.heavy
@pytest.mark.processes
@pytest.mark.parametrize("name", MODELS)
class TestTwoRanks:
    def test_gradients_and_derivatives_are_those_of_one_process(self, name: str, found: list[dict[str, Any]]) -> None:
        for kind, (gram, derivative) in derivatives(build(name), batches(name)[0], loss_fn, Alone(), "plain").items():
            for rank in found:
                torch.testing.assert_close(rank[name][kind][0], gram, rtol=0, atol=1e-14 * float(gram.abs().max()))
                assert float((rank[name][kind][1] - derivative).abs().max() / derivative.abs().max()) < 3e-9, kind
            assert torch.equal(found[0][name][kind][1], found[1][name][kind][1])
        assert found[0][name]["kept"]

    def test_a_run_is_as_on_one_process(self, name: str, found: list[dict[str, Any]]) -> None:
        model = build(name)
        result = initopt.nio(model, batches(name), loss_fn, engine="plain", **LARGE)
        assert max(abs(scale - 1) for scale in result.scales.values()) > 0.01
        for rank in found:
            scales, weights, engine, gram = rank[name]["run"]
            assert scales == pytest.approx(result.scales, abs=1e-9)
            for key, parameter in model.named_parameters():
                torch.testing.assert_close(weights[key], parameter.detach(), rtol=1e-9, atol=1e-10)
            assert engine == ("differences", "the model computes in parts, by tensor parallelism")
            assert result.before is not None
            torch.testing.assert_close(gram, result.before.gram, rtol=1e-9, atol=1e-12)

    def test_measured_without_a_word_of_engines(self, name: str, found: list[dict[str, Any]]) -> None:
        expected = initopt.measure(build(name), batches(name)[:1], loss_fn, num_subbatches=COUNT, seed=0).gram
        torch.testing.assert_close(found[1][name]["measured"], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.heavy
@pytest.mark.processes
@pytest.mark.skipif(not hasattr(torch.distributed.fsdp, "fully_shard"), reason="fully_shard is public since PyTorch 2.6")
def test_beside_fully_shard_on_four_ranks() -> None:
    ranks = in_processes(there, 4)
    for name in MODELS:
        expected = derivatives(build(name), even_batches(name)[0], loss_fn, Alone(), "plain")
        for kind, (gram, derivative) in expected.items():
            for rank in ranks:
                torch.testing.assert_close(rank[name][kind][0], gram, rtol=0, atol=1e-14 * float(gram.abs().max()))
                assert float((rank[name][kind][1] - derivative).abs().max() / derivative.abs().max()) < 3e-9, (name, kind)
    name, _, _ = ranks[0]["run"]
    model = build(name)
    result = initopt.nio(model, even_batches(name), loss_fn, engine="plain", **LARGE)
    for rank in ranks:
        _, scales, weights = rank["run"]
        assert scales == pytest.approx(result.scales, abs=1e-9)
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(weights[key], parameter.detach(), rtol=1e-9, atol=1e-10)
        assert rank["said"].startswith("RankError: rank 0 and rank 1 have other batches (batch[0]); under tensor")


@pytest.mark.heavy
@pytest.mark.processes
def test_what_cannot_be_is_refused(found: list[dict[str, Any]]) -> None:
    data, engine, one, method, checkpoint, replicas = found[1]["said"]
    assert data.startswith(
        "RankError: rank 0 and rank 1 have other batches (batch[0]); under tensor parallelism, processes"
    )
    assert engine.startswith("ValueError: engine 'exact' needs whole weights, which a model has nowhere")
    assert one.startswith("TypeError: parameter 'up.weight' is sharded over devices (DTensor), and not by fully_shard")
    assert method.startswith("TypeError: parameter 'up.weight' is sharded")
    assert checkpoint.endswith("by tensor parallelism); leave it out, or do it before parallelize_module")
    assert replicas.startswith("TypeError: the model is in parts on 1 of 2 processes")
