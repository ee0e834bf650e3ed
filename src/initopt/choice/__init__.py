"""Which start, and which learning rate, for a network: found out by a race of short trainings."""

from initopt.choice.choice import Choice, Cost, Curve, Row
from initopt.choice.choosing import choose

__all__ = ["Choice", "Cost", "Curve", "Row", "choose"]
