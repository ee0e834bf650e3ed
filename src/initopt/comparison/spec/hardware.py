"""Where runs take place: on one device, or on what Lightning Fabric has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Hardware", "OneDevice"]


@dataclass(frozen=True)
class Hardware:
    """The devices and processes to run on.

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
        """The hardware of processes that do a run each on one device: a list of devices, which they take in turn.

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
        """The hardware of the process with a number, from 0 on.

        >>> [Hardware("cuda", [0, 2, 3]).of_worker(number).devices for number in range(5)]
        [[0], [2], [3], [0], [2]]
        """
        if not isinstance(self.devices, list):
            return self
        return replace(self, devices=[self.devices[number % len(self.devices)]])

    def fabric(self, precision: str) -> Fabric:
        """The Lightning Fabric that does the runs, or a :class:`OneDevice` where that is enough.

        Raises:
            ValueError: if there is no such hardware; the message says what Fabric says.
            ImportError: if Fabric is needed and not installed.
        """
        device = self._device()
        if device is not None and not self.needs_fabric(precision):
            return cast("Fabric", OneDevice(device))
        arguments: dict[str, Any] = {
            "accelerator": self.accelerator,
            "devices": self.devices,
            "strategy": self.strategy,
            "precision": precision,
        }
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        try:
            from lightning_fabric import Fabric
        except ImportError:
            raise ImportError(
                f"{given} needs Lightning Fabric: pip install 'initopt[compare]'; without it, runs are done on one device "
                "that is there, cpu, cuda or mps, in the precision 32-true"
            ) from None
        try:
            return Fabric(**arguments)
        except Exception as error:  # of several kinds, the library's own among them
            raise ValueError(f"Lightning Fabric does not run with {given}: {error}") from error

    def needs_fabric(self, precision: str) -> bool:
        """Whether Lightning Fabric does the runs, and not :class:`OneDevice`."""
        return precision != "32-true" or not self.is_single or self._device() is None

    def _device(self) -> torch.device | None:
        """The single device; ``None`` where it is for Fabric to say which, or that there is none."""
        counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
        kind = next(kind for kind, count in counts.items() if count) if self.accelerator == "auto" else self.accelerator
        if not isinstance(self.devices, list):
            index: Any = 0
        else:
            index = None if kind == "cpu" else self.devices[0]
        if not isinstance(index, int) or not 0 <= index < counts.get(kind, 0):
            return None
        return torch.device("cuda", index) if kind == "cuda" else torch.device(kind)


class OneDevice:
    """One device in single precision, with that part of the interface of Lightning Fabric that a run uses.

    Args:
        device: where models are trained.
    """

    world_size, global_rank, is_global_zero = 1, 0, True

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def launch(self, function: Callable[[OneDevice], Any] = lambda fabric: None) -> Any:
        """Call a function in this process."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        return function(self)

    def to_device(self, model: nn.Module) -> nn.Module:
        """Bring a model to the device."""
        return model.to(self.device)

    def setup(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Return model and optimizer, of which nothing has to be wrapped."""
        return self.to_device(model), optimizer

    def backward(self, loss: Tensor) -> None:
        """Compute gradients."""
        loss.backward()  # type: ignore[no-untyped-call]

    def clip_gradients(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, max_norm: float, error_if_nonfinite: bool
    ) -> None:
        """Bound the norm of all gradients together."""
        nn.utils.clip_grad_norm_(model.parameters(), max_norm, error_if_nonfinite=error_if_nonfinite)
