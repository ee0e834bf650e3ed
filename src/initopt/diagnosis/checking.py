"""The entry points: check the weights of a model, diagnose it on data, and assert that it is healthy."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from initopt._support.checks import accepting, check_integer
from initopt._support.errors import LoaderError
from initopt._support.progress import Progress, reporter
from initopt._support.words import unknown
from initopt.batches.nested import batch_size
from initopt.batches.stream import check_batches
from initopt.diagnosis.diagnosis import Diagnosis
from initopt.diagnosis.findings import Findings
from initopt.diagnosis.remedies import Remedies, remedies_for
from initopt.diagnosis.rules.base import RULES, Evidence, chosen_rules, found_in, notable
from initopt.diagnosis.rules.state import OF_ALL_RANKS
from initopt.diagnosis.trace import trace
from initopt.model.losses import LossFunction
from initopt.model.preserve import Kept, unwritten
from initopt.model.randomness import derive_seed
from initopt.model.sharded import has_shards, own_class
from initopt.model.wrappers import bare, hides_layers, replicated
from initopt.schemes import NAMES
from initopt.training.optimizers import OptimizerFactory, check_optimizer

__all__ = ["assert_healthy", "check", "diagnose"]

REMEDIES = (*(name for name in NAMES if name != "default"), "default", "lsuv", "nio")
"""The remedies that :func:`diagnose` can try."""

_HOPELESS = ("S603", "S604")
"""Rules that find something where a model cannot be run, or has nothing to differentiate."""


@accepting()
def check(
    model: nn.Module,
    batch: Any = None,
    loss_fn: LossFunction | None = None,
    *,
    against: nn.Module | None = None,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
) -> Findings:
    """Look for what is visibly wrong with the weights of a model: a linter for starts.

    Args:
        model: the model, which stays as it is.
        batch: a batch of 2 samples or more, for the rules that need a forward and a backward pass; without it, only the
            weights are looked at, which takes no data. For a model of ``fully_shard``, on all its processes.
        loss_fn: as for :func:`initopt.measure`.
        against: another start of the same architecture, of another library say, to compare the sizes of weights with.
        select: codes of the rules to ask, or their beginnings: ``["W", "A201"]``. All by default.
        ignore: codes of rules not to ask, likewise.

    Returns:
        A list of the findings, errors first, then warnings, then notes, whose ``str()`` ends in what to do next. Empty
        where nothing is found; without a batch, that says nothing of signals and gradients.

    Raises:
        ValueError, TypeError: for arguments that cannot work; the message says what is allowed.

    >>> import initopt
    >>> layer = nn.Linear(8, 8)
    >>> [(f.rule, f.place) for f in initopt.check(nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 3)))]
    []
    >>> _ = nn.init.constant_(layer.weight, 1.0)
    >>> [(f.rule, f.place) for f in initopt.check(nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 3)))]
    [('W106', '0.weight')]
    """
    for name, given in {"model": model, "against": against}.items():
        if not isinstance(given, nn.Module) and not (name == "against" and given is None):
            raise TypeError(f"{name} must be a torch.nn.Module; got {type(given).__name__}")
    ignore = _ignored(model, select, ignore)
    model, against = bare(model), None if against is None else bare(against)
    _refuse_hidden_layers(model)
    alone = Evidence(model, against=against)
    if batch is None or any(True for code in _HOPELESS for _ in RULES[code].find(alone)):
        return Findings(found_in(alone, select, ignore), on_data=False)
    count = min(4, batch_size(batch))
    seen = trace(model, [batch], loss_fn, num_batches=1, num_subbatches=count, progress=False)
    return Findings(found_in(Evidence(model, seen, against), select, ignore), on_data=True)


@accepting()
def diagnose(
    model: nn.Module,
    loader: Iterable[Any],
    loss_fn: LossFunction | None = None,
    *,
    optimizer: OptimizerFactory | None = None,
    num_batches: int = 4,
    num_subbatches: int = 4,
    tries: Sequence[str] | None = None,
    budget: int = 120,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
    seed: int | None = None,
    progress: Progress = None,
) -> Diagnosis:
    """Say what is wrong with the start of a network, in which layer, and what would cure it.

    One pass over a few batches sees the outputs of all layers and the gradients that come back to them; the rules of
    ``docs/rules.md`` read it. If something is wrong that other weights would cure, remedies are tried on a copy.

    Args:
        model: the model; afterwards it is as it was, also after an exception. One of ``fully_shard`` has its whole weights
            for the while, and all its processes have to call this, each with batches of its own.
        loader: an iterable of batches, as for :func:`initopt.measure`; a few are kept in memory.
        loss_fn: as for :func:`initopt.measure`.
        optimizer: a function of parameters that makes the optimizer, such as
            ``functools.partial(torch.optim.AdamW, lr=3e-4)``, or the optimizer itself: for the size of the first step, and
            to train copies for a few steps.
        num_batches: the most batches to look at; 4 take the passes of 2.7 training steps, and the time of 6 to 8.
        num_subbatches: D, the number of sub-batches that each batch is split into, 2 to the batch size.
        tries: the remedies to try if something is wrong: names in :data:`initopt.schemes.NAMES`, ``"lsuv"``, ``"nio"``;
            those that address the worst finding, by default, and none with ``()``.
        budget: training steps that the remedies may cost, all of them together.
        select: codes of the rules to ask, or their beginnings; all by default.
        ignore: codes of rules not to ask, likewise.
        seed: base of the seeds for what is drawn; follows from torch's random state if not given.
        progress: whether to show a progress bar; by default, if standard error is a terminal.

    Returns:
        The diagnosis, whose ``str()`` fits on a screen.

    Raises:
        ValueError, TypeError: for arguments that cannot work; the message says what is allowed.
        LoaderError: if there is no batch.

    >>> import torch, initopt
    >>> _ = torch.manual_seed(0)
    >>> layers = [layer for _ in range(24) for layer in (nn.Linear(32, 32), nn.Tanh())]
    >>> model = nn.Sequential(*layers, nn.Linear(32, 3))
    >>> batches = [(torch.randn(32, 32), torch.randint(3, (32,))) for _ in range(4)]
    >>> found = initopt.diagnose(model, batches, tries=("orthogonal",), seed=0)
    >>> found.findings[0].rule, found.tried[0].name, found.tried[0].better
    ('A204', 'orthogonal', True)
    """
    check_integer("num_batches", num_batches, 1)
    check_integer("budget", budget, 0)
    check_batches(loader)
    check_optimizer(optimizer)
    ignore = _ignored(model, select, ignore)
    model = bare(model)
    _refuse_hidden_layers(model)
    wanted = None if tries is None else _checked(tries)
    if wanted and has_shards(model):
        raise TypeError(
            "tries: remedies are tried on copies of the model, and one that is sharded over devices (DTensor) has none; "
            "leave tries out, or diagnose the model before it is sharded"
        )
    seed = derive_seed(None if seed is None else check_integer("seed", seed, 0))
    batches = list(itertools.islice(loader, num_batches))
    if not batches:
        raise LoaderError("batches is empty: iterating over it gave no batch, and at least one is needed")
    options: dict[str, Any] = {"num_batches": num_batches, "num_subbatches": num_subbatches, "optimizer": optimizer}
    seen = trace(model, batches, loss_fn, seed=seed, progress=progress, **options)
    findings = found_in(Evidence(model, seen), select, ignore)
    names = remedies_for(findings) if wanted is None else wanted
    if not any(notable(findings)):
        names, untried = (), "nothing is wrong"
    elif has_shards(model):
        names, untried = (), "a model that is sharded over devices has no copies to try them on"
    else:
        untried = "" if names else "other weights are not what helps"
    remedies = Remedies(model, batches, loss_fn, seen, findings, optimizer, seed)

    def work(kept: Kept) -> list[Any]:
        with reporter(progress, "trying remedies", len(names)) as report:
            return remedies.tried(names, budget, report)

    tried = unwritten(model, work, loss_fn) if names and budget else []
    if names and not tried:
        untried = f"a budget of {budget} training steps is not enough"
    return Diagnosis(own_class(model).__name__, seen, tuple(findings), tuple(tried), untried)


def _ignored(model: nn.Module, select: Sequence[str] | None, ignore: Sequence[str] | None) -> list[str]:
    """Codes of rules not to ask: for a model of this process, also those for which processes wait for each other."""
    chosen_rules(select, ignore)
    given = [ignore] if isinstance(ignore, str) else list(ignore or ())
    shared = replicated(model) is not None or has_shards(model)
    wanted = not set(OF_ALL_RANKS).isdisjoint([select] if isinstance(select, str) else select or ())
    return given if shared or wanted else [*given, *OF_ALL_RANKS]


def _refuse_hidden_layers(model: nn.Module) -> None:
    if hides_layers(model):
        raise TypeError(
            f"the model is a {type(model).__name__} that calls operations and no layers, as torch.export makes it, so no "
            "rule could say anything of them; look at the model that it was made of. measure, nio and find_lr take both"
        )


def _checked(tries: Sequence[str]) -> tuple[str, ...]:
    names = (tries,) if isinstance(tries, str) else tuple(tries)
    for name in names:
        if name not in REMEDIES:
            raise ValueError(f"tries: {unknown('remedy', name, REMEDIES)}")
    return names


def assert_healthy(
    model: nn.Module,
    batch: Any = None,
    loss_fn: LossFunction | None = None,
    *,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
) -> None:
    """Raise an AssertionError if :func:`check` finds anything worse than a note: for tests.

    Args:
        model: the model.
        batch: as for :func:`check`.
        loss_fn: as for :func:`check`.
        select: codes of the rules to ask.
        ignore: codes of rules not to ask.

    Raises:
        AssertionError: with every finding on a line.

    >>> assert_healthy(nn.Linear(8, 3))
    """
    findings = list(notable(check(model, batch, loss_fn, select=select, ignore=ignore)))
    if findings:
        raise AssertionError("the model is not healthy:\n" + "\n".join(f"  {finding}" for finding in findings))
