"""The start and the learning rate for the network at hand, found out by training it for a few steps."""

from initopt.choice.choice import Choice
from initopt.choice.choosing import choose
from initopt.choice.learning_rate import find_lr
from initopt.choice.rate_result import LearningRates
from initopt.choice.rows import Cost, Curve, Row

__all__ = ["Choice", "Cost", "Curve", "LearningRates", "Row", "choose", "find_lr"]
