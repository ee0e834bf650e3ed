"""Processes that work on one model together, each with its own share of every batch.

A process is left alone by default. In a group, each rank has its own part of every sub-batch, and what is one number, one
matrix or one gradient of the whole is put together here. Every exchange begins with a word of each rank whether it is well.
So a rank that fails says so in the exchange that the others come to next, and none is left waiting for it.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from initopt._support import errors
from initopt._support.checks import check_choice
from initopt._support.errors import RankError, warn
from initopt._support.interrupts import signals_held
from initopt._support.words import first_few
from initopt.model.sharded import shard_group
from initopt.model.wrappers import bare, replicated

__all__ = ["Alone", "Group", "ProcessGroup", "Ranks", "Share", "check_share", "ranks_of"]

_T = TypeVar("_T")

Share = Literal["union", "average"]
"""What ranks have in common: sub-batches, or only the mean of norms and derivatives."""

ProcessGroup = Any
"""``"auto"``, ``None``, or a ``torch.distributed.ProcessGroup``, a name that not every build of PyTorch has."""

_BUCKET = 1 << 20
"""Entries of small gradients that are reduced as one tensor."""


def check_share(share: str) -> None:
    """Refuse an unknown word with a ValueError."""
    check_choice("share", share, get_args(Share))


def ranks_of(model: nn.Module, process_group: ProcessGroup = "auto", share: Share = "union") -> Ranks:
    """The processes that are to work on a model together.

    Args:
        model: as the user has it, with what was put around it.
        process_group: the group; ``None`` for this process alone; ``"auto"`` for the group of a
            ``DistributedDataParallel`` or of ``fully_shard``, and this process alone where there is none.
        share: what they have in common.

    Raises:
        TypeError, ValueError: for what is no group, or one that this process is not in.

    Warns:
        InitoptWarning: by ``"auto"``, of a model without a wrapper in a process that belongs to a group.
    """
    check_share(share)
    if isinstance(process_group, str) and process_group != "auto":
        raise ValueError(f'process_group must be "auto", None or a torch.distributed.ProcessGroup; got {process_group!r}')
    if process_group is None or not dist.is_available() or not dist.is_initialized():
        if process_group is not None and process_group != "auto":
            raise ValueError("process_group is given, but torch.distributed is not initialized (init_process_group)")
        return Alone()
    group = process_group
    if isinstance(process_group, str):
        wrapper = replicated(model)
        group = shard_group(bare(model)) if wrapper is None else wrapper.process_group
        if group is None:
            _tell_alone()
            return Alone()
    elif not hasattr(process_group, "rank"):
        kind = type(process_group).__name__
        raise TypeError(f'process_group must be "auto", None or a torch.distributed.ProcessGroup; got {kind}')
    if dist.get_rank(group) < 0:
        raise ValueError("this process is not in the process_group; call initopt on those that are, or with None")
    if dist.get_world_size(group) == 1:
        return Alone()
    device = next((p.device for p in bare(model).parameters()), torch.device("cpu"))
    return Group(group, device, share)


def _tell_alone() -> None:
    if dist.get_world_size() > 1:
        warn(
            f"initopt: this is one of {dist.get_world_size()} processes, and the model is in no DistributedDataParallel, "
            "so that it is worked on by this process alone, with the batches that it is given. Should each process do so, "
            "they come to different weights. Pass the wrapped model, or process_group=torch.distributed.group.WORLD; or "
            "process_group=None, and wrap the model afterwards, which takes the weights of rank 0"
        )


class Ranks(ABC):
    """The processes that work on a model together.

    Attributes:
        number: of this process, from 0.
        size: how many there are.
        share: what they have in common.
    """

    number: int = 0
    size: int = 1
    share: Share = "union"

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
        words = self.gather(None if error is None else _in_words(error), place)
        errors_: list[BaseException | None] = [
            None if word is None else error if number == self.number else _retold(number, word)
            for number, word in enumerate(words)
        ]
        return found, errors_

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
                silent = isinstance(found.get(name), _Sum)
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


class _Sum(tuple[int, ...]):
    """A checksum, which shows nothing to those who read it."""


def checksums(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Numbers that differ, but for a chance in 2 ** 64, where shapes, dtypes or bits of tensors do."""
    return {
        name: _Sum((*tensor.shape, zlib.crc32(str(tensor.dtype).encode()), *_sums(tensor)))
        for name, tensor in tensors.items()
    }


def _sums(tensor: Tensor) -> tuple[int, ...]:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.numel() == 0:
        return ()
    bits = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    total = torch.zeros(2, dtype=torch.int64, device=tensor.device)
    for start in range(0, len(bits), 8 * _BUCKET):
        part = bits[start : start + 8 * _BUCKET].to(torch.int64)
        place = torch.arange(start, start + len(part), device=tensor.device)
        total += torch.stack([part.sum(), (part * ((place * 2654435761) % 2147483647)).sum()])
    return tuple(total.tolist())


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

    def sum(self, values: Tensor, place: str) -> Tensor:
        return values

    def sum_gradients(self, gradients: Sequence[Tensor | None], like: Sequence[Tensor], place: str) -> list[Tensor | None]:
        return list(gradients)


class Group(Ranks):
    """The processes of a group of ``torch.distributed``.

    Args:
        group: the group.
        device: of what is sent, that of the model.
        share: what the processes have in common.

    Attributes:
        sent: bytes that this rank has put into sums of gradients, and into those of all else.
        exchanges: how often the ranks have waited for each other.
    """

    def __init__(self, group: ProcessGroup, device: torch.device, share: Share) -> None:
        self._group, self._device, self.share = group, device, share
        self.number, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.sent = {"gradients": 0, "others": 0}
        self.exchanges = 0
        self._broken = False
        self._ended = False
        self._told: BaseException | None = None

    def agree(self, place: str, error: BaseException | None = None) -> None:
        with signals_held():
            self._agree(place, error)

    def _agree(self, place: str, error: BaseException | None = None) -> None:
        if self._broken:
            raise RankError(f"the exchange with the other processes has failed before, and cannot go on (in {place})")
        word = torch.tensor([error is not None, zlib.crc32(place.encode())], dtype=torch.int64, device=self._device)
        words = [torch.empty_like(word) for _ in range(self.size)]
        self._run(lambda: dist.all_gather(words, word, group=self._group), place)
        self.sent["others"] += word.nbytes
        table = torch.stack(words).cpu()
        if not table[:, 0].any() and bool((table[:, 1] == table[0, 1]).all()):
            return
        stories = self._gather_objects((place, None if error is None else _in_words(error)))
        self._told = error
        if error is not None:
            return
        for number, (_, story) in enumerate(stories):
            if story is not None:
                self._told = _heard(number, story)
                raise self._told
        number, (other, _) = next((n, s) for n, s in enumerate(stories) if s[0] != place)
        self._broken = True
        self._told = RankError(
            f"rank {self.number} is at {place!r}, and rank {number} at {other!r}: the ranks do not do the same. Is the "
            "call made on every rank, with the same options, and does the model run the same layers for all data?"
        )
        raise self._told

    def _run(self, exchange: Callable[[], Any], place: str) -> None:
        self.exchanges += 1
        try:
            exchange()
        except Exception as error:
            self._broken = True
            error.add_note(f"(in an exchange with the other processes, in {place}: has one of them ended?)")
            raise

    def _gather_objects(self, value: _T) -> list[_T]:
        found: list[Any] = [None] * self.size
        self._run(lambda: dist.all_gather_object(found, value, group=self._group), "gathering")
        return found

    def gather(self, value: _T, place: str) -> list[_T]:
        with signals_held():
            self._agree(place)
            return self._gather_objects(value)

    def broadcast(self, value: _T, place: str) -> _T:
        with signals_held():
            self._agree(place)
            box: list[Any] = [value if self.leads else None]
            source = dist.get_global_rank(self._group, 0)
            self._run(lambda: dist.broadcast_object_list(box, src=source, group=self._group), place)
        found: _T = box[0]
        return found

    def sum(self, values: Tensor, place: str) -> Tensor:
        mine = values.to(self._device)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        with signals_held():
            self._agree(place)
            self._run(lambda: dist.all_gather(parts, mine, group=self._group), place)
        self.sent["others"] += mine.nbytes
        return torch.stack(parts).cpu().sum(0)  # in one order on all ranks, as no reduction promises

    def sum_gradients(self, gradients: Sequence[Tensor | None], like: Sequence[Tensor], place: str) -> list[Tensor | None]:
        there = self.sum(torch.tensor([g is not None for g in gradients], dtype=torch.float64, device="cpu"), place)
        wide: list[Tensor | None] = []
        for gradient, parameter, count in zip(gradients, like, there.tolist(), strict=True):
            if count == 0:
                wide.append(None)
            else:
                dense = torch.zeros_like(parameter).detach() if gradient is None else gradient.detach().to_dense()
                real = torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense
                # A sum over many ranks loses digits in half precision.
                wide.append(real.to(torch.promote_types(real.dtype, torch.float32)).contiguous())
        with signals_held():
            self._agree(place)
            self._run(lambda: self._reduce([w for w in wide if w is not None]), place)
        return [
            None if w is None else (torch.view_as_complex(w) if p.is_complex() else w.to(p.dtype))
            for w, p in zip(wide, like, strict=True)
        ]

    def _reduce(self, tensors: list[Tensor]) -> None:
        """Sum tensors over the ranks, in place: large ones as they are, small ones as many at a time."""
        bucket: list[Tensor] = []
        for tensor in tensors:
            self.sent["gradients"] += tensor.nbytes
            if tensor.numel() >= _BUCKET:
                dist.all_reduce(tensor, group=self._group)
                continue
            kind = (tensor.dtype, tensor.device)
            full = sum(t.numel() for t in bucket) + tensor.numel() > _BUCKET
            if bucket and (full or kind != (bucket[0].dtype, bucket[0].device)):
                self._reduce_bucket(bucket)
                bucket = []
            bucket.append(tensor)
        if bucket:
            self._reduce_bucket(bucket)

    def _reduce_bucket(self, bucket: list[Tensor]) -> None:
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.all_reduce(flat, group=self._group)
        for tensor, part in zip(bucket, torch.split(flat, [t.numel() for t in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def tell(self, error: BaseException) -> None:
        if self._broken or self._ended or (self._told is not None and self._told in _chain(error)):
            return
        try:
            self.agree("an error", error)
        except Exception as other:  # the others are gone, or at odds: the error itself is what is to be seen
            error.add_note(f"(the other processes could not be told: {other})")

    def end(self) -> None:
        self.agree("the end")
        self._ended = True


_KINDS: dict[str, type[BaseException]] = {
    name: getattr(errors, name) for name in errors.__all__ if isinstance(getattr(errors, name), type)
} | {kind.__name__: kind for kind in (ValueError, TypeError, MemoryError, torch.OutOfMemoryError)}
"""Errors that are raised in their own kind on the other ranks, too."""


def _in_words(error: BaseException) -> tuple[str, str]:
    notes = " ".join(getattr(error, "__notes__", []))
    return type(error).__name__, f"{error} {notes}".strip()


def _retold(number: int, words: tuple[str, str]) -> BaseException:
    name, text = words
    if name in _KINDS:
        return _KINDS[name](f"on rank {number}: {text}")
    return RankError(f"on rank {number}: {name}: {text}".removesuffix(": "))


def _heard(number: int, words: tuple[str, str]) -> BaseException:
    """What ranks that are well raise for an error that ends the work of another one."""
    name, text = words
    shown = f"on rank {number}: {name}: {text}".removesuffix(": ")
    # What nothing on that rank has caught, nothing is to catch on this one.
    return KeyboardInterrupt(shown) if name in _ENDS else RankError(shown)


_ENDS = ("KeyboardInterrupt", "SystemExit", "Terminated", "GeneratorExit")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that it was raised from or under."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
