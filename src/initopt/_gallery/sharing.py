"""Parameters that are shared, reused, frozen, unused, zero, or held in odd places."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from initopt._gallery.batches import text, vectors
from initopt._gallery.entry import Entry


class TiedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embedding(tokens))))


def tied_layers() -> nn.Module:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(6, 4))


def reused_module() -> nn.Module:
    block = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    return nn.Sequential(block, block, nn.Linear(6, 4), block[1])


def frozen_part() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 4))
    model[2].requires_grad_(False)
    model[4].bias.requires_grad_(False)
    return model


class UnusedParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(3, 3)
        self.first = nn.Linear(6, 5)
        self.never = nn.Parameter(torch.randn(4))
        self.second = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.sigmoid(self.first(x)))


def zero_bias() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    for name in ("0.bias", "2.bias"):
        nn.init.zeros_(model.get_parameter(name))
    return model


class ZeroResidual(nn.Module):
    """A residual branch whose last layer begins at zero, as in Fixup, ReZero and diffusion transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 5)
        self.up, self.down = nn.Linear(5, 7), nn.Linear(7, 5)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.down(F.gelu(self.up(x))))


class ScalarParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 4)
        self.log_temperature = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.log_temperature.exp()


class RootParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(6, 4) / 2)
        self.offset = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.matrix) * 2 + self.offset


class ParameterListModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrices = nn.ParameterList([torch.randn(6, 6) / 3 for _ in range(3)])
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        for matrix in self.matrices:
            x = x + torch.tanh(x @ matrix)
        return self.head(x)


class ParameterDictModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ParameterDict({"left": torch.randn(6, 5) / 2, "right": torch.randn(5, 4) / 2})
        self.parts["shared"] = self.parts["left"]

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x @ self.parts["left"]) @ self.parts["right"] + x[:, :1] * self.parts["shared"].sum()


class ModuleDictModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({"bias": nn.Linear(6, 4)})
        self.branches["other"] = nn.Bilinear(6, 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.branches["bias"](x) + self.branches["other"](x, torch.cos(x))


ENTRIES = [
    Entry("tied_embedding_and_output", TiedEmbedding, text()),
    Entry("tied_layers", tied_layers, vectors()),
    Entry("reused_module", reused_module, vectors()),
    Entry("frozen_part", frozen_part, vectors()),
    Entry("unused_parameters", UnusedParameters, vectors()),
    Entry("zero_bias", zero_bias, vectors()),
    Entry("zero_residual_branch", ZeroResidual, vectors()),
    Entry("scalar_parameter", ScalarParameter, vectors()),
    Entry("root_parameter", RootParameter, vectors()),
    Entry("parameter_list", ParameterListModel, vectors()),
    Entry("parameter_dict", ParameterDictModel, vectors()),
    Entry("module_dict_bilinear", ModuleDictModel, vectors()),
]
