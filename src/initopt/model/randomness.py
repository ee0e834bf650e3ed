"""Random state: kept for the user, replayed for the model."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Iterator
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
    "drawing_on",
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
    torch_cuda: dict[int, Tensor]
    numpy: dict[str, Any]
    python: tuple[Any, ...]

    @classmethod
    def now(cls, cuda: Iterable[int] | None = None) -> RandomState:
        """The state at this moment.

        Args:
            cuda: numbers of the CUDA devices whose state is asked for; all by default.
        """
        with _EXCLUSIVE:
            wanted = (range(torch.cuda.device_count()) if cuda is None else cuda) if _cuda_in_use() else ()
            states = {number: torch.cuda.get_rng_state(number) for number in wanted}
            return cls(torch.get_rng_state(), states, np.random.get_state(legacy=False), random.getstate())

    def put_back(self) -> None:
        """Give the generators this state again."""
        with _EXCLUSIVE:
            torch.set_rng_state(self.torch_cpu)
            for number, state in self.torch_cuda.items():
                torch.cuda.set_rng_state(state, number)
            np.random.set_state(self.numpy)
            random.setstate(self.python)

    def to_plain(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state as named tensors and JSON values, for a checkpoint."""
        tensors = {"torch_cpu": self.torch_cpu} | {f"torch_cuda.{i}": s for i, s in self.torch_cuda.items()}
        inner = dict(self.numpy["state"], key=np.asarray(self.numpy["state"]["key"]).tolist())
        version, words, gauss = self.python
        return tensors, {"numpy": dict(self.numpy, state=inner), "python": [version, list(words), gauss]}

    @classmethod
    def from_plain(cls, tensors: dict[str, Tensor], values: dict[str, Any]) -> RandomState:
        """The inverse of :meth:`to_plain`."""
        cuda = {int(name.partition(".")[2]): state for name, state in tensors.items() if name.startswith("torch_cuda.")}
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
        """Give the generator the state that it had."""
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
        """Make the generator's draws depend on the seed and the key alone."""
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


class _DrawnOn(threading.local):
    devices: frozenset[int] | None = None


_DRAWN_ON = _DrawnOn()


@contextmanager
def drawing_on(tensors: Iterable[Tensor]) -> Iterator[None]:
    """A block in which a model is run that has these tensors: its draws are on their devices, or on the current one.

    :func:`seeded` leaves the generators of all others alone, on which another thread may draw in the meantime.
    """
    devices = {tensor.device.index or 0 for tensor in tensors if tensor.device.type == "cuda"}
    if _cuda_in_use():
        devices.add(torch.cuda.current_device())
    before, _DRAWN_ON.devices = _DRAWN_ON.devices, frozenset(devices)
    try:
        yield
    finally:
        _DRAWN_ON.devices = before


class Stream(IntEnum):
    """A kind of random draw in the runs of a comparison, each with a stream of its own.

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
    """A block whose random draws depend on the seed and the key alone, and which those after it do not notice.

    A forward pass that is run again (for its second derivative, or before and after) has to draw the same noise. One thread
    at a time is in such a block, since the generators are the process's. Of several CUDA devices, those count that
    :func:`drawing_on` says.
    """
    with _EXCLUSIVE:
        before = RandomState.now(_DRAWN_ON.devices)
        mixed = mixed_seed(seed, *key)
        try:
            # Not torch.manual_seed: it would also leave a seed for accelerators that are not in use yet.
            torch.default_generator.manual_seed(mixed)
            for number in before.torch_cuda:
                torch.cuda.default_generators[number].manual_seed(mixed)
            random.seed(mixed)
            np.random.seed(mixed)
            yield
        finally:
            before.put_back()
