"""Hold what initopt finds on one model against the truth."""

from __future__ import annotations

import copy
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import initopt
from initopt.engines import create_engine
from initopt.model.modes import measuring
from initopt.model.preserve import preserved
from sweeps.zoo.case import Case

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests import truth
from tests.gallery.entry import Entry

__all__ = ["LEEWAY", "TOLERANCES", "Finding", "examine"]

TOLERANCES = {
    "gram": 1e-9,
    "measured_gram": 1e-9,
    "derivatives": 1e-6,
    "together_gram": 1e-9,
    "together_derivatives": 1e-6,
    "single_gram": 1e-3,
    "single_derivatives": 5e-2,
}
"""Largest error of the Gram matrix, in a step and measured, and of a scale derivative: in double precision; there with
all sub-batches run together, which is what ``engine="auto"`` does from 8 on; and in single precision.

In single precision, rounding may put an activation on the other side of a kink (ReLU, a maximum), which is a jump of the
second derivative, and norms over few values amplify it. So there the error may also be :data:`LEEWAY` times what plain
double backward in single precision is off, at worst, on inputs that differ by a rounding.
"""

LEEWAY = 3

_ROUNDINGS = (0, 1e-7, -1e-7, 2e-7, -2e-7)

_NUM_SUBBATCHES = 2
_OBJECTIVE = "cosine+norm"


@dataclass
class Finding:
    """What came out for one model; :attr:`status` is ``ok``, ``refused``, ``wrong`` or ``error``.

    Attributes:
        not_together: why its sub-batches cannot be run together.
        errors: for each key of :data:`TOLERANCES`, the Gram matrix relative to its largest entry, a derivative relative
            to its own size plus a thousandth of the largest; where one of these is too large in single precision, for
            plain double backward in single precision, too.
    """

    name: str
    family: str
    library: str
    note: str
    status: str = "error"
    message: str = ""
    parameters: int = 0
    tensors: int = 0
    engine: str = ""
    not_together: str = ""
    reason: str = ""
    warnings: list[str] = field(default_factory=list)
    grad_cosine: float | None = None
    grad_norm: float | None = None
    errors: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(case: Case) -> Finding:
    """Measure, do a step, and compare."""
    finding = Finding(case.name, case.family, case.library, case.note)
    torch.manual_seed(0)
    begun = time.perf_counter()
    try:
        model = case.build().train()
        batch = case.draw()
        finding.parameters = sum(p.numel() for p in model.parameters())
        finding.tensors = len(list(model.parameters()))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _use(case, model, batch, finding)
            enliven(model)
            _compare(case, model, batch, finding)
        finding.warnings = sorted({str(w.message).splitlines()[0] for w in caught if "initopt" in str(w.message)})
        beyond = _beyond(finding)
        finding.status, finding.message = "wrong" if beyond else "ok", ", ".join(beyond)
        if case.refusal:
            finding.status, finding.message = "wrong", "should have been refused"
    except Exception as error:
        finding.message = " ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
        if case.refusal and case.refusal in finding.message:
            finding.status = "refused"
    finding.seconds["all"] = time.perf_counter() - begun
    return finding


def _use(case: Case, model: nn.Module, batch: Any, finding: Finding) -> None:
    """Measure and do a step as a user would, at the model's own initialization."""
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    with _timed(finding, "measure"):
        found = initopt.measure(model, [batch], case.loss_fn, num_subbatches=_NUM_SUBBATCHES)
    finding.grad_cosine, finding.grad_norm = found.grad_cosine, found.grad_norm
    _expect_state(model, kept, {})
    with _timed(finding, "nio"):
        result = initopt.nio(
            model, [batch], case.loss_fn, steps=1, num_subbatches=_NUM_SUBBATCHES, overlap=0.0, measure_batches=0
        )
    finding.engine, finding.reason = result.engine, result.engine_reason
    _expect_state(model, kept, result.scales)


def _expect_state(model: nn.Module, kept: dict[str, Tensor], scales: dict[str, float]) -> None:
    """Everything is as it was, but for tensors that were multiplied with their scale."""
    if not all(module.training for module in model.modules()):
        raise AssertionError("a module is not in training mode any more")
    for name, value in model.state_dict(keep_vars=True).items():
        if value.grad is not None:
            raise AssertionError(f"{name} has a gradient")
        if not torch.allclose(value, kept[name] * scales.get(name, 1), rtol=1e-5, atol=1e-7, equal_nan=True):
            shared = any(value is other for n, other in model.state_dict(keep_vars=True).items() if n in scales)
            if not shared:
                raise AssertionError(f"{name} is not what it was, times its scale")


def enliven(model: nn.Module) -> None:
    """Make tensors vary that are constant: zeros switch whole branches off, and ones hide errors."""
    with torch.no_grad():
        for parameter in model.parameters():
            if (parameter == parameter.flatten()[0]).all():
                parameter.add_(0.1 * torch.randn_like(parameter))


def _compare(case: Case, model: nn.Module, batch: Any, finding: Finding) -> None:
    double = copy.deepcopy(model).double()
    if hasattr(double, "set_experts_implementation"):
        double.set_experts_implementation("eager")  # the other one has no double precision
    double_batch = initopt.batches.nested.map_tensors(lambda t: t.double() if t.is_floating_point() else t, batch)
    with _double_precision():
        entry = Entry(
            case.name,
            lambda: double,
            lambda: double_batch,
            lambda: case.loss_fn,
            num_subbatches=_NUM_SUBBATCHES,
            overlap=0.0,
        )
        with _timed(finding, "truth"):
            true_gram, true_derivatives = _truth(entry, copy.deepcopy(double), double_batch)
        with _timed(finding, "double"):
            gram, derivatives = _found(entry, double, double_batch)
        with _timed(finding, "measured"):
            measured = _measured(entry, double, double_batch)
        together = _found_together(entry, double, double_batch, finding)
    finding.errors["gram"] = _gram_error(gram, true_gram)
    finding.errors["measured_gram"] = _gram_error(measured, true_gram)
    finding.errors["derivatives"] = _derivative_error(derivatives, true_derivatives)
    if together is not None:
        finding.errors["together_gram"] = _gram_error(together[0], true_gram)
        finding.errors["together_derivatives"] = _derivative_error(together[1], true_derivatives)
    with _timed(finding, "single"):
        gram, derivatives = _found(entry, model, batch)
    finding.errors["single_gram"] = _gram_error(gram, true_gram)
    finding.errors["single_derivatives"] = _derivative_error(derivatives, true_derivatives)
    with _timed(finding, "single_truth"):
        for moved in _ROUNDINGS:
            if not _beyond(finding):
                break
            near = initopt.batches.nested.map_tensors(lambda t, by=1 + moved: t * by if t.is_floating_point() else t, batch)
            gram, derivatives = _truth(entry, copy.deepcopy(model), near)
            found = _gram_error(gram, true_gram), _derivative_error(derivatives, true_derivatives)
            for key, error in zip(("plain_single_gram", "plain_single_derivatives"), found, strict=True):
                finding.errors[key] = max(error, finding.errors.get(key, 0))


def _truth(entry: Entry, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, float]]:
    """K, and the derivatives of the objective, from their definition by plain double backward."""
    truth.set_mode(model, train_mode=False)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), truth.plain_weight_norm(), _plain_gates():
        gram = truth.gram_of(truth.gradients(entry, model, batch, "subbatch", create_graph=True))
        phi = truth.PHI[_OBJECTIVE](gram)
        slopes = torch.autograd.grad(phi, list(named.values()), materialize_grads=True, allow_unused=True)
    along = {n: float((slope * p.detach()).sum()) for (n, p), slope in zip(named.items(), slopes, strict=True)}
    return gram.detach(), along


@contextmanager
def _plain_gates() -> Iterator[None]:
    """Hard sigmoids, whose kernel has no second derivative, from their definition."""

    def plain(x: Tensor) -> Tensor:
        return (x / 6 + 0.5).clamp(0, 1)

    with (
        patch.object(torch._C._nn, "hardsigmoid", plain),
        patch.object(torch._C._nn, "hardsigmoid_", lambda x: x.copy_(plain(x))),
    ):
        yield


def _found_together(entry: Entry, model: nn.Module, batch: Any, finding: Finding) -> tuple[Tensor, dict[str, float]] | None:
    """The same with all sub-batches at once; ``None`` if the model is beyond that, as ``engine="auto"`` would notice."""
    try:
        with _timed(finding, "together"):
            return _found(entry, model, batch, "groups")
    except Exception as error:
        finding.not_together = f"{type(error).__name__}: {error}".partition("\n")[0]
        return None


def _found(entry: Entry, model: nn.Module, batch: Any, engine: str = "auto") -> tuple[Tensor, dict[str, float]]:
    """The same by an engine."""
    problem = entry.problem(model, "subbatch")
    with preserved(model), measuring(model):
        evaluation = create_engine(engine, problem).evaluate(problem.prepare(batch, truth.INDEX), differentiate=True)
        gram = evaluation.gram.detach().clone().requires_grad_()
        slope = torch.autograd.grad(truth.PHI[_OBJECTIVE](gram), gram)[0]
        along = evaluation.scale_derivatives(slope)
    return gram.detach(), {p.name: float(value) for p, value in zip(problem.scale_params, along, strict=True)}


def _measured(entry: Entry, model: nn.Module, batch: Any) -> Tensor:
    """The Gram matrix as a measurement has it, which takes no second derivative."""
    problem = entry.problem(model, "subbatch")
    with preserved(model), measuring(model):
        return create_engine("auto", problem).evaluate(problem.prepare(batch, truth.INDEX), differentiate=False).gram


def _gram_error(found: Tensor, true: Tensor) -> float:
    return float((found - true).detach().abs().max() / true.abs().max())


def _derivative_error(found: dict[str, float], true: dict[str, float]) -> float:
    if found.keys() != true.keys():
        raise AssertionError(f"the scales differ: {found.keys() ^ true.keys()}")
    floor = 1e-3 * max(abs(value) for value in true.values())
    return max(abs(found[name] - value) / (abs(value) + floor) for name, value in true.items())


def _beyond(finding: Finding) -> list[str]:
    """What is further from the truth than it may be."""
    return [
        f"{key} {finding.errors[key]:.1e}"
        for key, bound in TOLERANCES.items()
        if key in finding.errors and not finding.errors[key] <= max(bound, LEEWAY * finding.errors.get(f"plain_{key}", 0))
    ]


@contextmanager
def _timed(finding: Finding, key: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    finding.seconds[key] = time.perf_counter() - begun


@contextmanager
def _double_precision() -> Iterator[None]:
    """New tensors, and what models cast to single precision, are of double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with (
            patch.object(torch, "float32", torch.float64),
            patch.object(torch, "float", torch.float64),
            patch.object(Tensor, "float", Tensor.double),
        ):
            yield
    finally:
        torch.set_default_dtype(before)
