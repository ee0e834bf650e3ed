"""The entry point: which command, and how a process ends."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, TextIO

import initopt
from initopt._support.interrupts import terminable
from initopt.cli.arguments import parse, reworded
from initopt.cli.commands.base import Command
from initopt.cli.commands.compare import COMPARE
from initopt.cli.commands.demo import DEMO
from initopt.cli.commands.measure import MEASURE
from initopt.cli.commands.report import REPORT
from initopt.cli.commands.run import RUN
from initopt.cli.failures import FAILED, debugging, exit_status, explained

__all__ = ["main"]

COMMANDS = {command.name: command for command in (DEMO, MEASURE, RUN, COMPARE, REPORT)}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, and exit: 0 done, 1 failed, 2 bad input, 130 after Ctrl-C, 143 after SIGTERM.

    Args:
        argv: the arguments; those of the process, by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in COMMANDS:
        sys.exit(_run(COMMANDS[arguments[0]], arguments[1:]))
    parser = _top_level()
    near = difflib.get_close_matches(arguments[0], COMMANDS, 1) if arguments else []
    if near:
        parser.error(f"there is no command {arguments[0]!r}; did you mean {near[0]!r}?")
    parser.parse_args(arguments)
    parser.print_help()
    sys.exit(0)


def _top_level() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {command.name:{width}}  {command.summary}" for command in COMMANDS.values())
    parser = argparse.ArgumentParser(
        prog="initopt",
        usage="initopt COMMAND [options]",
        description="Measure how good a network's starting point is on its own data, and\n"
        f"improve it before the first training step.\n\ncommands:\n{lines}",
        epilog="'initopt COMMAND --help' describes a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"initopt {initopt.__version__}")
    parser.add_argument("command", nargs="?", choices=COMMANDS, help=argparse.SUPPRESS)
    return parser


def _run(command: Command, arguments: list[str]) -> int:
    try:
        with terminable(), _plain_warnings():
            request = parse(command, arguments)
            if request is not None:
                command.run(request)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has had enough, as `head` has; nothing more can be printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if explained(error) and not debugging() and "--debug" not in arguments:
            print(f"initopt {command.name}: error: {_message(error)}", file=sys.stderr)
        else:
            traceback.print_exc()
        return exit_status(error)
    return 0


def _message(error: Exception) -> str:
    if not isinstance(error, argparse.ArgumentError):
        return str(error)
    return reworded(str(error)) + "\n(--help says what is accepted)"


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as a line for the user, not as a line of our source."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        print(f"initopt: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
