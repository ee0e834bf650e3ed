"""The starts that the study compares: NIO with one thing changed at a time, and what else there is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ideas import Idea
from torch import nn

from initopt.model.parameters import is_bias

__all__ = ["STARTS", "Start"]


@dataclass(frozen=True)
class Start:
    """How a network begins.

    Attributes:
        method: of initopt, or none.
        options: of the method. ``"scale_params"`` may be the name of a filter in :data:`FILTERS`.
        relative_bound: the bound on the gradient norm in units of what the network shows at first, but at least 1.
        warmup_steps: of the training after it.
        clip: gradient clipping in the training after it.
        idea: what is changed of NIO in the study's own loop, if the start is made by that.
        after: another method, with its defaults, from whose result the method starts.
    """

    method: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    relative_bound: float | None = None
    warmup_steps: int = 0
    clip: float | None = None
    idea: Idea | None = None
    after: str | None = None


def matrices_only(name: str, parameter: nn.Parameter, module: nn.Module) -> bool:
    """Leaves out biases and the weights of norms."""
    return parameter.ndim > 1


def no_biases(name: str, parameter: nn.Parameter, module: nn.Module) -> bool:
    """Leaves out biases."""
    return not is_bias(name)


FILTERS = {"matrices_only": matrices_only, "no_biases": no_biases}

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

UNCENTRED: dict[str, Any] = {"centre": None, "max_grad_norm": 5.0}
"""What the defaults were before gradients were centred."""


def _nio(relative_bound: float | None = None, **changes: Any) -> Start:
    return Start("nio", BASE | changes, relative_bound)


STARTS: dict[str, Start] = {
    "default": Start(),
    "default, warm-up": Start(warmup_steps=50),
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
    "bound of the start": _nio(relative_bound=1.0),
    "bound 2 x the start": _nio(relative_bound=2.0),
    "lr 0.01": _nio(lr=0.01),
    "lr 0.1": _nio(lr=0.1),
    "50 steps": _nio(steps=50),
    "200 steps": _nio(steps=200),
    "D = 2": _nio(num_subbatches=2),
    "D = 8": _nio(num_subbatches=8),
    "no overlap": _nio(overlap=0.0),
    "batch norm of the batch": _nio(batch_norm="batch"),
    "matrices only": _nio(scale_params="matrices_only"),
    "no biases": _nio(scale_params="no_biases"),
    "no biases, norm weight 1": _nio(scale_params="no_biases", norm_weight=1.0),
    "no biases, cosine+norm": _nio(scale_params="no_biases", objective="cosine+norm", norm_weight=1.0),
    "matrices only, norm weight 1": _nio(scale_params="matrices_only", norm_weight=1.0),
    "matrices only, norm weight 1, lr 0.02": _nio(scale_params="matrices_only", norm_weight=1.0, lr=0.02),
    "kaiming_normal": Start("scheme", {"scheme": "kaiming_normal"}),
    "xavier_normal": Start("scheme", {"scheme": "xavier_normal"}),
    "orthogonal": Start("scheme", {"scheme": "orthogonal"}),
    "lsuv": Start("lsuv"),
    "lsuv, own weights": Start("lsuv", {"scheme": None}),
    "gradinit": Start("gradinit"),
    "metainit": Start("metainit"),
    "uncentred nio": Start("nio", UNCENTRED),
    "uncentred nio, least scale 0.3": Start("nio", UNCENTRED | {"min_scale": 0.3}),
    "uncentred nio, least scale 0.5": Start("nio", UNCENTRED | {"min_scale": 0.5}),
    "uncentred nio, cosine": Start("nio", UNCENTRED | {"objective": "cosine"}),
    "uncentred nio from kaiming_normal": Start("nio", UNCENTRED | {"scheme": "kaiming_normal"}),
    "uncentred nio from orthogonal": Start("nio", UNCENTRED | {"scheme": "orthogonal"}),
    "uncentred nio after lsuv": Start("nio", UNCENTRED, after="lsuv"),
    "default, clipping": Start(clip=1.0),
    "uncentred nio, clipping": Start("nio", UNCENTRED, clip=1.0),
    "nio": Start("nio"),
    "nio, bound 5": Start("nio", {"max_grad_norm": 5.0}),
    "nio, bound 10": Start("nio", {"max_grad_norm": 10.0}),
    "nio, norm weight 1": Start("nio", {"norm_weight": 1.0}),
    "nio from orthogonal": Start("nio", {"scheme": "orthogonal"}),
    "nio after lsuv": Start("nio", after="lsuv"),
    "idea: logarithms of scales": Start(idea=Idea(logarithms=True)),
    "idea: scales averaged": Start(idea=Idea(averaged=True)),
    "idea: a scale per channel": Start(idea=Idea(per_channel=True)),
    "idea: cosine by entry": Start(idea=Idea(preconditioned="entry")),
    "idea: cosine by tensor": Start(idea=Idea(preconditioned="tensor")),
    "idea: four batches a step": Start(idea=Idea(batches=4)),
    "idea: centred by the mean of the batch": Start(idea=Idea(centred="batch")),
}
"""Starts by name; ``nio`` has the defaults of the installed version."""
