"""The benchmarks for a machine with a CUDA device, in parts that fit into a few minutes.

    PYTHONPATH=src python benchmarks/gpu/run.py --part engines --out DIR
    PYTHONPATH=src python benchmarks/gpu/run.py --part imagenet --out DIR
    PYTHONPATH=src python benchmarks/gpu/run.py --part resnet50 --out DIR [--data IMAGENET]
    PYTHONPATH=src python benchmarks/gpu/run.py --part cifar --out DIR --data CIFAR10

Writes DIR/PART-cuda.json. Goes on where an earlier call with the same --out left off, and begins nothing new once its
minutes are over. ``--device cpu`` tries the same out on tiny networks. ``imagenet`` and ``resnet50`` need timm; ``cifar``,
and ``resnet50`` on a folder of images, need ``initopt[compare,data]``. --data is a folder in the layout of the Hugging Face
hub (``ILSVRC/imagenet-1k``, ``uoft-cs/cifar10``); without one, ``resnet50`` has random images.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from cases import SUITES
from cifar import run_cifar
from engines import run_cases
from resnet50 import run_resnet50

__all__ = ["main"]

PARTS = ("engines", "imagenet", "resnet50", "cifar")
ENGINES = {"engines": {"cuda": "cuda", "cpu": "smoke"}, "imagenet": {"cuda": "imagenet", "cpu": "imagenet-smoke"}}
"""The suite of the parts that time engines, on each device."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--data", type=Path, metavar="DIR", help="images, for resnet50 and cifar")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=5.0, help="nothing begins later")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    needs_timm = options.part == "imagenet" or (options.part == "resnet50" and options.device == "cuda")
    if needs_timm and importlib.util.find_spec("timm") is None:
        raise SystemExit(f"part {options.part} needs timm, which is not installed")
    if options.part == "cifar" and options.data is None:
        raise SystemExit("part cifar needs --data DIR, a folder with CIFAR-10 in the layout of uoft-cs/cifar10")
    torch.set_num_threads(options.threads)
    deadline = time.monotonic() + 60 * options.minutes
    path = options.out / f"{options.part}-{options.device}.json"
    if options.part == "cifar":
        run_cifar(options.data, path, options.device, options.threads, options.minutes)
    elif options.part == "resnet50":
        run_resnet50(options.data, path, options.device, options.threads, deadline)
    else:
        cases = SUITES[ENGINES[options.part][options.device]]
        run_cases(cases, path, options.device, options.threads, options.repetitions, deadline)
    print(f"results: {path}")


if __name__ == "__main__":
    main()
