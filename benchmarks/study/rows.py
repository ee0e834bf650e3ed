"""That part of the study which chooses, as rows: runs that are judged on the validation split, appended to a file.

    python benchmarks/study/rows.py --cifar DIR --text FILE [--networks "vgg7,vit"] [--starts "nio;nio, no overlap"]
        [--seeds 0,1,2] [--out FILE]

The protocol is that of study.py, which trains final runs for the test split, too; these are left out, for a screening of
variants costs half without. The rows are of the kind that benchmarks/results/defaults.jsonl has; but seeds give other runs
now than they did then, so that rows of the two files cannot be paired. Runs that the file has are not done again; all seeds
of a start come one after the other, so that what was ended leaves whole starts.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from command import append_rows, networks_of, parser_of, read_rows, sources
from records import VARIANTS
from starts import STARTS
from study import experiment
from subjects import NETWORKS

from initopt.comparison.running.run import run_group
from initopt.comparison.spec.hardware import Hardware
from initopt.comparison.spec.plan import Plan
from initopt.comparison.storage.job import Job
from initopt.comparison.storage.record import RunRecord

__all__ = ["main", "row_of"]


def row_of(run: RunRecord, start: str) -> dict[str, Any]:
    """A run on the validation split as a row of stored results."""
    head = {"network": run.network, "start": start, "seed": run.seed, "seconds": run.initialization_seconds}
    tail: dict[str, Any] = {"scales": run.scales, "lr": run.lr}
    if run.status == "failed":
        return head | tail | {"failed": (run.error or "").splitlines()[0]}
    last = [point for point in run.curve if point.subset == "validation"][-1]
    judged = {"accuracy": last.accuracy, "loss": last.loss} if run.status == "done" else None
    return head | tail | {"validation": judged}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, NETWORKS)
    parser.add_argument("--starts", default=";".join(STARTS), help="names, with semicolons between them")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=VARIANTS, metavar="FILE")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    data = sources(options.cifar, options.text)
    done = {(row["network"], row["start"], row["seed"], row["lr"]) for row in read_rows(options.out)}
    for network, start in product(networks_of(parser, options), options.starts.split(";")):
        wanted = [(seed, lr) for seed in seeds for lr in NETWORKS[network].lrs if (network, start, seed, lr) not in done]
        if not wanted:
            continue
        call = experiment(network, [start], seeds, data)
        parts = [call.pop(part) for part in ("models", "data", "initializations")]
        plan = Plan.create(*parts, recipe=None, hardware=Hardware("cpu"), **call)
        splits, (called,) = plan.load_data(), plan.initializations
        for seed in dict.fromkeys(seed for seed, _ in wanted):
            begun = time.perf_counter()
            jobs = tuple(Job(network, called, seed, "selection", lr) for its, lr in wanted if its == seed)
            runs = run_group(Hardware("cpu").fabric("32-true"), plan, splits, jobs)
            append_rows(options.out, *[row_of(run, start) for run in runs])
            print(f"{network} {start} {seed}: {time.perf_counter() - begun:.1f} s", flush=True)


if __name__ == "__main__":
    main()
