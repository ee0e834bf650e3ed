"""Where runs take place, as Lightning Fabric has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Hardware"]


@dataclass(frozen=True)
class Hardware:
    """What to run on.

    Attributes:
        accelerator: ``"cpu"``, ``"cuda"``, ``"mps"``, or ``"auto"`` for the best that there is.
        devices: how many, which ones, or ``"auto"`` for all.
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
