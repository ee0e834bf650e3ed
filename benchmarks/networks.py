"""The networks that are measured, each with batches of its kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from initopt.zoo import cifar_resnet, plain_mlp, small_gpt, small_vit, wide_resnet

__all__ = ["NETWORKS", "Network", "build"]

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Network:
    """How to make a network and a batch for it, and whether it has batch norms, which couple the samples of a batch."""

    title: str
    model: Callable[[], nn.Module]
    batch: Callable[[int], Batch]
    coupled: bool = False


def images(side: int, channels: int = 3, classes: int = 10) -> Callable[[int], Batch]:
    return lambda size: (torch.randn(size, channels, side, side), torch.randint(classes, (size,)))


def text(vocabulary: int, length: int) -> Callable[[int], Batch]:
    return lambda size: (torch.randint(vocabulary, (size, length)), torch.randint(vocabulary, (size, length)))


def features(count: int) -> Callable[[int], Batch]:
    return lambda size: (torch.randn(size, count), torch.randint(10, (size,)))


def wide_mlp(width: int, depth: int) -> nn.Module:
    return plain_mlp(width, depth=depth + 1, width=width, activation=nn.ReLU)


def timm_model(name: str) -> Callable[[], nn.Module]:
    def create() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name, pretrained=False)
        return model

    return create


NETWORKS: dict[str, Network] = {
    "mlp": Network("MLP, 10 layers, 64 wide", plain_mlp, images(8, channels=1)),
    "resnet56": Network("ResNet-56, no norm", lambda: cifar_resnet(56, norm="none"), images(32)),
    "resnet56-bn": Network("ResNet-56, batch norm", lambda: cifar_resnet(56), images(32), coupled=True),
    "resnet110": Network("ResNet-110, no norm", lambda: cifar_resnet(110, norm="none"), images(32)),
    "wrn-16-4": Network("WRN-16-4, no norm", lambda: wide_resnet(16, 4, norm="none"), images(32)),
    "wrn-28-10-bn": Network("WRN-28-10, batch norm", wide_resnet, images(32), coupled=True),
    "vit": Network("ViT, 6 blocks, 192 wide", small_vit, images(32)),
    "gpt": Network("GPT, 4 blocks, 128 wide", small_gpt, text(65, 128)),
    "resnet50-bn": Network("ResNet-50, 224x224 (timm)", timm_model("resnet50"), images(224, classes=1000), coupled=True),
    "vit-b-16": Network("ViT-B/16, 224x224 (timm)", timm_model("vit_base_patch16_224"), images(224, classes=1000)),
    "swin-t": Network("Swin-T, 224x224 (timm)", timm_model("swin_tiny_patch4_window7_224"), images(224, classes=1000)),
    "mlp-100m": Network("MLP, 7 layers, 4096 wide", lambda: wide_mlp(4096, 6), features(4096)),
    "vit-85m": Network(
        "ViT, 12 blocks, 768 wide, 64x64", lambda: small_vit(64, 8, depth=12, width=768, heads=12), images(64)
    ),
    "gpt-100m": Network(
        "GPT, 8 blocks, 768 wide, 44000 words", lambda: small_gpt(44000, 64, depth=8, width=768, heads=12), text(44000, 64)
    ),
    "tiny-resnet": Network("ResNet-8, no norm", lambda: cifar_resnet(8, norm="none"), images(8)),
    "tiny-resnet-bn": Network("ResNet-8, batch norm", lambda: cifar_resnet(8), images(8), coupled=True),
    "tiny-vit": Network("ViT, 1 block", lambda: small_vit(8, 4, depth=1, width=24), images(8)),
    "tiny-gpt": Network("GPT, 1 block", lambda: small_gpt(11, 8, depth=1, width=24), text(11, 8)),
}
"""Networks by name. Weights and data are random: what they are does not matter to time and memory."""


def build(name: str, device: str) -> nn.Module:
    """A network with its default weights, the same at every call."""
    torch.manual_seed(0)
    return NETWORKS[name].model().to(device)
