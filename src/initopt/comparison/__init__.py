"""Train from several initializations, and compare: what :func:`initopt.compare` takes and gives."""

from initopt.comparison.initialization import Initialization
from initopt.comparison.network import Network
from initopt.comparison.recipe import Recipe
from initopt.comparison.record import CurvePoint, RunRecord
from initopt.comparison.store import Comparison, load_comparison, load_runs

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
