"""Networks to try things on."""

from initopt.zoo.plain_mlp import plain_mlp

__all__ = ["plain_mlp"]
