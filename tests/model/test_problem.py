"""What a problem has to put up with: autocast, models that write into their inputs, shared memory, default devices."""

from __future__ import annotations

import warnings
from collections import UserDict, defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import initopt
from initopt.batches.nested import map_tensors, take
from tests.helpers import Batch, make_batches, make_model
from tests.quick import doubled, plain_model, quick


@pytest.mark.heavy
def test_autocast_around_a_run_sees_every_change_of_the_weights() -> None:
    outside = quick(make_model(), make_batches())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.is_autocast_cache_enabled()
        result = quick(make_model(), make_batches())
        assert torch.is_autocast_cache_enabled()
    assert outside.before is not None
    assert result.before is not None
    assert result.after is not None
    assert result.before.grad_norm != result.after.grad_norm
    assert [r.grad_norm for r in result.history] == pytest.approx([r.grad_norm for r in outside.history], rel=0.05)


class WritesIntoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = plain_model()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.mul_(1.5).add_(0.1))


@pytest.mark.heavy
@pytest.mark.parametrize("engine", ["graph", "recompute", "plain", "differences"])
def test_a_model_may_write_into_its_inputs(engine: str) -> None:
    batches = doubled(make_batches())
    kept = [inputs.clone() for inputs, _ in batches]
    result = quick(WritesIntoInputs(), batches, engine=engine)
    assert all(torch.equal(inputs, before) for (inputs, _), before in zip(batches, kept, strict=True))
    moved = [(inputs * 1.5 + 0.1, targets) for inputs, targets in batches]
    expected = quick(plain_model(), moved, engine=engine)
    assert list(result.scales.values()) == pytest.approx(list(expected.scales.values()), rel=1e-9)


def test_a_model_may_write_into_its_inputs_with_whole_batch_norm() -> None:
    batches = doubled(make_batches())
    kept = batches[0][0].clone()
    initopt.measure(WritesIntoInputs(), batches, batch_norm="batch")
    assert torch.equal(batches[0][0], kept)


def test_plain_values_of_every_sample_go_with_their_sample() -> None:
    def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        weight = torch.as_tensor(batch["weight"], dtype=torch.float64)
        return weight * nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")

    listed = [{"x": x, "y": y, "weight": (y + 1).tolist()} for x, y in doubled(make_batches(3))]
    as_tensor = [dict(batch, weight=torch.tensor(batch["weight"])) for batch in listed]
    as_array = [dict(batch, weight=torch.tensor(batch["weight"]).numpy()) for batch in listed]
    found = [initopt.measure(plain_model(), batches, loss) for batches in (listed, as_tensor, as_array)]
    assert torch.equal(found[0].gram, found[1].gram)
    assert torch.equal(found[2].gram, found[1].gram)


def test_named_mappings_keep_their_type() -> None:
    user = UserDict({"x": torch.arange(3)})
    taken = take(user, torch.tensor([1]), 3)
    assert isinstance(taken, UserDict)
    assert taken["x"].tolist() == [1]
    assert user["x"].tolist() == [0, 1, 2]
    grouped: defaultdict[str, Tensor] = defaultdict(list, x=torch.arange(3))  # type: ignore[arg-type]
    assert isinstance(map_tensors(torch.neg, grouped), defaultdict)


def test_two_parameters_over_the_same_memory_are_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3))
    model[2].weight.data = model[0].weight.data
    with pytest.raises(ValueError, match=r"'0\.weight' and '2\.weight' are different tensors over the same memory"):
        initopt.measure(model, make_batches())


def test_a_model_made_in_inference_mode_is_refused() -> None:
    with torch.inference_mode():
        model = make_model()
    with pytest.raises(ValueError, match="was made under torch.inference_mode"):
        initopt.measure(model, make_batches())


def test_torchscript_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of newer versions, which say that it is deprecated
        scripted = torch.jit.script(make_model())
    with pytest.raises(TypeError, match="TorchScript"):
        initopt.measure(scripted, make_batches())


@pytest.mark.heavy
def test_a_default_device_of_the_user_is_left_to_the_model() -> None:
    model, batches = make_model(), make_batches()
    expected = quick(make_model(), batches)
    torch.set_default_device("meta")
    try:
        result = quick(model, batches)
    finally:
        torch.set_default_device(None)
    assert result.scales == expected.scales


def test_small_losses_do_not_overflow() -> None:
    """dphi/dK goes as 1 / |g|^2, which is beyond half precision long before the gradients are."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return 1e-15 * nn.functional.cross_entropy(model(batch[0]), batch[1])

    small = quick(plain_model().float(), make_batches(), loss, objective="cosine", measure_batches=0)
    large = quick(plain_model().float(), make_batches(), objective="cosine", measure_batches=0)
    # The bound is far from both, and cosines know no scale; Adam's eps and clipping do, a little.
    assert [r.grad_cosine for r in small.history[:1]] == pytest.approx([r.grad_cosine for r in large.history[:1]], rel=1e-4)
