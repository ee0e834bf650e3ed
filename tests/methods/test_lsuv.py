"""LSUV: unit variance, as it is measured without initopt."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initopt
from initopt import zoo
from tests.helpers import values
from tests.schemes._layouts import Conv1D

Batch = tuple[Tensor, Tensor]


class Hybrid(nn.Module):
    """Convolutions both ways, a layer that is used twice, a bilinear one, recurrence, and layers in no order."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)
        self.again = nn.Linear(8, 8)
        self.mix = nn.Bilinear(8, 8, 8)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.up = nn.ConvTranspose1d(6, 8, 3, groups=2)
        self.stem = nn.Conv1d(3, 6, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.up(F.relu(self.stem(x))))
        x, _ = self.gru(x.transpose(1, 2))
        x = torch.tanh(self.again(torch.tanh(self.again(x[:, -1]))))
        return self.head(self.mix(x, x))


def images(size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(32, 3, size, size, generator=generator), torch.randint(4, (32,), generator=generator)


def tokens() -> Batch:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randint(11, (16, 6), generator=generator),
        torch.randint(11, (16, 6), generator=generator),
    )


def signals() -> Batch:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(32, 3, 17, generator=generator), torch.randint(4, (32,), generator=generator)


def small_gpt_loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batch], set[str]]] = {
    "mlp": (
        lambda: nn.Sequential(
            nn.Flatten(), *(m for _ in range(9) for m in (nn.LazyLinear(192), nn.Tanh())), nn.LazyLinear(4)
        ),
        images,
        set(),
    ),
    "convolutions with batch norm": (lambda: zoo.cifar_resnet(depth=8, norm="batch", num_classes=4), images, set()),
    "residual": (lambda: zoo.cifar_resnet(depth=14, norm="none", num_classes=4), images, set()),
    "vit": (
        lambda: zoo.small_vit(image_size=8, patch_size=4, depth=3, width=16, heads=2, num_classes=4),
        images,
        set(),
    ),
    "gpt": (lambda: zoo.small_gpt(vocabulary=11, context=6, depth=2, width=16, heads=2), tokens, {"head"}),
    "hybrid": (Hybrid, signals, set()),
}


def built(name: str) -> tuple[nn.Module, Batch, set[str]]:
    build, draw, left = NETWORKS[name]
    torch.manual_seed(1)
    model, batch = build(), draw()
    with torch.no_grad():
        model(batch[0])  # for the lazy ones
    return model, batch, left


def variances(model: nn.Module, inputs: Tensor) -> dict[str, float]:
    """Variance of the first output of every layer, with batch norms in training mode."""
    found: dict[str, float] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            found.setdefault(name, float(((output - output.mean()) ** 2).mean()))

        return hook

    types = (nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d)
    handles = [m.register_forward_hook(keep(n)) for n, m in model.named_modules() if isinstance(m, types)]
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return found


def run(name: str, model: nn.Module, batch: Batch, **options: Any) -> initopt.Result:
    loss = small_gpt_loss if name == "gpt" else None
    return initopt.lsuv(model, [batch], loss, **{"measure_batches": 0, "seed": 0, **options})


@pytest.mark.filterwarnings("ignore:initopt. lsuv. .* was left alone")
@pytest.mark.parametrize("tolerance", [0.1, 0.001])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_has_unit_variance(name: str, tolerance: float) -> None:
    model, batch, left = built(name)
    before = variances(model, batch[0])
    result = run(name, model, batch, tolerance=tolerance)
    after = variances(model, batch[0])
    assert any(abs(value - 1) > 0.2 for value in before.values())
    assert {layer for layer, value in after.items() if abs(value - 1) > 1.0001 * tolerance} <= left
    assert [record.layer for record in result.history] == [layer for layer in after if layer not in left]
    for record in result.history:
        assert record.variance_after == pytest.approx(after[record.layer], rel=1e-4)
        assert record.iterations <= 2


@pytest.mark.filterwarnings("ignore:initopt. lsuv. .* was left alone")
@pytest.mark.parametrize("name", NETWORKS)
def test_the_weights_are_scaled_orthogonal_ones(name: str) -> None:
    model, batch, _ = built(name)
    result = run(name, model, batch)
    other, _, _ = built(name)
    initopt.schemes.apply_(other, "orthogonal", batch, small_gpt_loss if name == "gpt" else None, seed=0)
    parameters = dict(model.named_parameters())
    assert list(result.scales) == list(parameters)
    for (n, p), start in zip(parameters.items(), other.parameters(), strict=True):
        torch.testing.assert_close(p, start * result.scales[n])


def test_biases_of_ones_own_weights_are_kept_and_taken_into_account() -> None:
    model, batch, _ = built("mlp")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(10.0 if name.endswith("bias") else 2.0)
    start = values(model)
    result = run("mlp", model, batch, scheme=None, tolerance=0.01)
    assert all(abs(value - 1) <= 0.0101 for value in variances(model, batch[0]).values())
    for n, p in model.named_parameters():
        assert torch.equal(p, start[n]) if n.endswith("bias") else not torch.equal(p, start[n])
    assert max(record.iterations for record in result.history) > 1


def test_what_cannot_be_reached_is_told() -> None:
    model = nn.Sequential(nn.Linear(8, 4))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([5.0, -5.0, 5.0, -5.0]))
    batch = torch.randn(16, 8), torch.randint(4, (16,))
    with pytest.warns(UserWarning, match="'0.weight' has an output further than 0.1 from unit variance after 3 iterations"):
        result = initopt.lsuv(model, [batch], scheme=None, max_iterations=3, measure_batches=0)
    assert result.history[0].iterations == 3


def test_a_constant_output_is_told_and_left_alone() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        model[2].weight.zero_()
    batch = torch.randn(16, 8), torch.randint(4, (16,))
    with torch.no_grad():
        model[2].bias.zero_()
    with (
        pytest.warns(UserWarning, match=re.escape("'2.weight' has an output of variance 0, and was left alone")),
        pytest.warns(UserWarning, match=re.escape("(1 tensor: 0.weight) is multiplied by others that are zero (2.weight)")),
    ):
        result = initopt.lsuv(model, [batch], scheme=None, measure_batches=0)
    assert result.scales["2.weight"] == 1
    assert result.history[1].variance_after == 0


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x)[0].mean(1))


def test_what_is_left_alone_is_told() -> None:
    batch = torch.randn(16, 5, 8), torch.randint(4, (16,))
    with pytest.warns(UserWarning, match="lsuv") as caught:
        result = initopt.lsuv(Attention(), [batch], measure_batches=0)
    assert [str(warning.message) for warning in caught] == [
        "initopt: lsuv: 'attention.out_proj.weight' was left alone, since no module that holds it was called",
        "initopt: lsuv: 'attention.in_proj_weight' was left alone, being no weight of a linear layer or convolution, "
        "or an embedding's, too",
    ]
    assert [record.layer for record in result.history] == ["head"]
    assert all(warning.filename == __file__ for warning in caught)


def test_a_shared_weight_is_scaled_for_its_first_output() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.late, self.early = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
            self.late.weight = self.early.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.late(5 * torch.tanh(self.early(x)))

    model = Shared()
    inputs = 3 * torch.randn(64, 8)
    result = initopt.lsuv(model, [(inputs, torch.randint(8, (64,)))], tolerance=0.001, measure_batches=0)
    found = variances(model, inputs)
    assert abs(found["early"] - 1) < 0.001 < abs(found["late"] - 1)
    assert len(result.history) == 1


def test_a_linear_layer_with_its_inputs_first_is_one() -> None:
    model = nn.Sequential(Conv1D(32, 6), nn.Tanh(), Conv1D(3, 32))
    batch = torch.randn(256, 6), torch.randint(3, (256,))
    result = initopt.lsuv(model, [batch], seed=0, measure_batches=0)
    assert [record.layer for record in result.history] == ["0", "2"]
    assert float(model(batch[0]).detach().var()) == pytest.approx(1.0, abs=0.1)


def test_several_passes_and_hooks_of_the_user() -> None:
    """The second pass goes on from the first, on another batch; a user's hook sees each layer's output once a pass."""
    model, (inputs, targets), _ = built("mlp")
    calls: list[float] = []
    handle = model[1].register_forward_hook(lambda module, args, output: calls.append(float(output.detach().var())))
    batches = [(inputs, targets), (3 * inputs, targets)]
    result = initopt.lsuv(model, batches, steps=2, tolerance=0.001, measure_batches=0, allow_trained=True)
    assert len(calls) == 5  # the scheme's look at the nonlinearities, two looks at the first batch, and the passes
    assert calls[3:] == pytest.approx([1, 1], rel=0.01)
    assert [record.step for record in result.history] == [0] * 10 + [1] * 10
    handle.remove()
    assert all(abs(value - 1) < 0.002 for value in variances(model, 3 * inputs).values())
    assert all(not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0}, "tolerance must be a number above 0 and below 1; got 0"),
        ({"tolerance": 1.5}, "tolerance must be a number above 0 and below 1; got 1.5"),
        ({"max_iterations": 0}, "max_iterations must be an integer of 1 or more; got 0"),
        ({"steps": 0}, "steps must be an integer of 1 or more; got 0"),
        ({"scheme": "he"}, "unknown scheme 'he'; known are 'default', 'kaiming_normal'"),
        ({"scale_params": lambda n, p, m: "bias" in n}, "lsuv found no layer in Sequential: it scales the weights of"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    model, batch, _ = built("mlp")
    before = values(model)
    with pytest.raises(ValueError, match=message):
        run("mlp", model, batch, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_layers_that_never_run_and_outputs_that_are_not_finite() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.layer.weight, self.layer.bias)

    batch = torch.randn(16, 8), torch.randint(4, (16,))
    with pytest.raises(ValueError, match="lsuv found no layer that runs: .*'layer.weight' is called as a module"):
        initopt.lsuv(Functional(), [batch], measure_batches=0)
    model = nn.Sequential(nn.Linear(8, 4))
    before = values(model)
    bad = batch[0].clone()
    bad[0, 0] = math.inf
    with pytest.raises(
        initopt.NonFiniteError, match="in step 0: the variance of the output of the layer with '0.weight' is nan"
    ):
        initopt.lsuv(model, [(bad, batch[1])], measure_batches=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.heavy
def test_it_is_stored_and_drawn(tmp_path: Any) -> None:
    model, batch, _ = built("mlp")
    result = initopt.lsuv(model, [batch] * 3, measure_batches=2, checkpoint=tmp_path / "state")
    result.save(tmp_path / "out")
    loaded = initopt.Result.load(tmp_path / "out")
    assert loaded.history == result.history
    assert list(loaded.to_dataframe()["layer"]) == [record.layer for record in result.history]
    assert loaded.plot().axes[0].get_title(loc="left").startswith("variance of each layer")
    other, _, _ = built("mlp")
    again = initopt.lsuv(other, [batch] * 3, measure_batches=2, checkpoint=tmp_path / "state")  # done: only loaded
    assert again.history == result.history
    assert again.scales == result.scales
    assert again.after.grad_norm == result.after.grad_norm
    assert all(torch.equal(value, dict(other.named_parameters())[name]) for name, value in result.weights.items())


def test_an_autocast_context_made_beforehand_sees_every_rescaling() -> None:
    """Its cache of cast weights is on, whatever was set since."""
    context = torch.autocast("cpu", torch.bfloat16)

    def mixed(model: nn.Module, batch: Any) -> Tensor:
        with context:
            return nn.functional.cross_entropy(model(batch[0]), batch[1])

    torch.manual_seed(1)
    batches = [(3 * torch.randn(64, 8), torch.randint(3, (64,)))]
    found = []
    for loss in (None, mixed):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
        found.append(initopt.lsuv(model, batches, loss, measure_batches=0, seed=0).scales)
    assert found[1] == pytest.approx(found[0], rel=0.05)
