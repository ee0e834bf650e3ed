"""Tensors whose scale does not change the loss are found, and left alone."""

import pytest
import torch
from torch import nn

import initopt
from initopt.zoo import cifar_resnet, densenet, plain_mlp, small_gpt, small_vit, vgg, wide_resnet


def images(count: int = 32, channels: int = 3, side: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, channels, side, side, generator=generator), torch.randint(10, (count,), generator=generator)


def moved(model: nn.Module, batch: object, **options: object) -> set[str]:
    """Names of the tensors that a step of NIO has moved."""
    result = initopt.nio(model, [batch], steps=1, measure_batches=0, seed=0, **options)  # type: ignore[arg-type]
    return {name for name, scale in result.scales.items() if scale != 1.0}


def convolutions(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.ndim == 4}


def first_in_block(model: nn.Module) -> set[str]:
    return {name for name in convolutions(model) if name.endswith(".first.weight")}


@pytest.mark.gallery
@pytest.mark.parametrize("mode", ["subbatch", "batch"])
@pytest.mark.parametrize(
    ("make", "in_front"),
    [
        (lambda: cifar_resnet(8), convolutions),
        (lambda: vgg(7, width=4), convolutions),
        (lambda: densenet(10), convolutions),
        (lambda: wide_resnet(10, 1), first_in_block),  # the others end in a sum
    ],
)
def test_weights_in_front_of_a_batch_norm_stay_and_all_others_move(make, in_front, mode: str) -> None:
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # with biases of zero, the weight of a norm in front of another does not matter either
                parameter.add_(0.1 * torch.rand_like(parameter))
    names = {name for name, _ in model.named_parameters()}
    assert moved(model, images(), batch_norm=mode, scale_biases=True) == names - in_front(model)


class Branch(nn.Module):
    """A residual branch that ends in zeros: in the last norm, or in a layer that none stands before."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.last = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.end = nn.BatchNorm2d(3) if norm else nn.Identity()
        nn.init.zeros_(self.end.weight if norm else self.last.weight)
        self.head = nn.Linear(3, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((x + self.end(self.last(self.norm(self.first(x)).relu()))).mean((2, 3)))


def test_in_a_branch_that_ends_in_zeros_weights_in_front_of_a_norm_stay_and_others_move() -> None:
    torch.manual_seed(0)
    with pytest.warns(initopt.InitoptWarning, match="the gradient reaches"):
        assert moved(Branch(norm=True), images()) == {"head.weight"}  # the norm inside stands in front of a norm, too
    with pytest.warns(initopt.InitoptWarning, match="the gradient reaches"):
        assert moved(Branch(norm=False), images()) == {"first.weight", "head.weight"}


def test_a_norm_in_front_of_a_norm_stays() -> None:
    torch.manual_seed(0)
    found = moved(cifar_resnet(8), images())
    assert "3.first_norm.weight" not in found
    assert "3.second_norm.weight" in found


@pytest.mark.parametrize(
    ("make", "batch"),
    [
        (lambda: plain_mlp(768, depth=20, activation=nn.ReLU), images()),
        (lambda: cifar_resnet(8, norm="none"), images(16)),
        pytest.param(lambda: cifar_resnet(20, norm="none"), images(), marks=pytest.mark.heavy),
        (lambda: densenet(10, norm="none"), images(16)),
        pytest.param(lambda: densenet(22, norm="none"), images(), marks=pytest.mark.heavy),
        (lambda: small_vit(16, 4, depth=3, width=32, heads=2), images()),
        (lambda: small_gpt(30, 8, depth=2, width=32), tuple(torch.randint(30, (2, 16, 8)).unbind())),
    ],
)
def test_without_batch_norm_every_weight_moves(make, batch) -> None:
    torch.manual_seed(0)
    model = make()
    found = moved(model, batch)
    assert {name for name, parameter in model.named_parameters() if parameter.ndim > 1} <= found


def test_they_move_if_they_are_to() -> None:
    torch.manual_seed(0)
    assert "0.weight" not in moved(vgg(7, width=4), images())
    torch.manual_seed(0)
    assert "0.weight" in moved(vgg(7, width=4), images(), scale_invariant=True)


def test_the_direction_of_weight_norm_stays() -> None:
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 16))
    model = nn.Sequential(layer, nn.Tanh(), nn.Linear(16, 10))
    batch = torch.randn(32, 8), torch.randint(10, (32,))
    found = moved(model, batch)
    assert "0.parametrizations.weight.original0" in found  # the lengths
    assert "0.parametrizations.weight.original1" not in found  # the directions


def test_micro_batches_see_the_same() -> None:
    found = []
    for microbatch in (None, 3):
        torch.manual_seed(0)
        layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 16))
        model = nn.Sequential(layer, nn.Tanh(), nn.LayerNorm(16, elementwise_affine=False), nn.Linear(16, 10))
        torch.manual_seed(1)
        batch = torch.randn(32, 8), torch.randint(10, (32,))
        found.append(moved(model, batch, microbatch=microbatch, engine="recompute"))
    assert found[0] == found[1]


def test_what_takes_no_part_is_not_mistaken_for_invariant() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(8, 10), nn.Linear(8, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    torch.manual_seed(0)
    assert moved(Partly(), (torch.randn(32, 8), torch.randint(10, (32,)))) == {"used.weight"}


@pytest.mark.heavy
def test_a_resumed_run_leaves_the_same_alone(tmp_path) -> None:
    def run(steps: int, checkpoint=None) -> dict[str, float]:
        torch.manual_seed(0)
        batches = [images(), tuple(t.flip(0) for t in images())]
        return initopt.nio(vgg(7, width=4), batches, steps=steps, measure_batches=0, seed=0, checkpoint=checkpoint).scales

    whole = run(4)
    run(2, tmp_path / "state")
    assert run(4, tmp_path / "state") == whole
    assert whole["0.weight"] == 1.0
    assert any(scale != 1.0 for scale in whole.values())


def test_biases_move_if_they_are_to() -> None:
    def biases(**options: object) -> set[str]:
        torch.manual_seed(0)
        model = plain_mlp(768, depth=3)
        return {name for name in moved(model, images(), **options) if name.endswith("bias")}

    assert biases() == set()
    assert biases(scale_biases=True) == {"1.bias", "3.bias", "5.bias"}


def test_a_model_of_which_nothing_is_to_be_scaled_is_left_as_it_is_with_a_warning() -> None:
    torch.manual_seed(0)
    model = plain_mlp(768, depth=3)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    with pytest.warns(UserWarning, match="nothing to scale: of 3 tensors, 3 are biases \\(scale_biases=True"):
        assert moved(model, images()) == set()
    assert moved(model, images(), scale_biases=True) == {"1.bias", "3.bias", "5.bias"}


def test_a_sub_batch_without_a_gradient_does_not_end_the_run() -> None:
    torch.manual_seed(0)
    model = plain_mlp(768, depth=2, activation=nn.ReLU)

    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        inputs, targets = batch
        return nn.functional.cross_entropy(model(inputs), targets, reduction="none") * (inputs.flatten(1)[:, 0] != 0)

    inputs, targets = images()
    inputs[:8] = 0  # the first of four sub-batches
    result = initopt.nio(model, [(inputs, targets)], loss, steps=2, overlap=0.0, measure_batches=0)
    assert all(torch.isfinite(torch.tensor(record.objective)) for record in result.history)
    assert result.scales["1.weight"] != 1.0


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.c2, self.b2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(x + self.b2(self.c2(nn.functional.relu(self.b1(self.c1(x))))))


def mixed(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch[0])
    return nn.functional.cross_entropy(output.float(), batch[1])


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("dtype", "loss_fn"),
    [(torch.float32, mixed), (torch.bfloat16, None), (torch.float16, None)],
    ids=["autocast", "bfloat16", "float16"],
)
def test_half_precision_sees_the_same(dtype: torch.dtype, loss_fn: object) -> None:
    def run(dtype: torch.dtype, loss_fn: object) -> set[str]:
        torch.manual_seed(0)
        first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        blocks = [Block(8) for _ in range(4)]
        model = nn.Sequential(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).to(dtype)
        inputs, targets = images(64, side=8)
        return moved(model, (inputs.to(dtype), targets), loss_fn=loss_fn)

    assert run(dtype, loss_fn) == run(torch.float32, None)


def test_exploding_gradients_are_not_taken_for_invariance() -> None:
    """Squares of gradients overflow in single precision beyond 1.8e19."""
    torch.manual_seed(0)
    layers = [layer for _ in range(26) for layer in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), *layers, nn.Linear(64, 3))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    found = moved(model, (torch.randn(64, 8), torch.randint(3, (64,))))
    assert found == {name for name, parameter in model.named_parameters() if parameter.ndim == 2}


@pytest.mark.parametrize("factor", [1e18, 1e-18])
@pytest.mark.parametrize("make", [lambda: plain_mlp(768, depth=3), lambda: vgg(7, width=4)])
def test_many_sub_batches_of_gradients_beyond_single_precision(make, factor: float) -> None:
    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return factor * nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    torch.manual_seed(0)
    model = make()
    options = (
        {"num_subbatches": 16} if any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) else {"num_subbatches": 32}
    )
    plain = initopt.measure(model, [images()], **options)
    found = initopt.measure(model, [images()], loss, **options)
    torch.testing.assert_close(found.gram / factor**2, plain.gram, rtol=1e-4, atol=1e-9)
