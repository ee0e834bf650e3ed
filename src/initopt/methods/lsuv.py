"""LSUV (arXiv 1511.06422)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from initopt._support._torch_private import CONVOLUTIONS
from initopt._support.checks import check_integer, check_number
from initopt._support.errors import NonFiniteError, warn
from initopt._support.words import first_few
from initopt.engines import Engine
from initopt.methods._whole_batch import loss_of, whole_batch
from initopt.methods.base import Method, MethodRun
from initopt.methods.records import LayerRecord, Record
from initopt.methods.scales import Scales
from initopt.model.parameters import NamedParameter
from initopt.model.preserve import Originals
from initopt.model.problem import Problem
from initopt.model.ranks import Ranks
from initopt.schemes import Scheme
from initopt.schemes.matrices import is_embedding, is_transposed_linear, matrices_of

__all__ = ["LSUV"]


@dataclass(frozen=True, kw_only=True)
class LSUV(Method):
    """Give the output of every layer unit variance, layer by layer, by a scale of its weight.

    The model runs on a batch, which should be large. Layer by layer, the weight is divided by the standard deviation of the
    layer's output over all samples, channels and places, until the variance is 1 within ``tolerance``; later layers see the
    new output (layer-sequential unit variance; Mishkin and Matas, ICLR 2016, arXiv 1511.06422, algorithm 1). The order is
    that in which the layers run, in any model.

    The layers are linear and bilinear layers and convolutions, also transposed ones, whose module is called. A layer that
    runs more than once, or shares its weight with another, is scaled for its first output. Some are left alone, with a
    warning that names them: weights used without their module being called (attention's projections, in
    ``nn.MultiheadAttention``), recurrent layers, weights shared with an embedding, and layers whose output is constant.
    Also left alone are parametrized weights, embeddings, norms and frozen parameters.

    Attributes:
        steps: number of passes over the network, each on the next batch.
        tolerance: how far from 1 a variance may be, in (0, 1).
        max_iterations: most rescalings of a layer. A layer without bias needs one.
        scheme: one of :data:`initopt.schemes.NAMES`, or a :class:`initopt.schemes.Scheme`, whose weights, drawn with
            ``seed``, are the start to which the scales refer, with biases of 0 for the default; ``None`` for the model's
            own weights. ``Result.before`` is of the model's own.

    >>> LSUV().scheme
    'orthogonal'
    """

    name: ClassVar[str] = "lsuv"
    differentiates: ClassVar[bool] = False
    record: ClassVar[type[Record]] = LayerRecord

    steps: int = 1
    scheme: str | Scheme | None = "orthogonal"
    tolerance: float = 0.1
    max_iterations: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("tolerance", self.tolerance, above=0, below=1)
        check_integer("max_iterations", self.max_iterations, 1)

    def start(self, problem: Problem, engine: Engine, originals: Originals) -> MethodRun:
        return _LSUVRun(self, problem, originals)


_Layers = Mapping[nn.Parameter, tuple[NamedParameter, list[nn.Module]]]
"""The weights that are scaled, with the modules that hold each."""


class _LSUVRun(MethodRun):
    def __init__(self, method: LSUV, problem: Problem, originals: Originals) -> None:
        self._method = method
        self._problem = problem
        self._scales = Scales(problem.scale_params, originals, 0.0, 0.0)
        self._layers, self._left = _layers(problem.scale_params)
        if not self._layers:
            raise ValueError(
                f"lsuv found no layer in {type(problem.model).__name__}: it scales the weights of linear and bilinear "
                "layers and convolutions that train, that scale_params selects and that are shared with no embedding"
            )

    def step(self, number: int, batches: Iterator[Any]) -> list[Record]:
        data = next(batches)
        pass_over = _Pass(number, self._layers, self._scales, self._method, self._problem.ranks)
        with ExitStack() as stack:
            for module in {module for _, modules in self._layers.values() for module in modules}:
                handle = module.register_forward_hook(pass_over.hook, prepend=True, with_kwargs=True)
                stack.callback(handle.remove)
            loss_of(self._problem, whole_batch(self._problem, data, number))
        self._tell(number, pass_over)
        return list(pass_over.records)

    def _tell(self, number: int, done: _Pass) -> None:
        if not done.records:
            raise ValueError(
                "lsuv found no layer that runs: none of the modules with the weights "
                f"{first_few([repr(p.name) for p, _ in self._layers.values()])} is called as a module by the model"
            )
        tolerance, most = self._method.tolerance, self._method.max_iterations
        told = {
            "has an output of variance 0, and was left alone": done.constant,
            f"has an output further than {tolerance:g} from unit variance after {most} iterations (a bias, which is not "
            "scaled, can keep it there)": done.missed,
        }
        if number == 0:
            silent = [p.name for p, _ in self._layers.values() if p.value not in done.seen]
            told |= {
                "was left alone, since no module that holds it was called": silent,
                "was left alone, being no weight of a linear layer or convolution, or an embedding's, too": self._left,
            }
        for what, names in told.items():
            if names:
                warn(f"initopt: lsuv: {first_few(list(map(repr, names)))} {what}")

    def scales(self) -> dict[str, float]:
        return self._scales.named()

    def state(self) -> dict[str, Tensor]:
        return {"scales": self._scales.values}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._scales.values = state["scales"]
        self._scales.apply()


class _Pass:
    """One forward pass over the network, in which each layer is scaled when it is run for the first time."""

    def __init__(
        self,
        number: int,
        layers: _Layers,
        scales: Scales,
        method: LSUV,
        ranks: Ranks,
    ) -> None:
        self.records: list[LayerRecord] = []
        self.constant: list[str] = []
        self.missed: list[str] = []
        self.seen: set[Tensor] = set()
        self._number = number
        self._layers = layers
        self._scales = scales
        self._method = method
        self._ranks = ranks

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        weight: Any = module.weight
        if weight in self.seen:
            return None
        self.seen.add(weight)
        start = time.perf_counter()
        name = self._layers[weight][0].name
        before = variance = _variance(output, name, self._ranks)
        iterations = 0
        with torch.no_grad():
            while abs(variance - 1) > self._method.tolerance and variance > 0 and iterations < self._method.max_iterations:
                self._scales.multiply(weight, 1 / math.sqrt(variance))
                variance = _variance(module.forward(*args, **kwargs), name, self._ranks)
                iterations += 1
        if variance == 0:
            self.constant.append(name)
        elif abs(variance - 1) > self._method.tolerance:
            self.missed.append(name)
        layer = name.rpartition(".")[0] or name
        seconds = time.perf_counter() - start
        self.records.append(LayerRecord(self._number, layer, before, variance, iterations, seconds))
        # Once more, with a graph if there is to be one.
        new: Tensor = module.forward(*args, **kwargs)
        return new


def _variance(output: Tensor, name: str, ranks: Ranks) -> float:
    """The variance of the entries of an output, those of all ranks."""
    wide = (torch.view_as_real(output.detach()) if output.is_complex() else output.detach()).double()
    variance = float(wide.var(correction=0))
    if ranks.size > 1:
        count, mean = wide.numel(), float(wide.mean())
        own = torch.tensor([count, count * mean], dtype=torch.float64, device="cpu")
        total, entries = ranks.sum(own, f"the mean output of {name}").tolist()
        squares = torch.tensor([count * (variance + (mean - entries / total) ** 2)], dtype=torch.float64, device="cpu")
        variance = float(ranks.sum(squares, f"the variance of the output of {name}")) / total
    if not math.isfinite(variance):
        raise NonFiniteError(f"the variance of the output of the layer with {name!r} is {variance}")
    return variance


def _layers(parameters: Sequence[NamedParameter]) -> tuple[_Layers, list[str]]:
    """The weights that are scaled, and the names of the others that are matrices."""
    layers: dict[nn.Parameter, tuple[NamedParameter, list[nn.Module]]] = {}
    left = []
    for parameter in parameters:
        modules = [module for _, module in parameter.holders if _is_layer(module) and module.weight is parameter.value]
        if modules and not any(is_embedding(module) for _, module in parameter.holders):
            layers[parameter.value] = (parameter, modules)
        elif any(matrices_of(module) for _, module in parameter.holders) and parameter.value.ndim > 1:
            left.append(parameter.name)
    return layers, left


def _is_layer(module: nn.Module) -> bool:
    kinds = (nn.Linear, nn.Bilinear, *CONVOLUTIONS)
    return (isinstance(module, kinds) or is_transposed_linear(module)) and "weight" in dict(
        module.named_parameters(recurse=False)
    )
