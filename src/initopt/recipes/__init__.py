"""Comparisons that come with the package, as files for ``initopt compare --experiment``."""

from initopt.recipes.files import RECIPES

__all__ = ["RECIPES"]
