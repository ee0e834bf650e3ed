"""Random state: kept for the user, replayed for the model."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum, auto
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "GENERATORS",
    "Generator",
    "OwnGenerator",
    "RandomState",
    "Stream",
    "derive_seed",
    "mixed_seed",
    "seed_sequence",
    "seeded",
]

Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
"""Random generators that a user may have of his own."""

_EXCLUSIVE = threading.RLock()
"""The global generators are those of the process: held while they have a state that is not the user's."""


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
        with _EXCLUSIVE:
            cuda = torch.cuda.get_rng_state_all() if _cuda_in_use() else []
            return cls(torch.get_rng_state(), tuple(cuda), np.random.get_state(legacy=False), random.getstate())

    def put_back(self) -> None:
        """Make this the state of the generators again."""
        with _EXCLUSIVE:
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


class OwnGenerator:
    """A random generator of the user's own, with the state that it has now."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._state = self._get()

    def _get(self) -> Any:
        generator = self._generator
        if isinstance(generator, torch.Generator):
            return generator.get_state()
        if isinstance(generator, np.random.Generator):
            return generator.bit_generator.state
        return generator.get_state(legacy=False) if isinstance(generator, np.random.RandomState) else generator.getstate()

    def put_back(self) -> None:
        """Give it the state that it had."""
        generator, state = self._generator, self._state
        if isinstance(generator, torch.Generator):
            generator.set_state(state)
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = state
        elif isinstance(generator, np.random.RandomState):
            generator.set_state(state)
        else:
            generator.setstate(state)

    def seed(self, seed: int, *key: int) -> None:
        """Make its draws depend on the seed and the key alone."""
        mixed = mixed_seed(seed, *key)
        generator = self._generator
        if isinstance(generator, torch.Generator):
            generator.manual_seed(mixed)
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = type(generator.bit_generator)(mixed).state
        else:
            generator.seed(mixed)


def derive_seed(seed: int | None) -> int:
    """The seed itself, or one that follows from torch's present state without advancing it."""
    if seed is not None:
        return seed
    generator = torch.Generator("cpu")
    with _EXCLUSIVE:
        generator.set_state(torch.get_rng_state())
    return int(torch.randint(2**31, (), generator=generator, device="cpu"))


class Stream(IntEnum):
    """What is drawn at random in the runs of a comparison, each from a stream of its own.

    A stream is the first number of a key, see :func:`seed_sequence`. Keys without a stream, which are those of the batches
    of a method, begin with the number of a batch, and no number of a batch is as large as these.
    """

    WEIGHTS = 2**31
    """The weights of the model's own start."""
    SCHEME = auto()
    """The weights that a scheme draws."""
    FUNCTION = auto()
    """What an initialization of the user's own draws."""
    START_ORDER = auto()
    """The order of the training set for initializations and the measurements of a start."""
    START_DATA = auto()
    """What the data set draws for these batches."""
    ORDER = auto()
    """The order of the training set in an epoch."""
    DATA = auto()
    """What the data set draws in an epoch."""
    MODEL = auto()
    """What the model draws in training (dropout)."""
    MIXTURES = auto()
    """Shares and partners of mixup."""
    LOOKS = auto()
    """What a data set draws where a model is looked at."""


def seed_sequence(seed: int, *key: int) -> np.random.SeedSequence:
    """The state of a generator for one purpose; other keys, longer and shorter ones among them, have other states.

    >>> states = [seed_sequence(5, *key).generate_state(1)[0] for key in ((), (0,), (0, 0), (1,), (Stream.WEIGHTS,))]
    >>> len(set(states))
    5
    """
    return np.random.SeedSequence(seed, spawn_key=key)


def mixed_seed(seed: int, *key: int) -> int:
    """A seed below 2**32 that follows from another one and a key, see :func:`seed_sequence`."""
    return int(seed_sequence(seed, *key).generate_state(1)[0])


@contextmanager
def seeded(seed: int, *key: int) -> Iterator[None]:
    """Random draws inside the block depend on the seed and the key alone, and those after it do not notice.

    A forward pass that is run again (for its second derivative, or before and after) has to draw the same noise. One thread
    at a time is in such a block, since the generators are the process's.
    """
    with _EXCLUSIVE:
        before = RandomState.now()
        mixed = mixed_seed(seed, *key)
        try:
            # Not torch.manual_seed: it would also leave a seed for accelerators that are not in use yet.
            torch.default_generator.manual_seed(mixed)
            if before.torch_cuda:
                torch.cuda.manual_seed_all(mixed)
            random.seed(mixed)
            np.random.seed(mixed)
            yield
        finally:
            before.put_back()
