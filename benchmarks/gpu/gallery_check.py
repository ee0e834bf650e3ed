"""Every engine on the architectures of the gallery in initopt.testing, on a device, against plain autograd there."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from accuracy import OBJECTIVE, vector
from tasks import Result, Tell
from torch import Tensor

from initopt.engines import ENGINES
from initopt.testing import ENTRIES, INDEX, Entry, evaluate, relative_error, truth

__all__ = ["ALLOWED", "check_gallery", "verdict"]

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
    entry = plain.to(device)
    try:
        true = truth(entry, mode, [OBJECTIVE])
    except Exception as error:
        return [[plain.name, mode, "truth", "float64", None, None, _short(error)]]
    gram, derivatives = true.gram, true.derivatives.get(OBJECTIVE)
    draws = relative_error(_truth_gram(entry, mode, INDEX + 1), gram) > 0
    if not draws and device != "cpu":
        elsewhere[f"{plain.name} {mode}"] = relative_error(gram.cpu(), _truth_gram(plain, mode, INDEX))
    found = []
    engines = [name for name, kind in ENGINES.items() if kind.refusal(entry.problem(entry.model(), mode)) is None]
    for precision in ("float64",) if draws else ("float64", "float32"):
        for engine in engines:
            about = [plain.name, mode, engine, precision]
            wanted = derivatives
            if not entry.conservative and engine == "differences":
                wanted = None  # differences do not see what is the gradient of nothing
            try:
                tried = entry if precision == "float64" else entry.single()
                own = evaluate(engine, tried, mode, [] if wanted is None else [OBJECTIVE])
            except Exception as error:  # an architecture beyond an engine
                found.append([*about, None, None, _short(error)])
            else:
                off = None if wanted is None else relative_error(vector(own.derivatives[OBJECTIVE]), vector(wanted))
                found.append([*about, relative_error(own.gram.cpu(), gram.cpu()), off, ""])
    return found


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


def _truth_gram(entry: Entry, mode: str, index: int) -> Tensor:
    """The Gram matrix as of a batch number, which only what draws at random notices."""
    return truth(entry, mode, [], index=index).gram


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
