"""The benchmarks for a machine with a CUDA device, in parts that fit into a few minutes.

    PYTHONPATH=src python benchmarks/gpu/run.py --part engines --out DIR
    PYTHONPATH=src python benchmarks/gpu/run.py --part imagenet --out DIR

Writes DIR/PART-cuda.json. Goes on where an earlier call with the same --out left off, and begins no new case once its
minutes are over. ``--device cpu`` tries the same out on tiny networks. ``imagenet`` needs timm.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cases import SUITES
from engines import run_cases

__all__ = ["main"]

PARTS = {"engines": {"cuda": "cuda", "cpu": "smoke"}, "imagenet": {"cuda": "imagenet", "cpu": "imagenet-smoke"}}
"""The suite of each part on each device."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=5.0, help="no case begins later")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    if options.part == "imagenet" and importlib.util.find_spec("timm") is None:
        raise SystemExit("part imagenet needs timm, which is not installed")
    deadline = time.monotonic() + 60 * options.minutes
    path = options.out / f"{options.part}-{options.device}.json"
    cases = SUITES[PARTS[options.part][options.device]]
    run_cases(cases, path, options.device, options.threads, options.repetitions, deadline)
    print(f"results: {path}")


if __name__ == "__main__":
    main()
