"""Results on disk: one file per model while the sweep runs, one file for all of them."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sweeps.zoo.case import Case
from sweeps.zoo.examine import LEEWAY, TOLERANCES, Finding

__all__ = ["RESULTS", "add", "collected", "done", "write_all"]

_FOLDER = Path(__file__).parents[1] / "results"
RESULTS = _FOLDER / "zoo.json"
_PARTS = _FOLDER / "zoo_parts"


def add(finding: Finding) -> None:
    """Store one model's result; processes that run shards beside each other do not meet."""
    _PARTS.mkdir(parents=True, exist_ok=True)
    _write(_part(finding.library, finding.name), finding.to_json())


def done(case: Case) -> bool:
    """Whether a case has a result of its own run."""
    return _part(case.library, case.name).exists()


def collected(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """The latest results, in the order of the cases; those that were not run since are from the file of all of them."""
    older = json.loads(RESULTS.read_text(encoding="utf-8"))["models"] if RESULTS.exists() else []
    known = {(finding["library"], finding["name"]): finding for finding in older}
    for part in _PARTS.glob("*.json"):
        finding = json.loads(part.read_text(encoding="utf-8"))
        known[finding["library"], finding["name"]] = finding
    return [known[case.library, case.name] for case in cases if (case.library, case.name) in known]


def write_all(findings: list[dict[str, Any]]) -> dict[str, Any]:
    """Write the file of all results, and return what it holds."""
    packages = ("torch", "timm", "transformers")
    versions = {"python": platform.python_version()} | {package: version(package) for package in packages}
    everything = {"versions": versions, "tolerances": TOLERANCES, "leeway": LEEWAY, "models": findings}
    _write(RESULTS, everything)
    return everything


def _part(library: str, name: str) -> Path:
    return _PARTS / f"{library}-{name.replace(' ', '_')}.json"


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
        file.write(json.dumps(value, indent=1) + "\n")
    Path(file.name).chmod(0o644)
    os.replace(file.name, path)
