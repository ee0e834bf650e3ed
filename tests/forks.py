"""Processes for tests that need not import PyTorch, which takes seconds: they are forked from a server that has."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

IMPORTED = ["numpy", "torch", "torch.distributed.fsdp", "torch.utils.data", "pytest"]
"""Nothing of initopt, which each process imports for itself."""

COMMAND_LINE = "from initopt.cli import main; main()"
"""A program that does what its arguments say."""


def forking() -> ForkServerContext:
    """The context of :mod:`multiprocessing` whose processes are forked from the server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    ensure_running()  # here, and not in a thread that holds signals back, as the server would from then on
    return context


class Python:
    """What ``python -c CODE ARGUMENTS`` is, at work, but that PyTorch is imported already. It cannot start workers.

    Args:
        code: the program.
        arguments: of the program.
        said: the folder in which what it writes is put, as ``stdout`` and ``stderr``.
        cwd: the folder that it runs in, by default this one.
        environment: by default this one; what ``PYTHONPATH`` holds is found.
        new_session: whether it leads a session of its own.
    """

    def __init__(
        self,
        code: str,
        *arguments: str,
        said: Path,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        new_session: bool = False,
    ) -> None:
        self.command = ["python", "-c", code, *arguments]
        self.stdout, self.stderr = said / "stdout", said / "stderr"
        for file in (self.stdout, self.stderr):
            file.write_bytes(b"")
        given = str(cwd or Path.cwd()), dict(environment or os.environ), (str(self.stdout), str(self.stderr)), new_session
        self._process = forking().Process(target=_run, args=(code, arguments, *given), daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float = 300) -> int:
        """The status in the end."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.command, timeout)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


def python(code: str, *arguments: str, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
    """What ``python -c CODE ARGUMENTS`` does; with the options of :class:`Python`, and a timeout in seconds."""
    with tempfile.TemporaryDirectory() as place:
        process = Python(code, *arguments, said=Path(place), **options)
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.command, status, process.stdout.read_text(), process.stderr.read_text())


def _run(
    code: str, arguments: tuple[str, ...], folder: str, environment: dict[str, str], said: tuple[str, ...], apart: bool
) -> None:
    if apart:
        os.setsid()
    for number, path in enumerate(said, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    sys.path[:0] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
