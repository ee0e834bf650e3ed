"""What every start of the demo gets: the same network, data, optimizer and learning rate.

The optimizer and its learning rate are those that served PyTorch's *default* start best: validation accuracy after 20
epochs from default weights, mean and standard deviation over seeds 100 to 104 (:mod:`initopt.demo.selection`):

==========  =====  ===============    ==========  ======  ===============
optimizer   lr     validation         optimizer   lr      validation
==========  =====  ===============    ==========  ======  ===============
SGD, 0.9    0.01   0.380 +- 0.107     Adam        0.0003  0.797 +- 0.072
SGD, 0.9    0.02   0.826 +- 0.080     Adam        0.001   0.890 +- 0.008
SGD, 0.9    0.03   0.886 +- 0.048     Adam        0.002   0.906 +- 0.029
SGD, 0.9    0.05   0.930 +- 0.010     Adam        0.003   0.918 +- 0.020
SGD, 0.9    0.1    0.720 +- 0.141     Adam        0.005   0.889 +- 0.074
SGD, 0.9    0.2    0.099 +- 0.002     Adam        0.01    0.438 +- 0.149
==========  =====  ===============    ==========  ======  ===============

The network, a plain tanh network of ten layers, was picked because it trains slowly, but does train, from its default
weights; of the others tried with their defaults, 20 tanh layers or a plain convolutional network of 10 layers hardly
train at all, and 6 convolutions do better. The options of NIO are the defaults of :func:`initopt.nio`.
"""

from __future__ import annotations

import torch
from torch import nn

from initopt.zoo import plain_mlp

__all__ = [
    "BATCH_SIZE",
    "DEPTH",
    "LEARNING_RATE",
    "MEASURED_BATCHES",
    "MOMENTUM",
    "WIDTH",
    "create_model",
    "create_optimizer",
]

DEPTH = 10
WIDTH = 64
BATCH_SIZE = 64
LEARNING_RATE = 0.05
MOMENTUM = 0.9

MEASURED_BATCHES = 8
"""Of the 16 batches of the training set, NIO's steps cycle through one half, and the other half measures."""


def create_model(seed: int) -> nn.Module:
    """The network with the default weights that follow from a seed, whatever was drawn before and without a trace after.

    >>> first, second = create_model(seed=0), create_model(seed=0)
    >>> all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    True
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return plain_mlp(depth=DEPTH, width=WIDTH, activation=nn.Tanh)


def create_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the recipe: plain SGD with momentum, no warm-up, no decay, no gradient clipping."""
    return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
