"""Engines: ways to get a gradient Gram matrix, and its derivative with respect to scales, out of a model."""

from initopt.engines.auto import ENGINES, create_engine
from initopt.engines.base import Engine, Evaluation

__all__ = ["ENGINES", "Engine", "Evaluation", "create_engine"]
