"""Read a comparison from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from initopt.comparison.record import CurvePoint, RunRecord
from initopt.storage import read_json, unplain

__all__ = ["Comparison", "load_comparison", "load_runs"]

_FORMAT = "initopt comparison 1"
_RECORD = "comparison.json"


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
    """

    recipe: dict[str, Any]
    networks: list[str]
    initializations: list[str]
    seeds: list[int]
    runs: list[RunRecord]
    selection: list[RunRecord]
    versions: dict[str, str]


def load_comparison(folder: Path) -> Comparison:
    """Read a comparison, finished or not.

    Raises:
        ValueError: if the folder holds no comparison, or a file in it is not whole; the message names it.
    """
    record = read_json(folder / _RECORD)
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise ValueError(f"{folder / _RECORD} is no {_FORMAT!r} file; was it written by another version?")
    runs = load_runs(folder)
    return Comparison(
        recipe=unplain(record["recipe"]),
        networks=record["networks"],
        initializations=record["initializations"],
        seeds=record["seeds"],
        runs=[run for run in runs if run.purpose == "final"],
        selection=[run for run in runs if run.purpose == "selection"],
        versions=record["versions"],
    )


def load_runs(folder: Path) -> list[RunRecord]:
    """All runs in a folder, by their paths; those that are only being put in place, in hidden folders, are not.

    Raises:
        ValueError: if a file is not whole; the message names it.
    """
    runs = folder / "runs"
    files = sorted(runs.rglob("run.json"))
    return [_load(file) for file in files if not any(part.startswith(".") for part in file.relative_to(runs).parts)]


def _load(file: Path) -> RunRecord:
    import pyarrow
    import pyarrow.parquet

    curve = file.with_name("curve.parquet")
    try:
        points = pyarrow.parquet.read_table(curve).to_pylist()
        return RunRecord(**unplain(read_json(file)), curve=tuple(CurvePoint(**point) for point in points))
    except FileNotFoundError:
        raise ValueError(f"{curve} does not exist: the run is not whole; remove its folder to run it again") from None
    except (pyarrow.ArrowInvalid, TypeError) as error:
        raise ValueError(f"{file.parent} is not a whole run ({error}); remove the folder to run it again") from None
