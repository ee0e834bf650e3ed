"""The folder of a comparison: whose it is, and the runs that are put into it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from initopt._support.errors import MismatchError
from initopt._support.files import Contents, plain, remove_folder, write_file, write_folder, write_json
from initopt._support.words import first_few
from initopt._support.workshop import clear_leftovers, clear_leftovers_in
from initopt.comparison.storage.job import Job
from initopt.comparison.storage.record import RunRecord
from initopt.comparison.storage.store import FORMAT, RECORD, load_run, read_record, refuse_link, stored_runs, write_run

__all__ = ["is_stored", "opened", "remove_failed", "store_run"]

_LOCK = ".lock"
_CONTENTS = Contents("run.json", ("curve.parquet", "events.out.tfevents.run"))
"""What the folder of a run holds."""

_RUN = re.compile(r"seed=\d+")


@contextmanager
def opened(folder: Path, specification: Mapping[str, Any], versions: Mapping[str, str]) -> Iterator[None]:
    """Have a folder to oneself while the block lasts.

    A new one gets the specification; one that is there must be of the same comparison.

    Args:
        folder: of the comparison.
        specification: all that results depend on.
        versions: that the comparison is begun with.

    Raises:
        FileExistsError: if something else is there.
        MismatchError: if it is of another comparison; the message says in what they differ.
        BlockingIOError: if another process is at work in it.
        PermissionError: if it cannot be written to.
    """
    import filelock

    _refuse_foreign(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} is not writable; choose another folder")
    if (folder / _LOCK).is_symlink() or ((folder / _LOCK).exists() and not (folder / _LOCK).is_file()):
        raise FileExistsError(f"{folder / _LOCK} is not the file that initopt writes; remove it, or choose another folder")
    lock = filelock.FileLock(folder / _LOCK)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise BlockingIOError(
            f"another process is at work in {folder}; wait until it is done, or choose another folder"
        ) from None
    try:
        if (folder / RECORD).exists():
            _refuse_another(folder, specification)
        else:
            record = {"format": FORMAT} | dict(specification) | {"versions": dict(versions)}
            write_file(folder / RECORD, lambda temporary: write_json(temporary, record))
        _remove_leftovers(folder)
        yield
    finally:
        lock.release()


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists() or (folder / RECORD).exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; choose another folder")
    clear_leftovers(folder.resolve() / RECORD)
    foreign = [item.name for item in folder.iterdir() if item.name != _LOCK]
    if foreign:
        raise FileExistsError(
            f"{folder} holds files, but no comparison ({', '.join(sorted(foreign)[:5])}); choose another folder"
        )


def _refuse_another(folder: Path, specification: Mapping[str, Any]) -> None:
    record = read_record(folder)
    if record["format"] != FORMAT:
        raise MismatchError(
            f"{folder} holds a comparison of an earlier version of initopt, whose runs drew other random numbers. It can "
            "be read, and a report be made of it (initopt report), but not gone on with; choose another folder"
        )
    was = {name: value for name, value in record.items() if name not in ("format", "versions")}
    lines = list(_differences(was, plain(specification), ""))
    if lines:
        raise MismatchError(
            f"{folder} holds another comparison, which this one cannot go on with:\n  "
            + first_few(lines, 20, "\n  ")
            + "\nGive it a folder of its own, or the recipe of that one."
        )


def _differences(was: Any, now: Any, path: str) -> Iterator[str]:
    if isinstance(was, dict) and isinstance(now, dict):
        for name in {**was, **now}:
            where = f"{path}.{name}" if path else name
            if name not in now:
                yield f"{where} is gone; it was {_short(was[name])}"
            elif name not in was:
                yield f"{where} is new: {_short(now[name])}"
            else:
                yield from _differences(was[name], now[name], where)
        if [name for name in was if name in now] != [name for name in now if name in was]:
            yield f"{path} are in another order: they were {', '.join(was)}, and are {', '.join(now)}"
    elif _are_alike(was, now):
        for number, (old, new) in enumerate(zip(was, now, strict=True)):
            yield from _differences(old, new, f"{path}[{number}]")
    elif was != now:
        yield f"{path} was {_short(was)} and is {_short(now)}"


def _are_alike(was: Any, now: Any) -> bool:
    """Whether both are lists of as many mappings, such as the steps of an initialization."""
    lists = isinstance(was, list) and isinstance(now, list) and len(was) == len(now)
    return lists and all(isinstance(value, dict) for value in (*was, *now))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _remove_leftovers(folder: Path) -> None:
    """Remove what was being written when a process was killed, where this comparison writes and nowhere else."""
    clear_leftovers(folder / RECORD)
    clear_leftovers(folder / "report")
    places = [folder / "runs"]
    for _ in range(3):
        places = [below for place in places if not place.is_symlink() for below in _folders_in(place)]
    for place in places:
        clear_leftovers_in(place, _RUN)


def _folders_in(place: Path) -> list[Path]:
    try:
        return [item for item in place.iterdir() if item.is_dir() and not item.is_symlink()]
    except OSError:
        return []


def is_stored(folder: Path, job: Job) -> bool:
    """Whether the result of a job is there.

    Raises:
        OSError: if that cannot be found out.
        ValueError: if something is there, but no whole run.
    """
    place = job.place(folder)
    for above in (*reversed(place.parents[: len(job.steps)]), place):
        refuse_link(above)
    try:
        os.lstat(place)
    except (FileNotFoundError, NotADirectoryError):
        return False
    found = Job.of(load_run(place))
    if found != job:
        raise ValueError(f"{place} holds the run {found}, which does not belong there; remove the folder to run {job}")
    return True


def remove_failed(folder: Path) -> None:
    """Remove all runs that failed, so that they are done again.

    Raises:
        FileExistsError: if the folder of one holds files of others; the message names them.
    """
    for place, run in stored_runs(folder, []):
        if run.status == "failed":
            remove_folder(place, _CONTENTS)


def store_run(folder: Path, record: RunRecord) -> None:
    """Put the result of a run in place, whole or not at all.

    Raises:
        OSError: if it cannot be written; nothing is left then.
    """
    write_folder(Job.of(record).place(folder), partial(write_run, record), _CONTENTS)
