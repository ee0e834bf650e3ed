"""The starts that the study compares: NIO with one thing changed at a time, and what else there is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from ideas import Idea, losses_of, nio_with
from subjects import Network
from torch import nn

import initopt
from initopt.comparison import Initialization
from initopt.methods import presets
from initopt.model.parameters import is_bias

__all__ = ["OF_BRANCHES", "STARTS", "Start", "in_folders"]


OF_BRANCHES = ("mimetic", "zero_branches", "scaled_branches")
"""Schemes for attention and residual branches."""


@dataclass(frozen=True)
class Start:
    """How a network begins.

    Attributes:
        method: as :class:`initopt.comparison.Initialization` has it: the name of a method, a function, or a list.
        options: of a method by its name.
        recipe: changes to the training after it.
    """

    method: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def initialization(self, name: str, network: Network) -> Initialization:
        """What :func:`initopt.compare` is given for a network.

        GradInit joins two batches in a step, so it has halves, and is told of Adam where the training has AdamW.
        """
        options, size = dict(self.options), None
        if self.method == "gradinit":
            size = 32
            options |= {"optimizer": "adam", "eta": 0.001} if network.optimizer == "adamw" else {}
        called = in_folders(name)
        return Initialization(method=self.method, options=options, recipe=self.recipe, name=called, batch_size=size)


def in_folders(name: str) -> str:
    """The name of a start without what a folder cannot have."""
    return name.replace(":", ",")


def drawn(model: nn.Module, batches: Iterable[Any], loss_fn: Any, *, scheme: str) -> None:
    """Draw the weights of a scheme, which sees on a batch which nonlinearity follows each layer."""
    initopt.schemes.apply_(model, scheme, next(iter(batches)), loss_fn)


def drawn_then_nio(model: nn.Module, batches: Iterable[Any], loss_fn: Any, *, scheme: str) -> None:
    """Draw the weights of a scheme, and run NIO from them."""
    initopt.nio(model, batches, loss_fn, scheme=scheme, measure_batches=0, progress=False, allow_trained=True)


def bounded_nio(model: nn.Module, batches: Iterable[Any], loss_fn: Any, *, times: float, **options: Any) -> None:
    """Run NIO with a bound in units of the gradient norm that the network shows at first, but at least 1."""
    own = initopt.measure(model, list(islice(batches, 5)), loss_fn, progress=False).grad_norm
    bound = max(1.0, times * own)
    initopt.nio(
        model, batches, loss_fn, max_grad_norm=bound, measure_batches=0, progress=False, allow_trained=True, **options
    )


def as_published(model: nn.Module, batches: Iterable[Any], loss_fn: Any, *, preset: str) -> None:
    """Run NIO as a preset has it, with a loss for each sample, which batch norm on the statistics of the batch needs."""
    options = presets.get(preset)
    initopt.nio(model, batches, losses_of, measure_batches=0, progress=False, allow_trained=True, **options)


def multiplied(model: nn.Module, batches: Iterable[Any], loss_fn: Any, *, factor: float) -> None:
    """Multiply every matrix by the same number."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)


def rescaled(model: nn.Module, batches: Iterable[Any], loss_fn: Any, *, draw: int, spread: float = 0.5) -> None:
    """Multiply every matrix by a number of its own, log-normal with that spread: a random place where NIO could end.

    The numbers follow from torch's random state, which follows from the seed of the run, and from ``draw``.
    """
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    logarithms = spread * torch.randn(draw + 1, len(matrices))[draw]
    with torch.no_grad():
        for matrix, logarithm in zip(matrices, logarithms, strict=True):
            matrix.mul_(float(logarithm.exp()))


def matrices_only(name: str, parameter: nn.Parameter, module: nn.Module) -> bool:
    """Leaves out biases and the weights of norms."""
    return parameter.ndim > 1


def no_biases(name: str, parameter: nn.Parameter, module: nn.Module) -> bool:
    """Leaves out biases."""
    return not is_bias(name)


BEFORE: dict[str, Any] = {
    "objective": "cosine+norm",
    "norm_weight": 1.0,
    "max_grad_norm": 5.0,
    "lr": 0.01,
    "scale_invariant": True,
    "centre": None,
}
"""The defaults up to the study."""

BASE: dict[str, Any] = {
    "objective": "cosine+lognorm",
    "norm_weight": 0.3,
    "max_grad_norm": 5.0,
    "lr": 0.03,
    "scale_invariant": False,
    "centre": None,
}
"""What the others change one thing of."""

UNBOUNDED = {name: value for name, value in BASE.items() if name != "max_grad_norm"}

UNCENTRED: dict[str, Any] = {"centre": None, "max_grad_norm": 5.0}
"""What the defaults were before gradients were centred."""


def _nio(**changes: Any) -> Start:
    return Start("nio", BASE | changes)


def _idea(**changes: Any) -> Start:
    return Start(partial(nio_with, idea=Idea(**changes)))


STARTS: dict[str, Start] = {
    "default": Start(),
    "default, warm-up": Start(recipe={"warmup_steps": 50}),
    "before": Start("nio", BEFORE),
    "before, scale-invariant left out": Start("nio", BEFORE | {"scale_invariant": False}),
    "base": _nio(),
    "scale-invariant scaled": _nio(scale_invariant=True),
    "cosine": _nio(objective="cosine"),
    "cosine+norm": _nio(objective="cosine+norm", norm_weight=1.0),
    "variance+lognorm": _nio(objective="variance+lognorm"),
    "norm weight 0.1": _nio(norm_weight=0.1),
    "norm weight 1": _nio(norm_weight=1.0),
    "bound 2": _nio(max_grad_norm=2.0),
    "bound 10": _nio(max_grad_norm=10.0),
    "bound of the start": Start(partial(bounded_nio, times=1.0, **UNBOUNDED)),
    "bound 2 x the start": Start(partial(bounded_nio, times=2.0, **UNBOUNDED)),
    "lr 0.01": _nio(lr=0.01),
    "lr 0.1": _nio(lr=0.1),
    "50 steps": _nio(steps=50),
    "200 steps": _nio(steps=200),
    "D = 2": _nio(num_subbatches=2),
    "D = 8": _nio(num_subbatches=8),
    "no overlap": _nio(overlap=0.0),
    "batch norm of the batch": _nio(batch_norm="batch"),
    "matrices only": _nio(scale_params=matrices_only),
    "no biases": _nio(scale_params=no_biases),
    "no biases, norm weight 1": _nio(scale_params=no_biases, norm_weight=1.0),
    "no biases, cosine+norm": _nio(scale_params=no_biases, objective="cosine+norm", norm_weight=1.0),
    "matrices only, norm weight 1": _nio(scale_params=matrices_only, norm_weight=1.0),
    "matrices only, norm weight 1, lr 0.02": _nio(scale_params=matrices_only, norm_weight=1.0, lr=0.02),
    "kaiming_normal": Start(partial(drawn, scheme="kaiming_normal")),
    "xavier_normal": Start(partial(drawn, scheme="xavier_normal")),
    "orthogonal": Start(partial(drawn, scheme="orthogonal")),
    "lsuv": Start("lsuv"),
    "lsuv, own weights": Start("lsuv", {"scheme": None}),
    "gradinit": Start("gradinit"),
    "metainit": Start("metainit"),
    "uncentred nio": Start("nio", UNCENTRED),
    "uncentred nio, least scale 0.3": Start("nio", UNCENTRED | {"min_scale": 0.3}),
    "uncentred nio, least scale 0.5": Start("nio", UNCENTRED | {"min_scale": 0.5}),
    "uncentred nio, cosine": Start("nio", UNCENTRED | {"objective": "cosine"}),
    "uncentred nio, cosine, 40 steps": Start("nio", UNCENTRED | {"objective": "cosine", "steps": 40}),
    "uncentred nio from kaiming_normal": Start("nio", UNCENTRED | {"scheme": "kaiming_normal"}),
    "uncentred nio from orthogonal": Start("nio", UNCENTRED | {"scheme": "orthogonal"}),
    "uncentred nio after lsuv": Start(["lsuv", {"method": "nio", "options": UNCENTRED}]),
    "default, clipping": Start(recipe={"clip_grad_norm": 1.0}),
    "uncentred nio, clipping": Start("nio", UNCENTRED, {"clip_grad_norm": 1.0}),
    "nio": Start("nio"),
    "nio, bound 5": Start("nio", {"max_grad_norm": 5.0}),
    "nio, bound 10": Start("nio", {"max_grad_norm": 10.0}),
    "nio, norm weight 1": Start("nio", {"norm_weight": 1.0}),
    "nio, bound 2": Start("nio", {"max_grad_norm": 2.0}),
    "nio, 40 steps": Start("nio", {"steps": 40}),
    "nio, D = 2": Start("nio", {"num_subbatches": 2}),
    "nio, D = 8": Start("nio", {"num_subbatches": 8}),
    "nio, no overlap": Start("nio", {"overlap": 0.0}),
    "nio, cosine": Start("nio", {"objective": "cosine"}),
    "nio, cosine+sqnorm": Start("nio", {"objective": "cosine+sqnorm"}),
    "nio, variance": Start("nio", {"objective": "variance"}),
    "nio, variance+lognorm": Start("nio", {"objective": "variance+lognorm"}),
    "nio, variance+sqnorm": Start("nio", {"objective": "variance+sqnorm"}),
    "nio from orthogonal": Start("nio", {"scheme": "orthogonal"}),
    "nio after lsuv": Start(["lsuv", "nio"]),
    "published": Start(partial(as_published, preset="published")),
    "published_class_defaults": Start(partial(as_published, preset="published_class_defaults")),
    **{scheme: Start(partial(drawn, scheme=scheme)) for scheme in OF_BRANCHES},
    **{f"nio from {scheme}": Start(partial(drawn_then_nio, scheme=scheme)) for scheme in OF_BRANCHES},
    "own weights x 0.7": Start(partial(multiplied, factor=0.7)),
    "own weights x 1.4": Start(partial(multiplied, factor=1.4)),
    "random scales, 1st": Start(partial(rescaled, draw=0)),
    "random scales, 2nd": Start(partial(rescaled, draw=1)),
    "random scales, 3rd": Start(partial(rescaled, draw=2)),
    "idea: logarithms of scales": _idea(logarithms=True),
    "idea: scales averaged": _idea(averaged=True),
    "idea: a scale per channel": _idea(per_channel=True),
    "idea: cosine by entry": _idea(preconditioned="entry"),
    "idea: cosine by tensor": _idea(preconditioned="tensor"),
    "idea: four batches a step": _idea(batches=4),
    "idea: centred by the mean of the batch": _idea(centred="batch"),
    "idea: cosine less what shared samples give": _idea(centred="subbatch", excess=True),
}
"""Starts by name; ``nio`` has the defaults of the installed version."""
