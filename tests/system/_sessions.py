"""Processes that a process has left behind."""

import contextlib
import time
from pathlib import Path


def session(leader):
    """The processes of the session of one that may have ended, by number, with their command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, number = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(number) == leader and state != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_text()
    return found


def assert_none_left(leader):
    """None of the processes that one has started outlives it by more than the time that a worker takes to start."""
    deadline = time.monotonic() + 120
    while session(leader) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert session(leader) == {}


def descendants(ancestor):
    """The numbers of a process, of those that it has started, and of those that these have."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = {ancestor}
    while more := {number for number, parent in parents.items() if parent in found} - found:
        found |= more
    return found
