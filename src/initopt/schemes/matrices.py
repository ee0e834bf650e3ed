"""Which parameters of a module are matrices of linear maps, and how these lie in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from initopt._support._torch_private import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS
from initopt.model.parameters import NamedParameter

__all__ = ["Matrices", "biases_of", "is_embedding", "is_transposed_linear", "matrices_in", "matrices_of"]

Blocks = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Matrices:
    """A parameter that holds one matrix or several.

    Attributes:
        name: of the parameter in its module.
        blocks: the matrices in a tensor of the parameter's shape: views, with the outputs along the first dimension, the
            inputs along the second, and the places of a kernel along the others.
    """

    name: str
    blocks: Blocks


def matrices_of(module: nn.Module) -> list[Matrices]:
    """The parameters of linear maps that a module holds itself.

    - ``nn.Linear``, convolutions and ``nn.Bilinear`` (whose inputs are the pairs of inputs);
    - ``Conv1D`` of transformers (GPT-2's), a linear layer whose weight has the inputs first;
    - transposed convolutions, whose weight has the inputs first, a matrix for each group of channels;
    - ``nn.MultiheadAttention``, a matrix each for query, key and value;
    - recurrent layers and cells, a matrix for each gate.

    A parametrized weight (weight norm, say) is not a parameter of the module and is not among them.
    """
    own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    return [matrices for matrices in _all(module, own) if matrices.name in own]


def _all(module: nn.Module, own: Iterable[str]) -> Iterator[Matrices]:
    if isinstance(module, TRANSPOSED_CONVOLUTIONS):
        groups: int = module.groups  # type: ignore[assignment]
        yield Matrices("weight", lambda w: [part.transpose(0, 1) for part in w.chunk(groups)])
    elif isinstance(module, (nn.Linear, *CONVOLUTIONS)):
        yield Matrices("weight", lambda w: [w])
    elif is_transposed_linear(module):
        yield Matrices("weight", lambda w: [w.T])
    elif isinstance(module, nn.Bilinear):
        yield Matrices("weight", lambda w: [w.flatten(1)])
    elif isinstance(module, nn.MultiheadAttention):
        yield Matrices("in_proj_weight", lambda w: list(w.chunk(3)))
        for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
            yield Matrices(name, lambda w: [w])
    elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        hidden = module.hidden_size
        for name in own:
            if name.startswith("weight_hr"):  # the projection of an LSTM
                yield Matrices(name, lambda w: [w])
            elif name.startswith("weight"):
                yield Matrices(name, lambda w: list(torch.split(w, hidden)))


def biases_of(module: nn.Module) -> list[str]:
    """The biases that a module with matrices holds itself."""
    if not matrices_of(module):
        return []
    own = module.named_parameters(recurse=False, remove_duplicate=False)
    return [name for name, value in own if "bias" in name and value.ndim == 1]


def is_embedding(module: nn.Module) -> bool:
    """Whether a module looks its output up in its weight."""
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag))


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer as GPT-2 has it in transformers: ``Conv1D``, with a weight of shape (in, out)."""
    weight = getattr(module, "weight", None)
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and isinstance(weight, Tensor) and weight.ndim == 2


def matrices_in(parameter: NamedParameter) -> Matrices | None:
    """The matrices in a parameter; ``None`` if it holds none, or is the table of an embedding."""
    if parameter.value.is_complex() or any(is_embedding(module) for _, module in parameter.holders):
        return None
    for name, module in parameter.holders:
        for matrices in matrices_of(module):
            if matrices.name == name.rpartition(".")[2]:
                return matrices
    return None
