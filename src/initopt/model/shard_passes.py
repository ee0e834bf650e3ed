"""Passes of a model that stays in parts: its own forward and backward, with nothing whole in between.

The backward pass of ``fully_shard`` leaves each rank its part of the mean of the gradients of all ranks. Everything here is
about that mean being what is wanted, about no rank waiting in it for another that has failed, and about the model being as
it was afterwards.

Under tensor parallelism some ranks have the same samples, and a backward pass leaves each its part of the gradient of them.
That is the same mean: these samples count as often as ranks have them, and so do all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from initopt._support._torch_fsdp import (
    forget_passes,
    hooked_reduction,
    precisions,
    reducing,
    without_fetching,
    without_steps,
)
from initopt._support.errors import RankError
from initopt._support.interrupts import signals_held
from initopt._support.words import first_few
from initopt.batches.nested import named_tensors
from initopt.model.centring import Means, Output
from initopt.model.checksums import checksums
from initopt.model.randomness import seeded
from initopt.model.ranks import Ranks
from initopt.model.reach import Reach
from initopt.model.sharded import fully_sharded, has_shards, is_sharded, mesh_of_data, own_part, tensor_parallel

if TYPE_CHECKING:
    from initopt.model.problem import Batch, Part, Problem

__all__ = ["ShardPasses", "Slopes", "precisions_of", "staying_sharded"]

Slopes = Callable[[Tensor, Sequence[Output]], Sequence[Tensor]]
"""Gives, for a loss and the outputs that it comes from, what is to come in at these in the backward pass."""


class ShardPasses:
    """Passes of a model whose parameters stay in parts, on all ranks at a time.

    Args:
        model: that ``fully_shard`` was applied to, or tensor parallelism.
        ranks: that have its parts; by ``fully_shard``, each with its own share of every batch.
        reason: why it stays in parts, as a clause.

    Attributes:
        reason: as given.
        peers: by tensor parallelism, the numbers of all ranks that have the samples of this one; otherwise, its own alone.
    """

    def __init__(self, model: nn.Module, ranks: Ranks, reason: str) -> None:
        self.reason = reason
        self._model, self._ranks = model, ranks
        self.peers, self._sets = _peers(model, ranks)
        places = ranks.gather([self.place(p) for p in model.parameters()], "the parts of parameters")
        self._counts = {
            id(p): at[ranks.number] not in at[: ranks.number]
            for p, at in zip(model.parameters(), zip(*places, strict=True), strict=True)
        }
        self._wrapped = fully_sharded(model)
        self._order: list[Any] = list(self._wrapped)  # until a pass has shown it
        self._entered: list[Any] = []
        self._backward_follows = False
        self._broken = False

    @staticmethod
    def refusal(model: nn.Module, ranks: Ranks) -> str | None:
        """Why a model cannot be worked on in parts, as the end of a sentence."""
        wrapped = fully_sharded(model)
        if not has_shards(model):
            return "its parameters are not in parts"
        meshes = {p.device_mesh for p in _sharded(model)}
        smaller = {mesh for mesh in meshes if mesh.size() != ranks.size}
        if len(meshes - smaller) != 1 or smaller - {mesh_of_data(model)}:
            return "its parameters have to be in parts on the very processes that share the batches, all in one mesh"
        if any(map(hooked_reduction, wrapped)):
            return "its gradients are reduced by a hook of your own (set_all_reduce_hook)"
        return None

    @property
    def _mean_of(self) -> int:
        """Of how many ranks a backward pass takes the mean."""
        return self._ranks.size

    def counts(self, parameter: Tensor) -> bool:
        """Whether what this rank has of a parameter is its to count: of replicas, only those of the first rank are."""
        return self._counts[id(parameter)]

    def place(self, parameter: Tensor) -> int:
        """The number of the part of a parameter that is on this rank; of replicas, it is the same."""
        if not is_sharded(parameter):
            return 0
        mine: Any = parameter
        place = 0
        for at, size, kind in zip(mine.device_mesh.get_coordinate(), mine.device_mesh.shape, mine.placements, strict=True):
            place = place if kind.is_replicate() else place * size + at
        return place

    def refuse_others(self, samples: Any) -> None:
        """Refuse batches that differ among peers.

        Args:
            samples: a batch, or a list of batches, of this rank.

        Raises:
            RankError: on all ranks, naming two and what differs.
        """
        if len(self.peers) == 1:
            return
        found = self._ranks.gather(checksums(dict(named_tensors(samples))), "comparing batches")
        for peers in self._sets:
            for other in peers[1:]:
                if found[other] != found[peers[0]]:
                    first, second = found[peers[0]], found[other]
                    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
                    raise RankError(
                        f"rank {peers[0]} and rank {other} have other batches ({first_few(names)}); under tensor "
                        "parallelism, processes that have parts of the same layers run the model on the same samples"
                    )

    def counted(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Gradients without those that another rank counts."""
        return [g if self.counts(p) else None for p, g in zip(parameters, gradients, strict=True)]

    def let_go(self) -> None:
        """Have no parameter whole. The next pass gathers anew what was written to the parts meanwhile."""
        for module in self._wrapped:
            module.reshard()

    def by_outputs(self) -> AbstractContextManager[None]:
        """A block of derivatives by outputs of the model, which need no weight."""
        return without_fetching(self._wrapped)

    @contextmanager
    def running(self) -> Iterator[None]:
        """A block of one forward pass on all ranks, which ends on all of them, or fails on all.

        A rank that fails goes on gathering what the others gather, so that they do not wait for it, until they hear of it.
        An error within a backward pass is another matter, as it is in training: the others wait for as long as the group
        allows.

        Raises:
            Exception: that of this rank, or else that of another one.
        """
        if self._broken:
            raise RuntimeError("a pass of the model has failed before, and this PyTorch cannot put fully_shard right again")
        error: Exception | None = None
        with signals_held():
            self._ranks.agree("a forward pass")  # one that has failed since the last one is not waited for in this one
            self._entered = []
            try:
                yield
            except Exception as caught:
                error = caught
                self._catch_up()
            else:
                self._order = list(self._entered)
            self._hear(error)
            if not self._backward_follows:
                self.let_go()

    def _catch_up(self) -> None:
        """Gather, as the others do, what comes in a forward pass after the point at which this one has failed."""
        for module in self._order[len(self._entered) :]:
            module.unshard()
            module.reshard()

    def _hear(self, error: Exception | None) -> None:
        """Raise the error of this rank, or that of another one; nothing if all are well."""
        failed = torch.tensor([float(error is not None)], dtype=torch.float64, device="cpu")
        if not self._ranks.sum(failed, "the end of a forward pass"):
            return

        def fail() -> None:
            if error is not None:
                raise error

        _, errors = self._ranks.attempt(fail, "a forward pass that failed")
        self.reset()
        raise error if error is not None else next(e for e in errors if e is not None)

    def reset(self) -> None:
        """Have ``fully_shard`` forget a pass that was broken off."""
        self._broken = not forget_passes(self._wrapped) or self._broken
        self.let_go()

    def gradient(
        self,
        problem: Problem,
        batch: Batch,
        parts: Sequence[Part],
        share: float,
        values: Sequence[Tensor],
        slopes: Sequence[Slopes] | None = None,
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The gradient of a sub-batch of all ranks, of which each has its part afterwards.

        Args:
            problem: with the model.
            batch: with the share of this rank.
            parts: of the sub-batch, as many on all ranks, which are run one after the other.
            share: of the samples of the sub-batch, that are on this rank.
            values: the parameters.
            slopes: for each part, what comes in at the outputs, in those of the loss of all ranks; by default, what the
                loss gives.

        Returns:
            What the samples of this rank add to the loss, and for each parameter, this rank's part of the gradient.
        """
        self._forget_gradients()
        losses = []
        try:
            for number, part in enumerate(parts):
                losses.append(self._pass(problem, batch, part, share, None if slopes is None else slopes[number]))
            found = [self._part_of_gradient(value) for value in values]
        finally:
            self._forget_gradients()
        return torch.stack(losses).sum(), self._with_whole_ones(values, found)

    def _pass(self, problem: Problem, batch: Batch, part: Part, share: float, slopes: Slopes | None) -> Tensor:
        with signals_held(), seeded(*part.seed), problem.first_derivatives():
            outputs: list[Output] = []
            try:
                self._backward_follows = True
                if slopes is None:
                    loss = problem.part_loss(replace(batch, centred=False), part)
                else:
                    loss, outputs = problem.seen(batch, part)
            finally:
                self._backward_follows = False
            loss = share * loss
            incoming = [] if slopes is None else slopes(loss, outputs)
            for output, slope in zip(outputs, incoming, strict=True):
                seed = self._mean_of * slope
                problem.centring.change_slope(output, lambda _, seed=seed: seed)  # type: ignore[misc]
            self._ranks.agree("a backward pass")
            loss.backward(gradient=torch.full_like(loss, self._mean_of))  # type: ignore[no-untyped-call]
            self.let_go()
            return loss.detach().double().cpu()

    def _part_of_gradient(self, value: Tensor) -> Tensor | None:
        gradient: Any = value.grad
        if gradient is None:
            return None
        if not is_sharded(gradient):
            return gradient.detach() / self._mean_of  # type: ignore[no-any-return]  # of one that every rank has whole
        mine: Any = value
        # Of a tensor that all have, and use on a part of a sequence each, they have summands of the gradient.
        return own_part(gradient.redistribute(placements=mine.placements))

    def _with_whole_ones(self, values: Sequence[Tensor], found: list[Tensor | None]) -> list[Tensor | None]:
        """Gradients with the sums over ranks of those that no backward pass reduces."""
        places = [number for number, value in enumerate(values) if not is_sharded(value)]
        if not places:
            return found
        sums = self._ranks.sum_gradients([found[i] for i in places], [values[i] for i in places], "whole gradients")
        for place, gradient in zip(places, sums, strict=True):
            found[place] = gradient
        return found

    def _forget_gradients(self) -> None:
        for parameter in self._model.parameters():
            parameter.grad = None

    def over_all(self, means: Means) -> Means:
        """Means over the samples of all ranks, from those over the samples of this one."""
        names = list(means.leaves)
        counts = torch.tensor([means.counts[name] for name in names], dtype=torch.float64, device="cpu")
        sums = [means.counts[name] * means.leaves[name].detach().double().cpu().flatten() for name in names]
        total = self._ranks.sum(torch.cat([counts, *sums]), "means over outputs")
        pieces = torch.split(total[len(names) :], [len(each) for each in sums])
        for name, count, piece in zip(names, total[: len(names)].tolist(), pieces, strict=True):
            leaf = means.leaves[name]
            means.counts[name] = int(count)
            means.leaves[name] = (piece / max(count, 1)).to(leaf).view_as(leaf)
        return means

    @contextmanager
    def open(self, loss_fn: Any) -> Iterator[None]:
        """The block around all passes, after which the model and what the loss holds are as before."""
        others = _leaves_of(loss_fn)
        with ExitStack() as stack:
            for leaf in (*self._model.parameters(), *others):
                stack.callback(setattr, leaf, "grad", leaf.grad)
                leaf.grad = None
            stack.enter_context(without_steps([*self._model.parameters(), *others]))
            stack.enter_context(reducing(self._wrapped))
            for module in self._wrapped:
                handle = module.register_forward_pre_hook(lambda module, args: self._entered.append(module))
                stack.callback(handle.remove)
            stack.callback(self.let_go)
            try:
                yield
            except BaseException:
                self.reset()
                raise


@contextmanager
def staying_sharded(model: nn.Module, ranks: Ranks, reason: str, loss_fn: Any) -> Iterator[ShardPasses]:
    """A block in which a model of ``fully_shard`` is worked on in parts.

    Args:
        model: the model, and ...
        ranks: ... the processes that have its parts.
        reason: why, as a clause.
        loss_fn: the user's loss, whose own parameters get no gradients.
    """
    passes = ShardPasses(model, ranks, reason)
    with passes.open(loss_fn):
        yield passes


def precisions_of(model: nn.Module) -> list[torch.dtype]:
    """In what a model computes, reduces and returns by its ``MixedPrecisionPolicy``, as far as that says."""
    return [dtype for module in fully_sharded(model) for dtype in precisions(module)]


def _peers(model: nn.Module, ranks: Ranks) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The ranks that have the samples of this one, and all such sets of ranks."""
    if not tensor_parallel(model):
        return (ranks.number,), [(number,) for number in range(ranks.size)]
    mesh = mesh_of_data(model)
    places = ranks.gather(() if mesh is None else tuple(mesh.get_coordinate()), "the mesh of the data")
    sets = {place: tuple(n for n, other in enumerate(places) if other == place) for place in places}
    return sets[places[ranks.number]], list(sets.values())


def _sharded(model: nn.Module) -> list[Any]:
    return [p for p in model.parameters() if is_sharded(p)]


def _leaves_of(loss_fn: Any) -> list[Tensor]:
    """What a loss function holds that a backward pass may leave a gradient in."""
    reach = Reach.of(loss_fn)
    held = [*reach.tensors, *(p for module in reach.modules for p in module.parameters(recurse=False))]
    return [tensor for tensor in held if tensor.requires_grad and tensor.is_leaf]
