"""One pass over a few batches that sees all: every call of a module, every tensor, the data and the loss."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from initopt._support.checks import check_integer
from initopt._support.errors import InitoptWarning, LoaderError, located
from initopt._support.progress import Progress, reporter
from initopt.batches.first_look import LabelError
from initopt.batches.nested import batch_size
from initopt.batches.stream import check_batches, length_of
from initopt.batches.subbatches import SubBatches
from initopt.diagnosis.data import DataFacts, OutputFacts
from initopt.diagnosis.recording import Node, Recorder, is_tiny, root_mean_square
from initopt.diagnosis.seen import Block, Call, Opened, TensorTrace, Trace, block_of
from initopt.diagnosis.updates import few_samples, first_updates, woken
from initopt.engines.base import BLOCK, Gradients, GramSum
from initopt.engines.invariance import ALIGNED, in_precision
from initopt.gram import functional
from initopt.model.double_backward import plain_attention, uses_autocast
from initopt.model.losses import LossFunction, as_loss
from initopt.model.modes import measuring
from initopt.model.parameters import NamedParameter, Parameters, is_bias
from initopt.model.preserve import Kept, unwritten
from initopt.model.problem import Batch, Part, Problem, as_real
from initopt.model.randomness import derive_seed, seeded
from initopt.model.sharded import unsharded
from initopt.model.wrappers import bare
from initopt.training.optimizers import OptimizerFactory, check_optimizer

__all__ = ["trace"]


def trace(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFunction | None = None,
    *,
    num_batches: int = 4,
    num_subbatches: int = 4,
    optimizer: OptimizerFactory | None = None,
    seed: int | None = None,
    progress: Progress = None,
) -> Trace:
    """Trace a model on a few batches, without changing it.

    Every other batch, from the first on, is run in sub-batches and differentiated; the others are only run, so that 4
    batches take the passes of 2.7 training steps; the statistics of all outputs take about as long again. Beside a training
    step's memory, it takes the gradients of the sub-batches of one batch, and some 64 kB for each call of a module while
    the first batch runs.

    Args:
        model: the model; afterwards it is as it was, also after an exception. One of ``fully_shard`` has its whole weights
            for the while, and all its processes have to call this, each with batches of its own.
        batches: an iterable of batches, as for :func:`initopt.measure`.
        loss_fn: as for :func:`initopt.measure`.
        num_batches: the most batches to take; fewer if there are no more.
        num_subbatches: D, the number of sub-batches that each batch is split into, 2 to the batch size.
        optimizer: a function of parameters that makes an optimizer, to see its first update on copies of them.
        seed: base of the seeds for what the model draws; follows from torch's random state if not given.
        progress: whether to show a progress bar; by default, if standard error is a terminal.

    Raises:
        ValueError, TypeError: for arguments that cannot work; the message says what is allowed.
        LoaderError: if there is no batch.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> seen = trace(model, [(torch.randn(32, 8), torch.randint(3, (32,)))])
    >>> [call.name for call in seen.calls], [tensor.fate for tensor in seen.tensors]
    (['0', '1', '2'], ['trains', 'trains', 'trains', 'trains'])
    """
    check_integer("num_batches", num_batches, 1)
    check_batches(batches)
    check_optimizer(optimizer)
    seed = derive_seed(None if seed is None else check_integer("seed", seed, 0))
    model, loss = bare(model), as_loss(loss_fn)
    subbatches = SubBatches(count=num_subbatches)

    def work(kept: Kept) -> Trace:
        problem = Problem(model, loss, Parameters.of(model), subbatches, seed, state=kept.state)
        tracer = _Tracer(problem, optimizer)
        total = min(num_batches, length_of(batches) or num_batches)
        with measuring(model), tracer.recorder.hooked(), reporter(progress, "tracing", total) as report:
            for index, data in enumerate(itertools.islice(batches, num_batches)):
                with located(f"batch {index} of the diagnosis"):
                    tracer.add(data, index)
                report(f"loss {tracer.losses[-1]:.4g}" if tracer.losses else "")
                if tracer.refusal is not None:
                    break
        if tracer.count == 0:
            raise LoaderError("batches is empty: iterating over it gave no batch, and at least one is needed")
        return tracer.trace()

    with unsharded(model):
        return unwritten(model, work, loss_fn, batches)


class _Tracer:
    """Sums over batches."""

    def __init__(self, problem: Problem, optimizer: OptimizerFactory | None) -> None:
        self._problem, self._optimizer = problem, optimizer
        self.recorder = Recorder(problem.model, problem.subbatches.count)
        self._sums = [_TensorSums(p, problem.subbatches.count) for p in problem.grad_params]
        self.losses: list[float] = []
        self._data, self._output = DataFacts.of(problem.loss.given), OutputFacts()
        self._updates: dict[str, float] = {}
        self._woken: set[str] = set()
        self._opened: Opened | None = None
        self._warnings: list[str] = []
        self._sizes = (math.nan, math.nan)
        self._half = False
        self.refusal: str | None = None
        self.count = 0

    def add(self, data: Any, index: int) -> None:
        """Run a batch; every other one back, too."""
        problem = self._problem
        self._data.add(data, batch_size(data))
        batch = problem.prepare(data, index)
        self.count += 1
        try:
            parts = enumerate(self._parts(batch, index))
            gradients = [self._run(batch, part, index % 2 == 0, index == i == 0) for i, part in parts]
        except LabelError as error:
            self.refusal = str(error)
            return
        if index == 0:
            self.recorder.first_batch_done()
            self._half = uses_autocast() and torch.get_autocast_dtype(problem.device.type) == torch.float16
            self._sizes = batch.windows.small_batch, batch.windows.big_batch
        if index % 2:
            return
        for sums, column in zip(self._sums, zip(*gradients, strict=True), strict=True):
            sums.add(column)
        if index == 0:
            self._step(batch, gradients)

    def _parts(self, batch: Batch, index: int) -> list[Part]:
        """The sub-batches of a batch that is differentiated; all of another one at once."""
        if index % 2:
            return [Part(torch.arange(batch.windows.batch_size, device="cpu"), 1.0, (*batch.seed, 0))]
        return [part for d in range(len(batch.windows)) for part in self._problem.parts(batch, d, None)]

    def _run(self, batch: Batch, part: Part, backward: bool, first: bool) -> Gradients:
        problem, recorder = self._problem, self.recorder
        with warnings.catch_warnings(record=first) as caught, seeded(*part.seed):
            if first:
                warnings.simplefilter("always")
            with recorder.running(len(part.indices), backward), plain_attention():
                loss = problem.part_loss(batch, part)
        for warning in caught or ():
            if issubclass(warning.category, InitoptWarning):
                self._warnings.append(str(warning.message))
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        self.losses += [float(loss.detach())] * (1 if backward else self._problem.subbatches.count)
        self._output.add(recorder.output, lambda output: problem.loss.channel(output, batch.data))
        values = [parameter.value for parameter in problem.grad_params]
        if not backward:
            return [None] * len(values)
        with seeded(*part.seed), plain_attention():
            return torch.autograd.grad(loss, values, allow_unused=True)

    def _step(self, batch: Batch, gradients: Sequence[Gradients]) -> None:
        """See what a first step would do."""
        problem = self._problem
        mean: list[Tensor | None] = []
        for column in zip(*gradients, strict=True):
            some = [g for g in column if g is not None]
            mean.append(sum(some[1:], some[0]).detach() / len(column) if some else None)
        if self._optimizer is not None:
            self._updates = first_updates(problem, self._optimizer, mean)
        zeros = [
            sums.parameter.name for sums in self._sums if sums.is_zero and id(sums.parameter.value) in self.recorder.used
        ]
        if zeros and len(zeros) < len(self._sums):
            self._woken = woken(problem, batch, mean)
        gains = [p for p in problem.grad_params if not is_bias(p.name) and _is_small_gain(p.value.detach())]
        if gains:
            self._opened = self._open(batch, gains)

    def _open(self, batch: Batch, gains: Sequence[NamedParameter]) -> Opened | None:
        """See what a few samples show where some gains are 1; ``None`` if there are no copies to write to."""
        problem, part, batch = self._problem, few_samples(batch), in_precision(batch, torch.float32)
        size = max(float(p.value.detach().abs().max()) for p in gains)
        with problem.state.stand_ins(torch.float32) as leaves, self.recorder.aside() as nodes:
            values = [leaves.get(p.value, p.value) for p in problem.grad_params]
            if any(value is p.value for value, p in zip(values, problem.grad_params, strict=True)):
                return None  # a parameter of a class of its own
            with torch.no_grad():
                for gain in gains:
                    leaves[gain.value].fill_(1.0)
            with seeded(*part.seed), plain_attention():
                with self.recorder.running(len(part.indices), True):
                    loss = problem.part_loss(batch, part)
                slopes = torch.autograd.grad(loss, values, allow_unused=True)
            calls = {call.name: call for call in self._calls(nodes)}
        pairs = zip(problem.grad_params, slopes, strict=True)
        found = {p.name: root_mean_square(slope.to_dense()) for p, slope in pairs if slope is not None}
        return Opened(tuple(p.name for p in gains), size, calls, found)

    def trace(self) -> Trace:
        """All of it."""
        whole = self._block("", self._sums)
        total = float(whole.gram.diagonal(dim1=1, dim2=2).sum())
        blocks: dict[str, list[_TensorSums]] = {}
        for sums in self._sums:
            blocks.setdefault(block_of(sums.parameter.name), []).append(sums)
        found = {sums.parameter.name: sums for sums in self._sums}
        tensors = [self._tensor(name, p, found.get(name), total) for name, p in self._problem.model.named_parameters()]
        attention = {path: float(torch.stack(values).mean()) for path, values in self.recorder.attention.items()}
        dtypes = {p.dtype for p in self._problem.model.parameters()}
        return Trace(
            calls=self._calls(self.recorder.nodes),
            tensors=tuple(tensors),
            blocks=tuple(self._block(name, sums, total) for name, sums in blocks.items()),
            whole=whole,
            losses=tuple(self.losses),
            data=self._data,
            output=self._output,
            attention=attention,
            warnings=tuple(self._warnings),
            refusal=self.refusal,
            half=self._half or torch.float16 in dtypes,
            num_batches=self.count,
            opened=self._opened,
        )

    def _calls(self, nodes: Mapping[str, Node]) -> tuple[Call, ...]:
        names = {id(p): name for name, p in self._problem.model.named_parameters()}
        return tuple(
            Call(
                name=node.name,
                path=node.path,
                kind=node.kind,
                function=node.function,
                matrix=node.matrix,
                parameters=tuple(names[id(p)] for p in node.weights if p is not None and id(p) in names),
                shape=node.shape,
                units=node.units,
                rank=self.recorder.ranks.get(node.name, math.nan),
                **node.figures(),
            )
            for node in nodes.values()
            if node.units
        )

    def _block(self, name: str, sums: Sequence[_TensorSums], total: float = math.nan) -> Block:
        gram = _summed([each.stacked() for each in sums])
        share = float(gram.diagonal(dim1=1, dim2=2).sum()) / total if total > 0 else math.nan
        return Block(name, gram, share, *self._sizes)

    def _tensor(self, name: str, value: nn.Parameter, sums: _TensorSums | None, total: float) -> TensorTrace:
        if sums is None:
            sums = _TensorSums(NamedParameter(name, value, ()), self._problem.subbatches.count)
        block = self._block(name, [sums], total)
        return TensorTrace(
            name, block.gram, block.share, *self._sizes,
            shape=tuple(value.shape), rms=root_mean_square(value), fate=self._fate(name, value, sums), slope=sums.slope,
            agreement=sums.agreement, tiny=sums.tiny, broken=sums.broken, scale_invariant=sums.invariant,
            update=self._updates.get(name, math.nan),
        )  # fmt: skip

    def _fate(self, name: str, value: nn.Parameter, sums: _TensorSums) -> str:
        if not value.requires_grad:
            return "frozen"
        if not sums.seen:
            return "unseen"
        if not sums.reached:
            return "detached" if id(value) in self.recorder.used else "unused"
        if not sums.is_zero:
            return "trains"
        return "zero" if name in self._woken else "stuck"


_SMALL = 0.01
"""LayerScale starts at 1e-6 to 1e-4 in the deep networks that need it; the 0.1 of others does no harm."""


def _is_small_gain(value: Tensor) -> bool:
    """Whether a scalar or vector starts at one small number, not zero: a factor of a branch, as LayerScale has."""
    if value.is_complex() or value.layout != torch.strided or sum(size > 1 for size in value.shape) > 1:
        return False
    flat = value.reshape(-1)
    return len(flat) > 0 and 0 < abs(float(flat[0])) <= _SMALL and bool((flat == flat[0]).all())


def _summed(grams: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(grams)).sum(0)


class _TensorSums:
    """Sums over batches of the gradients with respect to one tensor."""

    def __init__(self, parameter: NamedParameter, count: int) -> None:
        self.parameter, self._count = parameter, count
        self._grams: list[Tensor] = []
        self._cosine = 0.0
        self._slopes: list[float] = []
        self._signs: list[float] = []
        self._tiny: list[float] = []
        self.reached = self.broken = False

    def add(self, column: Sequence[Tensor | None]) -> None:
        """Add the gradients of the sub-batches of a batch."""
        gram = GramSum(self._count)
        some = next((g for g in column if g is not None), None)
        if some is None:
            self._grams.append(gram.matrix())
            return
        self.reached = True
        zero = torch.zeros_like(as_real(some)).reshape(-1)
        rows = [zero if g is None else as_real(g.detach()).reshape(-1) for g in column]
        size, step = len(rows[0]), max(BLOCK // self._count, 1)
        weight = as_real(self.parameter.value.detach()).reshape(-1)
        dots = torch.zeros(self._count, dtype=torch.float64, device="cpu")
        signs, tiny, mean = rows[0].new_zeros(3, dtype=torch.float32).unbind()
        scale = torch.stack([row.abs().max() for row in rows]).max().float() if size else rows[0].new_ones(())
        scale = torch.where((scale > 0) & torch.isfinite(scale), scale, torch.ones_like(scale))
        for start in range(0, size, step):
            part = torch.stack([row[start : start + step] for row in rows])
            gram.add_rows(part)
            dots += (part.double() @ weight[start : start + step].double()).cpu()
            signs = signs + functional.sign_agreement(part) * part.shape[1]
            tiny = tiny + is_tiny(part).float().mean(0).sum()
            mean = mean + (part.float() / scale).mean(0).square().sum()
        matrix = gram.matrix()
        self._grams.append(matrix)
        self.broken = self.broken or not bool(torch.isfinite(matrix).all())
        self._slopes.append(
            float(scale) * math.sqrt(float(mean) / max(size, 1)) if math.isfinite(float(mean)) else math.nan
        )
        self._signs.append(float(signs) / max(size, 1))
        self._tiny.append(float(tiny) / max(size, 1))
        norms = matrix.diagonal().sqrt() * root_mean_square(self.parameter.value) * math.sqrt(size)
        cosines = torch.where(norms > 0, dots.abs() / norms, torch.ones_like(norms))
        self._cosine = max(self._cosine, float(torch.nan_to_num(cosines, nan=1.0).max()))

    def stacked(self) -> Tensor:
        """Gram matrices, a batch each."""
        zero = torch.zeros(1, self._count, self._count, dtype=torch.float64, device="cpu")
        return torch.stack(self._grams) if self._grams else zero

    @property
    def seen(self) -> bool:
        """Whether a batch was differentiated."""
        return bool(self._grams)

    @property
    def is_zero(self) -> bool:
        """Whether the gradient was exactly zero on all batches."""
        return self.reached and not any(bool(gram.diagonal().any()) for gram in self._grams)

    @property
    def invariant(self) -> bool:
        """Whether the gradient is orthogonal to the tensor."""
        return self.reached and not self.is_zero and self._cosine < ALIGNED and self.parameter.value.numel() > 1

    @property
    def slope(self) -> float:
        """Root mean square of the mean gradient."""
        return _mean(self._slopes)

    @property
    def agreement(self) -> float:
        """Of signs."""
        return _mean(self._signs)

    @property
    def tiny(self) -> float:
        """Share of entries below half precision."""
        return _mean(self._tiny)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
