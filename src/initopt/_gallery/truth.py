"""The slow truth: everything from its definition, by plain autograd and by central differences.

It shares no code with initopt but the seeding of what a model draws, which has to be replayed.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from initopt._gallery.entry import SEED, Entry
from initopt.model.randomness import seeded

INDEX = 3
"""Number of the batch, which is part of the seed for what a model draws."""

NORM_WEIGHT = 0.3


def cosine(gram: Tensor) -> Tensor:
    count = len(gram)
    pairs = [(d, e) for d in range(count) for e in range(count) if d != e]
    return torch.stack([gram[d, e] / (gram[d, d] * gram[e, e]).sqrt() for d, e in pairs]).mean()


def norms(gram: Tensor) -> Tensor:
    return torch.stack([gram[d, d].sqrt() for d in range(len(gram))])


def variance(gram: Tensor) -> Tensor:
    """Mean squared distance of the gradients from their mean."""
    count = len(gram)
    to_mean = [gram[d, d] - 2 * gram[d].mean() + gram.mean() for d in range(count)]
    return torch.stack(to_mean).mean()


PHI: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": lambda gram: -cosine(gram),
    "cosine+norm": lambda gram: -cosine(gram) - NORM_WEIGHT * norms(gram).sum(),
    "cosine+sqnorm": lambda gram: -cosine(gram) - NORM_WEIGHT * norms(gram).square().sum(),
    "cosine+lognorm": lambda gram: -cosine(gram) - NORM_WEIGHT * norms(gram).log().mean(),
    "variance": variance,
    "variance+norm": lambda gram: variance(gram) - NORM_WEIGHT * norms(gram).sum(),
    "variance+sqnorm": lambda gram: variance(gram) - NORM_WEIGHT * norms(gram).square().sum(),
    "variance+lognorm": lambda gram: variance(gram) - NORM_WEIGHT * norms(gram).log().mean(),
    "grad_norm": lambda gram: norms(gram).mean(),
    "entry": lambda gram: gram[0, 1],
}
"""The objectives, the constraint, and one entry of K, whose derivative by K is not symmetric."""

Windows = Sequence[Sequence[int]]


def windows(batch_size: int, count: int, overlap: float) -> list[list[int]]:
    length = batch_size // count
    width = round((1 + overlap) * length)
    return [[(d * length + i) % batch_size for i in range(width)] for d in range(count)]


def pick(tree: Any, samples: Sequence[int]) -> Any:
    if isinstance(tree, Tensor):
        return torch.stack([tree[i] for i in samples])
    if isinstance(tree, dict):
        return type(tree)({key: pick(value, samples) for key, value in tree.items()})
    return type(tree)(pick(value, samples) for value in tree)


def first_tensor(tree: Any) -> Tensor:
    while not isinstance(tree, Tensor):
        tree = next(iter(tree.values() if isinstance(tree, dict) else tree))
    return tree


def cross_entropy(output: Any, targets: Tensor) -> Tensor:
    logits = output["logits"] if isinstance(output, dict) else output
    return -logits.log_softmax(-1).gather(-1, targets[..., None]).mean()


def subbatch_losses(entry: Entry, model: nn.Module, batch: Any, parts: Windows, index: int = INDEX) -> Iterator[Tensor]:
    """The mean loss of each sub-batch, from a forward pass of its own."""
    loss_fn = entry.loss_fn()
    for d, part in enumerate(parts):
        data = pick(batch, part)
        with seeded(SEED, index, d):
            if loss_fn is None:
                yield model(**data).loss if isinstance(data, dict) else cross_entropy(model(data[0]), data[1])
            elif isinstance(loss_fn, nn.Module):
                yield loss_fn(model(data[0]), data[1])
            else:
                yield loss_fn(model, data).mean()


def whole_batch_losses(entry: Entry, model: nn.Module, batch: Any, parts: Windows, index: int = INDEX) -> Iterator[Tensor]:
    """The mean loss of each sub-batch, all from one forward pass over the whole batch."""
    loss_fn = entry.loss_fn()
    with seeded(SEED, index):
        if loss_fn is not None and not isinstance(loss_fn, nn.Module):
            values = loss_fn(model, batch)
            yield from (torch.stack([values[i] for i in part]).mean() for part in parts)
            return
        output = model(batch[0])
        for part in parts:
            yield (loss_fn or cross_entropy)(pick(output, part), pick(batch[1], part))


LOSSES = {"subbatch": subbatch_losses, "batch": whole_batch_losses}


def set_mode(model: nn.Module, train_mode: bool) -> None:
    """Norms on the statistics of what they see, unless frozen; everything else without noise, unless asked for."""
    frozen = {m for m in model.modules() if model.training and not m.training}
    model.train(train_mode or model.training)
    for module in model.modules():
        normalizes = isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm))
        module.training = train_mode and module not in frozen
        if normalizes and module not in frozen:
            vars(module)["track_running_stats"] = False
            module._buffers["running_mean"] = module._buffers["running_var"] = None


@contextmanager
def fresh_buffers(model: nn.Module) -> Iterator[Callable[[], None]]:
    """A function that gives the model new buffers with the original values; older graphs keep the older ones."""
    originals = [(m, name, b.clone()) for m in model.modules() for name, b in m._buffers.items() if b is not None]

    def renew() -> None:
        for module, name, value in originals:
            module._buffers[name] = value.clone()

    renew()
    yield renew
    renew()


def gradients(
    entry: Entry,
    model: nn.Module,
    batch: Any,
    batch_norm: str,
    *,
    create_graph: bool,
    centred: bool = False,
    index: int = INDEX,
) -> list[list[Tensor]]:
    """g_d of every sub-batch, a real vector per parameter that trains; ``index`` is the number of the batch."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    parts = windows(len(first_tensor(batch)), entry.num_subbatches, entry.overlap)
    found = []
    outputs: list[Any] = []
    handle = model.register_forward_hook(lambda module, args, output: outputs.append(output))
    with fresh_buffers(model) as renew:
        for loss in LOSSES[batch_norm](entry, model, batch, parts, index):
            output = logits_of(outputs[-1]) if centred else None
            whole = gradient(loss, output, classes_of(entry, output), parameters, create_graph)
            found.append([as_real(g.to_dense()).flatten() for g in whole])
            if batch_norm == "subbatch":
                renew()
    handle.remove()
    return found


def logits_of(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = output["logits"] if isinstance(output, dict) else output[0]
    return output


def classes_of(entry: Entry, output: Tensor | None) -> int:
    """The dimension of the classes: the second for criteria that have it there."""
    second = output is not None and output.ndim > 1 and isinstance(entry.loss_fn(), nn.CrossEntropyLoss)
    return 1 if second else -1


def gradient(
    loss: Tensor, output: Tensor | None, classes: int, parameters: list[nn.Parameter], create_graph: bool
) -> Sequence[Tensor]:
    """The gradient of a loss; less what the mean slope at an output adds to it, if there is one."""
    options: dict[str, Any] = {
        "create_graph": create_graph,
        "retain_graph": True,
        "materialize_grads": True,
        "allow_unused": True,
    }
    whole: Sequence[Tensor] = torch.autograd.grad(loss, parameters, **options)
    if output is None:
        return whole
    (slope,) = torch.autograd.grad(loss, output, create_graph=True)
    others = [d for d in range(output.ndim) if output.ndim == 1 or d != classes % output.ndim]
    counts = (slope != 0).any(classes, keepdim=True) if output.ndim > 1 else slope != 0
    mean = torch.where(counts, slope.sum(others, keepdim=True) / counts.sum(others, keepdim=True), 0.0)
    common = torch.autograd.grad(output, parameters, mean.expand_as(slope), **options)
    return [g - c for g, c in zip(whole, common, strict=True)]


def as_real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def gram_of(vectors: list[list[Tensor]]) -> Tensor:
    long = [torch.cat(parts) for parts in vectors]
    return torch.stack([torch.stack([(g * h).sum() for h in long]) for g in long])


@dataclass(frozen=True)
class Figures:
    """What an engine has to find on an entry, or has found.

    Attributes:
        gram: K, the Gram matrix of the sub-batch gradients, shape ``(D, D)``, without a graph.
        derivatives: for each function of K, <dphi/dW_k, W_k>, by parameter name.
    """

    gram: Tensor
    derivatives: dict[str, dict[str, float]]


@contextmanager
def plain_weight_norm() -> Iterator[None]:
    """The second derivative of torch's own kernel is wrong where it takes norms of rows."""

    def plain(v: Tensor, g: Tensor, dim: int) -> Tensor:
        others = [other for other in range(v.ndim) if dim in (-1, None) or other != dim]
        return v * g / v.square().sum(others, keepdim=True).sqrt()

    hook_module = sys.modules["torch.nn.utils.weight_norm"]
    with patch.object(torch, "_weight_norm", plain), patch.object(hook_module, "_weight_norm", plain):
        yield


def prepared(entry: Entry) -> tuple[nn.Module, Any]:
    """The model in the mode in which it is measured, and the batch."""
    model, batch = entry.model(), entry.batch()
    set_mode(model, entry.train_mode)
    return model, batch


@contextmanager
def plain_operations() -> Iterator[None]:
    """A block in which torch has right second derivatives, as far as that can be had."""
    # cuDNN has no second derivative of recurrence.
    with sdpa_kernel(SDPBackend.MATH), plain_weight_norm(), torch.backends.cudnn.flags(enabled=False):
        yield


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def truth(
    entry: Entry,
    batch_norm: str,
    functions: Sequence[str] = tuple(PHI),
    *,
    centred: bool = False,
    index: int = INDEX,
) -> Figures:
    """What every engine has to find, by plain double backward.

    Args:
        entry: the model, its batch and its loss.
        batch_norm: whose statistics normalize, those of ``"subbatch"`` or ``"batch"``.
        functions: the functions of K to differentiate, keys of :data:`PHI`. None are where torch has no second derivative
            of the entry.
        centred: whether gradients are centred.
        index: the number of the batch, on which the random numbers depend that the model draws.
    """
    model, batch = prepared(entry)
    named = trained(model)
    functions = functions if entry.double_backward else ()
    with plain_operations():
        rows = gradients(entry, model, batch, batch_norm, create_graph=bool(functions), centred=centred, index=index)
        gram = gram_of(rows)
        found = {
            name: torch.autograd.grad(
                PHI[name](gram), list(named.values()), retain_graph=True, materialize_grads=True, allow_unused=True
            )
            for name in functions
        }
    return Figures(gram.detach(), {name: along(named, slopes) for name, slopes in found.items()})


known_truth = functools.cache(truth)
"""The truth of an entry, computed once."""


def along(named: Mapping[str, nn.Parameter], slopes: Iterable[Tensor]) -> dict[str, float]:
    """<slope, W> of every parameter, by name."""
    pairs = zip(named.items(), slopes, strict=True)
    return {name: float((as_real(slope.to_dense()) * as_real(p.detach())).sum()) for (name, p), slope in pairs}


@functools.cache
def central_differences(entry: Entry, batch_norm: str, *, centred: bool = False) -> dict[str, dict[str, float]]:
    """The derivatives that :func:`truth` has, of all functions, by central differences along the scale of each tensor."""
    model, batch = prepared(entry)

    def values() -> dict[str, float]:
        gram = gram_of(gradients(entry, model, batch, batch_norm, create_graph=False, centred=centred))
        return {name: float(phi(gram)) for name, phi in PHI.items()}

    with plain_operations():
        slopes = differences_along(trained(model), values, entry.smooth)
    return {phi: {name: found[phi] for name, found in slopes.items()} for phi in PHI}


def differences_along(
    named: Mapping[str, nn.Parameter], values: Callable[[], dict[str, float]], smooth: bool = True
) -> dict[str, dict[str, float]]:
    """Fourth-order central differences of named values along the scale of every parameter, by parameter.

    Args:
        named: the parameters.
        values: computes the values.
        smooth: whether a long step is safe; a short one keeps on one side of a kink.
    """
    step = 1e-3 if smooth else 1e-6
    slopes = {}
    for name, parameter in named.items():
        original, at = parameter.detach().clone(), {}
        for steps in (-2, -1, 1, 2):
            with torch.no_grad():
                parameter.copy_(original * (1 + steps * step))
            at[steps] = values()
        with torch.no_grad():
            parameter.copy_(original)
        slopes[name] = {key: (8 * (at[1][key] - at[-1][key]) - (at[2][key] - at[-2][key])) / (12 * step) for key in at[1]}
    return slopes
