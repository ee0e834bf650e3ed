"""``initopt report``."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser

from initopt.cli.commands.base import Command, Request

__all__ = ["COMMAND"]


def _add_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("what to report on")
    group.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="the folder of a comparison, finished or not")


def _run(request: Request) -> None:
    from initopt.comparison.report.report import write_report

    if request.options["folder"] is None:
        raise ValueError("DIR is missing: the folder that initopt compare --out wrote")
    page = write_report(request.options["folder"].expanduser())
    print(f"Report: {page}\nNext, open it: it begins with what is clearly better, and ends with what cannot be concluded.")


COMMAND = Command(
    usage="initopt report DIR",
    description="""\
Write the report of a comparison again, from its stored runs: one HTML page that
needs nothing beside it, and the same in Markdown.""",
    examples="""\
example:
  initopt report comparison""",
    add_options=_add_options,
    run=_run,
)
