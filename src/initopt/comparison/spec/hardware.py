"""Where runs take place, as Lightning Fabric has it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Hardware"]


@dataclass(frozen=True)
class Hardware:
    """What to run on.

    Attributes:
        accelerator: ``"cpu"``, ``"cuda"``, ``"mps"``, or ``"auto"`` for the best that there is.
        devices: how many, which ones, or ``"auto"`` for all. Several share each run; but of those that are listed, the
            processes of a comparison with ``workers`` take one each.
        strategy: how several devices share the work: ``"ddp"``, for example; Fabric's own choice is ``"auto"``.
        threads: processor threads of each process.
        loaders: how many processes make the batches of a run; 0 for the one that trains. Results do not depend on it.
    """

    accelerator: str = "auto"
    devices: int | str | list[int] = 1
    strategy: str = "auto"
    threads: int = 1
    loaders: int = 0

    @property
    def is_single(self) -> bool:
        """Whether a run stays in one process."""
        return self.strategy == "auto" and (
            self.devices == 1 or (isinstance(self.devices, list) and len(self.devices) == 1)
        )

    def for_workers(self, kind: str, precision: str) -> Hardware:
        """The same for processes that do a run each, on one device: with a list of devices, which they take in turn.

        Args:
            kind: of device, as torch calls it.
            precision: of the training.

        Raises:
            ValueError: if one of the devices is not there, as :meth:`fabric` does.
        """
        devices = self.devices
        if devices == 1 and kind == "cuda":
            devices = list(range(torch.cuda.device_count()))
        found = replace(self, accelerator=kind, devices=devices)
        if isinstance(devices, list):
            for number in range(len(devices)):
                found.of_worker(number).fabric(precision)
        return found

    def of_worker(self, number: int) -> Hardware:
        """The share of the process with a number from 0 on.

        >>> [Hardware("cuda", [0, 2, 3]).of_worker(number).devices for number in range(5)]
        [[0], [2], [3], [0], [2]]
        """
        if not isinstance(self.devices, list):
            return self
        return replace(self, devices=[self.devices[number % len(self.devices)]])

    def fabric(self, precision: str) -> Fabric:
        """The engine.

        Raises:
            ValueError: if there is no such hardware; the message says what Fabric says.
        """
        from lightning_fabric import Fabric

        arguments: dict[str, Any] = {
            "accelerator": self.accelerator,
            "devices": self.devices,
            "strategy": self.strategy,
            "precision": precision,
        }
        try:
            return Fabric(**arguments)
        except Exception as error:  # of several kinds, the library's own among them
            given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            raise ValueError(f"Lightning Fabric does not run with {given}: {error}") from error
