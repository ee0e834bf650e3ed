"""The study from which the defaults of NIO come: comparisons, one for each network.

    python benchmarks/study/study.py --out DIR [--cifar DIR] [--text FILE] [--networks "vgg7,vit"] [--starts "base;cosine"]
        [--seeds 0,1,2] [--wide] [--workers 2]

Every start is trained at all learning rates of its network, and judged on the validation split; then, from other seeds, at
the one that is best for it, and judged on the test split. DIR/NETWORK has the runs and a report; the same call again goes
on where it was ended. With --wide, the learning rates are those of two decades. benchmarks/results has rows of the time
before there were such comparisons, which were judged on both splits with the same seeds.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from command import networks_of, parser_of, sources
from ideas import loss_of
from starts import STARTS
from subjects import NETWORKS, make

import initopt
from initopt.comparison import Network

__all__ = ["experiment", "main"]

_FINAL = 100
"""What is added to the seeds for the final runs."""


def experiment(
    name: str, starts: Sequence[str], seeds: Sequence[int], data: Mapping[str, Any], wide: bool = False
) -> dict[str, Any]:
    """The arguments of :func:`initopt.compare` for a network.

    Args:
        name: of the network.
        starts: names in :data:`starts.STARTS`.
        seeds: of the runs that are judged on the validation split.
        data: loads the data: :func:`command.sources`.
        wide: whether to train at learning rates over two decades.
    """
    network = NETWORKS[name]
    return {
        "models": {name: Network(partial(make, name), network.recipe(wide))},
        "data": "digits" if network.data == "digits" else data[network.data],
        "initializations": [STARTS[start].initialization(start, network) for start in starts],
        "seeds": [_FINAL + seed for seed in seeds],
        "selection_seeds": seeds,
        "loss_fn": loss_of,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, NETWORKS)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the comparisons")
    parser.add_argument("--starts", default=";".join(STARTS), help="names, with semicolons between them")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--wide", action="store_true", help="train at learning rates over two decades")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    data = sources(options.cifar, options.text)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    for name in networks_of(parser, options):
        call = experiment(name, options.starts.split(";"), seeds, data, options.wide)
        found = initopt.compare(**call, out=options.out / name, workers=options.workers, accelerator="cpu")
        print(name, {(run.initialization, run.lr): run.status for run in found.runs}, flush=True)


if __name__ == "__main__":
    main()
