"""``initopt check``."""

from __future__ import annotations

import itertools
import json
from typing import Any, Literal

from jsonargparse import ArgumentParser

import initopt
from initopt._support.files import plain
from initopt.cli.commands.base import Command, Request
from initopt.cli.own_model import OWN_MODEL, add_common_options, make_model, make_problem
from initopt.diagnosis import Finding, Findings
from initopt.diagnosis.diagnosis import as_plain
from initopt.diagnosis.rules.base import notable

__all__ = ["COMMAND", "shown"]


def _add_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("what to look for")
    group.add_argument("--select", type=str | None, metavar="CODES", help="rules to ask, or their beginnings: W,A201")
    group.add_argument("--ignore", type=str | None, metavar="CODES", help="rules not to ask, likewise")
    add_common_options(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output_format",
        type=Literal["text", "json", "github"],
        default="text",
        help="lines to read, JSON, or annotations of GitHub",
    )


def _codes(given: str | None) -> list[str] | None:
    return None if given is None else [code.strip() for code in given.split(",") if code.strip()]


def _run(request: Request) -> int:
    batch, loss = None, None
    if "data" in request.components:
        model, batches, loss = make_problem(request)
        batch = next(itertools.chain(batches, [None]))
    else:
        model = make_model(request)
    select, ignore = _codes(request.options["select"]), _codes(request.options["ignore"])
    against = make_model(request, "against") if "against" in request.components else None
    found = initopt.check(model, batch, loss, against=against, select=select, ignore=ignore)
    print(shown(found, request.options["output_format"]))
    return int(any(notable(found)))


def shown(findings: Findings, form: str) -> str:
    """Findings in a form: ``"text"``, ``"json"`` or ``"github"``.

    >>> found = Finding("W106", "error", ("0.weight",), "all its entries are 1", "draw it at random")
    >>> print(shown(Findings([found], on_data=False), "github"))
    ::error title=W106::0.weight: all its entries are 1. Draw it at random.
    """
    if form == "json":
        record: dict[str, Any] = {"format": "initopt check 1", "findings": [as_plain(finding) for finding in findings]}
        return json.dumps(plain(record), indent=1, allow_nan=False)
    if form == "github":
        return "\n".join(_annotation(finding) for finding in findings)
    return str(findings)


def _annotation(finding: Finding) -> str:
    kind = {"error": "error", "warning": "warning", "note": "notice"}[finding.severity]
    text = str(finding).partition(f"{finding.severity}:")[2].strip().replace("%", "%25").replace("\n", "%0A")
    return f"::{kind} title={finding.rule}::{text}"


COMMAND = Command(
    usage="initopt check --model PATH [--model.ARG VALUE ...]\n"
    "                     [--data PATH [--data.ARG VALUE ...]] [--against PATH] [options]",
    description="""\
Look for what is visibly wrong with a network's initial weights: memory that was
never written, copies, constants, wrong scales and more. With data, a forward
and a backward pass of one batch show more. docs/rules.md has all rules.

The exit status is 1 if there is an error or a warning, and 0 if not.""",
    examples="""\
examples:
  initopt check --model my_net.Net --model.depth 20
  initopt check --model timm:resnet18 --select W --output-format github
  initopt check --model plain_mlp --data digits --ignore A209
  initopt check --model my_vit.ViT --against timm:vit_tiny_patch16_224""",
    add_options=_add_options,
    run=_run,
    components=OWN_MODEL | {"against": "another start of the same architecture, as --model, to compare weights with"},
)
