"""A run's state in one file, so that a killed run can go on where it was."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from initopt.errors import MismatchError
from initopt.identity import differences
from initopt.randomness import RandomState
from initopt.records import Record, record_from
from initopt.storage import plain, unplain, write_file
from initopt.tensorfile import load_tensors, save_tensors

__all__ = ["Checkpoint", "loader_generators"]

_FORMAT = "initopt checkpoint 2"


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on.

    Attributes:
        identity: what makes it this run and no other, see :func:`initopt.identity.identify`.
        first_batch: fingerprint of the first batch.
        seed: base of the seeds for what the model draws.
        seconds: wall-clock time so far.
        history: the records of the steps that are done.
        start: the original weights by parameter name.
        state: the method's state.
        engine: the engine's state.
        randomness: the random state when the run began, from which the loader is played again.
        generators: the states of the loader's own generators at that time.
    """

    identity: dict[str, Any]
    first_batch: str
    seed: int
    seconds: float
    history: list[Record]
    start: dict[str, Tensor]
    state: dict[str, Tensor]
    engine: dict[str, Any]
    randomness: RandomState
    generators: dict[str, Tensor]

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        random_tensors, random_values = self.randomness.to_plain()
        groups = {"start": self.start, "state": self.state, "random": random_tensors, "generator": self.generators}
        tensors = {f"{group}/{name}": value for group, members in groups.items() for name, value in members.items()}
        record = {
            "format": _FORMAT,
            "identity": self.identity,
            "first_batch": self.first_batch,
            "seed": self.seed,
            "seconds": self.seconds,
            "history": self.history,
            "engine": self.engine,
            "random": random_values,
        }
        # Python's JSON writes a float with all its digits, so nothing of the history is lost.
        metadata = {"initopt": json.dumps(plain(record), allow_nan=False)}
        write_file(path, lambda temporary: save_tensors(tensors, temporary, metadata))

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read the file.

        Raises:
            ValueError: if it is no checkpoint of this format.
        """
        try:
            tensors, metadata = load_tensors(path)
            record = json.loads(metadata.get("initopt", "{}"))
        except (SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is truncated or no checkpoint ({error})") from None
        if record.get("format") != _FORMAT:
            raise ValueError(f"{path} is no {_FORMAT!r} file; choose another path for checkpoint=, or remove it")
        groups: dict[str, dict[str, Tensor]] = {"start": {}, "state": {}, "random": {}, "generator": {}}
        for name, value in tensors.items():
            group, _, rest = name.partition("/")
            groups[group][rest] = value
        return cls(
            identity=record["identity"],
            first_batch=record["first_batch"],
            seed=record["seed"],
            seconds=record["seconds"],
            history=[record_from(unplain(step)) for step in record["history"]],
            start=groups["start"],
            state=groups["state"],
            engine=unplain(record["engine"]),
            randomness=RandomState.from_plain(groups["random"], record["random"]),
            generators=groups["generator"],
        )

    def refuse_unless_same(self, identity: dict[str, Any]) -> None:
        """Raise a MismatchError that says what differs, unless a run of this identity can go on from here."""
        lines = differences(self.identity, identity)
        if lines:
            raise _another_run(lines)

    def refuse_unless_first(self, first_batch: str) -> None:
        """Raise a MismatchError unless this is the fingerprint of the first batch."""
        if first_batch != self.first_batch:
            raise _another_run(["the first batch is another one"])


def _another_run(lines: list[str]) -> MismatchError:
    more = f"\n  and {len(lines) - 10} more" if len(lines) > 10 else ""
    return MismatchError(
        "the checkpoint belongs to another run; remove it to start anew, or choose another path:\n  "
        + "\n  ".join(lines[:10])
        + more
    )


def loader_generators(batches: Any) -> dict[str, torch.Generator]:
    """The random generators that a DataLoader and its samplers own, by where they are."""
    owners = {
        "loader": batches,
        "sampler": getattr(batches, "sampler", None),
        "batch_sampler": getattr(getattr(batches, "batch_sampler", None), "sampler", None),
    }
    found = {name: getattr(owner, "generator", None) for name, owner in owners.items()}
    return {name: generator for name, generator in found.items() if isinstance(generator, torch.Generator)}
