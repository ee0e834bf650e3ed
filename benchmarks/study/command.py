"""The command lines of the study, the data that they name, and files that grow row by row."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from subjects import NETWORKS

from initopt.data import Splits, cifar10, digits, text

__all__ = ["SAMPLES", "append_rows", "networks_of", "parser_of", "read_rows", "sources"]

SAMPLES = {"train_samples": 6400, "validation_samples": 2000, "test_samples": 2000}


def parser_of(description: str | None, networks: Iterable[str]) -> argparse.ArgumentParser:
    """A parser with ``--cifar``, ``--text`` and ``--networks``.

    Args:
        description: the docstring of the script.
        networks: those that it takes by default.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, metavar="DIR", help="CIFAR-10 in the layout of the hub")
    parser.add_argument("--text", type=Path, metavar="FILE", help="tinyshakespeare.txt")
    parser.add_argument("--networks", default=",".join(networks))
    return parser


def networks_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[str]:
    """The networks that a command line names; without the data of one, it ends with an error."""
    names: list[str] = options.networks.split(",")
    for name in names:
        if name not in NETWORKS:
            parser.error(f"unknown network {name!r}; there are {', '.join(NETWORKS)}")
        kind = NETWORKS[name].data
        if kind != "digits" and getattr(options, kind) is None:
            parser.error(f"network {name!r} is trained on {kind}: say where that is, by --{kind}")
    return names


def sources(
    cifar: Path | None, tinyshakespeare: Path | None, samples: Mapping[str, int] = SAMPLES
) -> dict[str, Callable[[], Splits]]:
    """A function that loads the data for each kind of them."""
    return {
        "digits": digits,
        "cifar": partial(cifar10, cifar, **samples),
        "text": partial(text, tinyshakespeare, length=32, **samples),
    }


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a file, a JSON object on each line; none if there is no file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def append_rows(file: Path, *rows: Mapping[str, Any]) -> None:
    """Append rows to a file."""
    with file.open("a", encoding="utf-8") as opened:
        opened.writelines(json.dumps(row) + "\n" for row in rows)
