"""Every engine on the architectures of the tests' gallery, on a device, against plain autograd there."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from accuracy import as_single, relative_error, single_tensors
from tasks import Result, Tell
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from initopt import objectives
from initopt.batches.nested import map_tensors
from initopt.engines import ENGINES
from initopt.model.modes import measuring
from initopt.model.preserve import preserved
from tests import truth
from tests.gallery import ENTRIES, Entry
from tests.truth import PHI, as_real, gradients, gram_of, plain_weight_norm, set_mode

__all__ = ["ALLOWED", "check_gallery", "verdict"]

OBJECTIVE = "cosine+norm"

ALLOWED: dict[str, dict[str, tuple[float, float]]] = {
    "float64": {"differences": (1e-10, 1e-4), "": (1e-10, 1e-8)},
    "float32": {"differences": (1e-4, float("inf")), "": (1e-5, 1e-4)},
}
"""By precision, the relative errors that an engine may have in the Gram matrix and in the derivatives; ``""`` for the exact
engines. In float64, ten times what the tests allow on a CPU. In float32 the worst there are 1e-7 and 2e-6, and finite
differences are as good as their step."""


def check_gallery(names: Sequence[str], device: str, tell: Tell) -> Result:
    """Errors of all engines on some entries.

    Returns:
        ``rows``: entry, batch norm, engine, precision, error of the Gram matrix and of the derivatives (``None`` where
        there are none), or why there is neither; ``elsewhere``: how far the truth is from that on the CPU.
    """
    rows: list[list[Any]] = []
    elsewhere: dict[str, float | str] = {}
    torch.backends.cudnn.allow_tf32 = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for number, name in enumerate(names, 1):
                for mode in ENTRIES[name].modes:
                    rows += _rows(ENTRIES[name], mode, device, elsewhere)
                tell(number / len(names))
    finally:
        torch.backends.cudnn.allow_tf32 = True
    return {"rows": rows, "elsewhere": elsewhere}


def _rows(plain: Entry, mode: str, device: str, elsewhere: dict[str, float | str]) -> list[list[Any]]:
    entry = _on(plain, device)
    try:
        gram, derivatives = _truth(entry, mode)
    except Exception as error:
        return [[plain.name, mode, "truth", "float64", None, None, _short(error)]]
    draws = relative_error(_truth_gram(entry, mode, truth.INDEX + 1), gram) > 0
    if not draws and device != "cpu":
        elsewhere[f"{plain.name} {mode}"] = relative_error(gram.cpu(), _truth_gram(plain, mode, truth.INDEX))
    found = []
    engines = [name for name, kind in ENGINES.items() if kind.refusal(entry.problem(entry.model(), mode)) is None]
    for precision in ("float64",) if draws else ("float64", "float32"):
        for engine in engines:
            about = [plain.name, mode, engine, precision]
            wanted = derivatives
            if not entry.conservative and engine == "differences":
                wanted = None  # differences do not see what is the gradient of nothing
            try:
                own, slopes = _found(entry, mode, engine, precision, wanted is not None)
            except Exception as error:  # an architecture beyond an engine
                found.append([*about, None, None, _short(error)])
            else:
                off = None if wanted is None or slopes is None else relative_error(slopes.cpu(), wanted.cpu())
                found.append([*about, relative_error(own.cpu(), gram.cpu()), off, ""])
    return found


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


def _on(entry: Entry, device: str) -> Entry:
    """The same entry on a device: its weights and its batch are made on the CPU, and so the same everywhere."""

    def loss() -> Any:
        made = entry.loss()
        return made.to(device) if isinstance(made, nn.Module) else made

    return replace(
        entry,
        build=lambda: entry.build().to(device),
        draw=lambda: map_tensors(lambda tensor: tensor.to(device), entry.draw()),
        loss=loss,
    )


def _prepared(entry: Entry) -> tuple[nn.Module, Any]:
    model, batch = entry.model(), entry.batch()
    set_mode(model, entry.train_mode)
    return model, batch


def _truth(entry: Entry, mode: str) -> tuple[Tensor, Tensor | None]:
    """Gram matrix and derivatives of the objective by plain double backward in float64."""
    model, batch = _prepared(entry)
    weights = [p for p in model.parameters() if p.requires_grad]
    # cuDNN has no second derivative of recurrence.
    with sdpa_kernel(SDPBackend.MATH), plain_weight_norm(), torch.backends.cudnn.flags(enabled=False):
        gram = gram_of(gradients(entry, model, batch, mode, create_graph=entry.double_backward))
        if not entry.double_backward:
            return gram.detach(), None
        found = torch.autograd.grad(PHI[OBJECTIVE](gram), weights, materialize_grads=True, allow_unused=True)
    along = [(as_real(g) * as_real(w.detach())).sum() for g, w in zip(found, weights, strict=True)]
    return gram.detach(), torch.stack(along)


def _truth_gram(entry: Entry, mode: str, index: int) -> Tensor:
    """The same Gram matrix as of another batch number, which only what draws at random notices."""
    model, batch = _prepared(entry)
    with sdpa_kernel(SDPBackend.MATH), plain_weight_norm(), torch.backends.cudnn.flags(enabled=False), _as_batch(index):
        return gram_of(gradients(entry, model, batch, mode, create_graph=False)).detach()


def _as_batch(index: int) -> AbstractContextManager[Any]:
    return patch.object(truth, "INDEX", index)


def _found(entry: Entry, mode: str, engine: str, precision: str, differentiate: bool) -> tuple[Tensor, Tensor | None]:
    """What an engine finds, as :func:`initopt.optimize` asks it."""
    model, batch = entry.model(), entry.batch()
    if precision == "float32":
        model, batch = as_single(model), single_tensors(batch)
        entry = replace(entry, loss=lambda made=entry.loss: _single_loss(made()))
    problem = entry.problem(model, mode)
    with preserved(model), measuring(model, entry.train_mode):
        evaluation = ENGINES[engine](problem).evaluate(problem.prepare(batch, truth.INDEX), differentiate)
        if not differentiate:
            return evaluation.gram, None
        gram = evaluation.gram.requires_grad_()
        (slope,) = torch.autograd.grad(objectives.get(OBJECTIVE, truth.NORM_WEIGHT)(gram), gram)
        return gram.detach(), evaluation.scale_derivatives(slope)


def _single_loss(loss: Any) -> Any:
    return as_single(loss) if isinstance(loss, nn.Module) else loss


def verdict(results: Sequence[Result]) -> dict[str, Any]:
    """What all errors come to.

    Returns:
        ``checked``: numbers of comparisons by precision; ``worst``: the largest errors of the exact engines by precision,
        and where; ``wrong``: what is beyond :data:`ALLOWED`, or failed; ``not_there``: entries that do not run on the
        device in plain autograd either.
    """
    rows = [row for result in results for row in result.get("rows", ())]
    checked = dict.fromkeys(ALLOWED, 0)
    worst: dict[str, tuple[float, str]] = {}
    wrong, absent = [], []
    for name, mode, engine, precision, gram, derivative, error in rows:
        where = f"{name}, {mode}, {engine}, {precision}"
        if engine == "truth":
            absent.append(f"{name}: {error}")
        elif error:
            if not (engine == "groups" and error.startswith("NotCoveredError")):
                wrong.append(f"{where}: {error}")
        else:
            checked[precision] += 1
            bounds = ALLOWED[precision].get(engine, ALLOWED[precision][""])
            # Written so that NaN is wrong, too.
            if not (gram <= bounds[0] and (derivative is None or derivative <= bounds[1])):
                wrong.append(f"{where}: Gram matrix off by {gram:.1e}, derivatives by {derivative or 0:.1e}")
            if engine != "differences":
                worst[precision] = max(worst.get(precision, (0.0, "")), (max(gram, derivative or 0.0), where))
    far = {name: off for result in results for name, off in result.get("elsewhere", {}).items() if not off <= 1e-9}
    wrong += [f"{name}: the truth is off by {off:.1e} from that on the CPU" for name, off in far.items()]
    wrong += [f"a part of the gallery: {result['failed'].splitlines()[0]}" for result in results if "failed" in result]
    return {"checked": checked, "worst": worst, "wrong": wrong, "not_there": sorted(set(absent))}
