"""What a check has found, as a list with text for a screen."""

from __future__ import annotations

from collections.abc import Iterable

from initopt.diagnosis.rules import Finding
from initopt.diagnosis.rules.base import counted_by_severity, notable

__all__ = ["Findings"]


class Findings(list[Finding]):
    """The findings of :func:`initopt.check`, the worst first: a list, whose ``str()`` ends in what to do next.

    Args:
        found: the findings.
        on_data: whether a batch was looked at, or the weights alone.

    Attributes:
        on_data: likewise.

    >>> print(Findings([], on_data=True))
    Nothing found in the weights and a pass over a batch. Train; initopt.choose tells whether another start trains better.
    """

    def __init__(self, found: Iterable[Finding], on_data: bool) -> None:
        super().__init__(found)
        self.on_data = on_data

    @property
    def advice(self) -> str:
        """What to do next, in a sentence."""
        if any(notable(self)):
            return "Begin with the first; initopt.diagnose says what it does on your data, and tries remedies on a copy."
        if not self.on_data:
            return (
                "Whether signals and gradients get through them takes data: give check a batch (--data on the command "
                "line), or ask initopt.diagnose."
            )
        return "Train; initopt.choose tells whether another start trains better."

    def __str__(self) -> str:
        words = ", ".join(counted_by_severity(self))
        if not any(notable(self)):
            where = "the weights and a pass over a batch" if self.on_data else "the weights"
            words = f"{words} in {where}, which may be meant so" if words else f"Nothing found in {where}"
        return "\n".join([*map(str, self), f"{words}. {self.advice}"])
