"""A record of a model while it runs: outputs of its modules, its activations, and the gradients that come back."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from initopt._support._torch_private import BATCH_NORMS, CONVOLUTIONS, INSTANCE_NORMS, parameters_of, undisturbed
from initopt.batches.nested import named_tensors
from initopt.model.problem import as_real
from initopt.model.sharded import own_class

__all__ = ["ACTIVATIONS", "TINY", "Node", "Recorder", "is_tiny", "real", "root_mean_square"]

ACTIVATIONS = {
    *("relu", "relu6", "leaky_relu", "rrelu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh"),
    *("hardtanh", "hardswish", "hardsigmoid", "softplus", "softsign", "logsigmoid", "sin"),
}
"""Functions whose outputs are recorded also where no module of their own calls them."""

TINY = 6e-8
"""The smallest positive number of half precision, 2 to the power of -24."""

_SIDE = 128
"""Rows and columns of the sample of an output whose effective rank is taken."""

_CALLS = 16
"""Calls of a module in a pass that are told apart; later ones count as the last of these."""

_ENDS = {"tanh": (-0.975, 0.975), "sigmoid": (0.0128, 0.9872), "hardsigmoid": (0.0, 1.0), "hardtanh": (-1.0, 1.0)}
"""Outputs beyond which the slope is below a twentieth of the largest; that of the hard functions is zero at their ends."""


def real(tensor: Tensor) -> Tensor:
    """A tensor as single precision, a complex one as its parts."""
    dense = as_real(tensor.detach())
    return dense.to(torch.float64 if dense.dtype == torch.float64 else torch.float32)


def is_tiny(gradient: Tensor) -> Tensor:
    """Mask of the entries of a gradient that half precision has no number for; in half precision, zeros are among them."""
    if gradient.dtype == torch.float16:
        return gradient.abs() < torch.finfo(torch.float16).tiny
    return (gradient != 0) & (gradient.abs() < TINY)


def root_mean_square(tensor: Tensor) -> float:
    """The root mean square of a tensor, which neither over- nor underflows; 0 of an empty one."""
    if tensor.numel() == 0:
        return 0.0
    values = real(tensor)
    largest = float(values.abs().max())
    if largest == 0 or not math.isfinite(largest):
        return largest
    return largest * float((values / largest).square().mean().sqrt())


_NORMS = (*BATCH_NORMS, *INSTANCE_NORMS)


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


class Node:
    """Sums over the outputs of one call, over all passes.

    Attributes:
        name: path of the module, with the function or the number of the call where these tell it apart.
        path: of the module.
        kind: class of the module, or name of the function.
        function: the activation that it is, if it is one.
        weights: the parameters of the module itself.
        matrix: whether the module is a linear map.
        order: place among all calls.
    """

    def __init__(
        self, name: str, path: str, kind: str, function: str | None, module: nn.Module | None, order: int, channel: int
    ) -> None:
        self.name, self.path, self.kind, self.function, self.order = name, path, kind, function, order
        self.weights = [] if module is None else list(parameters_of(module).values())
        self.matrix = isinstance(module, (nn.Linear, nn.Bilinear, *CONVOLUTIONS))
        self.channel = channel
        self.shape: tuple[int, ...] = ()
        self._figures: list[Tensor] = []
        self._slopes: list[Tensor] = []
        self._largest: Tensor | None = None
        self._moving: Tensor | None = None
        self._rows: list[Tensor] = []

    def add(self, output: Tensor, rows: int) -> None:
        """Add an output.

        Args:
            output: of a pass.
            rows: how many rows of it to keep for the effective rank.
        """
        self.shape = tuple(output.shape[1:])
        every = real(output)
        channel = self.channel if every.ndim > 1 else None
        others = [d for d in range(every.ndim) if d != channel]
        largest = every.abs().amax(others).reshape(-1)
        # Means are over some positions, evenly spread; statistics of all would take longer than the model itself.
        values = _spread(every, channel)
        flat = values.reshape(-1, 1) if channel is None else values.movedim(channel, -1).flatten(0, -2)
        size = largest.max().clamp_min(torch.finfo(flat.dtype).tiny)
        size = torch.where(torch.isfinite(size), size, torch.ones_like(size))
        scaled = flat / size
        mean = scaled.mean(0)
        moving = (flat != flat[:1]).any(0)
        # Not var_mean, which takes ten times as long along the first dimension. What is constant has no rounding errors.
        variance = torch.where(moving, (scaled - mean).square().mean(0), torch.zeros_like(mean))
        low, high = _ENDS.get(self.function or "", (-math.inf, math.inf))
        at_end = (flat <= low) | (flat >= high) if low > -math.inf else torch.zeros_like(flat[:1], dtype=torch.bool)
        figures = (
            size, mean.mean(), (variance + mean.square()).mean(), variance.mean(), (flat == 0).to(mean).mean(),
            at_end.to(mean).mean(), _broken(every, largest), largest.max(),
        )  # fmt: skip
        self._figures.append(torch.stack(figures))
        if self._largest is None or self._moving is None or self._largest.shape != largest.shape:
            self._largest, self._moving = largest, moving
        else:
            self._largest, self._moving = torch.maximum(self._largest, largest), self._moving | moving
        if rows:
            self._rows.append(_sample(flat, rows))

    def add_slope(self, slope: Tensor, samples: int) -> None:
        """Add the gradient, with respect to an output, of a mean loss over some samples."""
        values = real(slope)
        if values.numel() == 0:
            return
        # Of the loss of one sample, so that it does not depend on the batch size.
        norm = _norm(values) * math.sqrt(samples)
        # Only half precision loses what is tiny, and only then it is asked for.
        tiny = is_tiny(slope.detach()).to(norm).mean() if slope.dtype == torch.float16 else torch.zeros_like(norm)
        self._slopes.append(torch.stack([norm, tiny]))

    def rank(self) -> float:
        """The effective rank of the rows kept so far, which are then forgotten; nan if there are too few."""
        rows = [row for row in self._rows if row.shape[1] == self._rows[0].shape[1]]
        self._rows = []
        if not rows or sum(map(len, rows)) < 4:
            return math.nan
        matrix = torch.cat(rows).double().cpu()
        matrix = matrix - matrix.mean(0)
        size = float(matrix.abs().max())
        if not math.isfinite(size) or size == 0:
            return math.nan
        values = torch.linalg.svdvals(matrix / size)
        shares = values / values.sum()
        shares = shares[shares > 1e-12]
        return float((-(shares * shares.log()).sum()).exp())

    def figures(self) -> dict[str, float]:
        """The sums, by the names of the fields of :class:`initopt.diagnosis.seen.Call`."""
        found = torch.stack(self._figures).double().cpu()
        size, mean, square, variance = found[:, 0], found[:, 1], found[:, 2], found[:, 3]
        largest = size.max()
        scale = (size / largest).square()
        rms = float(largest * (square * scale).mean().sqrt())
        deviation = float(largest * (variance * scale).mean().sqrt())
        assert self._largest is not None
        assert self._moving is not None
        figures = {
            "rms": rms,
            "mean": float((mean * size).mean()),
            "deviation": deviation,
            "zeros": float(found[:, 4].mean()),
            "saturated": float(found[:, 5].mean()),
            "broken": float(found[:, 6].mean()),
            "largest": float(found[:, 7].max()),
            "dead": float((self._largest == 0).double().mean()),
            "still": float((~self._moving).double().mean()),
            "slope": math.nan,
            "tiny_slopes": math.nan,
        }
        if self._slopes:
            slopes = torch.stack(self._slopes).double().cpu()
            figures |= {"slope": float(slopes[:, 0].square().mean().sqrt()), "tiny_slopes": float(slopes[:, 1].mean())}
        return figures

    @property
    def units(self) -> int:
        """The number of channels or features."""
        return 0 if self._largest is None else len(self._largest)


_POSITIONS = 4096
"""Most samples and positions of an output that its means are over, about."""


def _spread(values: Tensor, channel: int | None) -> Tensor:
    """Some positions of an output, evenly spread, and of samples only if there are too many without any position."""
    count = values.numel() // (1 if channel is None else values.shape[channel])
    for dimension in [*(d for d in reversed(range(1, values.ndim)) if d != channel), 0]:
        if count <= _POSITIONS or dimension == channel:
            break
        size = values.shape[dimension]
        step = min(size, -(-count // _POSITIONS))
        values = values[(slice(None),) * dimension + (slice(None, None, step),)]
        count = count // size * values.shape[dimension]
    return values


def _broken(values: Tensor, largest: Tensor) -> Tensor:
    """The share of entries that are infinite or not a number; the largest ones show whether there is any."""
    if values.device.type == "cpu" and bool(torch.isfinite(largest).all()):
        return torch.zeros((), dtype=values.dtype, device=values.device)
    return (~torch.isfinite(values)).to(values.dtype).mean()


def _norm(values: Tensor) -> Tensor:
    """The norm of a tensor, which neither over- nor underflows."""
    norm: Tensor = torch.linalg.vector_norm(values)
    if values.device.type == "cpu" and 1e-12 < float(norm) < 1e15:
        return norm
    size = values.abs().max()
    finite = torch.isfinite(size) & (size > 0)
    return size * (values / torch.where(finite, size, torch.ones_like(size))).square().sum().sqrt()


def _sample(flat: Tensor, rows: int) -> Tensor:
    """Some rows and columns of a matrix, evenly spread over it."""
    for dimension, most in ((0, rows), (1, _SIDE)):
        size = flat.shape[dimension]
        if size > most:
            places = torch.linspace(0, size - 1, most, device=flat.device).round().long()
            flat = flat.index_select(dimension, places)
    return flat.clone()


class Recorder(TorchFunctionMode):
    """A block in which a model that runs is recorded.

    Args:
        model: the model.
        parts: number of passes that make up the first batch, on which the effective ranks are taken.

    Attributes:
        nodes: by name, in the order in which they first ran.
        used: parameters that some function was given, or whose module has run without one that shows it.
        attention: entropies of attention weights relative to those of uniform ones, by the name of the module.
        output: of the model in the last pass.
    """

    def __init__(self, model: nn.Module, parts: int) -> None:
        super().__init__()
        self.nodes: dict[str, Node] = {}
        self.used: set[int] = set()
        self.attention: dict[str, list[Tensor]] = {}
        self.output: Any = None
        self._model = model
        self._own = {id(p) for p in model.parameters()}
        self._rows = max(_SIDE // parts, 2)
        self._ranked = True
        self._backward = self._running = False
        self._samples = 1
        self._stack: list[tuple[str, nn.Module]] = []
        self._counts: dict[str, int] = {}
        self._channels: dict[int, int] = {}
        self._inner: tuple[Tensor, str] | None = None
        self.ranks: dict[str, float] = {}

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """A block in which the hooks are on."""
        with ExitStack() as stack:
            for name, module in self._model.named_modules():
                before = module.register_forward_pre_hook(self._entering(name))
                after = module.register_forward_hook(self._leaving(name))
                stack.callback(before.remove)
                stack.callback(after.remove)
            yield

    @contextmanager
    def running(self, samples: int, backward: bool) -> Iterator[None]:
        """A block of one forward pass over some samples, with or without a backward pass after it."""
        self._counts, self._stack, self._inner = {}, [], None
        self._samples, self._backward, self._running, self.output = samples, backward, True, None
        try:
            with self:
                yield
        finally:
            self._running = False

    @contextmanager
    def aside(self) -> Iterator[dict[str, Node]]:
        """A block whose passes are recorded in nodes of their own, which it gives."""
        kept = self.nodes, self.attention, self.output, self._ranked
        self.nodes, self.attention, self._ranked = {}, {}, False
        try:
            yield self.nodes
        finally:
            self.nodes, self.attention, self.output, self._ranked = kept

    def first_batch_done(self) -> None:
        """Take the effective ranks, and keep no more rows."""
        self.ranks = {name: node.rank() for name, node in self.nodes.items()}
        self._ranked = False

    def _entering(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            if self._running:
                self._stack.append((name, module))

        return hook

    def _leaving(self, name: str) -> Any:
        own = weakref.ref(self._model)

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not self._running:
                return
            while self._stack and self._stack.pop()[1] is not module:
                pass  # what was left by an exception
            if module is own():
                self.output = output
            parameters = [p for p in parameters_of(module).values() if p is not None]
            leaf = _is_leaf(module)
            if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
                self.used.update(id(p) for p in module.parameters())
            if leaf or parameters:
                tensor = next((t for _, t in named_tensors(output)), None)
                if tensor is not None:
                    inner, self._inner = self._inner, None
                    function = inner[1] if inner is not None and inner[0] is tensor else None
                    with undisturbed():  # what is computed here is not the model's
                        self._record(tensor, name, own_class(module).__name__, function, module)

        return hook

    def _record(self, output: Tensor, path: str, kind: str, function: str | None, module: nn.Module | None) -> None:
        if not (output.is_floating_point() or output.is_complex()) or output.numel() == 0 or output.ndim == 0:
            return
        place = path if module is not None else f"{path}.{kind}()".lstrip(".")
        number = self._counts[place] = min(self._counts.get(place, 0) + 1, _CALLS)
        name = place if number == 1 else f"{place}#{number}"
        node = self.nodes.get(name)
        if node is None:
            order = len(self.nodes)
            node = self.nodes[name] = Node(name, path, kind, function, module, order, self._channel(output, module))
        if output.is_complex():
            return
        node.add(output, self._rows if self._ranked else 0)
        if self._backward and output.requires_grad:
            samples = self._samples
            output.register_hook(lambda slope: node.add_slope(slope, samples))  # type: ignore[no-untyped-call]

    def _channel(self, output: Tensor, module: nn.Module | None) -> int:
        """The dimension of units: known of layers, and that of the last output with as many dimensions after these."""
        if isinstance(module, (*CONVOLUTIONS, nn.GroupNorm)) or (isinstance(module, _NORMS) and output.ndim > 2):
            channel = 1
        elif module is not None and parameters_of(module) and not isinstance(module, (*_NORMS, nn.PReLU)):
            channel = output.ndim - 1
        else:
            channel = self._channels.get(output.ndim, 1 if output.ndim > 3 else output.ndim - 1)
        channel = min(channel, output.ndim - 1)
        self._channels[output.ndim] = channel
        return channel

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self._running:
            for value in (*args, *kwargs.values()):
                for item in value if isinstance(value, (list, tuple)) else (value,):
                    if isinstance(item, Tensor) and id(item) in self._own:
                        self.used.add(id(item))
        if self._running and "scaled_dot_product_attention" in name:
            self._attend(*args, **kwargs)
        result = func(*args, **kwargs)
        if not self._running or not isinstance(result, Tensor):
            return result
        plain = name.removesuffix("_")
        path, module = self._stack[-1] if self._stack else ("", None)
        if plain in ACTIVATIONS:
            if (module is not None and _is_leaf(module) and not parameters_of(module)) or (
                module is not None and isinstance(module, nn.PReLU)
            ):
                self._inner = (result, plain)
            else:
                self._record(result, path, plain, plain, None)
        elif plain == "softmax" and (result.ndim > 3 or (result.ndim == 3 and isinstance(module, nn.MultiheadAttention))):
            scores = args[0] if args else kwargs["input"]
            self._note_attention(scores.detach().flatten(0, -3)[:8], path)
        return result

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *others: Any, **named: Any
    ) -> None:
        """Note the attention weights of the first sample, of up to 8 heads and 128 queries."""
        mask = named.get("attn_mask", mask)
        causal = named.get("is_causal", others[1] if len(others) > 1 else False)
        if query.ndim < 3 or not query.is_floating_point():
            return
        query, key = query.detach(), key.detach()
        q, k = query.flatten(0, -3)[:8].float(), key.flatten(0, -3)[:8].float()
        if len(q) != len(k):  # grouped queries
            k = k[:1].expand(len(q), -1, -1)
        length, keys = q.shape[1], k.shape[1]
        places = torch.linspace(0, length - 1, min(length, _SIDE), device=q.device).round().long()
        scale = named.get("scale") or q.shape[-1] ** -0.5
        scores = q.index_select(1, places) @ k.transpose(1, 2) * scale
        if causal:
            seen = torch.arange(keys, device=q.device) <= places.unsqueeze(-1)
            scores = scores.masked_fill(~seen, -torch.inf)
        if mask is not None:
            full = mask.detach().expand(*query.shape[:-1], keys).flatten(0, -3)[: len(q)].index_select(1, places)
            scores = scores.masked_fill(~full, -torch.inf) if full.dtype == torch.bool else scores + full
        self._note_attention(scores, self._stack[-1][0] if self._stack else "")

    def _note_attention(self, scores: Tensor, path: str) -> None:
        scores = scores.float()
        keys = (scores > -1e9).sum(-1)  # others are masked
        weights = scores.softmax(-1)
        entropy = -(weights * weights.clamp_min(1e-30).log()).sum(-1)
        relative = entropy[keys > 1] / keys[keys > 1].log()
        if relative.numel():
            self.attention.setdefault(path, []).append(relative.mean().detach())
