"""What a run goes on from: the checkpoint that is there, and the weights in it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from initopt._support.errors import warn
from initopt._support.workshop import clear_leftovers
from initopt.methods import Method
from initopt.methods.records import steps_taken
from initopt.model.preserve import Originals
from initopt.model.sharded import fully_sharded
from initopt.runs.checkpoint import Checkpoint
from initopt.runs.task import Task

__all__ = ["previous_run", "stored_weights"]


def previous_run(task: Task) -> Checkpoint | None:
    """The checkpoint, if there is one of a run that has made a step: the one that rank 0 finds, on all ranks.

    Raises:
        OSError, ValueError: if what is there cannot be read, or is no checkpoint.
    """
    path = task.settings.checkpoint
    if path is None:
        return None
    return task.ranks.broadcast(_read(path, task.method) if task.ranks.leads else None, "the checkpoint that is there")


def _read(path: Path, method: Method) -> Checkpoint | None:
    clear_leftovers(Path(os.path.realpath(path)))
    if not path.exists():
        return None
    previous = Checkpoint.read(path, method)
    return previous if previous.history else None


def stored_weights(task: Task, originals: Originals, previous: Checkpoint, path: Path) -> Originals:
    """The original weights of the run that is resumed, in the place of the model's own.

    Raises:
        ValueError: if the checkpoint is beyond the end of this run, or another start is not to be replaced.

    Warns:
        InitoptWarning: if the model has other weights.
    """
    done, steps = steps_taken(previous.history), task.method.steps
    names = {p.value: p.name for p in task.parameters.trainable}
    stored = {p: previous.start[names[p]].to(value.device) for p, value in originals.items()}
    same = all(torch.equal(stored[parameter], value) for parameter, value in originals.items())
    if done > steps:
        raise ValueError(f"the checkpoint {path} is at step {done}, beyond steps={steps}; remove it")
    if not same and done == steps:
        raise ValueError(
            f"the checkpoint {path} holds a finished run that began from other weights than the model has; remove it, "
            "or choose another path for each run"
        )
    if not same and fully_sharded(task.model):
        raise ValueError(
            f"the checkpoint {path} began from other weights than the model has, whose shards it does not replace; give "
            "the model the weights that it had then (the same seed, or the same file), or remove the checkpoint"
        )
    if not same:
        warn(f"going on from the checkpoint {path}, which began from other weights than the model has and replaces them")
    return stored
