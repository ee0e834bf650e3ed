"""What an engine finds on the gallery, and whether it is right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from initopt._gallery.entries import chosen_entries, expect_refusal, raise_if_wrong
from initopt._gallery.entry import Entry
from initopt._gallery.truth import INDEX, NORM_WEIGHT, PHI, Figures, central_differences, known_truth
from initopt.engines import ENGINES, Engine, create_engine
from initopt.gram import objectives
from initopt.model.modes import measuring
from initopt.model.preserve import preserved
from initopt.model.problem import Problem

__all__ = ["CHECKED", "EngineChoice", "check_engine", "evaluate", "relative_error"]

EngineChoice = str | type[Engine] | Callable[[Problem], Engine]
"""The name of an engine, its class, or a function that makes one for a problem."""

CHECKED = ("cosine", "variance+lognorm", "grad_norm", "entry")
"""The functions of K whose derivatives :func:`check_engine` looks at.

What an engine computes is linear in dphi/dK, so a few stand for all: two objectives, the constraint, and one entry of K,
whose derivative is not symmetric.
"""

_ROUNDING = 1e-13
"""An absolute error that does not count."""

_CENTRAL = 1e-6
"""The largest error against central differences, where torch has no second derivative."""


def relative_error(found: Tensor, expected: Tensor, ignored: float = 0.0) -> float:
    """Return the largest error over the largest entry.

    Args:
        found: a tensor.
        expected: what it has to be, of the same shape.
        ignored: an error that does not count.

    >>> relative_error(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 5.0])), relative_error(torch.zeros(1), torch.zeros(1))
    (0.2, 0.0)
    """
    error = float((found - expected).abs().max())
    return 0.0 if error <= ignored else error / float(expected.abs().max())


def evaluate(
    engine: EngineChoice,
    entry: Entry,
    batch_norm: str = "subbatch",
    functions: Sequence[str] = (),
    *,
    centred: bool = False,
    index: int = INDEX,
    **options: Any,
) -> Figures:
    """Return what an engine finds on an entry, as a run of a method asks it.

    Args:
        engine: its name, its class, or a function that makes it for a problem.
        entry: one of :data:`ENTRIES`, or one of your own.
        batch_norm: whose statistics normalize, those of each ``"subbatch"`` or of the whole ``"batch"``.
        functions: the functions of K to differentiate, keys of :data:`PHI`; none by default, which is how a measurement
            asks.
        centred: whether gradients are centred.
        index: the number of the batch, on which the random numbers depend that the model draws.
        **options: of the problem, such as ``microbatch``.

    Returns:
        The Gram matrix, shape ``(D, D)``, and the derivative of every function along every tensor.

    Raises:
        ValueError: if the engine refuses the problem.

    >>> from initopt.testing import ENTRIES
    >>> figures = evaluate("graph", ENTRIES["mlp"], functions=["cosine"])
    >>> figures.gram.shape, list(figures.derivatives["cosine"])[:2]
    (torch.Size([3, 3]), ['0.weight', '0.bias'])
    """
    model, batch = entry.model(), entry.batch()
    problem = entry.problem(model, batch_norm, **options)
    if isinstance(engine, str):
        made = create_engine(engine, problem)
    else:
        refusal = _refusal(engine, problem)
        if refusal is not None:
            raise ValueError(f"{engine!r} cannot be used here: {refusal}")
        made = engine(problem)
    names = [parameter.name for parameter in problem.scale_params]
    with preserved(model), measuring(model, entry.train_mode):
        prepared = problem.prepare(batch, index)
        if centred:
            problem.settle(prepared)
            if not problem.centring.active:
                raise ValueError(f"gradients on {entry.name!r} are not centred: {problem.centring.off}")
            prepared = replace(prepared, centred=True)
        if not functions:
            return Figures(made.evaluate(prepared, differentiate=False).gram.detach(), {})
        derivatives = {}
        for name in functions:
            evaluation = made.evaluate(prepared, differentiate=True)
            gram = evaluation.gram.requires_grad_()
            (slope,) = torch.autograd.grad(_public(name)(gram), gram)
            derivatives[name] = dict(zip(names, evaluation.scale_derivatives(slope).tolist(), strict=True))
    return Figures(gram.detach(), derivatives)


def _public(name: str) -> Callable[[Tensor], Tensor]:
    """Return initopt's own form of a function in :data:`PHI`."""
    if name == "entry":
        return PHI[name]
    return objectives.grad_norm if name == "grad_norm" else objectives.get(name, NORM_WEIGHT)


def _refusal(engine: EngineChoice, problem: Problem) -> str | None:
    kind = ENGINES.get(engine) if isinstance(engine, str) else engine
    return kind.refusal(problem) if isinstance(kind, type) and issubclass(kind, Engine) else None


def check_engine(
    engine: EngineChoice,
    entries: Iterable[str | Entry] | None = None,
    *,
    batch_norms: Sequence[str] = ("subbatch", "batch"),
    centred: bool = False,
    gram: float = 1e-11,
    derivatives: float = 1e-9,
    double_backward: bool = True,
    beyond: Mapping[str, str] | None = None,
    functions: Sequence[str] = CHECKED,
    **options: Any,
) -> dict[str, float]:
    """Hold an engine against plain double backward, in float64, on odd little models.

    On every entry that the engine does not refuse, the Gram matrix has to be right, measured and with derivatives, and so
    have the derivatives of several functions of it along every tensor. Where torch has no second derivative, an engine has
    to say so, or to agree with central differences.

    Args:
        engine: its name, its class, or a function that makes it for a problem.
        entries: names in :data:`ENTRIES`, or entries of your own; the whole gallery by default, which takes a minute.
        batch_norms: the values of ``batch_norm`` to check it with; what the engine or the entry cannot do is left out.
        centred: whether to check centred gradients.
        gram: the largest error of the Gram matrix, relative to its largest entry.
        derivatives: the same for derivatives.
        double_backward: whether the engine takes second derivatives of torch's. One that takes none (``differences``)
            has to work where there are none, and is not held to derivatives of what is not a gradient.
        beyond: entries that the engine has to refuse when it evaluates them, and a part of what it says.
        functions: whose derivatives to check, keys of :data:`PHI`.
        **options: of the problem, such as ``microbatch``.

    Returns:
        The largest errors of ``"gram"`` and ``"derivatives"``, relative to the largest entry.

    Raises:
        AssertionError: that lists every entry on which the engine is wrong, and by how much.
        ValueError: if an entry is unknown, or the engine refuses them all.

    >>> from initopt.engines.per_subbatch import PlainEngine
    >>> class Halved(PlainEngine):
    ...     def evaluate(self, batch, differentiate):
    ...         evaluation = super().evaluate(batch, differentiate)
    ...         evaluation.gram = evaluation.gram / 2
    ...         return evaluation
    >>> check_engine(Halved, ["mlp"])
    Traceback (most recent call last):
        ...
    AssertionError: wrong on 1 of 1:
    mlp, batch_norm='subbatch': the Gram matrix is off by 5.0e-01
    """
    worst = {"gram": 0.0, "derivatives": 0.0}
    how: dict[str, Any] = {"centred": centred, **options}
    wrong: list[str] = []
    count = 0
    for entry in chosen_entries(entries):
        for mode in entry.modes:
            if mode not in batch_norms or _refusal(engine, entry.problem(entry.model(), mode, **options)) is not None:
                continue
            count += 1
            expected = (beyond or {}).get(entry.name)
            try:
                if expected is not None and mode == "subbatch":
                    expect_refusal(expected, evaluate, engine, entry, mode, functions[:1], **how)
                    continue
                errors = _errors(engine, entry, mode, functions, double_backward, how)
            except Exception as error:  # one entry is not to hide the others
                wrong.append(f"{entry.name}, batch_norm={mode!r}: {type(error).__name__}: {error}")
                continue
            for what, allowed, name in (("gram", gram, "Gram matrix is"), ("derivatives", derivatives, "derivatives are")):
                worst[what] = max(worst[what], errors[what])
                if not errors[what] <= allowed:  # NaN is wrong, too
                    wrong.append(f"{entry.name}, batch_norm={mode!r}: the {name} off by {errors[what]:.1e}")
                    break
            if not errors["central"] <= _CENTRAL:
                wrong.append(f"{entry.name}, batch_norm={mode!r}: off central differences by {errors['central']:.1e}")
    if not count:
        raise ValueError(f"{engine!r} refuses all of these entries, so there is nothing to check")
    raise_if_wrong(wrong, count)
    return worst


def _errors(
    engine: EngineChoice, entry: Entry, mode: str, functions: Sequence[str], double_backward: bool, how: dict[str, Any]
) -> dict[str, float]:
    """The errors of an engine on an entry, relative to the largest entry."""
    centred = how["centred"]
    expected = known_truth(entry, mode, tuple(functions), centred=centred)
    found = {"gram": relative_error(evaluate(engine, entry, mode, **how).gram, expected.gram, _ROUNDING)}
    found |= {"derivatives": 0.0, "central": 0.0}
    if not entry.conservative and not double_backward:
        return found  # differences do not see what is the gradient of nothing
    if not entry.double_backward and double_backward:
        expect_refusal("derivative", evaluate, engine, entry, mode, functions[:1], **how)
        return found
    its = evaluate(engine, entry, mode, functions, **how)
    found["gram"] = max(found["gram"], relative_error(its.gram, expected.gram, _ROUNDING))
    against = "derivatives" if entry.double_backward else "central"
    wanted = expected.derivatives or central_differences(entry, mode, centred=centred)
    for name in functions:
        if list(its.derivatives[name]) != list(wanted[name]):
            raise AssertionError(f"derivatives of {list(its.derivatives[name])}, not of {list(wanted[name])}")
        one, other = (torch.tensor(list(values[name].values())).double() for values in (its.derivatives, wanted))
        found[against] = max(found[against], relative_error(one, other, _ROUNDING))
    return found
