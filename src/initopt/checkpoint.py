"""A run's state in one file, so that a killed run can go on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from initopt.errors import MismatchError
from initopt.randomness import RandomState
from initopt.result import StepRecord
from initopt.storage import plain, write_file

__all__ = ["Checkpoint", "loader_generators"]

_FORMAT = "initopt checkpoint 1"


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on.

    Attributes:
        method: name of the method.
        options: its options as JSON has them, without ``steps``, which may grow.
        seed: base of the seeds for what the model draws.
        seconds: wall-clock time so far.
        history: the records of the steps that are done.
        start: the original weights by parameter name.
        state: the method's state.
        randomness: the random state when the run began, from which the loader is played again.
        generators: the states of the loader's own generators at that time.
    """

    method: str
    options: dict[str, Any]
    seed: int
    seconds: float
    history: list[StepRecord]
    start: dict[str, Tensor]
    state: dict[str, Tensor]
    randomness: RandomState
    generators: dict[str, Tensor]

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        random_tensors, random_values = self.randomness.to_plain()
        groups = {"start": self.start, "state": self.state, "random": random_tensors, "generator": self.generators}
        tensors = {
            f"{group}/{name}": value.detach().cpu().contiguous()
            for group, members in groups.items()
            for name, value in members.items()
        }
        record = {
            "format": _FORMAT,
            "method": self.method,
            "options": self.options,
            "seed": self.seed,
            "seconds": self.seconds,
            "history": self.history,
            "random": random_values,
        }
        # Python's JSON writes a float with all its digits, so nothing of the history is lost.
        metadata = {"initopt": json.dumps(plain(record), allow_nan=False)}
        write_file(path, lambda temporary: save_file(tensors, temporary, metadata))

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read the file.

        Raises:
            ValueError: if it is no checkpoint of this format.
        """
        try:
            with safe_open(path, framework="pt") as file:
                record = json.loads((file.metadata() or {}).get("initopt", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is truncated or no checkpoint ({error})") from None
        if record.get("format") != _FORMAT:
            raise ValueError(f"{path} is no {_FORMAT!r} file; choose another path for checkpoint=, or remove it")
        groups: dict[str, dict[str, Tensor]] = {"start": {}, "state": {}, "random": {}, "generator": {}}
        for name, value in tensors.items():
            group, _, rest = name.partition("/")
            groups[group][rest] = value
        return cls(
            method=record["method"],
            options=record["options"],
            seed=record["seed"],
            seconds=record["seconds"],
            history=[StepRecord(**step) for step in record["history"]],
            start=groups["start"],
            state=groups["state"],
            randomness=RandomState.from_plain(groups["random"], record["random"]),
            generators=groups["generator"],
        )

    def refuse_unless_same(self, method: str, options: Mapping[str, Any], shapes: Mapping[str, torch.Size]) -> None:
        """Raise a MismatchError that says what differs, unless a run with these options and tensors can go on from here."""
        lines = [f"method was {self.method!r} and is {method!r}"] if method != self.method else []
        lines += [
            f"{name} was {self.options.get(name)!r} and is {options.get(name)!r}"
            for name in sorted({*self.options, *options})
            if self.options.get(name) != options.get(name)
        ]
        stored = {name: value.shape for name, value in self.start.items()}
        lines += [
            f"parameter {name!r} was {_shape(stored.get(name))} and is {_shape(shapes.get(name))}"
            for name in {**stored, **shapes}
            if stored.get(name) != shapes.get(name)
        ]
        if lines:
            raise MismatchError(
                "the checkpoint belongs to another run; remove it to start anew, or choose another path:\n  "
                + "\n  ".join(lines[:10])
            )


def _shape(shape: torch.Size | None) -> str:
    return "absent" if shape is None else str(list(shape))


def loader_generators(batches: Any) -> dict[str, torch.Generator]:
    """The random generators that a DataLoader and its samplers own, by where they are."""
    owners = {
        "loader": batches,
        "sampler": getattr(batches, "sampler", None),
        "batch_sampler": getattr(getattr(batches, "batch_sampler", None), "sampler", None),
    }
    found = {name: getattr(owner, "generator", None) for name, owner in owners.items()}
    return {name: generator for name, generator in found.items() if isinstance(generator, torch.Generator)}
