"""Linear layers and convolutions called in every way there is."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from initopt._gallery.batches import SIZE, images, sequences, signals, vectors
from initopt._gallery.entry import Entry


class UsedInManyWays(nn.Module):
    """One matrix as the weight of a linear layer, in a product, transposed, in part, and on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.head = nn.Parameter(torch.randn(6, 6) / 2), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(F.linear(x, self.matrix)) + torch.tanh(x @ self.matrix)
        hidden = hidden + F.linear(x, self.matrix.T) * self.matrix.diagonal()
        return self.head(hidden + torch.sin(F.pad(F.linear(x, self.matrix[:2]), (0, 4))))


class AsBoth(nn.Module):
    """A parameter that is weight in one place, bias in another, and input in a third."""

    def __init__(self) -> None:
        super().__init__()
        self.row, self.matrix = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4, 6) / 2)

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.tanh(F.linear(x, self.matrix, self.row))
        return logits + F.linear(logits, self.row)[:, None] + F.linear(self.row, torch.outer(self.row, self.row))


class Products(nn.Module):
    """Calls the matrix products themselves, with factors and with weights on the left."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(6, 5) / 2), nn.Parameter(torch.randn(4, 5) / 2)
        self.bias, self.stack = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(SIZE, 5, 5) / 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(torch.addmm(self.bias, x, self.first, beta=0.5, alpha=2))
        hidden = hidden + torch.addmm(hidden, x, self.first).sin() + torch.mm(x, self.first)
        hidden = torch.bmm(self.stack[: len(x)], hidden[..., None])[..., 0]
        logits = torch.einsum("ij,bj->bi", self.second, hidden) + torch.stack([self.second @ row for row in hidden])
        return logits + F.linear(input=hidden, weight=self.second, bias=None)


class OneSampleAtATime(nn.Module):
    """Inputs without a batch dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv1d(2, 3, 3), nn.Linear(15, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.head(torch.tanh(self.convolution(sample)).flatten()) for sample in x])


class ManyDimensions(nn.Module):
    """A linear layer on four dimensions, transposed in memory, and on none of the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(5, 3, bias=False), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.mix(x.unflatten(-1, (2, 2)).movedim(1, -1)))
        nothing = self.head(hidden[:0, 0, 0])
        return self.head(hidden).mean((1, 2)) + nothing.sum()


class Mapped(nn.Module):
    """A linear layer under vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.vmap(lambda row: torch.tanh(self.first(row)))(x))


class Made(nn.Module):
    """Weights that are made from parameters: low rank, standardized, by another network."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(2, 6))
        self.kernel, self.maker = nn.Parameter(torch.randn(3, 1, 3)), nn.Linear(6, 12)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(F.linear(x, self.left @ self.right / 3))
        kernel = self.kernel - self.kernel.mean((1, 2), keepdim=True)
        hidden = hidden + F.conv1d(hidden[:, None], kernel, padding="same").mean(1)
        weights = self.maker(hidden.mean(0)).view(4, 3)
        return F.linear(hidden[:, :3], weights)


def odd_convolutions() -> nn.Module:
    layers = [
        nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2), groups=2),
        nn.Tanh(),
        nn.Conv2d(4, 6, 3, padding="same", bias=False),
        nn.GELU(),
        nn.ConvTranspose2d(6, 4, 2, stride=2, padding=1, groups=2, dilation=2),
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def deep_convolutions() -> nn.Module:
    reshaped = nn.Unflatten(1, (1, 2))
    return nn.Sequential(reshaped, nn.Conv3d(1, 3, (2, 3, 3)), nn.Tanh(), nn.Flatten(), nn.Linear(27, 4))


class OneKernelTwice(nn.Module):
    """A convolution and its transpose with one kernel, as in a tied autoencoder; the second with another stride."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.bias = nn.Parameter(torch.randn(3, 2, 3)), nn.Parameter(torch.randn(3))
        self.head = nn.Linear(14, 4)

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(F.conv1d(x, self.kernel, self.bias, stride=2))
        return self.head(F.conv_transpose1d(code, self.kernel, stride=2).flatten(1))


def partly_frozen() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 5), nn.Tanh(), nn.Linear(5, 4))
    model[0].weight.requires_grad_(False)
    model[3].bias.requires_grad_(False)
    model[5].weight.requires_grad_(False)
    return model


ENTRIES = [
    Entry("matrix_used_in_many_ways", UsedInManyWays, vectors()),
    Entry("weight_bias_and_input_at_once", AsBoth, vectors()),
    Entry("matrix_products", Products, vectors()),
    Entry("one_sample_at_a_time", OneSampleAtATime, signals()),
    Entry("linear_on_many_dimensions", ManyDimensions, sequences()),
    Entry("linear_under_vmap", Mapped, vectors()),
    Entry("made_weights", Made, vectors()),
    Entry("odd_convolutions", odd_convolutions, images()),
    Entry("convolution_3d", deep_convolutions, images()),
    Entry("one_kernel_twice", OneKernelTwice, signals()),
    Entry("partly_frozen_layers", partly_frozen, images()),
    Entry("linear_alone", lambda: nn.Linear(6, 4), vectors()),
    Entry("linear_without_activation", lambda: nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4, bias=False)), vectors()),
]
