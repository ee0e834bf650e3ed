"""Read and write what a comparison leaves."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, get_args

from initopt._support.checks import data_frame
from initopt._support.files import plain, unplain
from initopt._support.reading import of_form, read_json
from initopt.comparison.storage.curve_file import read_curve
from initopt.comparison.storage.job import Job
from initopt.comparison.storage.record import MOST_POINTS, CurvePoint, RunRecord, Subset

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "FORMAT",
    "RECORD",
    "StoredComparison",
    "load_run",
    "load_runs",
    "load_stored",
    "published",
    "read_record",
    "refuse_link",
    "stored_runs",
    "write_run",
]

FORMAT = "initopt comparison 2"
"""The format of ``comparison.json``; 2 since what is drawn for each purpose has a stream of random numbers of its own."""

_FORMATS = ("initopt comparison 1", FORMAT)
RECORD = "comparison.json"
_RUN = "run.json"
_RUN_FORMATS = ("initopt run 1", "initopt run 2")
"""In the first, the curve is a Parquet file beside ``run.json``."""

_PUBLISHED = "runs of a comparison"
_COLUMNS = tuple(option.name for option in fields(CurvePoint))


@dataclass(frozen=True)
class StoredComparison:
    """A comparison as it is stored, with the fields of :class:`initopt.comparison.Comparison`."""

    recipe: dict[str, Any]
    networks: list[str]
    initializations: list[str]
    seeds: list[int]
    runs: list[RunRecord] = field(repr=False)
    selection: list[RunRecord] = field(repr=False)
    versions: dict[str, str]
    details: dict[str, Any] = field(default_factory=dict, repr=False)
    problems: tuple[str, ...] = ()
    folder: Path | None = field(default=None, compare=False)

    def to_dataframe(self, curves: bool = False) -> pd.DataFrame:
        """All runs as a pandas table, those that chose learning rates (``purpose``) among them.

        Args:
            curves: a row for each look at a run, in the place of a row for each run.

        Returns:
            The fields of the runs. A row for a run has, in the place of dicts, columns such as ``"after_grad_cosine"``, and
            the last look at each subset, such as ``"test_accuracy"``; of its error, the first line; of findings, the codes.

        Raises:
            ImportError: if pandas is not installed.
        """
        runs = [*self.selection, *self.runs]
        if curves:
            known = ("network", "initialization", "seed", "lr", "purpose")
            keys = [{name: getattr(run, name) for name in known} for run in runs]
            rows = [key | vars(point) for key, run in zip(keys, runs, strict=True) for point in run.curve]
            return data_frame(rows, [*known, *_COLUMNS])
        return data_frame([_row(run) for run in runs], None if runs else list(_WHOLE))


_MANY = ("before", "after", "scales", "curve", "versions", "findings")
_WHOLE = tuple(option.name for option in fields(RunRecord) if option.name not in _MANY)
"""The fields of a run that have one value each."""


def _row(run: RunRecord) -> dict[str, Any]:
    """A run as a row of a table."""
    row = {name: getattr(run, name) for name in _WHOLE}
    row["error"] = None if run.error is None else run.error.partition("\n")[0]
    if run.findings is not None:
        row["findings"] = " ".join(dict.fromkeys(finding.rule for finding in run.findings))
    for when, figures in (("before", run.before), ("after", run.after)):
        row |= {f"{when}_{name}": value for name, value in (figures or {}).items()}
    for point in run.curve:
        row |= {f"{point.subset}_loss": point.loss, f"{point.subset}_accuracy": point.accuracy}
    return row


class _Begun(TypedDict):
    """What is needed of ``comparison.json``."""

    recipe: dict[str, Any]
    networks: dict[str, Any] | list[str]
    initializations: dict[str, Any] | list[str]
    seeds: list[int]
    versions: dict[str, str]


class _Published(TypedDict):
    """What is needed of a file of published runs."""

    recipe: dict[str, Any]
    versions: dict[str, str]
    runs: list[dict[str, Any]]


def load_stored(folder: str | os.PathLike[str]) -> StoredComparison:
    """Read a folder or a file, as :func:`initopt.comparison.load_comparison` describes it."""
    folder = Path(folder).expanduser()
    if folder.is_file():
        return _published(folder)
    record = read_record(folder)
    problems: list[str] = []
    runs = [run for _, run in stored_runs(folder, problems)]
    known = ("format", "versions", "recipe", "seeds")
    return StoredComparison(
        recipe=unplain(record["recipe"]),
        networks=list(record["networks"]),
        initializations=list(record["initializations"]),
        seeds=record["seeds"],
        runs=[run for run in runs if run.purpose == "final"],
        selection=[run for run in runs if run.purpose == "selection"],
        versions=record["versions"],
        details={name: unplain(value) for name, value in record.items() if name not in known},
        problems=tuple(problems),
        folder=folder,
    )


def _published(path: Path) -> StoredComparison:
    """The comparison in a file of runs without scales, which has no other details."""
    content = read_json(path)
    try:
        if not isinstance(content, dict) or not str(content.get("format")).startswith(_PUBLISHED):
            raise ValueError(f"it has no format {_PUBLISHED!r}")
        found = of_form(_Published, content)
        runs = [_record({"scales": None, "versions": found["versions"]} | run) for run in found["runs"]]
    except ValueError as error:
        raise ValueError(f"{path} is no file of published runs: {error}") from None
    final = [run for run in runs if run.purpose == "final"]
    return StoredComparison(
        recipe=unplain(found["recipe"]),
        networks=list(dict.fromkeys(run.network for run in final)),
        initializations=list(dict.fromkeys(run.initialization for run in final)),
        seeds=sorted({run.seed for run in final}),
        runs=final,
        selection=[run for run in runs if run.purpose == "selection"],
        versions=found["versions"],
    )


def published(comparison: StoredComparison, scales: bool = False) -> str:
    """The runs of a comparison as one file of JSON, a line a run, which :func:`load_stored` reads.

    Args:
        comparison: whose runs.
        scales: whether to keep the scales that methods have learned, of which large networks have many.
    """
    runs = []
    order = {name: number for number, name in enumerate([*comparison.networks, *comparison.initializations])}
    ordered = sorted(
        comparison.runs, key=lambda run: (order.get(run.network, 0), order.get(run.initialization, 0), run.seed)
    )
    for run in [*comparison.selection, *ordered]:
        values = {option.name: getattr(run, option.name) for option in fields(run) if option.name != "versions"}
        values["curve"] = [[_rounded(getattr(point, name)) for name in _COLUMNS] for point in run.curve]
        left_out = {"scales"} if not scales else set()
        left_out |= {"findings"} if run.findings is None else set()
        runs.append({name: value for name, value in values.items() if name not in left_out})
    form = f"{_PUBLISHED}: curve rows are {', '.join(_COLUMNS)}"
    content = plain({"format": form, "recipe": comparison.recipe, "versions": comparison.versions, "runs": runs})
    return json.dumps(content, separators=(",", ":")).replace('{"network"', '\n{"network"') + "\n"


def _rounded(value: Any) -> Any:
    """A number with five digits after the point, which is enough for a share or a loss."""
    return round(value, 5) if isinstance(value, float) else value


def read_record(folder: Path) -> dict[str, Any]:
    """Read what a comparison was begun with.

    Raises:
        ValueError: if the folder holds no comparison.
    """
    path = folder / RECORD
    if not path.exists():
        raise ValueError(f"{folder} holds no comparison, for want of {RECORD}; give a folder that initopt compare wrote")
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format") not in _FORMATS:
        raise ValueError(f"{path} is no {FORMAT!r} file; was it written by another version?")
    try:
        of_form(_Begun, record)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return record


def load_runs(folder: str | os.PathLike[str]) -> list[RunRecord]:
    """All runs in the folder of a comparison, by their paths.

    Raises:
        ValueError: if one cannot be read; the message names its folder.
    """
    problems: list[str] = []
    runs = [run for _, run in stored_runs(Path(folder).expanduser(), problems)]
    if problems:
        raise ValueError(problems[0])
    return runs


def stored_runs(folder: Path, problems: list[str]) -> Iterator[tuple[Path, RunRecord]]:
    """All runs that lie where they belong, with their folders; of what cannot be read, a problem is noted each."""
    for place in _places(folder, problems):
        try:
            run = load_run(place)
            if Job.of(run).steps != place.relative_to(folder / "runs").parts:
                raise ValueError(f"{place} holds the run {Job.of(run)}, which does not belong there; it is left out")
            yield place, run
        except ValueError as error:
            problems.append(str(error))


def _places(folder: Path, problems: list[str]) -> list[Path]:
    """The folders of all runs; those that are only being put in place are hidden."""
    found = [] if _is_foreign_link(folder / "runs", problems) else [folder / "runs"]
    for _ in range(len(fields(Job)) - 1):
        found = [below for place in found for below in _folders(place, problems)]
    return [place for place in found if any(place.iterdir())]


def _folders(place: Path, problems: list[str]) -> list[Path]:
    try:
        items = sorted(item for item in place.iterdir() if not item.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(f"{error.filename} cannot be read: {error.strerror}")
        return []
    return [item for item in items if not _is_foreign_link(item, problems) and item.is_dir()]


def _is_foreign_link(item: Path, problems: list[str]) -> bool:
    try:
        refuse_link(item)
    except ValueError as error:
        problems.append(str(error))
    return item.is_symlink()


def refuse_link(item: Path) -> None:
    """Raise a ValueError for a link: what is outside of a comparison is not ours to read, write or remove."""
    if item.is_symlink():
        raise ValueError(f"{item} is a link, which is not followed; move what it leads to into the comparison itself")


def load_run(place: Path) -> RunRecord:
    """Read one run.

    Raises:
        ValueError: if it is not whole, or cannot be read; the message names the folder.
    """
    try:
        values = read_json(place / _RUN)
        form = values.pop("format", None) if isinstance(values, dict) else None
        if form not in _RUN_FORMATS:
            raise ValueError(f"{_RUN} is no {_RUN_FORMATS[-1]!r} file")
        if form == _RUN_FORMATS[0]:
            values |= {"curve": []}
        run = _record(values)
        return replace(run, curve=read_curve(place / "curve.parquet")) if form == _RUN_FORMATS[0] else run
    except PermissionError as error:
        raise ValueError(f"{place} cannot be read: {error.strerror}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{place} is not a whole run ({error}); remove the folder to run it again") from None


def write_run(record: RunRecord, into: Path) -> None:
    """Write one run into a folder that is there: JSON, the curve with a row a point."""
    values = plain({option.name: getattr(record, option.name) for option in fields(record) if option.name != "curve"})
    rows = [json.dumps(plain([getattr(point, name) for name in _COLUMNS]), allow_nan=False) for point in record.curve]
    head = json.dumps({"format": _RUN_FORMATS[-1]} | values, indent=1, allow_nan=False).removesuffix("\n}")
    curve = ",\n  ".join(rows)
    (into / _RUN).write_text(f'{head},\n "curve": [\n  {curve}\n ]\n}}\n', encoding="utf-8")


def _record(values: dict[str, Any]) -> RunRecord:
    """A run from JSON, whose curve has a row a point.

    Raises:
        ValueError: if it is something else; the message says what.
    """
    rows = values.get("curve")
    if type(rows) is not list:
        raise ValueError(f"the curve must be a list; got {rows!r:.60}")
    if len(rows) > MOST_POINTS:
        raise ValueError(f"the curve has {len(rows):,} points; a curve has {MOST_POINTS:,} or fewer")
    return replace(of_form(RunRecord, values | {"curve": []}), curve=tuple(map(_point, rows)))


def _point(row: Any) -> CurvePoint:
    """A point of a curve; checked by hand, since there may be a million."""
    try:
        step, epoch, subset, loss, accuracy = row
        if type(row) is list and type(step) is int and abs(step) < 2**63 and subset in get_args(Subset):
            known = None if accuracy is None else _number(accuracy)
            return CurvePoint(step, _number(epoch), subset, _number(loss), known)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"a point of the curve must be {', '.join(_COLUMNS)}; got {row!r:.60}")


def _number(value: Any) -> float:
    if type(value) not in (int, float) and value not in ("inf", "-inf", "nan"):
        raise TypeError
    return float(value)
