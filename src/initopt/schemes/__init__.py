"""The schemes of :mod:`torch.nn.init` for a whole model, by the type of its modules."""

from initopt.schemes.apply import Applied, apply_
from initopt.schemes.draws import NAMES, check_scheme

__all__ = ["NAMES", "Applied", "apply_", "check_scheme"]
