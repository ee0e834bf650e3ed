"""Files and folders that are written whole or not at all, and JSON that any reader accepts."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

__all__ = ["check_replaceable", "plain", "read_json", "unplain", "write_file", "write_folder", "write_json"]


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Have ``write`` make a file, and put it in place only once it is complete and on disk.

    Args:
        path: where the file goes; its folder is made if need be.
        write: is given the path of a temporary file in the same folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        os.close(handle)
        write(temporary)
        _share(temporary, 0o666)
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


_WRITTEN = {
    "result.json": {"result.json", "weights.safetensors", "grams.safetensors", "plot.png", "config.yaml"},
    ".initopt-demo": {".initopt-demo", "results.json", "demo.png"},
    "run.json": {"run.json", "curve.parquet", "events.out.tfevents.run"},
    ".initopt-report": {".initopt-report", "report.html", "report.md", "figures"},
}
"""What initopt writes into a folder, by the file that marks it as ours. Subfolders are those of results."""


def write_folder(path: Path, write: Callable[[Path], None], marker: str) -> None:
    """Have ``write`` fill a folder, and put it in place only once it is complete.

    A folder that is there already is replaced if it is empty or holds nothing but what initopt wrote; at the end of a
    link, it is the folder that the link leads to.

    Args:
        path: where the folder goes.
        write: is given the path of a temporary folder beside it.
        marker: the file that marks the folder, see :func:`check_replaceable`.

    Raises:
        FileExistsError: if something else is there.
    """
    path = path.resolve()
    check_replaceable(path, marker)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        write(temporary)
        _share(temporary, 0o777)
        for file in temporary.iterdir():
            _share(file, 0o777 if file.is_dir() else 0o666)
            _sync(file)
        _sync(temporary)
        _put_in_place(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(path.parent)


def _put_in_place(new: Path, path: Path) -> None:
    """Rename a folder to ``path``; one that is there is gone afterwards, or still there if that fails."""
    if not path.exists():
        os.replace(new, path)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    try:
        os.replace(path, aside)
    except BaseException:
        aside.rmdir()
        raise
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(aside, path)
        raise
    shutil.rmtree(aside)


def check_replaceable(path: Path, marker: str) -> None:
    """Refuse a folder that :func:`write_folder` would not replace.

    Args:
        path: the folder.
        marker: the file that says that the folder is ours, and of which kind; if it is JSON, by its ``"format"``.

    Raises:
        FileExistsError: if something is there that is neither an empty folder nor one that initopt wrote, or if it holds
            files of others; the message names them.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not path.is_dir() or not _is_ours(path / marker):
        raise FileExistsError(f"{path} exists and was not written by initopt; choose another folder or remove it first")
    foreign = sorted(_foreign(path, marker))
    if foreign:
        more = f" and {len(foreign) - 5} more" if len(foreign) > 5 else ""
        raise FileExistsError(
            f"{path} is not replaced, since it holds files that initopt did not write: {', '.join(foreign[:5])}{more}; "
            "move them elsewhere or choose another folder"
        )


def _is_ours(marker: Path) -> bool:
    if marker.suffix != ".json":
        return marker.is_file()
    try:
        record = read_json(marker)
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and str(record.get("format")).startswith("initopt ")


def _foreign(folder: Path, marker: str) -> Iterator[str]:
    """The files of others in a folder of ours."""
    for item in folder.iterdir():
        if item.is_dir() and not item.is_symlink() and _is_ours(item / "result.json"):
            if marker == "result.json":  # a result holds no other
                yield item.name
            else:
                yield from (f"{item.name}/{name}" for name in _foreign(item, "result.json"))
        elif item.name not in _WRITTEN[marker]:
            yield item.name


def _share(path: Path, mode: int) -> None:
    """Give a path the mode that the user's umask leaves; that of temporary files is for their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(mode & ~umask)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def plain(value: Any) -> Any:
    """A value as JSON has it: functions by their name, numbers that are not finite as strings.

    >>> plain({"bound": math.inf, "filter": math.sqrt, "betas": (0.9, 0.999)})
    {'bound': 'inf', 'filter': 'math.sqrt', 'betas': [0.9, 0.999]}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if callable(value):
        return f"{getattr(value, '__module__', '?')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return str(value)


def unplain(value: Any) -> Any:
    """A value from JSON with the numbers that are not finite as such again.

    >>> unplain({"bound": "inf", "betas": [0.9, "nan"], "name": "info"})
    {'bound': inf, 'betas': [0.9, nan], 'name': 'info'}
    """
    if isinstance(value, dict):
        return {key: unplain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unplain(item) for item in value]
    return float(value) if value in ("inf", "-inf", "nan") else value


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON."""
    path.write_text(json.dumps(plain(value), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        ValueError: if the file is not there or is not complete; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or not JSON ({error})") from None
