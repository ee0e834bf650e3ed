"""The results as a table on the terminal and as a page of the documentation."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["PAGE", "markdown", "show", "summary"]

PAGE = Path(__file__).parents[2] / "docs" / "model_zoo.md"

_METHOD = """\
Each model is a small variant as its library initializes it, on noise with random labels. It is measured and does one NIO
step with `engine="auto"`. Then its constant tensors (zeros, ones) are made to vary, so that no branch is switched off, and
the Gram matrix and the derivatives of `cosine+norm` with respect to all scales are compared with their definition by plain
double backward in float64 (`initopt.testing.truth`), which shares no code with the engines. What models cast to float32 is
cast to float64 for that.

- *double*: largest error of a derivative in float64, as a share of its own size plus a thousandth of the largest. Right is
  at most {derivatives:g} (and {gram:g} for the Gram matrix).
- *together*: the same with all sub-batches run at once (`engine="groups"`), which `engine="auto"` tries from 8 sub-batches
  on. Where there is a dash, it finds that the model is beyond that, and goes over to another engine.
- *single*: as *double*, but in float32, against the same truth in float64. Rounding may put an activation on the other
  side of a kink, and norms over few values magnify it, so that plain double backward in float32 is off, too (in brackets,
  the worst on inputs that differ by a rounding). Right is at most {single_derivatives:g} (and {single_gram:g} for the Gram
  matrix), or {leeway} times what plain double backward is off.
- A *refused* model ends in an error message that says why and what to do."""

_COLOURS = {"ok": "green", "refused": "yellow"}


def summary(models: list[dict[str, Any]]) -> str:
    """How many came out how."""
    counts = Counter(model["status"] for model in models)
    families = {library: len({m["family"] for m in models if m["library"] == library}) for library in _libraries(models)}
    parts = [f"{count} {status}" for status, count in counts.most_common()]
    where = " and ".join(f"{count} families of {library}" for library, count in families.items())
    return f"{len(models)} models of {where}: {', '.join(parts)}"


def show(models: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(title="initopt on the model zoo")
    for heading in ("family", "model", "tensors", "engine", "double", "together", "single", "step", "all", "outcome"):
        table.add_column(heading, justify="left" if heading in ("family", "model", "engine", "outcome") else "right")
    for model in models:
        seconds = model["seconds"]
        table.add_row(
            model["family"],
            model["name"],
            str(model["tensors"]),
            model["engine"],
            _error(model, "derivatives"),
            _error(model, "together_derivatives") or "-",
            _error(model, "single_derivatives"),
            f"{seconds.get('nio', 0):.2f} s",
            f"{seconds['all']:.1f} s",
            f"[{_COLOURS.get(model['status'], 'red')}]{model['status']}[/] {escape(model['message'][:200])}".rstrip(),
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)
    console.print(f"{summary(models)}; {sum(model['seconds']['all'] for model in models):.0f} s")


def markdown(everything: dict[str, Any]) -> str:
    """The page."""
    models, tolerances = everything["models"], everything["tolerances"]
    versions = ", ".join(f"{name} {number}" for name, number in everything["versions"].items())
    lines = [
        "# Architectures that were tried",
        "",
        "This page is written by `make test-zoo`; do not edit it.",
        "",
        f"{summary(models)} ({versions}, CPU).",
        "",
        *_METHOD.format(leeway=everything["leeway"], **tolerances).splitlines(),
        "",
    ]
    for library in _libraries(models):
        lines += [
            f"## {library}",
            "",
            "| family | model | how | parameters | engine | double | together | single | |",
            "| --- | --- | --- | ---: | --- | ---: | ---: | ---: | --- |",
        ]
        for model in models:
            if model["library"] != library:
                continue
            cells = [
                model["family"],
                f"`{model['name']}`",
                model["note"],
                _count(model["parameters"]),
                model["engine"],
                _error(model, "derivatives"),
                _error(model, "together_derivatives") or "-",
                _single_error(model),
                " ".join([model["status"], model["message"]]).strip(),
            ]
            lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
        lines.append("")
    # Which parameter it is that cannot have a copy for each sub-batch is not told here.
    beyond = Counter(
        re.sub(r"'[^']+'", "a parameter", model["not_together"]).removeprefix("NotCoveredError: ")
        for model in models
        if model["not_together"]
    )
    if beyond:
        lines += ["## Why sub-batches cannot be run together", ""]
        lines += [f"- {count} {'model' if count == 1 else 'models'}: {reason}" for reason, count in beyond.most_common()]
        lines.append("")
    reasons = sorted({warning for model in models for warning in model["warnings"]})
    if reasons:
        lines += ["## Warnings", "", *(f"- {reason}" for reason in reasons), ""]
    return "\n".join(lines)


def _libraries(models: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(model["library"] for model in models))


def _error(model: dict[str, Any], key: str) -> str:
    return f"{model['errors'][key]:.0e}" if key in model["errors"] else ""


def _single_error(model: dict[str, Any]) -> str:
    plain = _error(model, "plain_single_derivatives")
    return _error(model, "single_derivatives") + (f" ({plain})" if plain else "")


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:.1f} M" if parameters >= 1e6 else f"{parameters / 1e3:.0f} k"
