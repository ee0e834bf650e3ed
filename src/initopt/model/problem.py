"""What an engine works on: a model, its loss, the parameters that count, and how a batch is split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from initopt._support._torch_messages import is_of_fixed_size, is_of_one_value
from initopt.batches.first_look import refuse_dtype
from initopt.batches.nested import batch_size, map_tensors, take, to_device
from initopt.batches.subbatches import BatchNorm, SubBatches, Windows
from initopt.model.centring import Centring, Means, Output, slopes, watching_one_pass
from initopt.model.double_backward import plain_kernels
from initopt.model.losses import Loss
from initopt.model.modes import has_batch_statistics, ran_in_evaluation_mode
from initopt.model.parameters import NamedParameter, Parameters
from initopt.model.randomness import seeded
from initopt.model.ranks import Alone, Ranks
from initopt.model.shard_passes import ShardPasses
from initopt.model.state import StateGuard

__all__ = ["Batch", "Part", "Problem"]

IN_EVALUATION_MODE = "(initopt runs the model in evaluation mode; train_mode=True runs it as training does)"
"""A note for errors of a model that its user has in training mode, which may be all that it works in."""


@dataclass(frozen=True)
class Batch:
    """A batch on the model's device, with its sub-batches and the seed for what the model draws.

    Attributes:
        data: a nest of tensors that share their first dimension.
        windows: the sub-batches.
        seed: for what the model draws.
        centred: whether gradients on it are centred, where the problem's centring is active.
    """

    data: Any
    windows: Windows
    seed: tuple[int, ...]
    centred: bool = False


@dataclass(frozen=True)
class Part:
    """Samples of a sub-batch that are run at a time.

    Attributes:
        indices: of the samples in the batch.
        share: of the sub-batch.
        seed: for what the model draws.
        means: what slopes are centred by, if not by their own mean.
    """

    indices: Tensor
    share: float
    seed: tuple[int, ...]
    means: Means | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Problem:
    """A model with everything that defines the Gram matrix of a batch.

    Attributes:
        model: the model, in measuring mode while an engine works.
        loss: mean loss of sub-batches.
        parameters: which parameters count as gradient, and which have a scale.
        subbatches: how a batch is split, and its sub-batches are run.
        seed: base of the seeds for what the model draws.
        state: what the model and the loss keep from one pass for the next, put back before every forward pass.
        centring: which outputs have their slopes centred, on batches that ask for it.
        ranks: the processes that work on it together, each with its own share of every batch.
        shards: the passes of a model that stays in parts on these; ``None`` for one that is whole.
    """

    model: nn.Module
    loss: Loss
    parameters: Parameters
    subbatches: SubBatches
    seed: int
    state: StateGuard = field(default=None, repr=False, kw_only=True)  # type: ignore[assignment]
    centring: Centring = field(default_factory=Centring, repr=False, kw_only=True)
    ranks: Ranks = field(default_factory=Alone, repr=False, kw_only=True)
    shards: ShardPasses | None = field(default=None, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        given: Any = self.state
        if given is None:
            object.__setattr__(self, "state", StateGuard(self.model, self.loss.given))

    @property
    def grad_params(self) -> Sequence[NamedParameter]:
        """The parameters whose gradients make up the Gram matrix."""
        return self.parameters.grad

    @property
    def scale_params(self) -> Sequence[NamedParameter]:
        """The parameters with respect to whose scales derivatives are taken."""
        return self.parameters.scaled

    @property
    def batch_norm(self) -> BatchNorm:
        """Whose statistics normalize, the sub-batch's or the whole batch's."""
        return self.subbatches.batch_norm

    @property
    def microbatch(self) -> int | None:
        """Most samples to run at a time, if not whole sub-batches."""
        return self.subbatches.microbatch

    @cached_property
    def normalizes(self) -> bool:
        """Whether batch norms couple the samples of a sub-batch."""
        return has_batch_statistics(self.model)

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs: the device of its first parameter."""
        return next(self.model.parameters()).device

    def prepare(self, data: Any, index: int) -> Batch:
        """Split a batch and move it to the model's device.

        Args:
            data: a nest of tensors that share their first dimension.
            index: number of the batch; the same number means the same random draws inside the model.

        Raises:
            RankError: if the batches of ranks differ that run the model on the same samples.
        """
        if self.shards is not None:
            self.shards.refuse_others(data)
        if index == 0:
            self.loss.look_at(data)
        windows = self.subbatches.windows(batch_size(data))
        return Batch(to_device(data, self.device), windows, self.seed_of(index))

    def seed_of(self, *number: int) -> tuple[int, ...]:
        """The seed for what the model draws on a batch: another one on each rank, if its samples are others."""
        if self.ranks.size == 1:
            return (self.seed, *number)
        peers = (self.ranks.number,) if self.shards is None else self.shards.peers
        return (self.seed, *number) if len(peers) == self.ranks.size else (self.seed, *number, peers[0])

    def shares(self, batch: Batch) -> list[float]:
        """What share of the samples of each sub-batch is on this rank: all of them, unless sub-batches are united."""
        if not self.ranks.union:
            return [1.0] * len(batch.windows)
        own = torch.tensor([len(window) for window in batch.windows.indices], dtype=torch.float64, device="cpu")
        return (own / self.ranks.sum(own, "the sizes of sub-batches")).tolist()

    def summed(self, gradients: Sequence[Tensor | None], share: float, like: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """The gradient of a united sub-batch, from that of the share that is on this rank."""
        if not self.ranks.union:
            return gradients
        own = [None if g is None else share * g.detach() for g in gradients]
        return self.ranks.sum_gradients(own, like, "gradients")

    def parts(self, batch: Batch, d: int, microbatch: int | None) -> list[Part]:
        """Sub-batch d in parts of ``microbatch`` samples or fewer, as equal as can be."""
        size = len(batch.windows.indices[d])
        return self.pieces(batch, d, 1 if microbatch is None else -(-size // microbatch))

    def pieces(self, batch: Batch, d: int, count: int) -> list[Part]:
        """Sub-batch d in so many parts, as equal as can be."""
        window = batch.windows.indices[d]
        seeds = [(*batch.seed, d)] if count == 1 else [(*batch.seed, d, i) for i in range(count)]
        pieces = window.tensor_split(count)
        return [Part(piece, len(piece) / len(window), seed) for piece, seed in zip(pieces, seeds, strict=True)]

    def settle(self, batch: Batch, microbatch: int | None = None) -> None:
        """Decide on a batch, the first one, which outputs are centred. Does nothing if that is decided.

        Args:
            batch: the batch.
            microbatch: most samples to run at a time, or two, since one shows nothing of whether the loss compares samples.
        """
        if self.centring.settled:
            return
        self._settle(batch, microbatch)
        self.centring.load_state(self.ranks.broadcast(self.centring.state(), "centring"))

    def _settle(self, batch: Batch, microbatch: int | None) -> None:
        first = batch.windows.indices[0]
        if self.batch_norm == "batch" and len(first) < 2:
            self.centring.switch_off('a sub-batch of one sample has no mean slope of its own, with batch_norm="batch"')
            return
        indices = first if len(first) > 1 else torch.arange(min(2, batch.windows.batch_size), device="cpu")
        indices = indices if microbatch is None else indices[: max(microbatch, 2)]
        with seeded(*batch.seed), watching_one_pass(self.model) as seen:
            if self.batch_norm == "batch":
                loss, samples = self._windows_of(batch)[0], len(first)
            else:
                loss, samples = self._loss_of(batch, indices), len(indices)
        channel = self._channel_in(batch)
        with self._by_outputs(self.centring.candidates(seen, channel)):
            self.centring.settle(seen, channel, loss, samples)

    def _by_outputs(self, outputs: Sequence[Output]) -> AbstractContextManager[None]:
        """A block of derivatives by outputs: of one output, they need no weight, whatever comes between two."""
        return nullcontext() if self.shards is None or len(outputs) > 1 else self.shards.by_outputs()

    def centres(self, batch: Batch) -> bool:
        """Whether gradients on a batch are centred."""
        return batch.centred and self.centring.active

    def first_derivatives(self) -> AbstractContextManager[None]:
        """The block in which losses are computed and first derivatives taken, centred where that is asked for."""
        return self.centring.first_derivatives()

    def seen(self, batch: Batch, part: Part) -> tuple[Tensor, list[Output]]:
        """What a part adds to the mean loss of its sub-batch, uncentred, and the outputs that are to be centred."""
        with watching_one_pass(self.model) as returned:
            loss = self._share_of(batch, part)
        return loss, self.centring.chosen(returned, self._channel_in(batch))

    def centred_by_all(self, batch: Batch, parts: Sequence[Part]) -> list[Part]:
        """Parts whose slopes are centred by the mean over all of them; as they are where nothing is centred."""
        if not self.centres(batch):
            return list(parts)
        means = Means.over(self.slopes_of(batch, part) for part in parts)
        return [replace(part, means=means) for part in parts]

    def slopes_of(self, batch: Batch, part: Part) -> tuple[list[Output], list[Tensor], list[Tensor]]:
        """The outputs of a part that are centred, and their slopes, twice: as :meth:`Means.over` takes them."""
        with seeded(*part.seed):
            loss, outputs = self.seen(batch, part)
            found = slopes(loss, outputs)
            return outputs, found, found

    def part_loss(self, batch: Batch, part: Part) -> Tensor:
        """What a part adds to the mean loss of its sub-batch; its gradient is centred where that is asked for."""
        if not self.centres(batch):
            return self._share_of(batch, part)
        loss, outputs = self.seen(batch, part)
        for output in outputs:
            self.centring.centre(output, mean=None if part.means is None else part.means.leaves.get(output.name))
        return loss

    def _share_of(self, batch: Batch, part: Part) -> Tensor:
        loss = self._loss_of(batch, part.indices)
        return loss if part.share == 1 else part.share * loss

    def _channel_in(self, batch: Batch) -> Callable[[Tensor], int | None]:
        """Gives the channel dimension of an output for samples of a batch."""
        return lambda output: self.loss.channel(output, batch.data)

    def subbatch_loss(self, batch: Batch, d: int) -> Tensor:
        """Mean loss of sub-batch d, from a forward pass over it alone."""
        return self.part_loss(batch, self.parts(batch, d, None)[0])

    def _loss_of(self, batch: Batch, window: Tensor) -> Tensor:
        return self.loss_on(take(batch.data, window, batch.windows.batch_size), len(window))

    def loss_on(self, data: Any, samples: int) -> Tensor:
        """Mean loss of some samples, uncentred."""
        with self._running(data, samples):
            return self.loss(self.model, data, samples)

    @contextmanager
    def _running(self, data: Any, samples: int) -> Iterator[None]:
        """A block in which the model runs once, with what its user may not know of it in the notes of an error."""
        try:
            with nullcontext() if self.shards is None else self.shards.running(), self.state.running(), plain_kernels():
                yield
        except Exception as error:
            if is_of_one_value(error):
                error.add_note(
                    f"(a batch norm cannot normalize a sub-batch of {samples} by its own statistics: use fewer "
                    'sub-batches, larger batches, or batch_norm="batch")'
                )
            if is_of_fixed_size(error):
                error.add_note(
                    f"(the model was exported for another number of samples than {samples}, those of a sub-batch: export "
                    "it with a torch.export.Dim for the first dimension of its inputs)"
                )
            if isinstance(error, RuntimeError):
                refuse_dtype(error, self.model, data)
            if ran_in_evaluation_mode(self.model) and not isinstance(error, torch.OutOfMemoryError):
                error.add_note(IN_EVALUATION_MODE)
            raise

    def window_losses(self, batch: Batch, apart: bool = False) -> list[Tensor]:
        """Mean losses of all sub-batches, from one forward pass over the whole batch.

        Args:
            batch: the batch.
            apart: whether the sub-batches lie side by side, each of the same size, and the gradient of the sum of their
                losses is taken; each is centred by itself all the same, and single samples by the mean of all. Otherwise
                the gradient of one loss at a time is taken, in which the slopes of other sub-batches are zero.
        """
        if not self.centres(batch):
            return self._windows_of(batch)
        single = batch.windows.single
        if single and not apart:
            raise ValueError(ONE_SAMPLE)
        groups = len(batch.windows) if apart and not single else 1
        losses, outputs = self.seen_windows(batch)
        for output in outputs:
            if apart and len(output.value) % batch.windows.batch_size:
                raise ValueError(f"{output.name} does not have the samples along its first dimension")
            self.centring.centre(output, groups)
        return losses

    def seen_windows(self, batch: Batch) -> tuple[list[Tensor], list[Output]]:
        """As :meth:`seen`, for the losses of all sub-batches from one forward pass over the whole batch."""
        with watching_one_pass(self.model) as returned:
            losses = self._windows_of(batch)
        return losses, self.centring.chosen(returned, self._channel_in(batch))

    def _windows_of(self, batch: Batch) -> list[Tensor]:
        data = map_tensors(torch.clone, batch.data)  # the model may write into its inputs
        with self._running(data, batch.windows.batch_size):
            return self.loss.windows(self.model, data, batch.windows.indices, batch.windows.batch_size)


ONE_SAMPLE = (
    "a sub-batch of one sample has no mean slope of its own to be centred by; use num_subbatches of half the batch size or "
    "fewer, or centre=None"
)


def inner_product(left: Tensor, right: Tensor) -> Tensor:
    """Real inner product of two tensors of one shape."""
    left, right = as_real(left), as_real(right)
    if left.dtype == right.dtype and left.dtype in _DOT and left.is_contiguous() and right.is_contiguous():
        return torch.dot(left.view(-1), right.view(-1))  # no product in memory
    wide = torch.promote_types(torch.promote_types(left.dtype, right.dtype), torch.float32)  # 256 squared is inf in half
    return (left.to(wide) * right.to(wide)).sum()


_DOT = (torch.float32, torch.float64)
"""Precisions that a dot product can accumulate in."""


def as_real(tensor: Tensor) -> Tensor:
    """A dense real tensor: a complex one counts as its real and imaginary parts; ``nn.Embedding`` has sparse gradients."""
    dense = tensor.to_dense()
    return torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense
