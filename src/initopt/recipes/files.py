"""The recipes that there are."""

from __future__ import annotations

from pathlib import Path

__all__ = ["RECIPES"]

RECIPES = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}
"""The file of each recipe, by name."""
