"""The entry point: which command, and how a process ends."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import initopt
from initopt._support.interrupts import terminable
from initopt.cli.arguments import parse, reworded
from initopt.cli.commands import COMMANDS, find_command

__all__ = ["main"]

_FAILED, _BAD_INPUT = 1, 2
_OWN = Path(initopt.__file__).parent


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, and exit: 0 done, 1 failed, 2 bad input, 130 after Ctrl-C, 143 after SIGTERM.

    Args:
        argv: the arguments; those of the process, by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in COMMANDS:
        sys.exit(_run(arguments[0], arguments[1:]))
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items())
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
    near = difflib.get_close_matches(arguments[0], COMMANDS, 1) if arguments else []
    if near:
        parser.error(f"there is no command {arguments[0]!r}; did you mean {near[0]!r}?")
    parser.parse_args(arguments)
    parser.print_help()
    sys.exit(0)


def _run(name: str, arguments: list[str]) -> int:
    status = 0
    try:
        with terminable(), _plain_warnings():
            command = find_command(name)
            request = parse(command, name, arguments)
            if request is not None:
                status = command.run(request) or 0
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has had enough, as `head` has; nothing more can be printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    except Exception as error:
        debugging = "--debug" in arguments or os.environ.get("INITOPT_DEBUG", "") not in ("", "0")
        if _explained(error) and not debugging:
            syntax = isinstance(error, argparse.ArgumentError)
            message = f"{reworded(str(error))}\n(--help says what is accepted)" if syntax else str(error)
            print(f"initopt {name}: error: {message}", file=sys.stderr)
        else:
            traceback.print_exc()
        # 1 for a failure of the numbers or of the machine, 2 for input that cannot work
        return _FAILED if isinstance(error, ArithmeticError) or not _explained(error) else _BAD_INPUT
    return status


def _explained(error: Exception) -> bool:
    """Whether the message of an exception tells the user all there is to know.

    That is so for those that initopt raises itself. One that comes out of the user's model, loss or data, or out of
    PyTorch beneath them, needs its traceback.
    """
    if isinstance(error, argparse.ArgumentError):
        return True
    if not isinstance(error, (ValueError, TypeError, ImportError, OSError, ArithmeticError)):
        return False
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, OSError):  # a file of ours that cannot be written fails beneath us, in the standard library
        standard = sysconfig.get_path("stdlib")
        files = [file for file in files if not file.is_relative_to(standard) or "site-packages" in file.parts]
        return all(file.is_relative_to(_OWN) for file in files)
    return files[-1].is_relative_to(_OWN)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as a line for the user, not as a line of our source."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"initopt: warning: {message}", file=sys.stderr)
        yield
