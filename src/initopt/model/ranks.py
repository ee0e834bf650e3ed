"""Processes that work on one model together, each with its own share of every batch.

A process is left alone by default. In a group, each rank has its own part of every sub-batch, and what is one number, one
matrix or one gradient of the whole is put together here. Every exchange begins with a word of each rank whether it is well.
So a rank that fails says so in the exchange that the others come to next, and none is left waiting for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from initopt._support.checks import check_choice
from initopt._support.errors import RankError
from initopt._support.words import first_few
from initopt.model.checksums import Checksum
from initopt.model.rank_errors import in_words, retold

__all__ = ["ALONE", "Alone", "ProcessGroup", "Ranks", "Share", "check_share"]

_T = TypeVar("_T")

Share = Literal["union", "average"]
"""What ranks have in common: sub-batches, or only the mean of norms and derivatives."""

ProcessGroup = Any
"""``"auto"``, ``None``, or a ``torch.distributed.ProcessGroup``, a name that not every build of PyTorch has."""


def check_share(share: str) -> None:
    """Refuse an unknown word with a ValueError."""
    check_choice("share", share, get_args(Share))


class Ranks(ABC):
    """The processes that work on a model together.

    Attributes:
        number: of this process, from 0.
        size: how many there are.
        share: what they have in common.
        group: of ``torch.distributed``; ``None`` for a process alone.
    """

    number: int = 0
    size: int = 1
    share: Share = "union"
    group: ProcessGroup = None

    @property
    def leads(self) -> bool:
        """Whether this is the process that shows progress and writes files."""
        return self.number == 0

    @property
    def union(self) -> bool:
        """Whether sub-batches are those of all processes together."""
        return self.size > 1 and self.share == "union"

    @abstractmethod
    def agree(self, place: str, error: BaseException | None = None) -> None:
        """Hear from all whether they are well.

        Args:
            place: where in the work this is; it has to be the same on all.
            error: what is wrong on this rank.

        Raises:
            RankError: on ranks that are well, if others are not. Ranks with an error of their own are to raise that one.
            KeyboardInterrupt: likewise, if one was interrupted.
        """

    @abstractmethod
    def gather(self, value: _T, place: str) -> list[_T]:
        """What each rank has, in their order."""

    @abstractmethod
    def broadcast(self, value: _T, place: str) -> _T:
        """What rank 0 has."""

    @abstractmethod
    def copy_first(self, tensors: Sequence[Tensor], place: str) -> None:
        """Give tensors the values that those of rank 0 have, in place."""

    @abstractmethod
    def sum(self, values: Tensor, place: str) -> Tensor:
        """The sum of small tensors, float64 on the CPU, bit for bit the same on all."""

    @abstractmethod
    def sum_gradients(self, gradients: Sequence[Tensor | None], like: Sequence[Tensor], place: str) -> list[Tensor | None]:
        """The sums of gradients, tensor by tensor; ``None`` only where all ranks have none.

        Args:
            gradients: of this rank, which may be written over.
            like: the parameters that they are of.
            place: as for :meth:`agree`.
        """

    def mean(self, value: float, place: str) -> float:
        """The mean of a number over the ranks."""
        return float(self.sum(torch.tensor([value / self.size], dtype=torch.float64, device="cpu"), place))

    def attempt(self, function: Callable[[], _T], place: str) -> tuple[_T | None, list[BaseException | None]]:
        """Try something that may fail here and not elsewhere, and hear how it went everywhere.

        Returns:
            What the function returned, ``None`` if it failed; and the error of each rank, ``None`` where there was none.
            Those of other ranks are of their kind only if that is initopt's or one for memory.
        """
        try:
            found, error = function(), None
        except Exception as caught:
            found, error = None, caught
        words = self.gather(None if error is None else in_words(error), place)
        errors_: list[BaseException | None] = [
            None if word is None else error if number == self.number else retold(number, word)
            for number, word in enumerate(words)
        ]
        return found, errors_

    def attempt_together(self, function: Callable[[], _T], place: str) -> tuple[_T | None, str]:
        """Try something that has exchanges of its own, and fails on all ranks where it fails on one.

        Returns:
            What the function returned, ``None`` if it failed; and what failed, in the same words on all: those of the first
            rank with an error of its own.
        """
        self.agree(place)  # whoever is not even here has said so before the function begins
        found, error = None, None
        try:
            found = function()
        except Exception as caught:
            error = caught
        if error is not None and not self._in_step:
            raise error
        if not self._is_told(error):
            try:
                self.agree(f"{place}: done", error)
            except RankError as heard_of:
                if not self._in_step:
                    raise
                error = heard_of
        story = None if error is None else (isinstance(error, RankError), f"{type(error).__name__}: {error}")
        error = None  # whose frames hold what it was to be done with
        stories = [each for each in self.gather(story, f"{place}: how it went") if each is not None]
        return (None, min(stories, key=lambda each: each[0])[1]) if stories else (found, "")

    @property
    def _in_step(self) -> bool:
        """Whether the ranks still do the same, so that one may wait for another."""
        return True

    def _is_told(self, error: BaseException | None) -> bool:
        """Whether all ranks know of an error."""
        return False

    def same(self, found: Mapping[str, Any], what: str, advice: str) -> None:
        """Refuse to go on where ranks differ.

        Args:
            found: what has to be the same on all, by name.
            what: what these are, for the message.
            advice: what to do, for the message, too.

        Raises:
            RankError: naming a rank, and the first of what differs there.
        """
        for number, other in enumerate(self.gather(dict(found), f"comparing {what}")):
            names = [n for n in {**found, **other} if found.get(n) != other.get(n)]
            # All ranks find something: those that are as rank 0 is, at another rank, and the others at rank 0.
            if names:
                name = names[0]
                silent = isinstance(found.get(name), Checksum)
                shown = "" if silent else f" ({_short(found, name)} here, {_short(other, name)} there)"
                raise RankError(
                    f"rank {self.number} and rank {number} differ in {what}: {first_few(list(map(repr, names)))}{shown}. "
                    f"{advice[:1].upper()}{advice[1:]}"
                )

    @contextmanager
    def together(self) -> Iterator[None]:
        """The block of all the work in common: an exception in it, on any rank, ends it on all of them."""
        try:
            yield
        except BaseException as error:
            self.tell(error)
            raise

    def tell(self, error: BaseException) -> None:  # noqa: B027 - one that is alone has nobody to tell
        """Have the other ranks hear of an error, in what they come to next, if they have not."""

    def end(self) -> None:  # noqa: B027 - as above
        """Have the work end on all ranks, or on none: the last that they do together."""


def _short(found: Mapping[str, Any], name: str) -> str:
    return repr(found[name])[:80] if name in found else "not there"


class Alone(Ranks):
    """This process, and no other."""

    def agree(self, place: str, error: BaseException | None = None) -> None:
        return

    def gather(self, value: _T, place: str) -> list[_T]:
        return [value]

    def broadcast(self, value: _T, place: str) -> _T:
        return value

    def copy_first(self, tensors: Sequence[Tensor], place: str) -> None:
        return

    def sum(self, values: Tensor, place: str) -> Tensor:
        return values

    def sum_gradients(self, gradients: Sequence[Tensor | None], like: Sequence[Tensor], place: str) -> list[Tensor | None]:
        return list(gradients)


ALONE = Alone()
"""This process, for what has no others unless it is given them."""
