"""Files and folders that are written whole or not at all, and JSON that any reader accepts."""

from __future__ import annotations

import ctypes
import errno
import functools
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from initopt._support.reading import read_json
from initopt._support.words import first_few
from initopt._support.workshop import Workshop, clear_leftovers, workshop

__all__ = [
    "Contents",
    "check_file",
    "check_replaceable",
    "exchange",
    "plain",
    "remove_folder",
    "unplain",
    "write_file",
    "write_folder",
    "write_json",
]


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Have ``write`` make a file, and put it in place only once it is complete and on disk.

    Args:
        path: where the file goes; its folder is made if need be. At the end of a link, it is the file that the link leads
            to.
        write: is given the path of a temporary file, which it makes.

    Raises:
        ValueError: if something is there that is not a file.
        OSError: if it cannot be written.
    """
    check_file(path)
    path = _without_links(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path)
    with workshop(path) as shop:
        try:
            write(shop.new)
        except OSError as error:
            if error.filename == str(shop.new):
                error.filename = str(path)  # which is the one that its user knows
            raise
        _share(shop.new, 0o666)
        _sync(shop.new)
        os.replace(shop.new, path)
    _sync(path.parent)


def check_file(path: Path, called: str | None = None) -> None:
    """Refuse a path at which there is something that :func:`write_file` would not replace: a folder, pipe or device.

    Args:
        path: where a file is to go.
        called: what the message calls it; its path, by default.

    Raises:
        ValueError: the message says what is there.
    """
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a device or a pipe"
        raise ValueError(f"{called or path} is {what}; give the path of a file")


@dataclass(frozen=True)
class Contents:
    """The files and folders that a folder written by initopt holds.

    Attributes:
        marker: the file that says that initopt wrote the folder, and its kind; if it is JSON, by its ``"format"``.
        files: the other files that may be in it.
        folders: the folders that may be in it; what they hold is for the one who writes them to look at.
        inner: what further folders in it hold; there are none, by default.
    """

    marker: str
    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    inner: Contents | None = None

    def foreign(self, folder: Path) -> Iterator[str]:
        """The files in a folder that initopt did not write."""
        for item in folder.iterdir():
            is_folder = item.is_dir() and not item.is_symlink()
            if is_folder and self.inner is not None and self.inner.is_in(item):
                yield from (f"{item.name}/{name}" for name in self.inner.foreign(item))
            elif item.name not in (self.folders if is_folder else (self.marker, *self.files)):
                yield item.name

    def is_in(self, folder: Path) -> bool:
        """Whether a folder has the marker file."""
        marker = folder / self.marker
        if marker.suffix != ".json":
            return marker.is_file()
        try:
            record = read_json(marker)
        except (OSError, ValueError):
            return False
        return isinstance(record, dict) and str(record.get("format")).startswith("initopt ")


def write_folder(path: str | os.PathLike[str], write: Callable[[Path], None], contents: Contents) -> Path:
    """Have ``write`` fill a folder, and put it in place only once it is complete.

    A folder that is there already is replaced if it is empty or holds nothing but what initopt wrote; at the end of a
    link, it is the folder that the link leads to.

    Args:
        path: where the folder goes; ``~`` is the user's home.
        write: is given the path of a temporary folder, to be filled.
        contents: what a folder of this kind holds.

    Returns:
        The path, as it was given but for the home.

    Raises:
        FileExistsError: if something else is there.
    """
    given = Path(path).expanduser()
    path = _without_links(given)
    check_replaceable(path, contents)
    path.parent.mkdir(parents=True, exist_ok=True)
    with workshop(path) as shop:
        shop.new.mkdir()
        write(shop.new)
        _share(shop.new, 0o777)
        for file in shop.new.iterdir():
            _share(file, 0o777 if file.is_dir() else 0o666)
            _sync(file)
        _sync(shop.new)
        check_replaceable(path, contents)  # once more, since the writing has taken a while
        _put_in_place(shop, path, contents)
    _sync(path.parent)
    return given


def _without_links(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _put_in_place(shop: Workshop, path: Path, contents: Contents) -> None:
    """Put a new folder at ``path``, in one step where the system can; the workshop then has the one that was there."""
    if not path.exists():
        os.replace(shop.new, path)
        return
    displaced = shop.new
    if not exchange(shop.new, path):
        displaced = shop.old  # which the workshop puts back if nothing comes in its place
        os.replace(path, displaced)
        os.replace(shop.new, path)
    try:
        _refuse_foreign(path, displaced, contents)  # nobody finds it under its path any more
    except FileExistsError:
        if displaced == shop.new:
            exchange(displaced, path)
        else:
            os.replace(path, shop.new)
        raise


def remove_folder(path: Path, contents: Contents) -> None:
    """Remove a folder that :func:`write_folder` would replace.

    Raises:
        FileExistsError: as :func:`check_replaceable`; also for a link.
    """
    if path.is_symlink():
        raise FileExistsError(f"{path} is a link; remove it yourself")
    path = _without_links(path)
    check_replaceable(path, contents)
    with workshop(path) as shop:
        os.replace(path, shop.new)


def check_replaceable(path: Path, contents: Contents) -> None:
    """Refuse a folder that :func:`write_folder` would not replace.

    Args:
        path: the folder.
        contents: what a folder of this kind holds.

    Raises:
        FileExistsError: if something is there that is neither an empty folder nor one that initopt wrote, or if it holds
            files of others; the message names them.
    """
    path = _without_links(path)
    clear_leftovers(path)
    if not path.exists():
        return
    if _current_folder().is_relative_to(path):
        raise FileExistsError(
            f"{path} is the current folder, or one above it, and would be replaced while it is in use; give the name of a "
            "new folder in it"
        )
    if path.is_dir() and not any(path.iterdir()):
        return
    if not path.is_dir() or not contents.is_in(path):
        raise FileExistsError(f"{path} exists and was not written by initopt; choose another folder or remove it first")
    _refuse_foreign(path, path, contents)


def _current_folder() -> Path:
    try:
        return _without_links(Path.cwd())
    except FileNotFoundError:  # removed
        return Path(os.sep)


def _refuse_foreign(path: Path, place: Path, contents: Contents) -> None:
    """Refuse to replace what is called ``path`` and lies at ``place``, if it holds files of others."""
    foreign = sorted(contents.foreign(place))
    if foreign:
        raise FileExistsError(
            f"{path} is not replaced, since it holds files that initopt did not write: {first_few(foreign, 5)}; "
            "move them elsewhere or choose another folder"
        )


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


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def plain(value: Any) -> Any:
    """A value as JSON has it: functions by their name, numbers that are not finite as strings.

    What has a method ``as_plain`` says itself what it is known by. What says nothing of itself but where it is in memory,
    which is another place each time, is the name of its class.

    >>> plain({"bound": math.inf, "filter": math.sqrt, "betas": (0.9, 0.999)})
    {'bound': 'inf', 'filter': 'math.sqrt', 'betas': [0.9, 0.999]}
    >>> plain(functools.partial(math.isclose, rel_tol=0.1))
    'math.isclose(rel_tol=0.1)'
    """
    if hasattr(value, "as_plain") and not isinstance(value, type):
        return plain(value.as_plain())
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
    if isinstance(value, functools.partial):
        given = [*map(_short, value.args), *(f"{name}={_short(item)}" for name, item in value.keywords.items())]
        return f"{plain(value.func)}({', '.join(given)})"
    if callable(value):
        return f"{getattr(value, '__module__', '?')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    text = str(value)
    return f"{type(value).__module__}.{type(value).__qualname__}" if _ADDRESS.search(text) else text


def _short(value: Any) -> str:
    found = plain(value)
    return found if isinstance(found, str) and not isinstance(value, str) else repr(found)


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


_CURRENT_FOLDER = -100  # AT_FDCWD
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


def exchange(one: Path, other: Path) -> bool:
    """Have two paths change places: at any moment, each of them has one or the other.

    Returns:
        Whether it is done; ``False`` where the system or the file system has no such operation.

    Raises:
        OSError: if it fails for another reason.
    """
    library: Any = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    names = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(*names, ctypes.c_uint(_EXCHANGE))
    elif hasattr(library, "renameat2"):
        failed = library.renameat2(_CURRENT_FOLDER, names[0], _CURRENT_FOLDER, names[1], ctypes.c_uint(_EXCHANGE))
    else:
        return False
    if failed and ctypes.get_errno() not in _CANNOT:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(one), None, str(other))
    return not failed
