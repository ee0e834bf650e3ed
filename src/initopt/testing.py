"""Tests for those who write a network, an engine or a method.

:func:`assert_healthy` is for networks: it fails if :func:`initopt.check` finds anything. The rest is for engines and
methods: a gallery of odd little models, and what must hold on each of them.

``import initopt`` does not import this module; ``import initopt.testing`` does. With :data:`ENTRIES` come an independent
:func:`truth` by plain double backward in float64, :func:`check_engine`, which holds an engine against it, and
:func:`check_method`, which holds a method to what every method must leave alone.

>>> from initopt.testing import ENTRIES, check_engine
>>> len(ENTRIES) > 100
True
>>> worst = check_engine("recompute", ["mlp", "tied_layers"])
>>> worst["gram"] < 1e-11 and worst["derivatives"] < 1e-9
True
"""

from initopt._gallery.engine_checks import CHECKED, EngineChoice, check_engine, evaluate, relative_error
from initopt._gallery.entries import ENTRIES
from initopt._gallery.entry import SEED, Entry
from initopt._gallery.method_checks import check_method
from initopt._gallery.truth import INDEX, PHI, Figures, truth
from initopt.diagnosis import assert_healthy

__all__ = [
    "CHECKED",
    "ENTRIES",
    "INDEX",
    "PHI",
    "SEED",
    "EngineChoice",
    "Entry",
    "Figures",
    "assert_healthy",
    "check_engine",
    "check_method",
    "evaluate",
    "relative_error",
    "truth",
]
