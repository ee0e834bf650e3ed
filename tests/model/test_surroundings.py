"""What surrounds a run: autocast, hooks, models that write into their inputs, default devices, other threads."""

from __future__ import annotations

from collections import UserDict, defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import initopt
from initopt.batches.nested import map_tensors, take
from initopt.engines import ENGINES
from initopt.model.modes import measuring
from initopt.model.preserve import preserved
from tests.helpers import Batch, make_batches, make_model, make_problem, values

exact = pytest.mark.parametrize("engine", ["graph", "recompute", "plain"])


def plain_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def doubled(batches: list[Batch]) -> list[Batch]:
    return [(inputs.double(), targets) for inputs, targets in batches]


def quick(model: nn.Module, batches: Any, loss_fn: Any = None, **options: Any) -> initopt.Result:
    return initopt.nio(model, batches, loss_fn, **{"steps": 6, "measure_batches": 2, "lr": 0.05, **options})


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


@exact
@pytest.mark.parametrize("where", ["weight", "bias"])
@pytest.mark.parametrize(
    "hook", [lambda g: g * 0.1, lambda g: g.clamp(-0.01, 0.01), lambda g: 10 * g * g], ids=["scale", "clamp", "square"]
)
def test_gradient_hooks_act_once(engine: str, where: str, hook: Any) -> None:
    model = plain_model()
    handle = getattr(model[0], where).register_hook(hook)
    batch = doubled(make_batches(1))[0]
    (central, found) = central_and_found(model, batch, engine)
    torch.testing.assert_close(found, central, rtol=1e-6, atol=1e-9)
    assert getattr(model[0], where)._backward_hooks
    handle.remove()


def central_and_found(model: nn.Module, batch: Batch, engine: str) -> tuple[Tensor, Tensor]:
    """The derivative of GradCosine along every tensor, by central differences and by an engine."""
    with preserved(model), measuring(model):
        problem = make_problem(model)
        chosen = ENGINES[engine](problem)

        def gram() -> Tensor:
            return chosen.evaluate(problem.prepare(batch, 0), differentiate=False).gram

        slopes = []
        for parameter in model.parameters():
            kept, ends = parameter.detach().clone(), []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter.copy_(kept * (1 + step))
                ends.append(initopt.functional.grad_cosine(gram()))
            with torch.no_grad():
                parameter.copy_(kept)
            slopes.append((ends[0] - ends[1]) / 2e-5)
        evaluation = chosen.evaluate(problem.prepare(batch, 0), differentiate=True)
        matrix = evaluation.gram.requires_grad_()
        (derivative,) = torch.autograd.grad(initopt.functional.grad_cosine(matrix), matrix)
        return torch.stack(slopes), evaluation.scale_derivatives(derivative)


def test_differences_refuse_gradient_hooks() -> None:
    model = plain_model()
    model[0].weight.register_hook(lambda g: g * 2)
    with pytest.raises(ValueError, match=r"parameter '0\.weight' has a gradient hook"):
        quick(model, doubled(make_batches()), engine="differences")


class WritesIntoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = plain_model()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.mul_(1.5).add_(0.1))


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
    with pytest.warns(DeprecationWarning, match="jit"):
        scripted = torch.jit.script(make_model())
    with pytest.raises(TypeError, match="TorchScript"):
        initopt.measure(scripted, make_batches())


def test_a_default_device_of_the_user_is_left_to_the_model() -> None:
    model, batches = make_model(), make_batches()
    expected = quick(make_model(), batches)
    torch.set_default_device("meta")
    try:
        result = quick(model, batches)
    finally:
        torch.set_default_device(None)
    assert result.scales == expected.scales


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("wide", torch.ones(1).expand(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.wide


def test_an_expanded_buffer() -> None:
    model = Buffered()
    wide = model.wide
    quick(model, make_batches())
    assert model.wide is wide


class LateBuffer(nn.Module):
    """Registers a buffer in its first forward pass, and averages into it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if "average" not in self._buffers:
            self.register_buffer("average", y.mean(0), persistent=False)
        self.average = 0.9 * self.average + 0.1 * y.mean(0)
        return y + self.average


def test_a_buffer_that_forward_registers_is_gone_afterwards() -> None:
    model = LateBuffer()
    quick(model, make_batches())
    assert dict(model.named_buffers()) == {}
    assert model._non_persistent_buffers_set == set()
    assert list(values(model)) == ["layer.weight", "layer.bias"]


def test_small_losses_do_not_overflow() -> None:
    """dphi/dK goes as 1 / |g|^2, which is beyond half precision long before the gradients are."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return 1e-15 * nn.functional.cross_entropy(model(batch[0]), batch[1])

    small = quick(plain_model().float(), make_batches(), loss, objective="cosine", measure_batches=0)
    large = quick(plain_model().float(), make_batches(), objective="cosine", measure_batches=0)
    # The bound is far from both, and cosines know no scale; Adam's eps and clipping do, a little.
    assert [r.grad_cosine for r in small.history[:1]] == pytest.approx([r.grad_cosine for r in large.history[:1]], rel=1e-4)


def test_seeds_queued_for_an_accelerator_that_is_not_in_use_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = make_model(), make_batches(2)
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    initopt.measure(model, batches)
    assert seeds == []
