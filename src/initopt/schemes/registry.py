"""Schemes by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from initopt._support.checks import check_choice
from initopt._support.words import did_you_mean
from initopt.schemes.base import Scheme
from initopt.schemes.convolutions import Dirac, Whitened
from initopt.schemes.draws import (
    Default,
    KaimingNormal,
    KaimingUniform,
    Normal,
    Orthogonal,
    TruncNormal,
    XavierNormal,
    XavierUniform,
)
from initopt.schemes.language_models import GPT2, LlamaDepth, SmallInit
from initopt.schemes.mimetic import Mimetic
from initopt.schemes.residual import ScaledBranches, ZeroBranches

__all__ = ["NAMES", "SCHEMES", "check_scheme", "create_scheme"]

SCHEMES: dict[str, type[Scheme]] = {
    scheme.name: scheme
    for scheme in (
        *(Default, KaimingNormal, KaimingUniform, XavierNormal, XavierUniform, Orthogonal, Normal, TruncNormal),
        *(Mimetic, ZeroBranches, ScaledBranches, GPT2, LlamaDepth, SmallInit, Dirac, Whitened),
    )
}
"""Every scheme by name."""

NAMES: tuple[str, ...] = tuple(SCHEMES)
"""The names of the schemes."""


def create_scheme(scheme: Any, options: Mapping[str, Any] | None = None) -> Scheme:
    """The scheme of a name with its options, or the scheme itself.

    Raises:
        ValueError: for an unknown name, with the known ones, or an option that cannot work.
        TypeError: for an option that the scheme does not have, or options beside a scheme that has its own.

    >>> create_scheme("kaiming_normal", {"mode": "fan_out"}).options()
    {'mode': 'fan_out'}
    """
    options = options or {}
    if isinstance(scheme, Scheme):
        if options:
            raise TypeError(f"{', '.join(options)}: give the options to {type(scheme).__name__}(...) itself")
        return scheme
    if isinstance(scheme, type) and issubclass(scheme, Scheme):
        raise TypeError(f"scheme is the class {scheme.__name__}; pass an instance, {scheme.__name__}(), or its name")
    check_choice("scheme", scheme, NAMES)
    found = SCHEMES[scheme]
    known = [option.name for option in fields(found)]
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known) if known else "; it has none"
            raise TypeError(f"scheme {scheme!r} has no option {option!r}{hint}")
    return found(**options)


def check_scheme(scheme: Any) -> None:
    """Refuse what is neither a scheme nor the name of one; the message lists the known names."""
    create_scheme(scheme)
