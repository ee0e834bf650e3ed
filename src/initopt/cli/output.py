"""What a command that looks at a network writes beside what it prints: a folder, and a JSON file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jsonargparse import ArgumentParser

import initopt
from initopt._support.files import Contents, check_file, check_replaceable, write_file, write_json
from initopt.cli.commands.base import Request

__all__ = ["Output", "add_output_options"]


class _Found(Protocol):
    """A finding that can be stored."""

    def to_dict(self) -> dict[str, Any]: ...

    def save(self, folder: Path) -> Path: ...


def add_output_options(parser: ArgumentParser, what: str) -> None:
    """Add ``--output`` and ``--json``.

    Args:
        parser: of the command.
        what: is written into the folder.
    """
    group = parser.add_argument_group("output")
    group.add_argument("--output", type=Path | None, metavar="FOLDER", help=f"write {what} into this folder, too")
    group.add_argument("--json", type=Path | None, metavar="FILE", help="write all of it into a JSON file, too")


@dataclass(frozen=True)
class Output:
    """Where a command writes.

    Attributes:
        folder: for the page and the like; ``None`` for none.
        file: for JSON; ``None`` for none.
    """

    folder: Path | None
    file: Path | None

    @classmethod
    def checked(cls, request: Request, contents: Contents | None = None) -> Output:
        """The places that a command line names, refused before any work if something else is there.

        Args:
            request: the command line.
            contents: of the folder; ``None`` for a command that writes none.

        Raises:
            FileExistsError: for a folder of others.
            ValueError: for a file that is none.
        """
        folder = request.options["output"] if contents is not None else None
        file = request.options["json"]
        if folder is not None and contents is not None:
            folder = folder.expanduser()
            check_replaceable(folder, contents)
        if file is not None:
            file = file.expanduser()
            check_file(file, f"--json {file}")
        return cls(folder, file)

    def save(self, found: _Found, what: str = "Page") -> None:
        """Write what was found into the folder, and print where it is."""
        if self.folder is not None:
            print(f"\n{what} in {found.save(self.folder)}")

    def write(self, record: dict[str, Any], request: Request, what: str = "All of it") -> None:
        """Write a record into the file, with the version and the command line, and print where it is."""
        if self.file is not None:
            whole = {"initopt": initopt.__version__, "config": request.config} | record
            write_file(self.file, lambda temporary: write_json(temporary, whole))
            print(f"\n{what} in {self.file}")
