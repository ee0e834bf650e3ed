"""Whether two runs are the same run, so that one can go on where the other was killed."""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from initopt._support.errors import MismatchError
from initopt._support.files import plain, unplain, write_file
from initopt._support.reading import bounded_json, of_form
from initopt._support.tensorfile import kind, load_tensors, save_tensors
from initopt._support.words import first_few
from initopt.batches.nested import named_tensors
from initopt.methods import Method, record_class
from initopt.methods.records import Record, history_from
from initopt.model.losses import LossFunction
from initopt.model.randomness import RandomState
from initopt.runs.task import Task

__all__ = ["Checkpoint", "OfRank", "differences", "fingerprint", "going_on_from", "identify", "loader_generators"]

_FREE = {"steps", "scale_params", "grad_params", "microbatch", "memory_budget", "trial_steps"}
"""Options that may change: a run can be made longer, take another amount of memory, and be tried longer when it is done; of
the filters, what they select counts, and not their name."""


_OF_MEASURING = ("num_subbatches", "overlap", "split", "batch_norm", "engine")
"""What counts of how gradients are computed."""


def identify(task: Task, generators: Iterable[str]) -> dict[str, Any]:
    """All that the steps depend on but for the batches and the weights, as JSON has it; nothing without a checkpoint.

    Args:
        task: of the run; the loss counts by its name.
        generators: names of the generators that the loader has.
    """
    if task.settings.checkpoint is None:
        return {}
    method, parameters = task.method, task.parameters
    options = {field.name: getattr(method, field.name) for field in fields(method) if field.name not in _FREE}
    options |= {name: getattr(task.how, name) for name in _OF_MEASURING}
    options |= {"measure_batches": task.settings.measure_batches, "seed": task.settings.seed}
    identity = {
        "method": method.name,
        "options": options,
        "loss_fn": _named(task.loss.given),
        "generators": sorted(generators),
        "parameters": {p.name: kind(p.value) for p in parameters.trainable},
        "scale_params": [p.name for p in parameters.scaled],
        "grad_params": [p.name for p in parameters.grad],
        "fixed": {name: fingerprint(value) for name, value in _fixed(task.model).items()},
    }
    if task.ranks.size > 1:
        identity |= {"processes": task.ranks.size, "share": task.ranks.share}
    found: dict[str, Any] = plain(identity)
    return found


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between two runs, a line each; none if they are the same."""
    lines = _changes("{}", {"method": was["method"]}, {"method": now["method"]})
    lines += _changes("{}", was["options"], now["options"])
    lines += _changes("{}", {"share": was.get("share")}, {"share": now.get("share")})
    lines += _changes("{}", {"loss_fn": was["loss_fn"]}, {"loss_fn": now["loss_fn"]})
    lines += _changes("generators of the {}", {"loader": was["generators"]}, {"loader": now["generators"]})
    lines += _changes("parameter {!r}", was["parameters"], now["parameters"], absent="absent", show=str)
    both = was["parameters"].keys() & now["parameters"].keys()
    for name in ("scale_params", "grad_params"):
        lines += [f"{name} selected {p!r} and does no longer" for p in was[name] if p in both and p not in now[name]]
        lines += [f"{name} selects {p!r} and did not before" for p in now[name] if p in both and p not in was[name]]
    fixed = {**was["fixed"], **now["fixed"]}
    lines += [
        f"{name!r}, a buffer or frozen parameter, has other values"
        for name in fixed
        if was["fixed"].get(name) != now["fixed"].get(name)
    ]
    return lines


def _changes(title: str, was: Mapping[str, Any], now: Mapping[str, Any], absent: Any = None, show: Any = repr) -> list[str]:
    return [
        f"{title.format(name)} was {show(was.get(name, absent))} and is {show(now.get(name, absent))}"
        for name in {**was, **now}
        if was.get(name, absent) != now.get(name, absent)
    ]


def fingerprint(tree: Any) -> str:
    """A hash of the names, shapes, dtypes and values of all tensors of a nest."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in named_tensors(tree):
        found.update(f"{name} {kind(tensor)};".encode())
        if not tensor.is_meta:
            found.update(_values(tensor))
    return found.hexdigest()


def _values(tensor: Tensor) -> Any:
    """The bytes of a tensor; none of one of another kind (quantized, say), which counts by its shape."""
    try:
        dense = tensor.detach().cpu().to_dense().resolve_conj().resolve_neg().contiguous()
        return dense.reshape(-1).view(torch.uint8).numpy()
    except (RuntimeError, TypeError):
        return b""


def _fixed(model: nn.Module) -> dict[str, Tensor]:
    frozen = {name: value for name, value in model.named_parameters() if not value.requires_grad}
    return frozen | dict(model.named_buffers())


def _named(loss_fn: LossFunction | None) -> Any:
    function: Any = loss_fn
    while isinstance(function, functools.partial):
        function = function.func
    return plain(function)


_FORMAT = "initopt checkpoint 3"
_FORMAT_2 = "initopt checkpoint 2"
"""The one before: ``measure_batches`` had another name, and methods that do not split batches had no overlap."""


_WORDS = 624
"""Of the state of a Mersenne twister."""


class _Identity(TypedDict):
    """The parts of a run that :func:`differences` looks at."""

    method: str
    options: dict[str, Any]
    loss_fn: Any
    generators: list[str]
    parameters: dict[str, str]
    scale_params: list[str]
    grad_params: list[str]
    fixed: dict[str, str]
    processes: NotRequired[int]
    share: NotRequired[str]


class _Engine(TypedDict, total=False):
    """What the engines keep."""

    engine: str
    reason: str
    inner: dict[str, Any]
    microbatch: int | None
    relative_step: float | None
    error_estimate: float | None
    batches: int


class _StoredOfRank(TypedDict):
    """What is stored of a process, but for its tensors."""

    first_batch: str
    engine: _Engine
    random: dict[str, Any]


class _StoredOfOther(_StoredOfRank):
    """Likewise, of one that is not rank 0."""

    fixed: dict[str, str]


class _Stored(_StoredOfRank):
    """A checkpoint, but for its tensors; what is of a process is of rank 0."""

    identity: _Identity
    seed: int
    seconds: float
    history: list[Any]
    others: NotRequired[list[_StoredOfOther]]


@dataclass(frozen=True)
class OfRank:
    """What a run needs of one of its processes to go on.

    Attributes:
        fixed: fingerprints of buffers and frozen parameters; running statistics may differ between processes.
        first_batch: fingerprint of the first batch.
        engine: the engine's state.
        randomness: the random state when the run began, from which the loader is played again.
        generators: the states of the loader's own generators at that time.
    """

    fixed: dict[str, str]
    first_batch: str
    engine: dict[str, Any]
    randomness: RandomState
    generators: dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """The state that a run needs to go on.

    Attributes:
        identity: what makes it this run and no other, see :func:`initopt.runs.checkpoint.identify`; that of rank 0.
        seed: base of the seeds for what the model draws.
        seconds: wall-clock time so far.
        history: the records of the steps that are done.
        start: the original weights by parameter name.
        state: the method's state.
        of_ranks: what is of a process alone, for each of those that do the run together, by rank.
    """

    identity: dict[str, Any]
    seed: int
    seconds: float
    history: list[Record]
    start: dict[str, Tensor]
    state: dict[str, Tensor]
    of_ranks: tuple[OfRank, ...]

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OSError: if it cannot be written; one that was there before is still there.
        """
        groups = {"start": self.start, "state": self.state}
        of_ranks: list[dict[str, Any]] = []
        for number, mine in enumerate(self.of_ranks):
            random_tensors, random_values = mine.randomness.to_plain()
            groups |= {_group("random", number): random_tensors, _group("generator", number): mine.generators}
            of_ranks.append({"first_batch": mine.first_batch, "engine": mine.engine, "random": random_values})
        tensors = {f"{group}/{name}": value for group, members in groups.items() for name, value in members.items()}
        record = {
            "format": _FORMAT,
            "identity": self.identity,
            "seed": self.seed,
            "seconds": self.seconds,
            "history": self.history,
            **of_ranks[0],
        }
        if len(of_ranks) > 1:
            others = zip(of_ranks[1:], self.of_ranks[1:], strict=True)
            record["others"] = [stored | {"fixed": mine.fixed} for stored, mine in others]
        # Python's JSON writes a float with all its digits, so nothing of the history is lost.
        metadata = {"initopt": json.dumps(plain(record), allow_nan=False)}
        write_file(path, lambda temporary: save_tensors(tensors, temporary, metadata))

    @classmethod
    def read(cls, path: Path, method: Method | None = None) -> Checkpoint:
        """Read the file.

        Args:
            path: of the file.
            method: that goes on from it, which may be of no name that is known.

        Raises:
            OSError: if it cannot be read.
            ValueError: if it is not a checkpoint of this format, or damaged; the message names it.
        """
        tensors, metadata = load_tensors(path)
        try:
            record = bounded_json(metadata.get("initopt", "{}"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged, or not a checkpoint ({error})") from None
        if not isinstance(record, dict) or record.get("format") not in (_FORMAT, _FORMAT_2):
            raise ValueError(f"{path} is no {_FORMAT!r} file; choose another path for checkpoint=, or remove it")
        with going_on_from(path):
            stored = of_form(_Stored, record)
            of_ranks = [record, *record.get("others", [])]
            kinds = ["start", "state", *(_group(what, n) for what in ("random", "generator") for n in range(len(of_ranks)))]
            groups: dict[str, dict[str, Tensor]] = {group: {} for group in kinds}
            for name, value in tensors.items():
                group, _, rest = name.partition("/")
                groups[group][rest] = value
            identity = record["identity"]
            if record["format"] == _FORMAT_2:
                options = {"overlap": 0.0, "split": "cyclic", "batch_norm": "subbatch"} | identity["options"]
                options["measure_batches"] = options.pop("measure_steps")
                identity["options"] = options
            same = method is not None and method.name == identity["method"]
            records = method.record if method is not None and same else record_class(identity["method"])
            found = cls(
                identity=identity,
                seed=stored["seed"],
                seconds=stored["seconds"],
                history=history_from(stored["history"], records),
                start=groups["start"],
                state=groups["state"],
                of_ranks=tuple(
                    OfRank(
                        fixed=identity["fixed"] if number == 0 else mine["fixed"],
                        first_batch=mine["first_batch"],
                        engine=unplain(mine["engine"]),
                        randomness=RandomState.from_plain(groups[_group("random", number)], mine["random"]),
                        generators=groups[_group("generator", number)],
                    )
                    for number, mine in enumerate(of_ranks)
                ),
            )
            found._check()
        return found

    def _check(self) -> None:
        """Raise an exception of a kind unless the parts fit each other and generators take their states."""
        if {name: kind(value) for name, value in self.start.items()} != self.identity["parameters"]:
            raise ValueError("the weights at the start are not those of the parameters")
        if self.of_ranks[0].generators.keys() != set(self.identity["generators"]):
            raise ValueError("it has not one state for each of the loader's generators")
        if self.seed < 0:
            raise ValueError(f"the seed is {self.seed}")
        if len(self.of_ranks) != self.identity.get("processes", 1):
            raise ValueError("it has not one state for each of its processes")
        for mine in self.of_ranks:
            _check_generators(mine.randomness, mine.generators)

    def refuse_unless_same(self, identity: dict[str, Any], number: int) -> None:
        """Raise a MismatchError that says what differs, unless a run of this identity can go on from here.

        Args:
            identity: of the run, on this rank.
            number: of the rank.
        """
        was, now = len(self.of_ranks), identity.get("processes", 1)
        if was != now:
            raise MismatchError(
                f"the checkpoint is that of a run on {was} process{'es' if was > 1 else ''}, and this one is on {now}; "
                f"each goes on with batches and random numbers of its own. Start {was}; or remove the checkpoint to start "
                "anew, or choose another path"
            )
        mine = self.of_ranks[number]
        lines = differences(self.identity | {"fixed": mine.fixed, "generators": sorted(mine.generators)}, identity)
        if lines:
            raise _another_run(lines)

    def refuse_unless_first(self, first_batch: str, number: int) -> None:
        """Raise a MismatchError unless this is the fingerprint of the first batch of a rank."""
        if first_batch != self.of_ranks[number].first_batch:
            raise _another_run(["the first batch is another one"])


def _group(what: str, number: int) -> str:
    """The name of the tensors of a rank in a file."""
    return f"{what}.{number}" if number else what


def _check_generators(randomness: RandomState, generators: Mapping[str, Tensor]) -> None:
    """Raise an exception of a kind unless these are states that generators take."""
    for state in (*randomness.torch_cuda.values(), *generators.values()):
        if state.dtype != torch.uint8 or state.ndim != 1:
            raise ValueError(f"the state of a generator is {kind(state)}")
    torch.Generator().set_state(randomness.torch_cpu)
    random.Random().setstate(randomness.python)
    np.random.RandomState().set_state(randomness.numpy)
    if not 0 <= randomness.numpy["state"]["pos"] <= _WORDS:  # which NumPy does not look at, and reads beyond
        raise ValueError("the state of NumPy's generator is at no word of its own")


@contextmanager
def going_on_from(path: Path) -> Iterator[None]:
    """Put what a damaged checkpoint leads to, within the block, into words.

    Raises:
        ValueError: in place of whatever is raised; the message names the file.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, StopIteration, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
        raise ValueError(f"{path} is damaged, so that no run can go on from it ({why}); remove it to start anew") from None


def _another_run(lines: list[str]) -> MismatchError:
    return MismatchError(
        "the checkpoint belongs to another run; remove it to start anew, or choose another path:\n  "
        + first_few(lines, 10, "\n  ")
    )


def loader_generators(batches: Any) -> dict[str, torch.Generator]:
    """The random generators that a DataLoader and its samplers own, by where they are."""
    owners = {
        "loader": batches,
        "sampler": getattr(batches, "sampler", None),
        "batch_sampler": getattr(getattr(batches, "batch_sampler", None), "sampler", None),
    }
    found = {name: getattr(owner, "generator", None) for name, owner in owners.items()}
    return {name: generator for name, generator in found.items() if isinstance(generator, torch.Generator)}
