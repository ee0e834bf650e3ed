"""Read and write what a comparison leaves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from initopt.comparison.record import CurvePoint, RunRecord
from initopt.storage import read_json, unplain, write_json

__all__ = ["FORMAT", "RECORD", "Comparison", "load_comparison", "load_run", "load_runs", "read_record", "write_run"]

FORMAT = "initopt comparison 1"
RECORD = "comparison.json"
_RUN_FORMAT = "initopt run 1"
_RUN, _CURVE = "run.json", "curve.parquet"


@dataclass(frozen=True)
class Comparison:
    """What a folder holds.

    Attributes:
        recipe: how everything was trained.
        networks: their names, in order.
        initializations: their names, in order.
        seeds: of the final runs.
        runs: the final runs that there are.
        selection: the runs that chose learning rates.
        versions: of what the comparison was begun with.
        details: everything else that was the same for all runs: how the networks are made, what the initializations do
            and change in the recipe, the data, the hardware.
        problems: stored runs that cannot be read, a sentence each; they count as missing.
    """

    recipe: dict[str, Any]
    networks: list[str]
    initializations: list[str]
    seeds: list[int]
    runs: list[RunRecord]
    selection: list[RunRecord]
    versions: dict[str, str]
    details: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def load_comparison(folder: str | os.PathLike[str]) -> Comparison:
    """Read a comparison, finished or not.

    Raises:
        ValueError: if the folder holds no comparison.
    """
    folder = Path(folder).expanduser()
    record = read_record(folder)
    problems: list[str] = []
    runs = list(_readable_runs(folder, problems))
    known = ("format", "versions", "recipe", "seeds")
    return Comparison(
        recipe=unplain(record["recipe"]),
        networks=list(record["networks"]),
        initializations=list(record["initializations"]),
        seeds=record["seeds"],
        runs=[run for run in runs if run.purpose == "final"],
        selection=[run for run in runs if run.purpose == "selection"],
        versions=record["versions"],
        details={name: unplain(value) for name, value in record.items() if name not in known},
        problems=tuple(problems),
    )


def read_record(folder: Path) -> dict[str, Any]:
    """What a comparison was begun with.

    Raises:
        ValueError: if the folder holds no comparison.
    """
    if not (folder / RECORD).exists():
        raise ValueError(f"{folder} holds no comparison, for want of {RECORD}; give a folder that initopt compare wrote")
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{folder / RECORD} is no {FORMAT!r} file; was it written by another version?")
    return record


def load_runs(folder: str | os.PathLike[str]) -> list[RunRecord]:
    """All runs in the folder of a comparison, by their paths.

    Raises:
        ValueError: if one cannot be read; the message names its folder.
    """
    return [load_run(place) for place in _places(Path(folder).expanduser())]


def _readable_runs(folder: Path, problems: list[str]) -> Iterator[RunRecord]:
    for place in _places(folder, lambda error: problems.append(f"{error.filename} cannot be read: {error.strerror}")):
        try:
            yield load_run(place)
        except ValueError as error:
            problems.append(str(error))


def _places(folder: Path, on_error: Any = None) -> Iterator[Path]:
    """The folders of all runs; those that are only being put in place are hidden."""
    for parent, folders, files in os.walk(folder / "runs", onerror=on_error):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if files:
            yield Path(parent)


def load_run(place: Path) -> RunRecord:
    """Read one run.

    Raises:
        ValueError: if it is not whole, or cannot be read; the message names the folder.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        values = unplain(read_json(place / _RUN))
        if values.pop("format", None) != _RUN_FORMAT:
            raise ValueError(f"{_RUN} is no {_RUN_FORMAT!r} file")
        points = pyarrow.parquet.read_table(place / _CURVE, partitioning=None).to_pylist()
        return RunRecord(**values, curve=tuple(CurvePoint(**point) for point in points))
    except PermissionError as error:
        raise ValueError(f"{place} cannot be read: {error.strerror}") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{place} is not a whole run ({error}); remove the folder to run it again") from None


def write_run(record: RunRecord, into: Path) -> None:
    """Write one run into a folder that is there: its curve as Parquet, the rest as JSON."""
    import pyarrow
    import pyarrow.parquet

    values = asdict(record)
    points = values.pop("curve")
    kinds = {"step": "int64", "epoch": "float64", "subset": "string", "loss": "float64", "accuracy": "float64"}
    schema = pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in kinds.items()])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(points, schema=schema), into / _CURVE)
    write_json(into / _RUN, {"format": _RUN_FORMAT} | values)
