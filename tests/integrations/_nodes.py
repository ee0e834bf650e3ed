"""A network that notes the node of a Ray cluster on which it is made, and waits there if it is told to."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

from torch import nn

from tests.comparing import small


def here() -> str:
    """The node that this process is on."""
    import ray

    return ray.get_runtime_context().get_node_id()


def noted(folder: Path) -> nn.Module:
    """The small network, once ``folder`` has notes of as many nodes as ``folder.name`` begins with.

    On a node of which ``folder`` has a file ``doomed``, its third step of training never ends. Outside of a task, it is the
    small network at once.
    """
    import ray

    if ray.get_runtime_context().get_task_id() is None:
        return small()
    node = here()
    (folder / f"{node} {uuid.uuid4().hex}").touch()
    deadline = time.monotonic() + 300
    while len(nodes(folder)) < int(folder.name[0]) and time.monotonic() < deadline:
        time.sleep(0.05)
    net = small()
    doomed = folder / "doomed"
    if doomed.exists() and doomed.read_text() == node:
        net.register_forward_pre_hook(_Waiting(folder / "in training"))
    return net


class _Waiting:
    def __init__(self, note: Path) -> None:
        self.note, self.steps = note, 0

    def __call__(self, module: nn.Module, inputs: object) -> None:
        self.steps += module.training
        if self.steps == 3:
            self.note.touch()
            time.sleep(3600)


def nodes(folder: Path) -> set[str]:
    """Those on which networks were made."""
    return {file.name.split()[0] for file in folder.iterdir() if " " in file.name and file.name != "in training"}
