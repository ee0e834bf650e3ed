"""Random state: kept for the user, replayed for the model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["RandomState", "derive_seed", "seeded"]


def _cuda_in_use() -> bool:
    """Whether CUDA was used already; asking for its state would start it."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class RandomState:
    """The state of every generator that a model or a loader commonly draws from: torch (all devices), NumPy, Python."""

    torch_cpu: Tensor
    torch_cuda: tuple[Tensor, ...]
    numpy: dict[str, Any]
    python: tuple[Any, ...]

    @classmethod
    def now(cls) -> RandomState:
        """The state at this moment."""
        cuda = torch.cuda.get_rng_state_all() if _cuda_in_use() else []
        return cls(torch.get_rng_state(), tuple(cuda), np.random.get_state(legacy=False), random.getstate())

    def put_back(self) -> None:
        """Make this the state of the generators again."""
        torch.set_rng_state(self.torch_cpu)
        if self.torch_cuda:
            torch.cuda.set_rng_state_all(list(self.torch_cuda))
        np.random.set_state(self.numpy)
        random.setstate(self.python)

    def to_plain(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As named tensors and JSON values, for a checkpoint."""
        tensors = {"torch_cpu": self.torch_cpu} | {f"torch_cuda.{i}": s for i, s in enumerate(self.torch_cuda)}
        inner = dict(self.numpy["state"], key=np.asarray(self.numpy["state"]["key"]).tolist())
        version, words, gauss = self.python
        return tensors, {"numpy": dict(self.numpy, state=inner), "python": [version, list(words), gauss]}

    @classmethod
    def from_plain(cls, tensors: dict[str, Tensor], values: dict[str, Any]) -> RandomState:
        """The inverse of :meth:`to_plain`."""
        cuda = tuple(tensors[f"torch_cuda.{i}"] for i in range(len(tensors) - 1))
        inner = dict(values["numpy"]["state"], key=np.array(values["numpy"]["state"]["key"], dtype=np.uint32))
        version, words, gauss = values["python"]
        return cls(tensors["torch_cpu"], cuda, dict(values["numpy"], state=inner), (version, tuple(words), gauss))


def derive_seed(seed: int | None) -> int:
    """The seed itself, or one that follows from torch's present state without advancing it."""
    if seed is not None:
        return seed
    generator = torch.Generator("cpu")
    generator.set_state(torch.get_rng_state())
    return int(torch.randint(2**31, (), generator=generator, device="cpu"))


@contextmanager
def seeded(*parts: int) -> Iterator[None]:
    """Random draws inside the block depend on ``parts`` alone, and those after it do not notice.

    A forward pass that is run again (for its second derivative, or before and after) has to draw the same noise.
    """
    devices = list(range(torch.cuda.device_count())) if _cuda_in_use() else []
    state, numpy_state = random.getstate(), np.random.get_state()
    mixed = int(np.random.SeedSequence(parts).generate_state(1)[0])
    try:
        with torch.random.fork_rng(devices=devices):
            # Not torch.manual_seed: it would also leave a seed for accelerators that are not in use yet.
            torch.default_generator.manual_seed(mixed)
            if devices:
                torch.cuda.manual_seed_all(mixed)
            random.seed(mixed)
            np.random.seed(mixed)
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
