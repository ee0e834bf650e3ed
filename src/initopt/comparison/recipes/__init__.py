"""Comparisons that come with the package, as files for ``initopt compare --recipe``."""

from initopt.comparison.recipes.files import RECIPES

__all__ = ["RECIPES"]
