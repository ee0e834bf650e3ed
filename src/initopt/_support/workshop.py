"""Hidden folders beside a path, in which what goes there is made, and what is left of those whose process was killed."""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["Workshop", "clear_leftovers", "clear_leftovers_in", "workshop"]

if sys.platform != "win32":
    import fcntl


_NAME = re.compile(r"\.(?P<target>.+)\.initopt-[a-z0-9_]{8}", re.DOTALL)
_LOCK, _NEW, _OLD = "lock", "new", "old"
_NO_SURPRISES = os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) if os.name == "posix" else 0


class Workshop:
    """A hidden folder for one path.

    It is locked as long as its process lives, which is how one that was left by a kill is known.

    Attributes:
        new: where to make what goes to the path; not there at first.
        old: where to put what was at the path, meanwhile.
    """

    def __init__(self, place: Path) -> None:
        self.new, self.old = place / _NEW, place / _OLD


@contextmanager
def workshop(target: Path) -> Iterator[Workshop]:
    """Have a hidden folder beside ``target``, which is gone when the block ends, whatever has happened in it.

    If :attr:`Workshop.old` is there then, and nothing is at ``target``, it is put back.

    Args:
        target: an absolute path, without links; its folder is there.
    """
    place, lock = _opened(target)
    try:
        yield Workshop(place)
    finally:
        _close(place, target)
        os.close(lock)


def clear_leftovers(target: Path) -> None:
    """Remove the workshops of ``target`` whose process was killed, and put back what one of them had set aside.

    Nothing else is touched: no folder of another name, no link, and nothing that a living process is at.
    """
    clear_leftovers_in(target.parent, re.compile(re.escape(target.name)))


def clear_leftovers_in(folder: Path, targets: re.Pattern[str]) -> None:
    """Do :func:`clear_leftovers` for all targets in a folder whose whole name matches a pattern."""
    try:
        with os.scandir(folder) as items:
            folders = [item.name for item in items if item.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for name in folders:
        found = _NAME.fullmatch(name)
        if found is not None and targets.fullmatch(found["target"]):
            _clear(folder / name, folder / found["target"])


def _opened(target: Path) -> tuple[Path, int]:
    """A new workshop, and its lock."""
    while True:
        place = Path(tempfile.mkdtemp(prefix=f".{target.name}.initopt-", dir=target.parent))
        try:
            lock = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_SURPRISES, 0o600)
        except FileNotFoundError:  # another process took it for a leftover, before it was locked
            continue
        except BaseException:
            place.rmdir()
            raise
        if _take(lock) is not False and _is_there(lock, place):
            return place, lock
        os.close(lock)


def _is_there(lock: int, place: Path) -> bool:
    """Whether a lock still has its name: another process may have taken and removed it before it was locked."""
    try:
        return os.path.samestat(os.fstat(lock), os.stat(place / _LOCK))
    except FileNotFoundError:
        return False


def _take(lock: int) -> bool | None:
    """Lock a file; ``False`` if another one has, ``None`` if files cannot be locked here.

    What is left of a kill cannot be told from what is being made then, and stays.
    """
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _clear(place: Path, target: Path) -> None:
    try:
        lock = os.open(place / _LOCK, os.O_RDWR | _NO_SURPRISES)
    except OSError:  # killed before it had a lock or after it was given up: there is nothing in it then
        with suppress(OSError):
            place.rmdir()
        return
    try:
        if _take(lock):
            _close(place, target)
    finally:
        os.close(lock)


def _close(place: Path, target: Path) -> None:
    """Put back what was set aside, if nothing is in its place, and remove the workshop, its lock last."""
    with suppress(OSError):
        if stat.S_ISDIR(os.lstat(place / _OLD).st_mode) and not os.path.lexists(target):
            os.rename(place / _OLD, target)
    with suppress(OSError):
        for name in (_NEW, _OLD, _LOCK):
            _delete(place / name)
        place.rmdir()


def _delete(item: Path) -> None:
    if item.is_dir() and not item.is_symlink():
        shutil.rmtree(item)
    else:
        item.unlink(missing_ok=True)
