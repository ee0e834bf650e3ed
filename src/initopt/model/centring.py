r"""Gradients without the part that an output bias would take care of.

The gradient of a mean loss over n samples is :math:`g = \frac1n \sum_i J_i^\top p_i`, with the output's Jacobian
:math:`J_i` and the loss's slope :math:`p_i = \partial \ell_i / \partial o_i`. The mean slope
:math:`\bar p = \frac1n \sum_i p_i` asks for the same change of every output, whatever the input: the frequencies of the
classes, the mean of the targets. All samples agree on it, so that a network that ignores its input has GradCosine 1. The
centred gradient leaves it out:

.. math:: g^c = \frac1n \sum_i J_i^\top (p_i - \bar p) = \frac1n \sum_i (J_i - \bar J)^\top (p_i - \bar p),

the covariance, within a sub-batch, of what the outputs can do and what the loss asks of them. It is zero exactly where the
outputs do not depend on the inputs. :math:`\bar p` is itself a function of the weights, and is differentiated as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from initopt._support.checks import check_choice
from initopt.batches.nested import named_tensors

__all__ = ["Centre", "Centring", "Means", "Output", "bent", "check_centre", "slopes", "watching", "watching_one_pass"]

Centre = Literal["output"]
"""What gradients are centred by."""

_CENTRES = ("output",)


def check_centre(centre: str | None) -> None:
    """Refuse an unknown way to centre gradients with a ValueError."""
    if centre is not None:
        check_choice("centre", centre, _CENTRES)


@dataclass(frozen=True)
class Layout:
    """The places of samples, positions and channels in an output tensor.

    Attributes:
        shape: of the output.
        channel: the dimension along which an output bias would have its entries; ``None`` for one number a sample. All
            other dimensions are samples and positions.
    """

    shape: torch.Size
    channel: int | None

    def rows(self, tensor: Tensor) -> Tensor:
        """A tensor of the output's shape as a matrix: a row for each sample and position."""
        if self.channel is None:
            return tensor.reshape(-1, 1)
        return tensor.movedim(self.channel, -1).reshape(-1, self.shape[self.channel])

    def shaped(self, rows: Tensor) -> Tensor:
        """The inverse of :meth:`rows`."""
        if self.channel is None:
            return rows.reshape(self.shape)
        others = [size for dimension, size in enumerate(self.shape) if dimension != self.channel]
        return rows.reshape(*others, self.shape[self.channel]).movedim(-1, self.channel)

    def centred(self, slope: Tensor, groups: int = 1, mean: Tensor | None = None) -> Tensor:
        """A slope less its mean over samples and positions.

        A row that is zero (a masked position, an ignored target, a sample of another sub-batch) takes no part.

        Args:
            slope: of the output's shape.
            groups: how many sub-batches of the same size it holds, one after the other, each with its own mean.
            mean: what to subtract in place of the mean of these rows, shape ``(1, channels)``.
        """
        rows = self.rows(slope)
        wide = _wide(rows).reshape(groups, -1, rows.shape[1])
        active = _active(wide)
        if mean is None:
            mean = wide.sum(1, keepdim=True) / active.sum(1, keepdim=True).clamp_min(1)
        return self.shaped((wide - active * mean).flatten(0, 1).to(rows.dtype))


@dataclass(frozen=True)
class Output:
    """A tensor that the model returned in a forward pass.

    Attributes:
        name: number of the call of the model and path of the tensor in what it returned.
        value: the tensor, with its graph.
        layout: of its samples and channels.
    """

    name: str
    value: Tensor = field(repr=False)
    layout: Layout


class Means:
    """Means over the samples of several forward passes, by output name, as leaves of what is computed with them.

    Attributes:
        leaves: each of shape ``(1, channels)``.
        counts: over how many rows each was taken.
        derivatives: with respect to each leaf, of what was differentiated so far.
    """

    def __init__(self) -> None:
        self.leaves: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.derivatives: dict[str, Tensor] = {}

    @classmethod
    def over(cls, passes: Iterable[tuple[Sequence[Output], Sequence[Tensor], Sequence[Tensor]]]) -> Means:
        """The means over passes, each given by its outputs, their slopes, and what is averaged where these are not zero."""
        means = cls()
        sums: dict[str, Tensor] = {}
        for outputs, found, values in passes:
            for output, slope, value in zip(outputs, found, values, strict=True):
                active = _active(output.layout.rows(slope))
                total = (active * _wide(output.layout.rows(value.detach()))).sum(0, keepdim=True)
                sums[output.name] = sums[output.name] + total if output.name in sums else total
                means.counts[output.name] = means.counts.get(output.name, 0) + int(active.sum())
        means.leaves = {name: (total / max(means.counts[name], 1)).requires_grad_() for name, total in sums.items()}
        return means

    def met(self, found: Iterable[Tensor | None]) -> None:
        """Add derivatives with respect to the leaves, in their order."""
        for name, derivative in zip(self.leaves, found, strict=True):
            if derivative is not None:
                known = self.derivatives.get(name)
                self.derivatives[name] = derivative if known is None else known + derivative

    def pulled_back(self, output: Output, slope: Tensor) -> Tensor:
        """The derivative with respect to an output's slope, through the mean; of the shape of the output."""
        derivative = self.derivatives.get(output.name)
        if derivative is None:
            return torch.zeros_like(slope)
        rows = output.layout.rows(slope.detach())
        spread = _active(rows) * (derivative / max(self.counts[output.name], 1))
        return output.layout.shaped(spread.to(rows.dtype))


def _active(rows: Tensor) -> Tensor:
    return (rows.detach() != 0).any(-1, keepdim=True)


def _wide(tensor: Tensor) -> Tensor:
    """A tensor in single precision or more, in which a sum over many samples neither overflows nor stalls."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def slopes(loss: Tensor, outputs: Sequence[Output], create_graph: bool = False) -> list[Tensor]:
    """Derivatives of a loss with respect to outputs; zeros for those that it does not depend on. Keeps the graph."""
    found = torch.autograd.grad(
        loss, [o.value for o in outputs], create_graph=create_graph, retain_graph=True, allow_unused=True
    )
    return [torch.zeros_like(o.value) if slope is None else slope for o, slope in zip(outputs, found, strict=True)]


def bent(
    outputs: Sequence[Output], found: Sequence[Tensor], far: Sequence[Tensor], means: Means | None, moved: Means
) -> list[Tensor]:
    r"""Slopes at outputs that moved, for a difference that is the transposed derivative of the centred gradient.

    With the projection P onto centred slopes and the curvature H of the loss in the outputs, the derivative of
    :math:`\langle v, J^\top P p \rangle` is :math:`(\partial_v J)^\top P p + J^\top H P J v`. It is a difference of two
    backward passes: one from :math:`P p`, and, where the weights have moved along v and the outputs by
    :math:`\Delta \approx J v`, one from :math:`P p + H P \Delta`. This takes the slopes to depend on the weights by the
    outputs alone; where the loss uses a weight itself, too, what comes of that is left out.

    Args:
        outputs: before the move, with their graph.
        found: their slopes p, with a graph.
        far: the outputs after the move.
        means: the means of the slopes, if not their own.
        moved: the means of the moves.
    """
    centred, shifts = [], []
    for output, slope, there in zip(outputs, found, far, strict=True):
        layout = output.layout
        centred.append(layout.centred(slope.detach(), 1, None if means is None else means.leaves[output.name].detach()))
        shift = layout.rows(there.detach() - output.value.detach())
        mean = moved.leaves[output.name].detach()
        shifts.append(layout.shaped((_active(layout.rows(slope)) * (_wide(shift) - mean)).to(shift.dtype)))
    curved = [(p, shift) for p, shift in zip(found, shifts, strict=True) if p.requires_grad]
    if not curved:
        return centred
    values, directions = [output.value for output in outputs], [shift for _, shift in curved]
    bends = torch.autograd.grad([p for p, _ in curved], values, directions, retain_graph=True, allow_unused=True)
    return [c if bend is None else c + bend for c, bend in zip(centred, bends, strict=True)]


@contextmanager
def watching(model: nn.Module) -> Iterator[list[Any]]:
    """A list of all that the model returns within the block."""
    seen: list[Any] = []
    handle = model.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def watching_one_pass(model: nn.Module) -> Iterator[list[Any]]:
    """A list as that of :func:`watching`, for a loss that may call only parts of the model, as a ``training_step`` may.

    If the model itself was not called, the list holds what its parts have returned that have parameters, when the block
    ends.
    """
    of_parts: list[Any] = []
    parts = [part for part in model.children() if any(True for _ in part.parameters())]
    with watching(model) as seen, ExitStack() as stack:
        for part in parts:
            handle = part.register_forward_hook(lambda module, args, output: of_parts.append(output))
            stack.callback(handle.remove)
        yield seen
        if not seen:
            seen.extend(of_parts)


@dataclass
class Centring:
    """Which outputs of a model have their slopes centred: decided on the first batch, by one look at the loss.

    Attributes:
        off: why no output is centred, as a clause; ``None`` if some are, or as long as nothing is decided.
        settled: whether it is decided.
        names: of the outputs.
    """

    off: str | None = None
    settled: bool = False
    names: frozenset[str] = field(default_factory=frozenset)
    _handles: list[RemovableHandle] = field(default_factory=list, repr=False)

    def state(self) -> dict[str, Any]:
        """What was decided, as JSON has it."""
        return {"settled": self.settled, "off": self.off, "names": sorted(self.names)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Decide what was decided before: the inverse of :meth:`state`."""
        self.settled, self.off, self.names = state["settled"], state["off"], frozenset(state["names"])

    def switch_off(self, why: str) -> None:
        """Decide that nothing is centred."""
        self.settled, self.off = True, why

    @contextmanager
    def first_derivatives(self) -> Iterator[None]:
        """The block in which losses are computed and first derivatives taken: slopes are changed in it, and not later.

        What comes in at an output in a second derivative is another matter, and must not be centred.
        """
        try:
            yield
        finally:
            for handle in self._handles:
                handle.remove()
            self._handles.clear()

    def change_slope(self, output: Output, function: Callable[[Tensor], Tensor]) -> None:
        """Have a function change what comes in at an output in the first derivatives of this block."""
        self._handles.append(output.value.register_hook(function))  # type: ignore[no-untyped-call]

    def centre(self, output: Output, groups: int = 1, mean: Tensor | None = None) -> None:
        """Have the slope of an output centred in the first derivatives of this block: see :meth:`Layout.centred`."""
        layout = output.layout  # and not the output, which would hold on to itself
        self.change_slope(output, lambda slope: layout.centred(slope, groups, mean))

    @property
    def active(self) -> bool:
        """Whether slopes are centred."""
        return self.settled and self.off is None

    def candidates(self, seen: Sequence[Any], channel: Callable[[Tensor], int | None]) -> list[Output]:
        """The outputs that could be centred, among what the model returned."""
        return _outputs(seen, channel)

    def chosen(self, seen: Sequence[Any], channel: Callable[[Tensor], int | None]) -> list[Output]:
        """The outputs to be centred, among what the model returned."""
        return [output for output in _outputs(seen, channel) if output.name in self.names]

    def settle(self, seen: Sequence[Any], channel: Callable[[Tensor], int | None], loss: Tensor, samples: int) -> None:
        """Decide which outputs are centred, by one look at the loss.

        Args:
            seen: what the model returned.
            channel: gives the channel dimension of an output.
            loss: what came of it, with its graph.
            samples: how many there were.
        """
        self.settled = True
        outputs = _outputs(seen, channel)
        values = [output.value for output in outputs]
        reached = torch.autograd.grad(loss, values, retain_graph=True, allow_unused=True) if values else ()
        used = [output for output, slope in zip(outputs, reached, strict=True) if slope is not None]
        if not used:
            self.switch_off("the loss does not go through a tensor that the model's forward returns")
            return
        last = _last(used)
        self.names = frozenset(output.name for output in last)
        # Both for all of them: of a model in parts, other ranks wait for a derivative that is left out here.
        same = [_asks_the_same(output, loss) for output in last]
        comparing = [_compares(output, loss, samples) for output in last]
        if all(same):
            self.switch_off("the loss asks the same of every sample, whatever its outputs and targets are")
        elif any(comparing):
            self.switch_off(
                "the loss compares samples with each other, so that no output bias would lower it for all of them"
            )


def _outputs(seen: Sequence[Any], channel: Callable[[Tensor], int | None]) -> list[Output]:
    found: dict[int, Output] = {}  # a tensor that is returned twice is one output
    for call, returned in enumerate(seen):
        for name, tensor in _named(returned):
            if tensor.is_floating_point() and tensor.grad_fn is not None and tensor.ndim > 0:
                layout = Layout(tensor.shape, channel(tensor))
                found.setdefault(id(tensor), Output(f"call {call}: {name}", tensor, layout))
    return list(found.values())


def _named(returned: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of an output; of one that names its logits, these alone."""
    if isinstance(returned, Mapping):
        logits = {key: value for key, value in returned.items() if str(key).endswith("logits")}
        yield from named_tensors(logits or dict(returned), "output")
    elif isinstance(getattr(returned, "logits", None), Tensor):
        yield "output.logits", returned.logits
    else:
        yield from named_tensors(returned, "output")


def _last(outputs: Sequence[Output]) -> list[Output]:
    """The outputs that no other one is computed from."""
    if len(outputs) == 1:
        return list(outputs)
    values = [output.value for output in outputs]
    upstream: set[int] = set()
    for i, value in enumerate(values):
        others = [j for j, other in enumerate(values) if other is not value]
        if not others:
            continue
        found = torch.autograd.grad(value.sum(), [values[j] for j in others], retain_graph=True, allow_unused=True)
        upstream |= {j for j, derivative in zip(others, found, strict=True) if derivative is not None and j != i}
    return [output for i, output in enumerate(outputs) if i not in upstream]


def _asks_the_same(output: Output, loss: Tensor) -> bool:
    """Whether a loss is linear in an output, with the same slope for all samples."""
    (slope,) = torch.autograd.grad(loss, [output.value], create_graph=True)
    rows = output.layout.rows(slope)
    rows = rows[_active(rows).squeeze(-1)]
    return not slope.requires_grad and len(rows) > 1 and bool((rows == rows[0]).all())


def _compares(output: Output, loss: Tensor, samples: int) -> bool:
    """Whether the slope at some samples depends on the output at others."""
    (slope,) = torch.autograd.grad(loss, [output.value], create_graph=True)
    rows = output.layout.rows(slope)
    counting = _active(rows).squeeze(-1)  # those of the first sub-batch, where the output is that of all
    rows = rows[counting]
    a_sample = max(len(rows) // samples, 1) if len(rows) % samples == 0 else 1
    half = a_sample * ((len(rows) // a_sample) // 2)
    if half == 0 or not slope.requires_grad:
        return False
    first = rows[:half]
    try:
        found = torch.autograd.grad((first * first.detach()).sum(), output.value, retain_graph=True, allow_unused=True)
    except RuntimeError:  # a loss without a second derivative: nothing is known, and most losses do not compare
        return False
    bends = output.layout.rows(torch.zeros_like(output.value) if found[0] is None else found[0])[counting]
    return bool(bends[half:].abs().max() > torch.finfo(bends.dtype).eps ** 0.5 * bends.abs().max())
