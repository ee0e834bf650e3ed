"""The networks of the study, and how each is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from initopt.zoo import cifar_resnet, densenet, plain_mlp, small_gpt, small_vit, vgg, wide_resnet

__all__ = ["NETWORKS", "TWO_DECADES", "Network", "Role", "make"]

Role = Literal["choice", "confirmation", "deep"]


@dataclass(frozen=True)
class Network:
    """A network and its training.

    Attributes:
        title: for tables.
        model: makes it.
        data: ``"cifar"`` (16 x 16 pixels), ``"digits"`` or ``"text"``.
        optimizer: ``"sgd"`` or ``"adamw"``.
        lrs: learning rates.
        role: whether the defaults were chosen on it, or confirmed; deep plain networks were for choice, too, and have
            tables of their own.
        passes: over the training data, if not as many as for its kind of data.
        clip: gradient clipping in training.
    """

    title: str
    model: Callable[[], nn.Module]
    data: Literal["cifar", "digits", "text"]
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lrs: tuple[float, ...] = (0.01, 0.03, 0.1)
    role: Role = "choice"
    passes: int | None = None
    clip: float | None = None

    @property
    def guess(self) -> float:
        """Accuracy of guessing."""
        return 1 / (65 if self.data == "text" else 10)

    def recipe(self, wide: bool = False) -> dict[str, Any]:
        """How it is trained, as fields of a recipe of ``initopt.compare``; ``wide`` has learning rates over two decades."""
        sgd = self.optimizer == "sgd"
        return {
            "optimizer": self.optimizer,
            "optimizer_options": {"momentum": 0.9, "weight_decay": 5e-4} if sgd else {"weight_decay": 0.05},
            "lr": list(TWO_DECADES[self.optimizer] if wide else self.lrs),
            "clip_grad_norm": self.clip,
            "epochs": self.passes or (1 if self.data == "cifar" else 3),
            "batch_size": 64,
            "measure_batches": 5,
        }


class CharLSTM(nn.Module):
    """A recurrent language model."""

    def __init__(self, vocabulary: int, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.recurrence = nn.LSTM(width, width, layers, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next characters, shape ``(B, T, vocabulary)``."""
        return self.head(self.recurrence(self.embedding(tokens))[0])


TWO_DECADES = {"sgd": (0.003, 0.01, 0.03, 0.1, 0.3), "adamw": (0.0001, 0.0003, 0.001, 0.003, 0.01)}
"""Learning rates by optimizer, for how much a start forgives a badly chosen one."""

_ADAMW = (0.001, 0.003, 0.01)
_PIXELS = 3 * 16 * 16


def _deep(title: str, model: Callable[[], nn.Module]) -> Network:
    """A plain network that hardly trains from its own start, in a training that is long enough to tell."""
    return Network(title, model, "digits", lrs=(0.01, 0.03, 0.1), role="deep", passes=12, clip=1.0)


def _layers(activation: type[nn.Module], depth: int) -> Callable[[], nn.Module]:
    return lambda: plain_mlp(64, depth=depth + 1, width=32, activation=activation)


def _convolutions(depth: int, width: int = 16) -> nn.Module:
    layers = [layer for i in range(depth) for layer in (nn.Conv2d(width if i else 1, width, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4 * width, 10))


_ACTIVATIONS = {"ReLU": nn.ReLU, "GELU": nn.GELU, "tanh": nn.Tanh}
_DEEP = {
    f"{name.lower()}-{depth}": _deep(f"{depth} {name} layers", _layers(activation, depth))
    for depth in (5, 10, 20, 40)
    for name, activation in _ACTIVATIONS.items()
}

NETWORKS: dict[str, Network] = {
    "mlp-tanh": Network("tanh MLP, 10 layers", plain_mlp, "digits", lrs=(0.01, 0.03, 0.1, 0.3)),
    "mlp-relu": Network(
        "ReLU MLP, 10 layers",
        lambda: plain_mlp(64, depth=10, width=64, activation=nn.ReLU),
        "digits",
        lrs=(0.01, 0.03, 0.1, 0.3),
    ),
    "resnet8-bn-digits": Network(
        "ResNet-8, batch norm, digits", lambda: cifar_resnet(8, in_channels=1), "digits", lrs=(0.02, 0.1, 0.5)
    ),
    "vgg7": Network("VGG-7, no norm", lambda: vgg(7, width=16, norm="none"), "cifar"),
    "vgg7-bn": Network("VGG-7, batch norm", lambda: vgg(7, width=16), "cifar"),
    "resnet14": Network("ResNet-14, no norm", lambda: cifar_resnet(14, norm="none"), "cifar"),
    "resnet14-bn": Network("ResNet-14, batch norm", lambda: cifar_resnet(14), "cifar"),
    "densenet16": Network("DenseNet-16, no norm", lambda: densenet(16, norm="none"), "cifar"),
    "densenet16-bn": Network("DenseNet-16, batch norm", lambda: densenet(16), "cifar"),
    "vit": Network(
        "ViT, 6 blocks, 64 wide", lambda: small_vit(16, 4, depth=6, width=64, heads=2), "cifar", "adamw", _ADAMW
    ),
    "gpt": Network(
        "GPT, 4 blocks, 48 wide", lambda: small_gpt(65, 32, depth=4, width=48, heads=4), "text", "adamw", _ADAMW
    ),
    "wrn10": Network("WRN-10-2, no norm", lambda: wide_resnet(10, 2, norm="none"), "cifar", role="confirmation"),
    "wrn10-bn": Network("WRN-10-2, batch norm", lambda: wide_resnet(10, 2), "cifar", role="confirmation"),
    "mlp-gelu": Network(
        "GELU MLP, 8 layers, images",
        lambda: plain_mlp(_PIXELS, depth=8, width=128, activation=nn.GELU),
        "cifar",
        role="confirmation",
    ),
    "vit-wide": Network(
        "ViT, 3 blocks, 96 wide",
        lambda: small_vit(16, 4, depth=3, width=96, heads=4),
        "cifar",
        "adamw",
        _ADAMW,
        role="confirmation",
    ),
    "gpt-wide": Network(
        "GPT, 2 blocks, 96 wide",
        lambda: small_gpt(65, 32, depth=2, width=96, heads=4),
        "text",
        "adamw",
        _ADAMW,
        role="confirmation",
    ),
    "lstm": Network("LSTM, 2 layers, 96 wide", lambda: CharLSTM(65, 96, 2), "text", "adamw", _ADAMW, role="confirmation"),
    **_DEEP,
    "conv-14": _deep("14 convolutions", lambda: _convolutions(14)),
    "conv-24": _deep("24 convolutions", lambda: _convolutions(24)),
}
"""Networks by name. The learning rates surround the best one of the network's own start."""


def make(name: str) -> nn.Module:
    """A new model, which halves images of CIFAR-10 first."""
    network = NETWORKS[name]
    return nn.Sequential(nn.AvgPool2d(2), network.model()) if network.data == "cifar" else network.model()
