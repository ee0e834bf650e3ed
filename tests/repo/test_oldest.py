"""What `make test-oldest` installs is the oldest that pyproject.toml promises."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def versions(lines: list[str]) -> dict[str, str]:
    """Names with the version that they are pinned to, or are not to be below."""
    found = (re.match(r"([\w-]+)(?:\[\w+\])?[=>]=([\d.]+)(?:,<[\d.]+)?$", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def test_the_oldest_versions_are_those_that_are_promised() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    promised = versions([*project["dependencies"], *project["optional-dependencies"]["pandas"]])
    pinned = versions((ROOT / "constraints-oldest.txt").read_text("utf-8").splitlines())
    assert pinned.keys() == promised.keys()
    for name, version in promised.items():
        assert pinned[name].split(".")[: len(version.split("."))] == version.split("."), name
