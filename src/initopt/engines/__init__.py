"""Engines: ways to get a gradient Gram matrix, and its derivative with respect to scales, out of a model."""

from initopt.engines.base import Engine, Evaluation
from initopt.engines.choose import ENGINES, create_engine

__all__ = ["ENGINES", "Engine", "Evaluation", "create_engine"]
