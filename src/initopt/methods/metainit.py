"""MetaInit (Dauphin and Schoenholz, NeurIPS 2019)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from initopt._support._torch_private import without_hooks
from initopt._support.checks import check_choice, check_number
from initopt._support.errors import LossError, NonFiniteError
from initopt.batches.nested import map_tensors, named_tensors
from initopt.engines import Engine
from initopt.engines.autograd.scale_derivatives import along_weights
from initopt.engines.base import Gradients
from initopt.methods._whole_batch import check_gradients, explain_missing, loss_of, sum_over, whole_batch
from initopt.methods.base import MethodRun
from initopt.methods.records import Record, StepRecord
from initopt.methods.scales import ScalesMethod, ScalesRun
from initopt.model.double_backward import plain_attention, plain_embedding, plain_norms
from initopt.model.modes import running_statistics
from initopt.model.parameters import ParameterFilter
from initopt.model.preserve import Originals
from initopt.model.problem import Problem, as_real
from initopt.model.randomness import seeded

__all__ = ["Inputs", "MetaInit", "Norms", "gradient_quotient"]

Inputs = Literal["data", "random"]
Norms = Literal["exact", "running", "fused"]


@dataclass(frozen=True, kw_only=True)
class MetaInit(ScalesMethod):
    r"""Learn one scale per parameter tensor so that the gradient changes little along itself.

    Each step takes one batch and lowers the gradient quotient, with the gradient g of its loss and the Hessian H,

    .. math:: \frac1N \sum_i \left| \frac{g_i - (H g)_i}{g_i + \epsilon \operatorname{sign}(g_i)} - 1 \right|

    in which :math:`\epsilon` is ``quotient_eps``, and sign(0) is 1 (Dauphin and Schoenholz, *MetaInit: Initializing
    learning by learning to initialize*, NeurIPS 2019, equation 1). Adam moves the scales, of weights and biases, as in the
    MetaInit of GradInit's published code. The paper itself has norms of weights only, moved by the sign of the derivative
    with momentum; ``scale_params=lambda name, p, module: p.ndim > 1`` leaves out the same tensors.

    Warning:
        The derivative of the quotient is a third derivative of the loss, which PyTorch computes wrongly, and silently, for
        its layer, batch and instance norms (seen in 2.13; 2.15 refuses it for batch norm). By default, these norms are
        therefore composed of elementary operations. The published code does not do so: it puts its batch norms into
        evaluation mode, in which those of a new network do not normalize, which is ``norms="running"``.

    Attributes:
        inputs: ``"data"``, or ``"random"``: standard normal inputs in the place of those of each batch, whose targets stay,
            as the paper allows. The batches then have to be (inputs, targets), with floating-point inputs.
        quotient_eps: the epsilon of the quotient.
        norms: ``"exact"``, norms composed of elementary operations, with right derivatives; ``"running"``, the same, but
            batch norms normalize with their running statistics, as in the published code; or ``"fused"``, PyTorch's own
            norms on the batch. There is no difference for models without such norms.
        grad_params: a function of (qualified name, parameter, owning module) that says which parameters make up g; all
            that train, by default.

    >>> MetaInit(inputs="random").quotient_eps
    1e-05
    """

    name: ClassVar[str] = "metainit"
    unites: ClassVar[bool] = False

    inputs: Inputs = "data"
    quotient_eps: float = 1e-5
    norms: Norms = "exact"
    grad_params: ParameterFilter | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("inputs", self.inputs, ("data", "random"))
        check_choice("norms", self.norms, ("exact", "running", "fused"))
        check_number("quotient_eps", self.quotient_eps, above=0, finite=True)

    def start(self, problem: Problem, engine: Engine, originals: Originals) -> MethodRun:
        return _MetaInitRun(self, problem, originals)


class _MetaInitRun(ScalesRun):
    def __init__(self, method: MetaInit, problem: Problem, originals: Originals) -> None:
        super().__init__(method, problem, originals)
        self._method = method

    def step(self, number: int, batches: Iterator[Any]) -> list[Record]:
        data = next(batches)
        start = time.perf_counter()
        if self._method.inputs == "random":
            with seeded(self._problem.seed, number, 1):
                data = _with_random_inputs(data)
        try:
            with plain_embedding(), self._norms():
                quotient, norm, derivatives = self._evaluate(data, number)
        except (RuntimeError, NotImplementedError) as error:
            explain_missing(error)
            raise
        self.descend(derivatives)
        ranks = self._problem.ranks
        norm, quotient = ranks.mean(norm, "the norm"), ranks.mean(quotient, "the quotient")
        return [StepRecord(number, None, norm, None, quotient, False, time.perf_counter() - start)]

    def _norms(self) -> ExitStack:
        """How norms are run within a step."""
        stack = ExitStack()
        if self._method.norms == "running":
            stack.enter_context(running_statistics(self._problem.model))
        if self._method.norms != "fused":
            stack.enter_context(plain_norms())
        return stack

    def _evaluate(self, data: Any, number: int) -> tuple[float, float, Tensor]:
        """The gradient quotient, the norm of the gradient, and <dW_k, W_k> of the quotient for every scaled tensor."""
        parameters = self._problem.grad_params
        loss = loss_of(self._problem, whole_batch(self._problem, data, number))
        values = [p.value for p in parameters]
        with plain_attention():  # activation checkpointing runs parts of the model again
            found = torch.autograd.grad(loss, values, create_graph=True, allow_unused=True)
        gradients = [None if g is None else g.to_dense() for g in found]
        check_gradients(gradients, parameters)
        quotient = gradient_quotient(gradients, values, self._method.quotient_eps)
        if not torch.isfinite(quotient):
            raise NonFiniteError(f"the gradient quotient is {quotient.item()}")
        try:
            derivatives = along_weights([quotient], [torch.ones_like(quotient)], self._problem.scale_params)
        except (RuntimeError, NotImplementedError) as error:
            error.add_note(
                "(MetaInit needs third derivatives of the loss, and PyTorch's third derivative of an operation fails)"
            )
            if self._method.norms == "fused":
                error.add_note('(norms="exact" has them for batch, layer and instance norms)')
            raise
        return float(quotient.detach()), math.sqrt(sum_over(gradients, torch.square)), derivatives


def gradient_quotient(gradients: Gradients, parameters: list[Any], eps: float) -> Tensor:
    """The gradient quotient, float64, with its graph.

    Args:
        gradients: the gradient with its graph, a dense tensor per parameter; those at ``None`` do not count.
        parameters: those with respect to which the gradient is taken.
        eps: added to the absolute value of each entry of the gradient in the denominator.
    """
    products = _along_itself(gradients, parameters)
    eps = float(np.float32(eps))  # as the published code has it, in any precision; it makes 1e-7 in the scales
    terms, count = [], 0
    for gradient, product in zip(gradients, products, strict=True):
        if gradient is None:
            continue
        g = as_real(gradient).double()
        p = torch.zeros_like(g) if product is None else as_real(product).double()
        shift = torch.full_like(g, eps).copysign(g.detach() + 0.0)  # a zero of either sign counts as positive
        terms.append(((g - p) / (g + shift) - 1).abs().sum().cpu())
        count += g.numel()
    return torch.stack(terms).sum() / count


def _along_itself(gradients: Gradients, parameters: list[Any]) -> Gradients:
    """Hg, with a graph that is that of H and of g."""
    graphs = [g for g in gradients if g is not None and g.requires_grad]
    if not graphs:
        return [None] * len(parameters)
    with plain_attention(), without_hooks(parameters):
        return torch.autograd.grad(graphs, parameters, graphs, create_graph=True, allow_unused=True)


def _with_random_inputs(data: Any) -> Any:
    """The batch with standard normal inputs; its targets stay."""
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise LossError(
            f'inputs="random" needs batches of the form (inputs, targets), of which it replaces the inputs; got '
            f'{type(data).__name__}. Use inputs="data"'
        )
    for name, tensor in named_tensors(data[0], "inputs"):
        if not tensor.is_floating_point():
            raise LossError(f'inputs="random" draws normal inputs, but {name} is {tensor.dtype}; use inputs="data"')
    return map_tensors(torch.randn_like, data[0]), data[1]
