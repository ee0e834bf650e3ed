"""What ``initopt.find_lr`` says of networks of the study, beside the accuracy that their stored trainings reached.

    python benchmarks/find_lr.py --cifar DIR --text FILE [--networks "mlp-tanh,vit"] [--starts "default,nio"] [--seeds 0,1]
    python benchmarks/find_lr.py --table
    python benchmarks/find_lr.py --picture

A row for each network, start and seed goes into results/find-lr.jsonl; the same call again goes on where it was ended. The
seed is that of the weights, of NIO and of the orders of batches. --table prints the table of docs/learning-rate.md, from
these rows and trainings in results/learning-rates.jsonl and results/defaults.jsonl, which are judged on the validation
split: one pass over 6,400 images or texts (100 steps), or three over the digits, at one rate from the first step to the
last. --picture draws docs/assets/find-lr.png: the ReLU MLP before and after NIO.
"""

from __future__ import annotations

import functools
import math
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent / "study"))

from command import append_rows, networks_of, parser_of, read_rows, sources
from ideas import loss_of
from subjects import NETWORKS, make

import initopt
from initopt._support.files import write_file
from initopt.data import digits

RESULTS = Path(__file__).parent / "results" / "find-lr.jsonl"
PICTURE = Path(__file__).parents[1] / "docs" / "assets" / "find-lr.png"
STORED = [RESULTS.with_name(name) for name in ("learning-rates.jsonl", "defaults.jsonl")]

_CHOSEN = ("mlp-tanh", "mlp-relu", "vit", "gpt", "vgg7", "resnet14")


def search(network: str, start: str, seed: int, batches: list[Any]) -> dict[str, Any]:
    """A row: what is found for a new network."""
    torch.manual_seed(seed)
    model = make(network)
    if start == "nio":
        initopt.nio(model, batches, loss_of, seed=seed, progress=False, allow_trained=True)
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[NETWORKS[network].optimizer]
    given = NETWORKS[network].recipe()["optimizer_options"]
    begun = time.process_time()
    found = initopt.find_lr(model, batches, functools.partial(kind, **given), loss_of, seed=seed, progress=False)
    seconds = time.process_time() - begun
    sweeps = [
        {"steepest": s.steepest, "lowest": s.lowest, "diverged": s.diverged_at(found.start_noise)} for s in found.sweeps
    ]
    row = found.to_dict()
    del row["sweeps"]
    return {"network": network, "start": start, "seed": seed, "seconds": seconds, "sweeps": sweeps, **row}


def stored_accuracies(network: str, start: str) -> dict[float, float]:
    """Mean validation accuracy in percent by learning rate; from the file with most rates. A diverged training guesses."""
    best: dict[float, float] = {}
    for path in STORED:
        found = defaultdict(list)
        for row in read_rows(path):
            if (row["network"], row["start"]) == (network, start) and "lr" in row:
                judged = row.get("validation")
                found[row["lr"]].append(100 * (judged["accuracy"] if judged else NETWORKS[network].guess))
        if len(found) > len(best):
            best = {lr: fmean(values) for lr, values in sorted(found.items())}
    return best


def accuracy_at(lr: float, stored: dict[float, float]) -> float:
    """Between the stored rates, over the logarithm of the rate; nan outside of them."""
    rates = list(stored)
    if not rates[0] / 1.2 <= lr <= rates[-1] * 1.2:
        return math.nan
    lr = min(max(lr, rates[0]), rates[-1])
    above = next(i for i, rate in enumerate(rates) if rate >= lr)
    if above == 0:
        return stored[rates[0]]
    low, high = rates[above - 1], rates[above]
    share = math.log(lr / low) / math.log(high / low)
    return (1 - share) * stored[low] + share * stored[high]


def table() -> Iterator[str]:
    """The lines of the table."""
    groups = defaultdict(list)
    for row in read_rows(RESULTS):
        groups[row["network"], row["start"]].append(row)
    yield (
        "| network | start | suggested, by seed | largest stable | best stored rate | accuracy at the suggestion "
        "| at half of it | steepest of the range tests | accuracy there |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for (network, start), rows in groups.items():
        stored = stored_accuracies(network, start)
        best = max(stored, key=lambda lr: stored[lr])
        suggested = [row["suggested"] for row in rows]
        given = [lr for lr in suggested if lr is not None]
        steepest = [sweep["steepest"] for row in rows for sweep in row["sweeps"]]
        edges = [_edge(row) for row in rows]
        cells = [
            NETWORKS[network].title,
            start,
            ", ".join("none" if lr is None else f"{lr:.2g}" for lr in suggested),
            ", ".join(edges),
            f"{best:g} ({stored[best]:.1f} %)",
            _at(given, stored),
            _at([lr / 2 for lr in given], stored),
            f"{median(steepest):.2g} ({min(steepest):.2g} to {max(steepest):.2g})",
            _at(steepest, stored),
        ]
        yield "| " + " | ".join(cells) + " |"


def _edge(row: dict[str, Any]) -> str:
    edge = row["largest_stable"]
    return "none" if edge is None else f"{'' if row['unstable_at'] else '≥ '}{edge:.2g}"


def _at(rates: Sequence[float], stored: dict[float, float]) -> str:
    found = [accuracy_at(lr, stored) for lr in rates]
    known = [value for value in found if not math.isnan(value)]
    if not known:
        return "outside" if rates else ""
    outside = len(found) - len(known)
    return f"{fmean(known):.1f} %" + (f" ({outside} of {len(found)} outside)" if outside else "")


def draw() -> None:
    """Write the picture, and print what the page quotes."""
    torch.manual_seed(0)
    model, batches = make("mlp-relu"), list(digits().batches(batch_size=64))
    sgd = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    own = initopt.find_lr(model, batches, sgd, seed=0, progress=False)
    initopt.nio(model, batches, seed=0, progress=False)
    found = initopt.find_lr(model, batches, sgd, seed=0, progress=False)
    print(f"{own}\n\n{found}")
    figure = found.plot({"before it": own}, name="after NIO")
    write_file(PICTURE, lambda path: figure.savefig(path, dpi=100, format="png"))


def main() -> None:
    parser = parser_of(__doc__, _CHOSEN)
    parser.add_argument("--starts", default="default,nio")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--table", action="store_true", help="write the table from the rows, and do no more")
    parser.add_argument("--picture", action="store_true", help="draw the picture of the page, and do no more")
    options = parser.parse_args()
    if options.picture:
        draw()
        return
    if options.table:
        print("\n".join(table()))
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names, data = networks_of(parser, options), sources(options.cifar, options.text)
    batches = {kind: list(data[kind]().batches(batch_size=64)) for kind in {NETWORKS[name].data for name in names}}
    for seed in map(int, options.seeds.split(",")):
        for name in names:
            for start in options.starts.split(","):
                if any((row["network"], row["start"], row["seed"]) == (name, start, seed) for row in read_rows(RESULTS)):
                    continue
                row = search(name, start, seed, batches[NETWORKS[name].data])
                append_rows(RESULTS, row)
                print(name, start, seed, row["verdict"], f"{row['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
