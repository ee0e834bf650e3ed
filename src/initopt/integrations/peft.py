"""The starts of PEFT's low-rank adapters, as initializations that comparisons can try."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from initopt._support.checks import check_integer
from initopt._support.errors import LoaderError
from initopt._support.words import did_you_mean, unknown
from initopt.batches.nested import batch_size, take, to_device
from initopt.model.losses import Loss, LossFunction, as_loss
from initopt.model.preserve import preserved

try:
    from peft import EvaConfig, LoraConfig, LoraGAConfig, get_eva_state_dict
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda
    from peft.tuners.lora.loraga import preprocess_loraga
except ImportError as error:
    raise ImportError(f"initopt.integrations.peft needs PEFT: pip install 'initopt[peft]' ({error})") from error

__all__ = ["STARTS", "AdapterStart", "start"]

_OF_WEIGHTS = ("default", "gaussian", "olora", "orthogonal", "pissa")

_OF_DATA: dict[str, tuple[str, Any]] = {
    "corda": ("corda_config", CordaConfig),
    "eva": ("eva_config", EvaConfig),
    "lora_ga": ("lora_ga_config", LoraGAConfig),
}
"""Starts that look at batches, with the field of ``LoraConfig`` that their options are in, and its class."""

STARTS = (*_OF_WEIGHTS, *_OF_DATA)
"""The starts of PEFT, by the names that ``init_lora_weights`` of its ``LoraConfig`` has for them; ``"default"`` is its
``True``. There is also ``"pissa_niter_N"``, PiSSA by N iterations of a randomized decomposition."""


def start(name: str, *, num_batches: int = 8, adapter: str = "default", **options: Any) -> AdapterStart:
    """A start of the low-rank adapters of PEFT, as an initialization for :func:`initopt.compare`.

    It is a function of a model with LoRA layers, of batches and a loss. ``"pissa"``, ``"olora"`` and ``"orthogonal"``
    decompose the pretrained weights (or draw), and put what remains of these in their place; ``"eva"`` decomposes the
    inputs of the layers, ``"corda"`` looks at their covariances, ``"lora_ga"`` at the gradients of the pretrained weights.
    ``"default"`` draws A and leaves B zero.

    Args:
        name: one of :data:`STARTS`, or ``"pissa_niter_N"``.
        num_batches: how many batches ``"eva"``, ``"corda"`` and ``"lora_ga"`` see, at most.
        adapter: name of the adapter.
        options: fields of ``EvaConfig``, ``CordaConfig`` or ``LoraGAConfig``. ``rho`` of EVA is 1.0, which leaves ranks as
            they are.

    Raises:
        ValueError, TypeError: for an unknown name or option; when it is called, for a model that is not of PEFT or has no
            such adapter.

    Example::

        from initopt.integrations.peft import start

        initopt.compare({"lora": make_model}, data, ["default", start("pissa"), start("lora_ga", num_batches=4)], out="out")
    """
    return AdapterStart(name, num_batches, adapter, options)


@dataclass(frozen=True)
class AdapterStart:
    """The start that :func:`start` makes: call it with ``(model, batches, loss_fn)``.

    Attributes:
        name: of the start.
        num_batches: how many batches it sees, at most.
        adapter: name of the adapter.
        options: of the start.
    """

    name: str
    num_batches: int = 8
    adapter: str = "default"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in STARTS and not _is_fast_pissa(self.name):
            raise ValueError(unknown("start", self.name, [*STARTS, "pissa_niter_N"]))
        check_integer("num_batches", self.num_batches, 1)
        known = [option.name for option in dataclasses.fields(_OF_DATA[self.name][1])] if self.name in _OF_DATA else []
        for option in self.options:
            if not known:
                raise TypeError(f"the start {self.name!r} has no options; got {option!r}")
            if option not in known:
                raise TypeError(f"the start {self.name!r} has no option {option!r}{did_you_mean(option, known)}")

    @property
    def __name__(self) -> str:
        return f"peft-{self.name}"

    def __call__(self, model: nn.Module, batches: Iterable[Any], loss_fn: LossFunction | None = None) -> None:
        """Begin anew with the adapter of a model, in place; its function stays the pretrained one, but for LoRA-GA's.

        Args:
            model: a model of PEFT's, with LoRA layers.
            batches: an iterable of batches.
            loss_fn: as for :func:`initopt.measure`.
        """
        config, layers = _config(model, self.adapter), _layers(model, self.adapter)
        _merge(layers, self.adapter)
        _restart(layers, self.adapter, _with(config, True))  # so that passes see the pretrained function
        if self.name == "default":
            return
        chosen = _with(config, self.name)
        if self.name not in _OF_DATA:
            _restart(layers, self.adapter, chosen)
            return
        place, kind = _OF_DATA[self.name]
        setattr(chosen, place, kind(**({"rho": 1.0} if self.name == "eva" else {}) | dict(self.options)))
        passes = _Passes(model, as_loss(loss_fn), list(islice(batches, self.num_batches)))
        with preserved(model, loss_fn):
            found = _OF_PASSES[self.name](model, self.adapter, layers, chosen, passes)
        # Only now, since pretrained weights, which are frozen, were put back with everything else.
        if self.name == "eva":
            _load(layers, self.adapter, found)
            return
        for name, (attribute, value) in found.items():
            setattr(layers[name].get_base_layer(), attribute, value)
        _restart(layers, self.adapter, chosen)


class _Passes:
    """Passes of a model over some batches."""

    def __init__(self, model: nn.Module, loss: Loss, batches: Sequence[Any]) -> None:
        if not batches:
            raise LoaderError("batches is empty: iterating over it gave no batch, and at least one is needed")
        self._model, self._loss = model, loss
        device = next(model.parameters()).device
        self.batches = [to_device(batch, device) for batch in batches]

    def loss_of(self, batch: Any) -> Tensor:
        return self._loss(self._model, batch, batch_size(batch))

    @torch.no_grad()
    def dimensions(self, layers: Iterable[nn.Module]) -> int:
        """The most dimensions that the inputs of some layers have."""
        seen: list[int] = []
        with ExitStack() as stack:
            for layer in layers:
                handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].ndim))
                stack.callback(handle.remove)
            self.loss_of(self.batches[0])
        return max(seen, default=0)

    @torch.no_grad()
    def forward(self, samples: int | None = None) -> None:
        """Run the batches, so many samples at a time."""
        for batch in self.batches:
            size = batch_size(batch)
            for indices in torch.split(torch.arange(size), samples or size):
                self.loss_of(take(batch, indices, size))

    def backward(self) -> None:
        for batch in self.batches:
            torch.autograd.backward(self.loss_of(batch))


def _eva(model: Any, adapter: str, layers: Mapping[str, LoraLayer], chosen: LoraConfig, passes: _Passes) -> Any:
    language = isinstance(passes.batches[0], Mapping) and "input_ids" in passes.batches[0]
    # PEFT knows the padding of language models; of others, every position counts.
    how = {} if language else {"prepare_model_inputs_fn": None, "prepare_layer_inputs_fn": _rows}
    own = model.peft_config[adapter]
    model.peft_config[adapter] = chosen
    try:
        return get_eva_state_dict(
            model,
            passes.batches,
            forward_fn=lambda _, batch: passes.loss_of(batch),
            adapter_name=adapter,
            show_progress_bar=False,
            **how,
        )
    finally:
        model.peft_config[adapter] = own


def _load(layers: Mapping[str, LoraLayer], adapter: str, found: Mapping[str, Tensor]) -> None:
    """Give A of each layer the directions that EVA has found; B is zero."""
    for name, directions in found.items():
        (layer,) = [layer for own, layer in layers.items() if own == name or own.endswith(f".{name}")]
        weight = layer.lora_A[adapter].weight
        if directions.shape != weight.shape:
            raise ValueError(
                f"EVA found {len(directions)} directions for {name!r}, and the adapter has rank {len(weight)}: give larger "
                "batches or a smaller rank, and leave rho at 1, so that ranks stay"
            )
        with torch.no_grad():
            weight.copy_(directions)


def _rows(inputs: Any, batch: Any, name: str) -> Tensor:
    """All positions that a layer has seen, shape ``(positions, features)``."""
    found: Tensor = inputs if isinstance(inputs, Tensor) else inputs[0]
    return found.reshape(-1, found.shape[-1])


def _corda(model: nn.Module, adapter: str, layers: Mapping[str, LoraLayer], chosen: LoraConfig, passes: _Passes) -> Any:
    bases = [layer.get_base_layer() for layer in layers.values()]
    samples = (
        1 if passes.dimensions(bases) > 2 else None
    )  # PEFT wants a matrix: of the positions of one sample, or of samples
    preprocess_corda(model, _of_bases(chosen, layers), run_model=lambda: passes.forward(samples))
    return _taken(layers, "eigens")


def _lora_ga(model: nn.Module, adapter: str, layers: Mapping[str, LoraLayer], chosen: LoraConfig, passes: _Passes) -> Any:
    preprocess_loraga(model, _of_bases(chosen, layers), train_step=passes.backward)
    return _taken(layers, "_peft_loraga_grad")


def _taken(layers: Mapping[str, LoraLayer], attribute: str) -> dict[str, tuple[str, Any]]:
    """What PEFT has left at the pretrained layers."""
    return {name: (attribute, vars(layer.get_base_layer()).pop(attribute)) for name, layer in layers.items()}


_OF_PASSES: dict[str, Callable[..., Any]] = {"corda": _corda, "eva": _eva, "lora_ga": _lora_ga}


def _with(config: LoraConfig, start: str | bool) -> LoraConfig:
    changed = copy.copy(config)
    changed.init_lora_weights = start
    return changed


def _of_bases(config: LoraConfig, layers: Iterable[str]) -> LoraConfig:
    """A configuration whose targets are the pretrained layers, by the names that these have within those of PEFT."""
    changed = copy.copy(config)
    changed.target_modules = {f"{name}.base_layer" for name in layers}
    changed.exclude_modules = changed.layers_to_transform = changed.layers_pattern = None
    return changed


def _is_fast_pissa(name: str) -> bool:
    return name.startswith("pissa_niter_") and name.removeprefix("pissa_niter_").isdecimal()


def _config(model: nn.Module, adapter: str) -> LoraConfig:
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, Mapping):
        raise TypeError(f"a start of PEFT's is for a model of PEFT's (get_peft_model); got {type(model).__name__}")
    if adapter not in configs:
        raise ValueError(unknown("adapter", adapter, configs))
    if not isinstance(configs[adapter], LoraConfig):
        raise TypeError(
            f"adapter {adapter!r} is one of {type(configs[adapter]).__name__}, and starts are those of LoraConfig"
        )
    return configs[adapter]


def _layers(model: nn.Module, adapter: str) -> dict[str, LoraLayer]:
    """The layers with the adapter, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer) and adapter in module.r}


def _merge(layers: Mapping[str, LoraLayer], adapter: str) -> None:
    """Put what an adapter adds to the pretrained weights into these, for one that did not begin at zero."""
    for name, layer in layers.items():
        delta = layer.get_delta_weight(adapter)
        if not bool(delta.any()):
            continue
        if layer.use_dora[adapter]:
            raise ValueError(f"the adapter of {name!r} is not zero, and DoRA's cannot be begun anew; make the model again")
        weight = layer.get_base_layer().weight
        weight.data = (weight.data.to(delta.dtype) + delta).to(weight.dtype)


def _restart(layers: Mapping[str, LoraLayer], adapter: str, config: LoraConfig) -> None:
    """Begin anew with an adapter, in parameters that are the same objects as before, which an optimizer may hold."""
    for name, layer in layers.items():
        before = dict(layer.named_parameters())
        flags = {key: parameter.requires_grad for key, parameter in before.items()}
        try:
            layer.update_layer(adapter, layer.r[adapter], layer.lora_alpha[adapter], config=config)
        except Exception as error:
            error.add_note(f"(in the adapter of {name!r}, a {type(layer).__name__})")
            raise
        for key, parameter in list(layer.named_parameters()):
            own = before.get(key)
            if own is not None and own is not parameter:
                own.data = parameter.data
                holder, _, last = key.rpartition(".")
                setattr(layer.get_submodule(holder), last, own)
            parameter.requires_grad_(flags.get(key, parameter.requires_grad))
