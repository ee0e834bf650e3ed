"""An initialization of a comparison: a start, what is done to it, and what its recipe has of its own."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from initopt._support.checks import check_integer
from initopt._support.words import did_you_mean, meant, unknown
from initopt.methods import METHODS, Method, create_method, presets

__all__ = ["DEFAULT", "Initialization", "apply_scheme", "as_initialization", "known_initializations", "scheme_names"]

DEFAULT = "default"
"""The model's own start."""


@dataclass(frozen=True)
class Initialization:
    """What is done to a model before its first training step.

    The model's own start is drawn first, from the seed. Then the scheme, if there is one, draws weights anew; then the
    method, if there is one, improves them.

    Args:
        scheme: a name in ``initopt.schemes.NAMES``, or ``None`` for the model's own start.
        method: a name in :data:`initopt.methods.METHODS`, or ``None``.
        options: of the method.
        preset: a name in :data:`initopt.presets.PRESETS`, whose options the method has unless ``options`` say otherwise.
        batch_size: samples in a batch that the method sees; as in training, by default.
        scheme_options: of the scheme.
        recipe: changes to the recipe for this initialization, by field, such as ``{"warmup_steps": 100}``.
        name: how it is called; by default after its method or scheme, or ``"default"``.

    Raises:
        ValueError, TypeError: for an unknown name, or an option that the method does not have or that cannot work.

    >>> Initialization(method="nio").name
    'nio'
    >>> Initialization(recipe={"warmup_steps": 100}, name="default, warm-up").method is None
    True
    """

    scheme: str | None = None
    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    scheme_options: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    preset: str | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.scheme == DEFAULT:
            object.__setattr__(self, "scheme", None)
        if self.scheme is not None and self.scheme not in scheme_names():
            raise ValueError(_unknown("scheme", self.scheme, [DEFAULT, *scheme_names()]))
        if self.method is not None and self.method not in METHODS:
            raise ValueError(_unknown("method", self.method, list(METHODS)))
        parts = [part for part in (self.scheme, self.method) if part is not None]
        object.__setattr__(self, "name", self.name or " + ".join(parts) or DEFAULT)
        for option in ("options", "scheme_options", "recipe"):
            value = getattr(self, option)
            if not isinstance(value, Mapping):
                raise TypeError(f"{option} of initialization {self.name!r} must be a dict; got {value!r}")
            object.__setattr__(self, option, dict(value))
        for option, part in (("options", "method"), ("scheme_options", "scheme")):
            if getattr(self, option) and getattr(self, part) is None:
                raise ValueError(f"initialization {self.name!r} has {option}, but no {part}")
        if self.method is None and (self.preset is not None or self.batch_size is not None):
            raise ValueError(f"initialization {self.name!r} has a preset or a batch_size, but no method")
        if self.batch_size is not None:
            check_integer(f"batch_size of initialization {self.name!r}", self.batch_size, 1)
        if self.method is not None:
            self.create_method()

    def create_method(self) -> Method:
        """The method with its options."""
        try:
            chosen = {} if self.preset is None else presets.get(self.preset)
            return create_method(self.method, chosen | dict(self.options))
        except (TypeError, ValueError) as error:
            raise type(error)(f"initialization {self.name!r}: {error}") from None


def known_initializations() -> list[str]:
    """All names that stand for an initialization by themselves."""
    return list(dict.fromkeys([DEFAULT, *scheme_names(), *METHODS]))


def as_initialization(value: Any) -> Initialization:
    """What the user gave as an initialization: a name, a dict of the arguments of :class:`Initialization`, or one of those.

    Raises:
        ValueError, TypeError: if it is none of that.

    >>> as_initialization({"method": "nio", "options": {"steps": 50}, "name": "short NIO"}).options
    {'steps': 50}
    """
    if isinstance(value, Initialization):
        return value
    if isinstance(value, str):
        if value == DEFAULT:
            return Initialization()
        if value in METHODS:
            return Initialization(method=value)
        if value in scheme_names():
            return Initialization(scheme=value)
        raise ValueError(_unknown("initialization", value, known_initializations()))
    if not isinstance(value, Mapping):
        raise TypeError(
            "an initialization is a name, a dict such as {'method': 'nio', 'options': {'steps': 50}}, or an "
            f"Initialization; got {value!r}"
        )
    known = [option.name for option in dataclasses.fields(Initialization)]
    for option in value:
        if option not in known:
            raise ValueError(f"an initialization has no {option!r}{did_you_mean(str(option), known)}")
    return Initialization(**value)


def _unknown(kind: str, value: Any, known: Sequence[str]) -> str:
    return unknown(kind, value, known) + meant(str(value), known)


_MODULE = "initopt.schemes"


def scheme_names() -> Sequence[str]:
    """The names of all schemes."""
    if importlib.util.find_spec(_MODULE) is None:
        return ()
    return tuple(importlib.import_module(_MODULE).NAMES)


def apply_scheme(model: nn.Module, name: str, seed: int, options: Mapping[str, Any]) -> None:
    """Draw the weights of a model anew, in place."""
    importlib.import_module(_MODULE).apply_(model, name, seed=seed, **options)
