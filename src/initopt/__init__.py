"""initopt: neural initialization optimization for PyTorch.

Measure how good a network's starting point is on its own data, and improve it before the first training step.
"""

from initopt import functional, objectives, presets
from initopt._version import __version__
from initopt.compare import compare
from initopt.errors import LoaderError, LossError, MismatchError, NonFiniteError, ZeroGradientError
from initopt.measure import measure
from initopt.measurement import Measurement
from initopt.optimize import nio, optimize
from initopt.result import Result, StepRecord

__all__ = [
    "LoaderError",
    "LossError",
    "Measurement",
    "MismatchError",
    "NonFiniteError",
    "Result",
    "StepRecord",
    "ZeroGradientError",
    "__version__",
    "compare",
    "functional",
    "measure",
    "nio",
    "objectives",
    "optimize",
    "presets",
]
