"""The processes of a group of ``torch.distributed``, and which ones work on a model."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from initopt._support.errors import RankError, warn
from initopt._support.interrupts import signals_held
from initopt.model.rank_errors import chain, heard, in_words
from initopt.model.ranks import Alone, ProcessGroup, Ranks, Share, check_share
from initopt.model.sharded import shard_group
from initopt.model.wrappers import bare, replicated

__all__ = ["Group", "ranks_of"]

_T = TypeVar("_T")

_BUCKET = 1 << 20
"""Entries of small gradients that are reduced as one tensor."""


def ranks_of(model: nn.Module | None, process_group: ProcessGroup = "auto", share: Share = "union") -> Ranks:
    """The processes that are to work on a model together.

    Args:
        model: as the user has it, with what was put around it; ``None`` for one that is still to be made.
        process_group: the group; ``None`` for this process alone; ``"auto"`` for the group of a
            ``DistributedDataParallel`` or of the parts of a model, and this process alone where there is none.
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
        wrapper = None if model is None else replicated(model)
        group = wrapper.process_group if wrapper is not None else None if model is None else shard_group(bare(model))
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
    return Group(group, _device_of(model, group), share)


def _device_of(model: nn.Module | None, group: ProcessGroup) -> torch.device:
    """Where what is sent has to be."""
    if model is not None:
        return next((p.device for p in bare(model).parameters()), torch.device("cpu"))
    only_cuda = dist.get_backend(group) == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if only_cuda else torch.device("cpu")


def _tell_alone() -> None:
    if dist.get_world_size() > 1:
        warn(
            f"initopt: this is one of {dist.get_world_size()} processes, and the model is in no DistributedDataParallel, "
            "so that it is worked on by this process alone, with the batches that it is given. Should each process do so, "
            "they come to different weights. Pass the wrapped model, or process_group=torch.distributed.group.WORLD; or "
            "process_group=None, and wrap the model afterwards, which takes the weights of rank 0"
        )


@dataclass
class _Said:
    """What a process has told the others of a group, or heard from them: of all work that is within other work.

    Attributes:
        told: the last error that all know of, as it is raised on this rank.
        broken: whether the ranks are no longer in step, so that none is to wait for another one.
    """

    told: BaseException | None = None
    broken: bool = False


_AT_WORK: list[Group] = []
"""Those whose work in common is going on in this process, the innermost last."""


class Group(Ranks):
    """The processes of a group of ``torch.distributed``.

    Args:
        group: of ``torch.distributed``.
        device: of what is sent, that of the model.
        share: what the processes have in common.

    Attributes:
        sent: bytes that this rank has put into sums of gradients, and into those of all else.
        exchanges: how often the ranks have waited for each other.
    """

    def __init__(self, group: ProcessGroup, device: torch.device, share: Share) -> None:
        self.group, self._device, self.share = group, device, share
        self.number, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.sent = {"gradients": 0, "others": 0}
        self.exchanges = 0
        self._said: _Said = next((other._said for other in reversed(_AT_WORK) if other.group is group), _Said())
        self._ended = False

    def agree(self, place: str, error: BaseException | None = None) -> None:
        with signals_held():
            self._agree(place, error)

    def _agree(self, place: str, error: BaseException | None = None) -> None:
        if self._said.broken:
            raise RankError(f"the exchange with the other processes has failed before, and cannot go on (in {place})")
        word = torch.tensor([error is not None, zlib.crc32(place.encode())], dtype=torch.int64, device=self._device)
        words = [torch.empty_like(word) for _ in range(self.size)]
        self._run(lambda: dist.all_gather(words, word, group=self.group), place)
        self.sent["others"] += word.nbytes
        table = torch.stack(words).cpu()
        if not table[:, 0].any() and bool((table[:, 1] == table[0, 1]).all()):
            return
        stories = self._gather_objects((place, None if error is None else in_words(error)))
        self._said.told = error
        if error is not None:
            return
        for number, (_, story) in enumerate(stories):
            if story is not None:
                self._said.told = heard(number, story)
                raise self._said.told
        number, (other, _) = next((n, s) for n, s in enumerate(stories) if s[0] != place)
        self._said.broken = True
        self._said.told = RankError(
            f"rank {self.number} is at {place!r}, and rank {number} at {other!r}: the ranks do not do the same. Is the "
            "call made on every rank, with the same options, and does the model run the same layers for all data?"
        )
        raise self._said.told

    def _run(self, exchange: Callable[[], Any], place: str) -> None:
        self.exchanges += 1
        try:
            exchange()
        except Exception as error:
            self._said.broken = True
            error.add_note(f"(in an exchange with the other processes, in {place}: has one of them ended?)")
            raise

    def _gather_objects(self, value: _T) -> list[_T]:
        found: list[Any] = [None] * self.size
        self._run(lambda: dist.all_gather_object(found, value, group=self.group), "gathering")
        return found

    def gather(self, value: _T, place: str) -> list[_T]:
        with signals_held():
            self._agree(place)
            return self._gather_objects(value)

    def broadcast(self, value: _T, place: str) -> _T:
        with signals_held():
            self._agree(place)
            box: list[Any] = [value if self.leads else None]
            source = dist.get_global_rank(self.group, 0)
            self._run(lambda: dist.broadcast_object_list(box, src=source, group=self.group), place)
        found: _T = box[0]
        return found

    @torch.no_grad()
    def copy_first(self, tensors: Sequence[Tensor], place: str) -> None:
        if not tensors:
            return
        parts = [tensor.detach().contiguous().reshape(-1).view(torch.uint8).to(self._device) for tensor in tensors]
        flat = torch.cat(parts)
        with signals_held():
            self._agree(place)
            source = dist.get_global_rank(self.group, 0)
            self._run(lambda: dist.broadcast(flat, src=source, group=self.group), place)
        self.sent["others"] += flat.nbytes
        for tensor, part in zip(tensors, torch.split(flat, [len(part) for part in parts]), strict=True):
            tensor.copy_(part.clone().view(tensor.dtype).view_as(tensor))  # of bytes that begin where numbers can

    def sum(self, values: Tensor, place: str) -> Tensor:
        mine = values.to(self._device)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        with signals_held():
            self._agree(place)
            self._run(lambda: dist.all_gather(parts, mine, group=self.group), place)
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
                dist.all_reduce(tensor, group=self.group)
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
        dist.all_reduce(flat, group=self.group)
        for tensor, part in zip(bucket, torch.split(flat, [t.numel() for t in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))

    @contextmanager
    def together(self) -> Iterator[None]:
        _AT_WORK.append(self)
        try:
            with super().together():
                yield
        finally:
            _AT_WORK.remove(self)

    @property
    def _in_step(self) -> bool:
        return not self._said.broken

    def _is_told(self, error: BaseException | None) -> bool:
        return self._said.told is not None and self._said.told in chain(error)

    def tell(self, error: BaseException) -> None:
        if self._said.broken or self._ended or self._is_told(error):
            return
        try:
            self.agree("an error", error)
        except Exception as other:  # the others are gone, or at odds: the error itself is what is to be seen
            error.add_note(f"(the other processes could not be told: {other})")

    def end(self) -> None:
        self.agree("the end")
        self._ended = True
