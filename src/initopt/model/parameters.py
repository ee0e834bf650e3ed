"""Which parameters count as gradient, and which get a scale."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from initopt._support.words import unknown

__all__ = [
    "KINDS",
    "NamedParameter",
    "ParameterFilter",
    "Parameters",
    "Predicate",
    "as_predicate",
    "is_bias",
    "select",
    "trainable_parameters",
]

Predicate = Callable[[str, nn.Parameter, nn.Module], bool]

ParameterFilter = Predicate | str | Sequence[str]
"""Which parameters are meant: a function of (qualified name, parameter, the holding module), or names in :data:`KINDS`."""


@dataclass(frozen=True, eq=False)
class NamedParameter:
    """One parameter tensor with its first name and everywhere it is held (tied parameters are held more than once)."""

    name: str
    value: nn.Parameter
    holders: tuple[tuple[str, nn.Module], ...]

    @property
    def is_bias(self) -> bool:
        """Whether it is a bias by its name."""
        return is_bias(self.name)


def is_bias(name: str) -> bool:
    """Whether a qualified name is that of a bias.

    Only the tensor's own name counts, not those of the modules around it; that of a parametrized tensor is the one that it
    has in its module.

    >>> [is_bias(name) for name in ("lstm.bias_hh_l0", "bias_mlp.0", "fc.parametrizations.bias.original0")]
    [True, False, True]
    """
    around, parametrized, inner = name.rpartition("parametrizations.")
    own = inner.partition(".")[0] if parametrized and (not around or around.endswith(".")) else name.rpartition(".")[2]
    return "bias" in own and "weight" not in own


KINDS: dict[str, Predicate] = {
    "biases": lambda name, parameter, module: is_bias(name),
    "convolutions": lambda name, parameter, module: isinstance(
        module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    ),
    "embeddings": lambda name, parameter, module: isinstance(module, (nn.Embedding, nn.EmbeddingBag)),
    "linear": lambda name, parameter, module: isinstance(module, nn.Linear),
    "norms": lambda name, parameter, module: "Norm" in type(module).__name__,
    "positions": lambda name, parameter, module: any(
        word in name.removesuffix(".weight").rpartition(".")[2] for word in ("pos_embed", "position", "wpe", "pos_emb")
    ),
}
"""Kinds of parameters by name: by the type of the module that holds them, or, biases and positions, by their own name."""


def trainable_parameters(model: nn.Module) -> list[NamedParameter]:
    """The parameters that require a gradient, in the order of ``model.named_parameters()``; tied ones once.

    Raises:
        TypeError: if ``model`` is no module, or one of TorchScript.
        ValueError: if no parameter requires a gradient, or one is on the meta device.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"module {name or 'model'!r} is a TorchScript module; pass the module that it was scripted from"
            )
    holders: dict[nn.Parameter, list[tuple[str, nn.Module]]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False, remove_duplicate=False):
            holders.setdefault(parameter, []).append((name, module))
    for parameter, held in holders.items():
        _check(held[0][0], parameter)
    found = [
        NamedParameter(held[0][0], parameter, tuple(held)) for parameter, held in holders.items() if parameter.requires_grad
    ]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no trainable parameter"
            + (f": none of its {len(holders)} requires a gradient; call requires_grad_(True) first" if holders else "")
        )
    return found


def _check(name: str, parameter: nn.Parameter) -> None:
    if is_lazy(parameter):
        raise ValueError(f"parameter {name!r} has no values yet (a lazy module); run the model once on a batch first")
    if parameter.requires_grad and parameter.is_inference():
        raise ValueError(
            f"parameter {name!r} was made under torch.inference_mode() and has no gradient; make the model outside of it"
        )
    if parameter.is_meta:
        raise ValueError(
            f"parameter {name!r} is on the meta device and has no values; move the model with to_empty(device=...) and "
            "initialize it first"
        )


def select(parameters: list[NamedParameter], keep: ParameterFilter | None, argument: str) -> list[NamedParameter]:
    """The parameters for which a filter is true; a tied parameter is kept if it is kept under any of its names.

    Raises:
        TypeError: if the filter is not a function of three arguments, a name, or a list of names.
        ValueError: for an unknown name, or if nothing is left; the message names some of the parameters there are.
    """
    if keep is None:
        return parameters
    keep = as_predicate(keep, argument)
    kept = [p for p in parameters if any(keep(name, p.value, module) for name, module in p.holders)]
    if not kept:
        names = ", ".join(p.name for p in parameters[:5]) + (", ..." if len(parameters) > 5 else "")
        raise ValueError(f"{argument} matches none of the {len(parameters)} trainable parameters ({names})")
    return kept


def as_predicate(keep: ParameterFilter, argument: str) -> Predicate:
    """A filter as a function.

    Raises:
        TypeError: if it is not a function of three arguments, a name, or a list of names.
        ValueError: for a name that is not in :data:`KINDS`.

    >>> as_predicate(["norms", "biases"], "params")("norm.weight", nn.Parameter(torch.ones(2)), nn.LayerNorm(2))
    True
    """
    if callable(keep):
        _check_arity(keep, argument)
        return keep
    names = [keep] if isinstance(keep, str) else keep
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"{argument} must be a function of (name, parameter, module), or names such as 'linear'; got "
            f"{type(keep).__name__}"
        )
    for name in names:
        if name not in KINDS:
            raise ValueError(f"{unknown(argument, name, KINDS)}; or give a function of (name, parameter, module)")
    chosen = [KINDS[name] for name in names]
    return lambda name, parameter, module: any(kind(name, parameter, module) for kind in chosen)


def _check_arity(keep: Predicate, argument: str) -> None:
    try:
        signature = inspect.signature(keep)
    except (TypeError, ValueError):  # some built-in functions have none
        return
    try:
        signature.bind(None, None, None)
    except TypeError:
        raise TypeError(
            f"{argument} must be a function of (name, parameter, module); got one of the form {signature}"
        ) from None


@dataclass(frozen=True, eq=False)
class Parameters:
    """The trainable parameters of a model, found once, and which of them count.

    Attributes:
        trainable: all that require a gradient, in the order of the model.
        grad: those whose gradients make up the gradient.
        scaled: those that get a scale.
        spared: names of those that got none without having been left out by anybody: magnitudes of pretrained weights.

    >>> found = Parameters.of(nn.Linear(2, 3), scale_params=lambda name, parameter, module: name == "weight")
    >>> [p.name for p in found.grad], [p.name for p in found.scaled]
    (['weight', 'bias'], ['weight'])
    """

    trainable: Sequence[NamedParameter]
    grad: Sequence[NamedParameter]
    scaled: Sequence[NamedParameter]
    spared: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        model: nn.Module,
        *,
        grad_params: ParameterFilter | None = None,
        scale_params: ParameterFilter | None = None,
        in_parts: bool = False,
    ) -> Parameters:
        """Find them, and refuse what initopt cannot work on.

        Args:
            model: the model.
            grad_params: says which parameters make up the gradient; all that train, by default.
            scale_params: the same, for the tensors that get a scale; by default, all but the magnitudes that PEFT's DoRA
                keeps of pretrained weights, whose scale would change the pretrained function.
            in_parts: whether parameters may be in parts on several devices.

        Raises:
            TypeError, ValueError: as :func:`trainable_parameters` and :func:`select`; for parameters that are sharded, or
                share memory without being one.
        """
        trainable = trainable_parameters(model)
        _refuse_unsupported([p for p in trainable if not in_parts or not hasattr(p.value, "device_mesh")])
        grad, scaled = select(trainable, grad_params, "grad_params"), select(trainable, scale_params, "scale_params")
        if scale_params is not None:
            return cls(trainable, grad, scaled)
        spared = [p.name for p in scaled if _is_magnitude(p.name)]
        if len(spared) == len(scaled):
            raise ValueError(
                f"all {len(scaled)} trainable tensors are magnitudes of pretrained weights ({spared[0]}), whose scale "
                "would change the pretrained function; scale_params says which tensors get a scale all the same"
            )
        return cls(trainable, grad, [p for p in scaled if p.name not in spared], spared)


def _is_magnitude(name: str) -> bool:
    """Whether a qualified name is that of a magnitude of DoRA, which holds the norms of rows of a pretrained weight."""
    return "lora_magnitude_vector" in name.split(".")


def _refuse_unsupported(parameters: Sequence[NamedParameter]) -> None:
    """Refuse models whose gradients or weights are not what they seem."""
    places: dict[tuple[int, torch.Size], str] = {}
    for parameter in parameters:
        value = parameter.value
        if hasattr(value, "device_mesh"):
            raise TypeError(
                f"parameter {parameter.name!r} is sharded over devices (DTensor), which autograd.grad does not gather; run "
                "initopt before the model is sharded"
            )
        if value.numel() == 0:
            continue
        other = places.setdefault((value.data_ptr(), value.shape), parameter.name)
        if other != parameter.name:
            raise ValueError(
                f"parameters {other!r} and {parameter.name!r} are different tensors over the same memory, so each would "
                "scale the other; tie them by assigning the same nn.Parameter to both"
            )
