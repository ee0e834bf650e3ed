"""Schemes such as Kaiming's and Xavier's, where this installation has them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

__all__ = ["apply_scheme", "scheme_names"]

_MODULE = "initopt.schemes"


def scheme_names() -> Sequence[str]:
    """The names of all schemes."""
    if importlib.util.find_spec(_MODULE) is None:
        return ()
    return tuple(importlib.import_module(_MODULE).NAMES)


def apply_scheme(model: nn.Module, name: str, seed: int, options: Mapping[str, Any]) -> None:
    """Draw the weights of a model anew, in place."""
    importlib.import_module(_MODULE).apply_(model, name, seed=seed, **options)
