"""Put what a comparison found into docs/comparisons: its report, and its runs without weights and event files.

    python benchmarks/study/publish.py FOLDER NAME [--hide PATH]

FOLDER is what ``initopt compare --out FOLDER`` wrote. Writes docs/comparisons/NAME/ and docs/comparisons/NAME-runs.json.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from initopt._support.files import write_file
from initopt.comparison import load_comparison
from initopt.comparison.report.report import write_report
from initopt.comparison.storage.store import published

__all__ = ["main"]

DOCS = Path(__file__).parents[2] / "docs" / "comparisons"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("--hide", default="", metavar="PATH", help="of the data; DIR stands for it in the report")
    options = parser.parse_args(arguments)
    found = load_comparison(options.folder)
    text = published(found)
    written = write_report(options.folder).parent
    write_file(DOCS / f"{options.name}-runs.json", lambda path: path.write_text(text))
    shutil.rmtree(DOCS / options.name, ignore_errors=True)
    shutil.copytree(written, DOCS / options.name)
    for page in (DOCS / options.name).glob("report.*") if options.hide else ():
        page.write_text(page.read_text(encoding="utf-8").replace(options.hide, "DIR"), encoding="utf-8")
    print(f"report: {DOCS / options.name}, runs: {DOCS / options.name}-runs.json")


if __name__ == "__main__":
    main()
