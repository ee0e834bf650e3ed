"""Train from several initializations, and compare: what :func:`initopt.compare` takes and gives."""

from initopt.comparison.result import Comparison, load_comparison
from initopt.comparison.spec.initialization import Initialization
from initopt.comparison.spec.network import Network
from initopt.comparison.spec.recipe import Recipe
from initopt.comparison.storage.record import CurvePoint, RunRecord
from initopt.comparison.storage.store import load_runs

__all__ = [
    "Comparison",
    "CurvePoint",
    "Initialization",
    "Network",
    "Recipe",
    "RunRecord",
    "load_comparison",
    "load_runs",
]
