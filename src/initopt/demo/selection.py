"""How the recipe was chosen; ``python -m initopt.demo.selection`` does it again, in a minute or two.

Every optimizer and learning rate of a small grid trains the network from PyTorch's *default* weights. The one with the
best accuracy on the validation images after the last epoch, as a mean over seeds that the demo does not use, is the
recipe for all starts (:mod:`initopt.demo.recipe` has the outcome). The test images play no part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import mean, stdev

import torch
from torch import nn

from initopt.data import digits, digits_tensors
from initopt.demo.training import train
from initopt.zoo import plain_mlp

__all__ = ["GRID", "select"]

SEEDS = (100, 101, 102, 103, 104)

Optimizers = dict[str, Callable[[nn.Module], torch.optim.Optimizer]]


def _sgd(lr: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def _adam(lr: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: torch.optim.Adam(model.parameters(), lr=lr)


GRID: Optimizers = {f"SGD, momentum 0.9, lr {lr:g}": _sgd(lr) for lr in (0.01, 0.02, 0.03, 0.05, 0.1, 0.2)} | {
    f"Adam, lr {lr:g}": _adam(lr) for lr in (0.0003, 0.001, 0.002, 0.003, 0.005, 0.01)
}
"""The optimizers that were tried, by name."""


def select(
    epochs: int, seeds: tuple[int, ...] = SEEDS, grid: Optimizers | None = None
) -> Iterator[tuple[str, list[list[float]]]]:
    """Train from default weights with every optimizer of a grid.

    Args:
        epochs: passes over the training set.
        seeds: of the weights and the order of the data.
        grid: optimizers by name; :data:`GRID` if not given.

    Yields:
        The optimizer's name and, for every seed, the validation accuracy after each epoch.
    """
    validation = digits_tensors("validation")
    for name, create in (GRID if grid is None else grid).items():
        curves = []
        for seed in seeds:
            torch.manual_seed(seed)
            model = plain_mlp()
            curves.append(train(model, digits(seed=seed), create(model), epochs, validation).accuracy)
        yield name, curves


if __name__ == "__main__":
    for name, curves in select(20):
        print(name)
        for epoch in (10, 20):
            values = [curve[epoch - 1] for curve in curves]
            print(f"  {epoch} epochs: validation accuracy {mean(values):.3f} +- {stdev(values):.3f}", flush=True)
