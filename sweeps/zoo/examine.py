"""Hold what initopt finds on one model against the truth."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import initopt
from initopt.batches.nested import map_tensors
from initopt.testing import Entry, Figures, evaluate, relative_error, truth
from sweeps.zoo.case import Case

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
    double_batch = map_tensors(lambda t: t.double() if t.is_floating_point() else t, batch)
    with _double_precision():
        entry = _entry(case, double, double_batch)
        with _timed(finding, "truth"):
            true = _truth(_entry(case, copy.deepcopy(double), double_batch))
        with _timed(finding, "double"):
            _note(finding, "", evaluate("auto", entry, functions=[_OBJECTIVE]), true)
        with _timed(finding, "measured"):
            finding.errors["measured_gram"] = relative_error(evaluate("auto", entry).gram, true.gram)
        try:  # with all sub-batches at once, unless the model is beyond that, as engine="auto" would notice
            with _timed(finding, "together"):
                _note(finding, "together_", evaluate("groups", entry, functions=[_OBJECTIVE]), true)
        except Exception as error:
            finding.not_together = f"{type(error).__name__}: {error}".partition("\n")[0]
    with _timed(finding, "single"):
        _note(finding, "single_", evaluate("auto", _entry(case, model, batch), functions=[_OBJECTIVE]), true)
    with _timed(finding, "single_truth"):
        for moved in _ROUNDINGS:
            if not _beyond(finding):
                break
            near = map_tensors(lambda t, by=1 + moved: t * by if t.is_floating_point() else t, batch)
            _note(finding, "plain_single_", _truth(_entry(case, copy.deepcopy(model), near)), true)


def _entry(case: Case, model: nn.Module, batch: Any) -> Entry:
    """A model and a batch as an entry of the gallery."""
    return Entry(case.name, lambda: model, lambda: batch, lambda: case.loss_fn, num_subbatches=_NUM_SUBBATCHES, overlap=0.0)


def _truth(entry: Entry) -> Figures:
    """K, and the derivatives of the objective, from their definition by plain double backward."""
    with _plain_gates():
        return truth(entry, "subbatch", [_OBJECTIVE])


def _note(finding: Finding, kind: str, found: Figures, true: Figures) -> None:
    """Note the errors, the largest so far."""
    for key, error in {
        f"{kind}gram": relative_error(found.gram, true.gram),
        f"{kind}derivatives": _derivative_error(found.derivatives[_OBJECTIVE], true.derivatives[_OBJECTIVE]),
    }.items():
        finding.errors[key] = max(error, finding.errors.get(key, 0.0))


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
