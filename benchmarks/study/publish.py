"""Put what a comparison found into docs/comparisons: its report, and its runs without weights and event files.

    python benchmarks/study/publish.py FOLDER NAME [--hide PATH]

FOLDER is what ``initopt compare --out FOLDER`` wrote. Writes docs/comparisons/NAME/ and docs/comparisons/NAME-runs.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from initopt._support.files import plain, write_file
from initopt.comparison import RunRecord, load_comparison
from initopt.comparison.report.report import write_report

__all__ = ["main"]

DOCS = Path(__file__).parents[2] / "docs" / "comparisons"
FORMAT = "runs of a comparison: curve rows are step, epoch, subset, loss, accuracy"


def _run(run: RunRecord) -> dict[str, Any]:
    row = asdict(run) | {"curve": [list(asdict(point).values()) for point in run.curve]}
    return {key: value for key, value in row.items() if key not in ("scales", "versions")}


def _rounded(value: Any) -> Any:
    """Five digits after the point for what is a share or a loss."""
    return round(value, 5) if isinstance(value, float) else value


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("--hide", default="", metavar="PATH", help="of the data; DIR stands for it in the report")
    options = parser.parse_args(arguments)
    found = load_comparison(options.folder)
    runs = [_run(run) for run in [*found.selection, *found.runs]]
    for run in runs:
        run["curve"] = [[_rounded(value) for value in row] for row in run["curve"]]
    content = plain({"format": FORMAT, "recipe": found.recipe, "versions": found.versions, "runs": runs})
    text = json.dumps(content, separators=(",", ":")).replace('{"network"', '\n{"network"')
    written = write_report(options.folder).parent
    write_file(DOCS / f"{options.name}-runs.json", lambda path: path.write_text(text + "\n"))
    shutil.rmtree(DOCS / options.name, ignore_errors=True)
    shutil.copytree(written, DOCS / options.name)
    for page in (DOCS / options.name).glob("report.*") if options.hide else ():
        page.write_text(page.read_text(encoding="utf-8").replace(options.hide, "DIR"), encoding="utf-8")
    print(f"report: {DOCS / options.name}, runs: {DOCS / options.name}-runs.json")


if __name__ == "__main__":
    main()
