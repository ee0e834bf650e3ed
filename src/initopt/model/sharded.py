"""Models whose parameters are in parts on several devices: DTensors, of ``fully_shard`` or of tensor parallelism."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from initopt._support._torch_fsdp import data_mesh, forget_passes, resharding, set_resharding

__all__ = [
    "Shards",
    "fully_sharded",
    "has_entries",
    "has_shards",
    "is_sharded",
    "mesh_of_data",
    "own_class",
    "own_part",
    "part_behind",
    "part_of",
    "shard_group",
    "tensor_parallel",
    "unsharded",
    "whole_parameters",
]


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is in parts on several devices (a DTensor)."""
    return hasattr(tensor, "device_mesh")


def has_shards(model: Any) -> bool:
    """Whether some parameters of a model are in parts on several devices; not of what is not a model."""
    return isinstance(model, nn.Module) and any(map(is_sharded, model.parameters()))


def whole_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that are not in parts, which differ by rank."""
    return {name: tensor for name, tensor in model.named_parameters() if not is_sharded(tensor)}


def part_of(parameter: Tensor, full: Tensor) -> Tensor:
    """The part of a tensor that belongs to this rank's part of a parameter; all of it for one that is whole.

    There is no communication: the tensor has to be the same on all ranks.
    """
    if not is_sharded(parameter):
        return full
    from torch.distributed.tensor import distribute_tensor  # takes time to import

    mine: Any = parameter
    whole = full.to(mine.to_local().device)
    return distribute_tensor(whole, mine.device_mesh, mine.placements, src_data_rank=None).to_local()


def own_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that is on this rank, in its memory and without a graph; all of one that is whole."""
    plain: Any = tensor.detach()
    local: Tensor = plain.to_local() if is_sharded(plain) else plain
    return local


def has_entries(tensor: Tensor) -> bool:
    """Whether a tensor has an entry that is not zero, in any of its parts: the same answer on all ranks."""
    found: Any = (tensor.detach() != 0).sum()  # DTensor's any() answers for the part of this rank
    return bool(found.full_tensor() if is_sharded(found) else found)


def fully_sharded(model: nn.Module) -> list[Any]:
    """The modules that ``fully_shard`` was applied to, the outermost first; by the name of a class, without an import."""
    return [m for m in model.modules() if any(kind.__name__ == "FSDPModule" for kind in type(m).__mro__)]


def own_class(module: nn.Module) -> type:
    """The class of a module; of one that ``fully_shard`` has given another class, that which it had before."""
    kinds = type(module).__mro__
    names = [kind.__name__ for kind in kinds]
    return kinds[names.index("FSDPModule") + 1] if "FSDPModule" in names else kinds[0]


def tensor_parallel(model: nn.Module) -> bool:
    """Whether parameters of a model are in parts that ``fully_shard`` does not gather: these compute in parts, too."""
    mesh = mesh_of_data(model)
    return has_shards(model) if mesh is None else any(p.device_mesh.ndim > mesh.ndim for p in _sharded(model))


def mesh_of_data(model: nn.Module) -> Any:
    """The mesh that ``fully_shard`` has shared the data of a model over; ``None`` if it has not."""
    return next((mesh for mesh in map(data_mesh, fully_sharded(model)) if mesh is not None), None)


def shard_group(model: nn.Module) -> Any:
    """The group of the processes that have a model in parts; ``None`` if there is none.

    Raises:
        TypeError: if there are others beside these, as far as it is not known what they have.
    """
    if not has_shards(model):
        return None
    mesh = max((p.device_mesh for p in _sharded(model)), key=lambda each: each.size())
    if tensor_parallel(model) and mesh.size() < dist.get_world_size():
        raise TypeError(
            f"the model is in parts on {mesh.size()} of {dist.get_world_size()} processes; the others have replicas of it, "
            "which have to stay alike. Pass process_group=, the processes of one mesh, and give all meshes the same batches"
        )
    if mesh.ndim == 1:
        return mesh.get_group()
    if mesh.size() == dist.get_world_size():
        return dist.group.WORLD
    raise TypeError(
        f"the model is sharded over a mesh of {mesh.ndim} dimensions; pass process_group=, the processes whose data differ"
    )


def _sharded(model: nn.Module) -> Iterator[Any]:
    yield from (p for p in model.parameters() if is_sharded(p))


class Shards:
    """The parts of a model's parameters on this rank, into which what was learned on whole ones is written.

    Args:
        model: that ``fully_shard`` was applied to, sharded.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters: dict[str, Any] = {name: p for name, p in model.named_parameters() if is_sharded(p)}

    @contextmanager
    def standing_behind(self, model: nn.Module) -> Iterator[None]:
        """A block in which :func:`part_behind` finds each of them by the whole parameter that the model has now."""
        named = dict(model.named_parameters())
        parts: dict[Tensor, Tensor] = {named[name]: part for name, part in self._parameters.items()}
        _PARTS.update(parts)
        try:
            yield
        finally:
            for whole in parts:
                del _PARTS[whole]

    @torch.no_grad()
    def scale(self, scales: Mapping[str, float]) -> None:
        """Multiply each by a number; the precision is that of the parts, which may be higher than that of computation."""
        for name, scale in scales.items():
            if scale != 1 and name in self._parameters:
                self._parameters[name].to_local().mul_(scale)

    @torch.no_grad()
    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Write whole tensors, those that are others than now in their own precision; the same on all ranks."""
        for name, full in weights.items():
            if name in self._parameters:
                own, part = self._parameters[name].to_local(), part_of(self._parameters[name], full)
                if not torch.equal(own.to(part.dtype), part):
                    own.copy_(part)


_PARTS: dict[Tensor, Tensor] = {}
"""The parameters in parts, by the whole ones that stand for them in a block of :func:`unsharded`."""


def part_behind(tensor: Tensor) -> Tensor:
    """The parameter in parts that a whole one stands for in a block of :func:`unsharded`; of any other tensor, itself."""
    return _PARTS.get(tensor, tensor)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[Shards | None]:
    """A block in which a model of ``fully_shard`` has its whole parameters, and does not let go of them.

    In it they are plain tensors, of which there is a double backward. What is written to them is lost; :class:`Shards` are
    what stays. Does nothing for a model of plain parameters.

    Raises:
        TypeError: for parameters that ``fully_shard`` does not gather.
    """
    if not has_shards(model):
        yield None
        return
    wrapped = fully_sharded(model)
    if not wrapped:
        _refuse_parts(model)
    shards = Shards(model)
    before = [resharding(module) for module in wrapped]
    try:
        for module in wrapped:
            module.set_reshard_after_forward(False, recurse=False)
            module.set_reshard_after_backward(False, recurse=False)
            module.unshard()
        _refuse_parts(model)
        with shards.standing_behind(model):
            yield shards
    except BaseException as error:
        if isinstance(error, torch.OutOfMemoryError):
            error.add_note(
                "(initopt holds the whole weights of a sharded model, and D gradients of them; where these do not fit, "
                "take them from a smaller model of the same shape, or use initopt.schemes.apply_, one tensor at a time)"
            )
        forget_passes(wrapped)  # the pass that was broken off is not to be gone on with
        raise
    finally:
        for module, state in zip(wrapped, before, strict=True):
            module.reshard()
            set_resharding(module, state)


def _refuse_parts(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if is_sharded(parameter):
            raise TypeError(
                f"parameter {name!r} is sharded over devices (DTensor), and not by fully_shard, so it cannot be gathered. "
                "initopt.measure and initopt.nio work on such parts, called on all processes of one mesh, and so does "
                "initopt.schemes.apply_; for the rest, run initopt before the model is sharded"
            )
