"""initopt: neural initialization optimization for PyTorch.

Measure how good a network's starting point is on its own data, and improve it before the first training step.
"""

from importlib import import_module
from sys import modules
from typing import TYPE_CHECKING, Any

from initopt import methods, schemes
from initopt._api import gradinit, lsuv, metainit, nio, optimize
from initopt._support.errors import (
    HarmError,
    InitoptWarning,
    LoaderError,
    LossError,
    MismatchError,
    NonFiniteError,
    RankError,
    TrainedModelError,
    ZeroGradientError,
)
from initopt._version import __version__
from initopt.gram import functional, objectives
from initopt.gram.measurement import Measurement
from initopt.methods import LayerRecord, Measuring, StepRecord, presets
from initopt.runs.measuring import measure
from initopt.runs.result import Result

if TYPE_CHECKING:
    from initopt.choice import Choice, LearningRates, choose, find_lr
    from initopt.comparison.comparing import compare
    from initopt.diagnosis import Diagnosis, Finding, check, diagnose

__all__ = [
    "Choice",
    "Diagnosis",
    "Finding",
    "HarmError",
    "InitoptWarning",
    "LayerRecord",
    "LearningRates",
    "LoaderError",
    "LossError",
    "Measurement",
    "Measuring",
    "MismatchError",
    "NonFiniteError",
    "RankError",
    "Result",
    "StepRecord",
    "TrainedModelError",
    "ZeroGradientError",
    "__version__",
    "check",
    "choose",
    "compare",
    "diagnose",
    "find_lr",
    "functional",
    "gradinit",
    "lsuv",
    "measure",
    "metainit",
    "methods",
    "nio",
    "objectives",
    "optimize",
    "presets",
    "schemes",
]

for _name, _module in {"functional": functional, "objectives": objectives, "presets": presets}.items():
    modules[f"{__name__}.{_name}"] = _module  # so that ``from initopt.functional import grad_cosine`` finds it, too

_LATER = ("choice", "comparison", "data", "diagnosis", "integrations", "zoo")
"""Packages that are imported when they are asked for, so that ``import initopt`` does not take longer for them."""

_OF_ROOMS = {
    **dict.fromkeys(("Diagnosis", "Finding", "check", "diagnose"), "initopt.diagnosis"),
    "compare": "initopt.comparison.comparing",
    **dict.fromkeys(("Choice", "LearningRates", "choose", "find_lr"), "initopt.choice"),
}
"""Names of rooms that are imported likewise."""


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return import_module(f"initopt.{name}")
    if name in _OF_ROOMS:
        return getattr(import_module(_OF_ROOMS[name]), name)
    raise AttributeError(f"module 'initopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, *_OF_ROOMS})
