"""Identities, and a first layer that whitens its input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from initopt import schemes, zoo
from initopt.schemes import Whitened, convolutions
from tests.helpers import values
from tests.schemes._layouts import LAYOUTS, Fused, LlamaAttention


def test_dirac_hands_on_its_input() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, groups=1), nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Conv2d(8, 2, 1)
    )
    kept = model[0].weight.detach().clone()
    applied = schemes.apply_(model, "dirac", seed=0)
    x = torch.randn(2, 3, 6, 6)
    first = model[0](x)
    assert torch.equal(first[:, :3], x)
    assert torch.equal(model[0].weight[3:], kept[3:])
    assert torch.equal(model[1](first), first)
    assert torch.equal(model[2](first), first[:, :2])
    assert applied.left == ()
    reference = nn.init.dirac_(torch.empty(8, 2, 3, 3), groups=4)
    assert torch.equal(model[1].weight, reference)


def test_dirac_of_other_dimensions_and_linear_layers() -> None:
    model = nn.ModuleDict(
        {
            "sound": nn.Conv1d(4, 4, 5, padding=2),
            "volume": nn.Conv3d(2, 2, 3, padding=1),
            "square": nn.Linear(4, 4),
            "wide": nn.Linear(4, 8),
            "up": nn.ConvTranspose2d(4, 4, 2),
        }
    )
    before = values(model)
    applied = schemes.apply_(model, "dirac", seed=0)
    for name, x in (("sound", torch.randn(2, 4, 9)), ("volume", torch.randn(1, 2, 3, 4, 5)), ("square", torch.randn(3, 4))):
        assert torch.equal(model[name](x), x)
    assert set(applied.left) == {"wide.weight", "wide.bias", "up.weight", "up.bias"}
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in applied.left)
    with pytest.raises(ValueError, match="'dirac' found nothing to set in Linear: it is for convolutions, and for"):
        schemes.apply_(nn.Linear(3, 4), "dirac")


def test_dirac_leaves_attention() -> None:
    """That of torch, one's own with separate or fused projections, by heads too, and that to another sequence."""
    model = nn.ModuleDict(
        {
            "encoder": nn.TransformerEncoderLayer(16, 4, 16),
            "decoder": nn.TransformerDecoderLayer(16, 4, 16),
            **{layout: make() for layout, make in LAYOUTS.items()},
            "by heads": Fused(qkv="query_key_value", proj="dense"),
            "equal": LlamaAttention(key_heads=4),
        }
    )
    before = values(model)
    applied = schemes.apply_(model, "dirac", seed=0)
    names = [f"{side}.{layer}" for side in ("encoder", "decoder") for layer in ("linear1", "linear2")]
    assert set(applied.set) == {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in applied.left)


def covariance(output: Tensor) -> Tensor:
    return torch.cov(output.detach().transpose(0, 1).flatten(1), correction=0)


def smooth(count: int, channels: int, size: int, spatial: int = 2) -> Tensor:
    """Images whose neighbouring pixels are alike, with a mean that is not 0."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, channels, *(spatial * [size]), generator=generator, dtype=torch.float64)
    for dim in range(2, 2 + spatial):
        images = images + images.roll(1, dim)
    return images + 0.5 * images.flip(1) + 2.0


def labels(count: int) -> Tensor:
    return torch.arange(count) % 3


class Net(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.head = nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(2).mean(-1))


def net(conv: nn.Module, x: Tensor) -> Net:
    model = Net(conv).double()
    model(x)
    return model


@pytest.mark.parametrize(
    ("conv", "images"),
    [
        (lambda: nn.Conv2d(3, 24, 3), smooth(64, 3, 8)),
        (lambda: nn.Conv2d(3, 27, 3, stride=2), smooth(64, 3, 12)),
        (lambda: nn.Conv2d(2, 18, (3, 3), dilation=2), smooth(64, 2, 9)),
        (lambda: nn.Conv2d(3, 40, 4, stride=4), smooth(64, 3, 16)),  # the patches of a vision transformer
        (lambda: nn.Conv1d(2, 6, 3), smooth(64, 2, 16, 1)),
        (lambda: nn.Conv3d(1, 8, 2), smooth(64, 1, 5, 3)),
    ],
)
def test_the_outputs_are_uncorrelated_and_of_variance_1(conv: Any, images: Tensor) -> None:
    model = net(conv(), images)
    schemes.apply_(model, Whitened(eps=1e-12), (images, labels(64)), seed=0)
    output = model.conv(images)
    torch.testing.assert_close(covariance(output), torch.eye(output.shape[1]).double(), atol=1e-6, rtol=0)
    assert float(output.detach().transpose(0, 1).flatten(1).mean(1).abs().max()) < 1e-6


def test_patches_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    images = smooth(64, 3, 8)
    whole, parted = (net(nn.Conv2d(3, 27, 3), images) for _ in range(2))
    schemes.apply_(whole, "whitened", (images, labels(64)), seed=0)
    monkeypatch.setattr(convolutions, "_VALUES", 5 * 3 * 64 * 9)
    schemes.apply_(parted, "whitened", (images, labels(64)), seed=0)
    torch.testing.assert_close(whole.conv.weight, parted.conv.weight, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(whole.conv.bias, parted.conv.bias, rtol=1e-6, atol=1e-8)


def test_negatives_where_there_is_room_and_own_filters_beyond() -> None:
    images = smooth(64, 2, 8)
    model = net(nn.Conv2d(2, 20, 2, bias=False), images)
    own = model.conv.weight.detach().clone()
    applied = schemes.apply_(model, "whitened", (images, labels(64)), eps=1e-12)
    weight = model.conv.weight.detach()
    assert torch.equal(weight[8:16], -weight[:8])
    assert torch.equal(weight[16:], own[16:])
    torch.testing.assert_close(covariance(model.conv(images))[:8, :8], torch.eye(8).double(), atol=1e-6, rtol=0)
    assert applied.set == ("conv.weight",)
    assert applied.roles == {"conv.weight": "whitened"}


def test_eps_holds_small_directions_back() -> None:
    images = smooth(64, 3, 8)
    images[:, 1] = images[:, 0] + 1e-4 * images[:, 1]  # nearly the same channel twice
    model = net(nn.Conv2d(3, 3, 1), images)
    schemes.apply_(model, "whitened", (images, labels(64)), eps=0.1)
    eigenvalues = torch.linalg.eigvalsh(covariance(images)).flip(0)
    torch.testing.assert_close(covariance(model.conv(images)).diagonal(), eigenvalues / (eigenvalues + 0.1))


def test_the_first_that_runs_is_set_and_padding_does_not_count() -> None:
    model = nn.Sequential(nn.AvgPool2d(2), zoo.cifar_resnet(8))
    images = torch.rand(32, 3, 16, 16)
    applied = schemes.apply_(model, "whitened", (images, torch.randint(10, (32,))))
    assert applied.set == ("1.0.weight",)
    inner = nn.functional.conv2d(nn.functional.avg_pool2d(images, 2), model[1][0].weight)
    found = covariance(inner)
    variances = found.diagonal()
    assert float(variances.max()) <= 1.001
    assert float((found - torch.diag(variances)).abs().max()) < 1e-3


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), 4, "found no convolution in Sequential"),
        (nn.Sequential(nn.Conv2d(3, 6, 1, groups=3), nn.Flatten(), nn.LazyLinear(3)), 4, "without groups; '0' has 3"),
        (nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Flatten()), 4, "has values, 27; the batch has 0: give a larger"),
        (nn.Sequential(nn.Conv2d(3, 6, 2), nn.Flatten()), 4, "needs more patches than a patch of '0' has values, 12; the"),
        (
            nn.Sequential(nn.Conv2d(3, 6, 1).requires_grad_(False), nn.Flatten(), nn.LazyLinear(3)),
            4,
            "its weight is frozen",
        ),
    ],
)
def test_refusals(model: nn.Module, batch: int, message: str) -> None:
    images = torch.randn(batch, 3, 2, 2)
    model(images)
    before = values(model)
    with pytest.raises(ValueError, match=message):
        schemes.apply_(model, "whitened", (images, labels(batch)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="eps must be a number above 0; got 0"):
        Whitened(eps=0)
