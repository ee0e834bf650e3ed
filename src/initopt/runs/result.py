"""The result of a run: its history, the scales, the weights, and the measurements before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import torch
from torch import Tensor, nn

from initopt._support.checks import data_frame
from initopt._support.errors import MismatchError
from initopt._support.files import Contents, plain, unplain, write_folder, write_json
from initopt._support.pages import in_notebook
from initopt._support.reading import of_form, read_json
from initopt._support.tensorfile import kind, load_tensors, save_tensors
from initopt._support.words import first_few
from initopt.gram.measurement import OUTPUT_STATISTICS, STATISTICS, Measurement
from initopt.methods import method_names, record_class
from initopt.methods.records import Record, StepRecord, history_from
from initopt.model.wrappers import bare, bare_names
from initopt.runs.trial import Trial
from initopt.runs.verdict import summary

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from initopt.diagnosis.change import Change

__all__ = ["CONTENTS", "Result"]


_FORMAT = "initopt result 1"
_RECORD = "result.json"
_WEIGHTS = "weights.safetensors"
_GRAMS = "grams.safetensors"

CONTENTS = Contents(_RECORD, (_WEIGHTS, _GRAMS, "plot.png", "config.yaml"))
"""What the folder of a result holds."""


class _Stored(TypedDict):
    """A result, but for its tensors."""

    method: str
    options: dict[str, Any]
    seconds: float
    engine: str
    engine_reason: str
    versions: dict[str, str]
    measurements: dict[str, dict[str, Any]]
    scales: dict[str, float]
    tensors: dict[str, str]
    history: list[Any]
    verdict: NotRequired[str]
    tried_scales: NotRequired[dict[str, float] | None]
    trial: NotRequired[Trial | None]
    left_alone: NotRequired[dict[str, list[str]]]
    training_step_seconds: NotRequired[float | None]
    diagnosis: NotRequired[dict[str, Any] | None]


class _Measured(TypedDict):
    """A measurement, but for its Gram matrices."""

    grad_cosine: float
    grad_norm: float
    grad_variance: float
    noise_scale: float
    sem: dict[str, float]
    num_batches: int
    small_batch: list[float]
    big_batch: list[float]
    engine: str
    centred_grad_cosine: NotRequired[float]
    centred_grad_norm: NotRequired[float]
    loss: NotRequired[float]
    output_spread: NotRequired[float]
    uncentred: NotRequired[str | None]


@dataclass(frozen=True, eq=False)
class Result:
    """The outcome of a run.

    Attributes:
        method: name of the method.
        options: its options.
        history: a :class:`initopt.StepRecord` per step; of LSUV, a :class:`initopt.LayerRecord` per layer.
        scales: scale of every tensor by parameter name, in the order of the model.
        before: measurement with the original weights, or ``None`` if none was asked for or the batches held back could not
            be measured.
        after: measurement with the new weights, on the same batches.
        seconds: wall-clock time of the whole run, measurements and loading included.
        engine: name of the engine that measured, and, where the method works on Gram matrices, computed the derivatives.
        engine_reason: why this engine and no other.
        weights: the new values of the trainable parameters, on the CPU; empty for a model that stayed in parts on several
            devices, which has them.
        versions: of initopt, torch and Python.
        verdict: what became of the network, as a word and a reason: "improved: ...", "applied: ..." (by a method whose
            gain is not judged on the batches held back: LSUV, GradInit, MetaInit), "left alone: ...", "restored: ..." or
            "harmed: ..." (:func:`initopt.optimize`, ``on_harm``).
        tried_scales: the scales that were learned and given up, if the weights were put back.
        trial: some training steps from the old and the new weights, where the method knows the optimizer
            (:class:`initopt.runs.trial.Trial`).
        left_alone: the names of the tensors that the method did not touch, by the reason.
        training_step_seconds: time of one plain gradient of a batch, in which ``seconds`` can be counted; ``None`` if
            nothing was measured.
        diagnosis: the layers ``before`` and ``after``, with what the rules of :func:`initopt.diagnose` find, on up to 4 of
            the batches held back; ``None`` if it was not asked for, nothing was held back, sub-batches had to be run in
            parts, the model is a graph without layers (``torch.export``), or it failed (with a warning).
    """

    method: str
    options: dict[str, Any]
    history: list[Record] = field(repr=False)
    scales: dict[str, float] = field(repr=False)
    before: Measurement | None
    after: Measurement | None
    seconds: float
    engine: str
    engine_reason: str
    weights: dict[str, Tensor] = field(repr=False)
    versions: dict[str, str] = field(repr=False)
    verdict: str = "not judged"
    tried_scales: dict[str, float] | None = field(default=None, repr=False)
    trial: Trial | None = field(default=None, repr=False)
    left_alone: dict[str, list[str]] = field(default_factory=dict, repr=False)
    training_step_seconds: float | None = field(default=None, repr=False)
    diagnosis: Change | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return summary(self)

    def _repr_html_(self) -> str:
        """The summary and the picture, for notebooks."""
        return in_notebook(str(self), self.plot(), "the run")

    def apply(self, model: nn.Module) -> None:
        """Copy the weights into a model of the same architecture.

        What ``torch.compile``, ``DistributedDataParallel`` and the like put in front of the names makes no difference.

        Raises:
            MismatchError: if names, shapes or dtypes differ; the message says which, and the model is left alone.
        """
        weights, parameters = bare_names(self.weights), bare_names(dict(bare(model).named_parameters()))
        own = {name: p for name, p in parameters.items() if p.requires_grad or name in weights}
        _refuse_differences(
            {name: kind(value) for name, value in weights.items()},
            {name: kind(value) for name, value in own.items()},
            ("the stored weights", f"the {type(model).__name__}"),
        )
        with torch.no_grad():
            for name, value in weights.items():
                own[name].copy_(value)

    def to_dataframe(self) -> pd.DataFrame:
        """The history as a pandas table, a row per record and a column per field.

        Raises:
            ImportError: if pandas is not installed.
        """
        kind = type(self.history[0]) if self.history else StepRecord
        columns = [record_field.name for record_field in fields(kind)]
        found: pd.DataFrame = data_frame([asdict(record) for record in self.history], columns)
        return found

    def plot(self) -> Figure:
        """Draw the run: GradCosine, gradient norm with its bound, scales per layer, and before against after.

        Below it are signals and gradients through the layers, if there is a diagnosis. Constrained steps are marked. The
        figure belongs to no window; save it with ``savefig``.
        """
        from initopt.runs.plotting import plot_result

        return plot_result(self)

    def save(self, folder: str | Path) -> None:
        """Write the result into a folder, whole or not at all: the weights as safetensors, the rest as JSON.

        Args:
            folder: is made, or replaced if it is empty or holds an earlier result and nothing else; ``~`` is the user's
                home.

        Raises:
            FileExistsError: if the folder holds anything else; the message names it.
        """
        write_folder(folder, self.write_files, CONTENTS)

    def write_files(self, into: Path) -> None:
        """Write the files of :meth:`save` into a folder that is there, one by one."""
        save_tensors(self.weights, into / _WEIGHTS)
        grams = {name: m.gram for name, m in self._measurements().items()}
        for name, measurement in self._measurements().items():
            if measurement.centred_gram is not None:
                grams[f"{name}.centred"] = measurement.centred_gram
        if grams:
            save_tensors(grams, into / _GRAMS)
        write_json(into / _RECORD, self._record())

    def _measurements(self) -> dict[str, Measurement]:
        both = {"before": self.before, "after": self.after}
        return {name: measurement for name, measurement in both.items() if measurement is not None}

    def _record(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "method": self.method,
            "options": plain(self.options),
            "seconds": self.seconds,
            "engine": self.engine,
            "engine_reason": self.engine_reason,
            "versions": self.versions,
            "measurements": {name: measurement.to_dict() for name, measurement in self._measurements().items()},
            "verdict": self.verdict,
            "scales": self.scales,
            "tried_scales": self.tried_scales,
            "trial": self.trial,
            "left_alone": self.left_alone,
            "training_step_seconds": self.training_step_seconds,
            "tensors": {name: kind(value) for name, value in self.weights.items()},
            "diagnosis": self.diagnosis,
            "history": self.history,
        }

    @classmethod
    def load(cls, folder: str | Path, model: nn.Module | None = None) -> Result:
        """Read a result from a folder that :meth:`save` wrote.

        ``options`` comes back as JSON has it: a function is its name.

        Args:
            folder: the folder, or the ``result.json`` in it.
            model: if given, the weights are copied into it, as by :meth:`apply`.

        Raises:
            ValueError: if the folder holds no whole result.
            MismatchError: if its files, or the weights and the model, do not fit each other.
        """
        folder = Path(folder).expanduser()
        if folder.name == _RECORD and not folder.is_dir():
            folder = folder.parent
        record = read_json(folder / _RECORD)
        if not isinstance(record, dict) or record.get("format") != _FORMAT:
            raise ValueError(f"{folder / _RECORD} is no {_FORMAT!r} file; was it written by another version?")
        weights = _load_tensors(folder / _WEIGHTS)
        try:
            stored = of_form(_Stored, record)
            history = _history(stored)
            grams = _load_tensors(folder / _GRAMS) if stored["measurements"] else {}
            found = {name: _measurement(name, values, grams) for name, values in stored["measurements"].items()}
        except ValueError as error:
            raise ValueError(f"{folder / _RECORD} is damaged: {error}") from None
        _refuse_differences(
            stored["tensors"],
            {name: kind(value) for name, value in weights.items()},
            (str(folder / _RECORD), str(folder / _WEIGHTS)),
        )
        result = cls(
            method=stored["method"],
            options=unplain(stored["options"]),
            history=history,
            scales=stored["scales"],
            before=found.get("before"),
            after=found.get("after"),
            seconds=stored["seconds"],
            engine=stored["engine"],
            engine_reason=stored["engine_reason"],
            weights={name: weights[name] for name in stored["tensors"]},
            versions=stored["versions"],
            verdict=stored.get("verdict", "not judged"),  # earlier versions did not
            tried_scales=stored.get("tried_scales"),
            trial=stored.get("trial"),
            left_alone=stored.get("left_alone", {}),
            training_step_seconds=stored.get("training_step_seconds"),
            diagnosis=_change(stored.get("diagnosis")),
        )
        if model is not None:
            result.apply(model)
        return result


def _change(stored: dict[str, Any] | None) -> Change | None:
    if stored is None:
        return None
    from initopt.diagnosis.change import Change  # not at every import of initopt

    return of_form(Change, stored, "diagnosis")


def _history(stored: _Stored) -> list[Record]:
    try:
        return history_from(stored["history"], record_class(stored["method"]))
    except ValueError as error:
        if stored["method"] in method_names():
            raise
        raise ValueError(f"{error} (no installed package has its method {stored['method']!r})") from None


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_tensors(path)[0]
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: the result folder is not whole") from None


def _measurement(name: str, values: dict[str, Any], grams: Mapping[str, Tensor]) -> Measurement:
    if name not in ("before", "after") or name not in grams:
        raise ValueError(f"measurements has {name!r}, of which there is no Gram matrix")
    found = of_form(_Measured, values, f"measurements.{name}")
    count, centred = found["num_batches"], grams.get(f"{name}.centred")
    for gram in (grams[name],) if centred is None else (grams[name], centred):
        if gram.dtype != torch.float64 or gram.ndim != 3 or gram.shape[0] != count or gram.shape[1] != gram.shape[2]:
            raise ValueError(f"measurements.{name} is of {count} batches, and its Gram matrices are {kind(gram)}")
    known = {*STATISTICS} <= {*found["sem"]} <= {*STATISTICS, *OUTPUT_STATISTICS}
    if not known or not len(found["small_batch"]) == len(found["big_batch"]) == count:
        raise ValueError(f"measurements.{name} has not one figure for each statistic and each of {count} batches")
    return Measurement.from_dict(values, grams[name], centred)


def _refuse_differences(left: Mapping[str, str], right: Mapping[str, str], names: tuple[str, str]) -> None:
    lines = [f"{name!r} is only in {names[0]}" for name in left if name not in right]
    lines += [f"{name!r} is only in {names[1]}" for name in right if name not in left]
    lines += [
        f"{name!r} is {kind} in {names[0]} and {right[name]} in {names[1]}"
        for name, kind in left.items()
        if name in right and right[name] != kind
    ]
    if lines:
        raise MismatchError(f"{names[0]} and {names[1]} differ:\n  " + first_few(lines, 10, "\n  "))
