"""``initopt demo``."""

from __future__ import annotations

from jsonargparse import ArgumentParser

from initopt.cli.commands.base import Command, Request
from initopt.demo import run_demo

__all__ = ["COMMAND"]


def _add_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("options")
    group.add_function_arguments(run_demo, as_group=False, fail_untyped=False)


def _run(request: Request) -> None:
    run_demo(**request.options)


COMMAND = Command(
    usage="initopt demo [options]",
    description="""\
Train a deep network on handwritten digits from its default start and from
NIO's, and compare. Nothing is downloaded.""",
    examples="""\
example:
  initopt demo --seeds 3 --out my-demo""",
    add_options=_add_options,
    run=_run,
)
