"""Read and write what a comparison leaves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypedDict

from initopt._support.files import unplain, write_json
from initopt._support.reading import of_form, read_json
from initopt.comparison.storage.curve_file import read_curve, write_curve
from initopt.comparison.storage.job import Job
from initopt.comparison.storage.record import RunRecord

__all__ = [
    "FORMAT",
    "RECORD",
    "Comparison",
    "load_comparison",
    "load_run",
    "load_runs",
    "read_record",
    "refuse_link",
    "stored_runs",
    "write_run",
]

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


class _Begun(TypedDict):
    """What is needed of ``comparison.json``."""

    recipe: dict[str, Any]
    networks: dict[str, Any] | list[str]
    initializations: dict[str, Any] | list[str]
    seeds: list[int]
    versions: dict[str, str]


def load_comparison(folder: str | os.PathLike[str]) -> Comparison:
    """Read a comparison, finished or not.

    Raises:
        ValueError: if the folder holds no comparison.
    """
    folder = Path(folder).expanduser()
    record = read_record(folder)
    problems: list[str] = []
    runs = [run for _, run in stored_runs(folder, problems)]
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
    path = folder / RECORD
    if not path.exists():
        raise ValueError(f"{folder} holds no comparison, for want of {RECORD}; give a folder that initopt compare wrote")
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
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
        if not isinstance(values, dict) or values.pop("format", None) != _RUN_FORMAT:
            raise ValueError(f"{_RUN} is no {_RUN_FORMAT!r} file")
        if "curve" in values:
            raise ValueError(f"{_RUN} has a curve, which is in {_CURVE}")
        run = of_form(RunRecord, values | {"curve": []})
        return replace(run, curve=read_curve(place / _CURVE))
    except PermissionError as error:
        raise ValueError(f"{place} cannot be read: {error.strerror}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{place} is not a whole run ({error}); remove the folder to run it again") from None


def write_run(record: RunRecord, into: Path) -> None:
    """Write one run into a folder that is there: its curve as Parquet, the rest as JSON."""
    values = asdict(record)
    del values["curve"]
    write_curve(record.curve, into / _CURVE)
    write_json(into / _RUN, {"format": _RUN_FORMAT} | values)
