"""Norm layers and weight parametrizations."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, weight_norm

from initopt._gallery.batches import images, signals, vectors
from initopt._gallery.entry import Entry


def perturbed(model: nn.Module) -> nn.Module:
    """Running statistics and affine parameters away from 0 and 1, so that using them shows."""
    for module in model.modules():
        mean, variance = (getattr(module, name, None) for name in ("running_mean", "running_var"))
        if isinstance(mean, Tensor) and isinstance(variance, Tensor):
            mean.normal_()
            variance.uniform_(0.5, 3)
        if isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model


def dense(norm: nn.Module) -> nn.Module:
    return perturbed(nn.Sequential(nn.Linear(6, 8), norm, nn.Tanh(), nn.Linear(8, 4)))


def convolutional(norm: nn.Module) -> nn.Module:
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 4)]
    return perturbed(nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.GELU(), *head))


def residual_batch_norm() -> nn.Module:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
            self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))
            self.convolution = nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.head = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.norms[0](self.stem(x)))
            x = torch.tanh(x + self.norms[1](self.convolution(x)))
            return self.head(x.mean((2, 3)))

    return perturbed(Residual())


def frozen_batch_norm() -> nn.Module:
    model = perturbed(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 5), nn.BatchNorm1d(5)))
    model.get_submodule("1").eval()
    return model


def evaluation_mode() -> nn.Module:
    return dense(nn.BatchNorm1d(8)).eval()


def one_dimensional(norm: nn.Module) -> nn.Module:
    return perturbed(nn.Sequential(nn.Conv1d(2, 4, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(20, 4)))


class ScaleNorm(nn.Module):
    """One 0-dimensional gain for a whole norm layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.second(self.gain * hidden / hidden.norm(dim=-1, keepdim=True))


def weight_normed() -> nn.Module:
    return nn.Sequential(weight_norm(nn.Linear(6, 5)), nn.Tanh(), weight_norm(nn.Linear(5, 4), dim=None))  # type: ignore[arg-type]


def weight_normed_by_hook() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.utils.weight_norm(nn.Linear(5, 4), dim=1))


def orthogonal_recurrence() -> nn.Module:
    return nn.Sequential(orthogonal(nn.Linear(6, 6), orthogonal_map="cayley"), nn.Tanh(), nn.Linear(6, 4))


ENTRIES = [
    Entry("batch_norm_1d", lambda: dense(nn.BatchNorm1d(8)), vectors()),
    Entry("batch_norm_2d", lambda: convolutional(nn.BatchNorm2d(4)), images()),
    Entry("batch_norm_training", lambda: dense(nn.BatchNorm1d(8)), vectors(), train_mode=True),
    Entry("batch_norm_cumulative", lambda: dense(nn.BatchNorm1d(8, momentum=None)), vectors(), train_mode=True),
    Entry("batch_norm_without_affine", lambda: dense(nn.BatchNorm1d(8, affine=False)), vectors()),
    Entry("batch_norm_without_statistics", lambda: dense(nn.BatchNorm1d(8, track_running_stats=False)), vectors()),
    Entry("batch_norm_residual", residual_batch_norm, images()),
    Entry("batch_norm_frozen", frozen_batch_norm, vectors()),
    Entry("batch_norm_in_evaluation_mode", evaluation_mode, vectors()),
    Entry("layer_norm", lambda: dense(nn.LayerNorm(8)), vectors()),
    Entry("rms_norm", lambda: dense(nn.RMSNorm(8)), vectors()),
    Entry("group_norm", lambda: convolutional(nn.GroupNorm(2, 4)), images()),
    Entry("local_response_norm", lambda: convolutional(nn.LocalResponseNorm(2)), images()),
    Entry("instance_norm", lambda: convolutional(nn.InstanceNorm2d(4, affine=True)), images()),
    Entry(
        "instance_norm_with_statistics",
        lambda: one_dimensional(nn.InstanceNorm1d(4, affine=True, track_running_stats=True)),
        signals(),
    ),
    Entry("scale_norm", ScaleNorm, vectors()),
    Entry("weight_norm", weight_normed, vectors()),
    Entry("weight_norm_by_hook", weight_normed_by_hook, vectors()),
    Entry("orthogonal", orthogonal_recurrence, vectors()),
]
