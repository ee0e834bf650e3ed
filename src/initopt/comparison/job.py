"""A run that is to be done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from initopt.comparison.record import Purpose, RunRecord

__all__ = ["Group", "Job", "checked_name", "grouped"]


@dataclass(frozen=True)
class Job:
    """One run: a network, trained from an initialization with a seed and a learning rate.

    Attributes:
        network: its name.
        initialization: its name.
        seed: of everything that is drawn.
        purpose: ``"selection"`` or ``"final"``.
        lr: peak learning rate.
    """

    network: str
    initialization: str
    seed: int
    purpose: Purpose
    lr: float

    @classmethod
    def of(cls, record: RunRecord) -> Job:
        """The job that a record is of."""
        return cls(record.network, record.initialization, record.seed, record.purpose, record.lr)

    def place(self, folder: Path) -> Path:
        """Where its result goes.

        >>> Job("mlp", "nio", 3, "final", 0.05).place(Path("out")).as_posix()
        'out/runs/mlp/nio/lr=0.05/seed=3'
        """
        return folder.joinpath("runs", *self.steps)

    @property
    def steps(self) -> tuple[str, str, str, str]:
        """The names of the folders, one in another, that lead to its result."""
        return self.network, self.initialization, f"lr={self.lr!r}", f"seed={self.seed}"

    def __str__(self) -> str:
        return f"{self.network} from {self.initialization}, seed {self.seed}, lr={self.lr!r}"


Group = tuple[Job, ...]
"""Jobs that differ in their learning rate only, and so share a start."""


def grouped(jobs: Iterable[Job]) -> list[Group]:
    """Neighbouring jobs that share a start, together."""
    return [
        tuple(found) for _, found in groupby(jobs, lambda job: (job.network, job.initialization, job.seed, job.purpose))
    ]


def checked_name(kind: str, name: Any) -> str:
    """A name that can be that of a folder.

    Raises:
        ValueError: if it cannot; the message says why.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"the name of a {kind} must be a string of some length; got {name!r}")
    bad = sorted({character for character in name if character in '/\\:*?"<>|' or not character.isprintable()})
    if bad or name.startswith(".") or len(name.encode()) > 100:
        what = (
            f"it has {', '.join(map(repr, bad))}" if bad else "it begins with a dot" if name[0] == "." else "it is too long"
        )
        raise ValueError(f"{kind} {name!r}: a folder gets this name, and {what}; choose another one")
    return name
