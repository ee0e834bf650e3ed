"""Neural Initialization Optimization (arXiv 2210.05956)."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from initopt._support.checks import check_integer, check_number
from initopt._support.errors import NonFiniteError, ZeroGradientError, warn
from initopt.engines import Engine, Evaluation
from initopt.engines.gradients import gradient_norm, mean_gradient, norm_of
from initopt.engines.invariance import scale_invariant
from initopt.engines.invariance_in_parts import scale_invariant_in_parts
from initopt.gram import functional, objectives
from initopt.gram.measurement import Measurement
from initopt.methods._first_step import Decrease, FirstStep
from initopt.methods.base import Measuring, MethodRun, Training
from initopt.methods.records import StepRecord
from initopt.methods.scale_optimizer import Kind
from initopt.methods.scales import ScalesMethod, ScalesRun
from initopt.model.centring import Centre, check_centre
from initopt.model.preserve import Originals
from initopt.model.problem import Batch, Problem
from initopt.training.optimizers import OptimizerFactory, check_optimizer

__all__ = ["NIO"]

_FAINT, _LIFTED = 1e-3, 0.1
"""Norm of the centred gradient below which the weights are lifted, and to which, in units of the bound."""

_LIFT_STEP, _LIFT_STEPS, _LIFT_HALVINGS = 0.2, 14, 3
"""Search for the common scale, in its logarithm: width of a step, most steps (to 16 times), halvings of the last one."""

_OVER_BOUND = 2.0
"""How far beyond its bound, or beyond what it was, the gradient norm may be in the end."""


@dataclass(frozen=True, kw_only=True)
class NIO(Measuring, ScalesMethod):
    """Learn one scale per parameter tensor by maximizing GradCosine under a bound on the gradient norm.

    In each step, if the mean gradient norm of the sub-batches exceeds ``max_grad_norm``, the scales move so as to lower
    it; otherwise so as to lower the objective (algorithm 3 of arXiv 2210.05956). The defaults come from a study
    (``docs/defaults.md``).

    Attributes:
        objective: what is minimized: a name in :data:`initopt.objectives.NAMES` or a function of a Gram matrix.
        norm_weight: w, the weight of the norm term in the objectives that have one.
        centre: ``"output"``: the objective is that of centred gradients, which leave out what a bias of the model's outputs
            would take care of (:mod:`initopt.model.centring`). Without it (``None``, as in the paper), GradCosine can be
            raised by ignoring the input. The mean is that of each sub-batch, over samples and positions.
        max_grad_norm: the bound gamma on the gradient norm of the sub-batches: of their mean, or, where gradients are
            centred, of the whole gradient of one of them, each in its turn.
        scale_biases: whether biases (by their name) are scaled, too.
        scale_invariant: whether tensors whose scale does not change the loss (weights in front of a norm) are scaled, too.
            Their scale only acts as a learning rate of their own. The first batch shows which these are, for the price of a
            training step.
        optimizer: how the network is going to be trained: a function of parameters that makes the optimizer, such as
            ``functools.partial(torch.optim.AdamW, lr=3e-4)``, or the optimizer itself. The new weights are then tried: old
            and new ones are trained on the same batches, at the optimizer's learning rate, and the old ones are put back if
            they come out clearly lower in the loss of the batches held back (:class:`initopt.runs.trial.Trial`).
        clip_grad_norm: the norm that the training clips gradients to; none, by default.
        trial_steps: training steps from old and new weights each, on the batches of the last steps, and so ``steps`` at
            most; 0 for no trial.
        max_decrease: kappa, a bound that replaces ``max_grad_norm``, in the geometry of the optimizer: on the share of the
            loss that its first step is predicted to take off. The predicted decrease is the learning rate times the squared
            2-norm of the gradient for SGD, and times the 1-norm for Adam.

    >>> NIO(steps=50, objective="cosine").steps
    50
    """

    name: ClassVar[str] = "nio"
    works_in_parts: ClassVar[bool] = True

    overlap: float = 0.2
    lr: float = 0.03
    objective: str | objectives.Objective = "cosine+lognorm"
    norm_weight: float = 0.3
    centre: Centre | None = "output"
    max_grad_norm: float = 7.0
    scale_biases: bool = False
    scale_invariant: bool = False
    optimizer: OptimizerFactory | None = None
    clip_grad_norm: float | None = None
    trial_steps: int = 20
    max_decrease: float | None = None

    def __post_init__(self) -> None:
        ScalesMethod.__post_init__(self)
        Measuring.__post_init__(self)
        objectives.get(self.objective)
        check_centre(self.centre)
        check_number("norm_weight", self.norm_weight, minimum=0, finite=True)
        check_number("max_grad_norm", self.max_grad_norm, above=0)
        check_optimizer(self.optimizer)
        check_integer("trial_steps", self.trial_steps, 0)
        if self.clip_grad_norm is not None:
            check_number("clip_grad_norm", self.clip_grad_norm, above=0)
            self._need_optimizer("clip_grad_norm")
        if self.max_decrease is not None:
            check_number("max_decrease", self.max_decrease, above=0)
            self._need_optimizer("max_decrease")

    def _need_optimizer(self, name: str) -> None:
        if self.optimizer is None:
            raise ValueError(
                f"{name} is about the training, and needs its optimizer: "
                "optimizer=functools.partial(torch.optim.SGD, lr=0.1), say"
            )

    @property
    def training(self) -> Training | None:
        if self.optimizer is None:
            return None
        return Training(
            optimizer=self.optimizer,
            clip_grad_norm=self.clip_grad_norm,
            trial_steps=self.trial_steps,
            max_decrease=self.max_decrease,
        )

    def start(self, problem: Problem, engine: Engine, originals: Originals) -> MethodRun:
        return _NIORun(self, problem, engine, originals)


@dataclass(frozen=True)
class _Seen:
    """What a step looks at.

    Attributes:
        evaluation: with the Gram matrix.
        norm: of the gradient, as training feels it.
        over: whether the bound is exceeded.
        centred: whether the Gram matrix is that of centred gradients.
        share: of the loss that the optimizer's first step is predicted to take off, where that is bounded.
        decrease: the same with its derivatives, where it is over the bound.
    """

    evaluation: Evaluation
    norm: float
    over: bool
    centred: bool
    share: float | None = None
    decrease: Decrease | None = None


class _NIORun(ScalesRun):
    def __init__(self, method: NIO, problem: Problem, engine: Engine, originals: Originals) -> None:
        super().__init__(method, problem, originals)
        self._engine = engine
        self._method = method
        self._objective = objectives.get(method.objective, method.norm_weight)
        told = method.training
        self._first_step = None if told is None or told.max_decrease is None else FirstStep(told, problem)
        self._began_over = False

    def step(self, number: int, batches: Iterator[Any]) -> list[StepRecord]:
        data = next(batches)
        start = time.perf_counter()
        batch = self._problem.prepare(data, number)
        if number == 0:
            self._begin(batch)
        seen = self._evaluate(batch, number)
        if number == 0:
            self._began_over = seen.over
        gram = seen.evaluation.gram.requires_grad_()
        objective = self._objective_of(gram)
        if seen.over and seen.decrease is not None:
            self.descend(self._of_decrease(seen.evaluation, seen.decrease), "constraint")
        else:
            kind: Kind = "constraint" if seen.over else "objective"
            minimized = functional.grad_norm(gram) if seen.over else objective
            if not torch.isfinite(minimized):
                raise NonFiniteError(f"the {kind} to be minimized is {minimized.item()}")
            (gram_derivative,) = torch.autograd.grad(minimized, gram)
            self.descend(seen.evaluation.scale_derivatives(gram_derivative), kind)
        figures = self._figures(gram.detach(), objective.detach())
        shown = seen.centred or not self._centred  # of a step on whole gradients among centred ones, only the norm compares
        record = StepRecord(
            step=number,
            grad_cosine=figures["grad_cosine"] if shown else None,
            grad_norm=seen.norm,
            grad_variance=figures["grad_variance"] if shown else None,
            objective=figures["objective"] if shown else None,
            constrained=seen.over,
            seconds=time.perf_counter() - start,
            centred_grad_norm=figures["grad_norm"] if seen.centred else None,
            noise_cosine=self._problem.subbatches.noise_cosine(batch.windows.batch_size),
            predicted_decrease=seen.share,
        )
        return [record]

    def _figures(self, gram: Tensor, objective: Tensor) -> dict[str, float]:
        """What a record says of a Gram matrix; means over ranks that have one each."""
        found = {
            "grad_cosine": functional.grad_cosine(gram),
            "grad_variance": functional.grad_variance(gram),
            "grad_norm": functional.grad_norm(gram),
            "objective": objective,
        }
        values = self._mean_over_ranks(torch.stack([value.double().cpu() for value in found.values()]))
        return dict(zip(found, values.tolist(), strict=True))

    def _mean_over_ranks(self, values: Tensor) -> Tensor:
        """The mean over ranks that each have a Gram matrix of their own; the values, where all have the same."""
        ranks = self._problem.ranks
        return values if ranks.union else ranks.sum(values.detach() / ranks.size, "figures")

    @property
    def _centred(self) -> bool:
        """Whether the objective is that of centred gradients."""
        return self._method.centre is not None and self._problem.centring.active

    def _evaluate(self, batch: Batch, number: int) -> _Seen:
        """What a step looks at.

        The bound is on the norm of the whole gradient, which is what training feels. Before a step on centred gradients it
        is that of one sub-batch, each in its turn: a share of 1 / D of a gradient. With an optimizer's first step, it is on
        what that takes off the loss of the batch.
        """
        if self._first_step is not None:
            return self._look_at_first_step(batch, self._first_step)
        bound = self._method.max_grad_norm
        if not self._centred:
            evaluation = self._engine.evaluate(batch, differentiate=True)
            norm = float(self._mean_over_ranks(functional.grad_norm(evaluation.gram)))
            return _Seen(evaluation, norm, norm > bound, centred=False)
        size = gradient_norm(self._problem, batch, self._engine.microbatch, number % len(batch.windows))
        norm = float(self._mean_over_ranks(torch.tensor(size, dtype=torch.float64, device="cpu")))
        if norm > bound:
            return _Seen(self._engine.evaluate(batch, differentiate=True), norm, over=True, centred=False)
        return _Seen(self._evaluate_centred(batch), norm, over=False, centred=True)

    def _look_at_first_step(self, batch: Batch, first: FirstStep) -> _Seen:
        parameters = [parameter.value for parameter in self._problem.grad_params]
        loss, gradient = mean_gradient(self._problem, batch, parameters, self._engine.microbatch)
        if not loss > 0:
            raise (ValueError if math.isfinite(loss) else NonFiniteError)(
                f"max_decrease is a share of the loss, which is {loss:.3g}; bound the gradient norm (max_grad_norm) instead"
            )
        norm = norm_of(gradient)
        value = first.value(gradient) / loss
        if self._method.max_decrease is not None and value > self._method.max_decrease:
            decrease = first.differentiated(gradient)
            return _Seen(self._engine.evaluate(batch, differentiate=True), norm, True, False, value, decrease)
        evaluation = self._evaluate_centred(batch) if self._centred else self._engine.evaluate(batch, differentiate=True)
        return _Seen(evaluation, norm, False, self._centred, value)

    def _of_decrease(self, evaluation: Evaluation, decrease: Decrease) -> Tensor:
        """<dW_k, W_k> of the logarithm of the predicted decrease, whose size says nothing."""
        share = 1 / (len(evaluation.gram) * decrease.value)  # the gradient is the mean of those of the sub-batches
        vectors = [None if v is None else share * v for v in decrease.vectors]
        return evaluation.vector_derivatives([vectors] * len(evaluation.gram)) + decrease.along_weights / decrease.value

    def _evaluate_centred(self, batch: Batch) -> Evaluation:
        try:
            return self._engine.evaluate(replace(batch, centred=True), differentiate=True)
        except ZeroGradientError as error:
            raise ZeroGradientError(
                "the centred gradients of all sub-batches are exactly zero: the outputs do not depend on the inputs, and "
                "no scale changes that. Look for dead units or a part that is detached, or draw other weights "
                '(initopt.lsuv, or scheme="kaiming_normal" for ReLU)'
            ) from error

    def _begin(self, batch: Batch) -> None:
        """Decide which tensors keep their scale, and bring a gradient that is powers of ten too small within reach."""
        self._engine.evaluate(batch, differentiate=True)  # it finds out what fits into memory
        self._problem.settle(batch, self._engine.microbatch)
        self._hold(batch)
        if self._method.centre is not None and not self._problem.centring.active:
            warn(
                f"initopt: gradients are not centred: {self._problem.centring.off}. GradCosine may then be raised by "
                "ignoring the input; centre=None says that this is known"
            )
        if self._centred and self._scales.active.any():
            self._lift(replace(batch, centred=True))

    def _lift(self, batch: Batch) -> None:
        """Multiply all scales by the same number, where the centred gradient is too small to have a direction.

        In a deep plain network it can be 1e-8 of the bound: below the rounding of single precision, so that its derivatives
        are noise. The number is the least one, to within 3 %, that brings its norm to a tenth of the bound.
        """
        bound = self._method.max_grad_norm
        if not math.isfinite(bound) or self._norm_at(batch, 0.0) >= _FAINT * bound:
            return
        for count in range(1, _LIFT_STEPS + 1):
            low, high = (count - 1) * _LIFT_STEP, count * _LIFT_STEP
            if self._norm_at(batch, high) >= _LIFTED * bound:
                break
        else:
            self._set_factor(0.0)
            return
        for _ in range(_LIFT_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._norm_at(batch, middle) < _LIFTED * bound else (low, middle)
        self._set_factor(high if math.isfinite(self._norm_at(batch, high)) else low)

    def _norm_at(self, batch: Batch, exponent: float) -> float:
        """The norm of the centred gradient with all scales at exp(exponent); infinite where it is not finite."""
        self._set_factor(exponent)
        try:
            found = float(functional.grad_norm(self._engine.evaluate(batch, differentiate=False).gram))
        except ZeroGradientError:
            found = 0.0
        except NonFiniteError:
            found = math.inf
        return float(self._mean_over_ranks(torch.tensor(found, dtype=torch.float64, device="cpu")))

    def _set_factor(self, exponent: float) -> None:
        self._scales.move(torch.full_like(self._scales.values, math.exp(exponent)))

    def _hold(self, batch: Batch) -> None:
        """Decide which tensors keep their scale."""
        parameters = self._problem.scale_params
        biases = [parameter.is_bias and not self._method.scale_biases for parameter in parameters]
        invariant = [False] * len(parameters)
        if not self._method.scale_invariant:
            invariant = self._find_invariant(batch)
        votes = self._problem.ranks.gather(invariant, "tensors whose scale does not matter")
        invariant = [all(vote) for vote in zip(*votes, strict=True)]
        self._scales.held = torch.tensor(biases, device="cpu") | torch.tensor(invariant, device="cpu")
        if not self._scales.active.any():
            warn(
                f"initopt: nothing to scale: of {len(parameters)} tensors, {sum(biases)} are biases (scale_biases=True "
                f"scales them) and {sum(invariant)} do not change the loss by their scale (scale_invariant=True); the "
                "others are zero"
            )

    def _find_invariant(self, batch: Batch) -> list[bool]:
        microbatch = self._engine.microbatch
        if self._problem.shards is not None:
            return scale_invariant_in_parts(self._problem, batch, microbatch)
        return scale_invariant(self._problem, batch, microbatch, self._method.memory_budget)

    def left_alone(self) -> dict[str, list[str]]:
        zero, held = self._scales.zero.tolist(), self._scales.held.tolist()
        left: dict[str, list[str]] = {}
        for parameter, is_zero, is_held in zip(self._problem.scale_params, zero, held, strict=True):
            biased = parameter.is_bias and not self._method.scale_biases
            why = "zero" if is_zero else "a bias" if biased and is_held else "scale-invariant" if is_held else None
            if why is not None:
                left.setdefault(why, []).append(parameter.name)
        return left

    def harm(self, before: Measurement, after: Measurement) -> str | None:
        free, low = int(self._scales.free.sum()), int(self._scales.at_minimum.sum())
        if free and 2 * low >= free:
            return f"{low} of {free} scales stand at their minimum of {self._method.min_scale:g}"
        if self._first_step is not None:
            return None  # the bound is another; whether the new weights train is for the trial to say
        most = max(self._method.max_grad_norm, before.grad_norm)
        if after.grad_norm > _OVER_BOUND * most:
            return f"the gradient norm is {after.grad_norm:.3g}, beyond its bound of {self._method.max_grad_norm:g}"
        return None

    def gain(self, before: Measurement, after: Measurement) -> Tensor | None:
        over = self._began_over if self._first_step is not None else before.grad_norm > self._method.max_grad_norm
        pairs = [(m.centred_gram if self._centred else m.gram) for m in (before, after)]
        if pairs[0] is None or pairs[1] is None:
            return None
        values = [torch.stack([self._objective(gram) for gram in grams]) for grams in pairs if grams is not None]
        lower = functional.grad_norm(before.gram) - functional.grad_norm(after.gram)
        return lower if over else values[0] - values[1]

    def state(self) -> dict[str, Tensor]:
        decided = json.dumps(self._problem.centring.state()).encode()
        kept = {"centring": torch.tensor(list(decided), dtype=torch.uint8, device="cpu")}
        if self._first_step is not None:
            kept["began_over"] = torch.tensor(self._began_over, device="cpu")
        return super().state() | kept

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        if self._first_step is not None:
            self._began_over = bool(state["began_over"])
        self._problem.centring.load_state(json.loads(bytes(state["centring"].tolist())))

    def _objective_of(self, gram: Tensor) -> Tensor:
        value: Any = self._objective(gram)
        if not isinstance(value, Tensor):
            found = f"{type(value).__name__}"
        elif value.ndim > 0:
            found = f"a tensor of shape {tuple(value.shape)}"
        elif not value.requires_grad:
            found = "a tensor without a graph"
        else:
            return value
        raise TypeError(
            "the objective must return a scalar tensor, computed from the Gram matrix by differentiable operations; it "
            f"returned {found}"
        )
