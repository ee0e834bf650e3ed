"""The start and the learning rate for the network at hand, found out by training it for a few steps."""

from initopt.choice.learning_rate import find_lr
from initopt.choice.rate_result import LearningRates

__all__ = ["LearningRates", "find_lr"]
