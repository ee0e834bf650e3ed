"""What others put around a model to train it, taken off: initopt works on the module inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import fx, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from initopt._support._torch_private import ORIGINAL

__all__ = ["bare", "bare_names", "hides_layers", "replicated", "unreplicated"]

_T = TypeVar("_T")

_INSTEAD = "run initopt on the model before that, on each process or on one, and wrap it then"


def bare(model: nn.Module) -> nn.Module:
    """The module that ``DistributedDataParallel``, ``DataParallel``, ``torch.compile`` or Fabric has been put around.

    Its parameters are the very same, and their names are those that the model itself gives them. Nothing that a wrapper
    does in a forward pass, such as to start a reduction over processes, then happens in those of initopt.

    Args:
        model: any module; one that nothing is put around is returned as it is.

    Raises:
        TypeError: for a program of ``torch.export``; for ``FullyShardedDataParallel`` and engines of DeepSpeed, which
            hold parts of parameters, or copies that win over what is written to these; and for layers of Keras, whose
            variables are not attributes of modules. The message says what to do.

    >>> layer = nn.Linear(2, 3)
    >>> bare(nn.DataParallel(layer)) is layer
    True
    """
    if type(model).__name__ == "ExportedProgram":
        raise TypeError("the model is an ExportedProgram of torch.export; pass the module that it holds, program.module()")
    while isinstance(model, nn.Module):
        _refuse(model)
        inner = _inside(model)
        if inner is None:
            break
        model = inner
    return model


def replicated(model: nn.Module) -> DistributedDataParallel | None:
    """The ``DistributedDataParallel`` among what is put around a model, if there is one."""
    around: nn.Module | None = model
    while isinstance(around, nn.Module):
        if isinstance(around, DistributedDataParallel):
            return around
        around = _inside(around)
    return None


def unreplicated(model: nn.Module) -> nn.Module:
    """The module inside a ``DistributedDataParallel``; any other as it is."""
    return model if replicated(model) is None else bare(model)


def hides_layers(model: nn.Module) -> bool:
    """Whether a model is a graph that calls operations only, as the module of an exported program is.

    Its parameters and its loss are there as ever, but nothing says where a layer begins and ends.

    >>> import torch
    >>> hides_layers(torch.export.export(nn.Linear(2, 3), (torch.ones(4, 2),)).module())
    True
    >>> hides_layers(fx.symbolic_trace(nn.Sequential(nn.Linear(2, 3))))
    False
    """
    if not isinstance(model, fx.GraphModule):
        return False
    called = [model.get_submodule(str(node.target)) for node in model.graph.nodes if node.op == "call_module"]
    return not any(True for module in called for _ in module.parameters())


def _inside(model: nn.Module) -> nn.Module | None:
    children = dict(model.named_children())
    if isinstance(model, (DistributedDataParallel, DataParallel)):
        return children["module"]
    if _is_fabrics(model):
        return children["_forward_module"]
    return children[ORIGINAL] if [*children] == [ORIGINAL] else None


def _is_fabrics(model: nn.Module) -> bool:
    """Whether it is a module as ``Fabric.setup`` returns it; by its name, since importing Lightning takes seconds."""
    return type(model).__name__ == "_FabricModule" and hasattr(model, "_forward_module")


def _refuse(model: nn.Module) -> None:
    for kind in type(model).__mro__:
        if kind.__name__ == "DeepSpeedEngine":
            raise TypeError(
                "the model is an engine of DeepSpeed, whose optimizer keeps copies of the parameters that win over what is "
                f"written to these; {_INSTEAD} (deepspeed.initialize)"
            )
    for name, module in model.named_modules():
        if any(kind.__name__ == "FullyShardedDataParallel" for kind in type(module).__mro__):
            raise TypeError(
                f"{name or 'the model'!r} is a FullyShardedDataParallel, which holds parts of flattened parameters; "
                f"{_INSTEAD}, or use its successor, torch.distributed.fsdp.fully_shard"
            )
        if any(kind.__name__ == "Layer" and kind.__module__.split(".")[0] == "keras" for kind in type(module).__mro__):
            raise TypeError(
                f"{name or 'the model'!r} is of Keras, whose layers are no modules of their parent and hold their "
                "variables themselves: initopt would see no layer, and could not run them with other weights, as its "
                "checks do. Make the network of torch modules, run initopt on these, and give them to Keras in a "
                "keras.layers.TorchModuleWrapper"
            )
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id"):
            raise TypeError(
                f"parameter {name!r} is partitioned over processes by DeepSpeed (ZeRO-3), and is empty here; {_INSTEAD}"
            )


def bare_names(named: Mapping[str, _T]) -> dict[str, _T]:
    """Without what wrappers put into names: the one of ``torch.compile`` anywhere, the others in front of all.

    >>> bare_names({"module._orig_mod.0.weight": 1, "module._orig_mod.0.bias": 2})
    {'0.weight': 1, '0.bias': 2}
    """
    found = {".".join(part for part in name.split(".") if part != ORIGINAL): value for name, value in named.items()}
    for prefix in ("_forward_module.", "module."):
        if found and all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found
