"""100 steps from starts for attention and residual branches: loss on the validation split, three paired seeds, one rate.

    python benchmarks/study/branches.py [--cifar DIR] [--text FILE] [--networks "gpt,vit"] [--seeds 0,1,2]
    python benchmarks/study/branches.py --table

The network's own weights, and the order of the batches, follow from the seed and are the same for all starts. AdamW with
weight decay 0.05, batches of 64, no warm-up, no clipping, and one rate for each network, fixed beforehand. A row for each
training goes into results/branches.jsonl; the same call again goes on where it was ended.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import cycle, islice, product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from command import append_rows, networks_of, parser_of, read_rows, sources
from ideas import loss_of
from subjects import NETWORKS, make
from torch.utils.data import DataLoader

from initopt.schemes import Mimetic, Scheme, apply_

__all__ = ["main", "table"]

ROWS = Path(__file__).parents[1] / "results" / "branches.jsonl"
RATES = {"gpt": 0.003, "vit": 0.001}
STEPS = 100

_SAMPLES = {"train_samples": 6400, "validation_samples": 1000, "test_samples": 100}
_OF_ALL: dict[str, str | Scheme | None] = {
    "own": None,
    "mimetic": "mimetic",
    "zero_branches": "zero_branches",
    "scaled_branches": "scaled_branches",
}
STARTS: dict[str, dict[str, str | Scheme | None]] = {
    "gpt": _OF_ALL | {"mimetic VO+": Mimetic(value_output=(0.4, 0.4))},
    "vit": _OF_ALL | {"mimetic sin2d": Mimetic(positions="sinusoidal_2d")},
}
TITLES = {
    "mimetic VO+": "`Mimetic(value_output=(0.4, 0.4))`",
    "mimetic sin2d": '`Mimetic(positions="sinusoidal_2d")`',
}


def trained(name: str, scheme: str | Scheme | None, seed: int, data: Any) -> float:
    """Loss on the validation split after some steps."""
    torch.manual_seed(seed)
    model = make(name)
    if scheme is not None:
        few = tuple(part[:16] for part in next(iter(DataLoader(data.train, 512))))
        apply_(model, scheme, few, loss_of, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATES[name], weight_decay=0.05)
    order = torch.Generator().manual_seed(1000 + seed)
    loader = DataLoader(data.train, 64, shuffle=True, generator=order, drop_last=True)
    for batch in islice(cycle(loader), STEPS):
        optimizer.zero_grad()
        loss_of(model.train(), batch).backward()
        optimizer.step()
    with torch.no_grad():
        return float(loss_of(model.eval(), next(iter(DataLoader(data.validation, 1000)))))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means, and paired differences to the network's own start with their standard errors."""
    lines = ["| start | " + " | ".join(NETWORKS[name].title for name in RATES) + " |", "| --- " * (len(RATES) + 1) + "|"]
    for start in dict.fromkeys(start for starts in STARTS.values() for start in starts):
        cells = [_cell([row for row in rows if row["network"] == name], start) for name in RATES]
        lines.append(f"| {TITLES.get(start, f'`{start}`' if start != 'own' else 'own')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(rows: Sequence[Mapping[str, Any]], start: str) -> str:
    losses = {name: {row["seed"]: row["val"] for row in rows if row["start"] == name} for name in ("own", start)}
    seeds = sorted(losses["own"].keys() & losses[start].keys())
    if not seeds:
        return ""
    mean = fmean(losses[start][seed] for seed in seeds)
    if start == "own" or len(seeds) < 2:
        return f"{mean:.3f}"
    apart = [losses[start][seed] - losses["own"][seed] for seed in seeds]
    return f"{mean:.3f} ({fmean(apart):+.3f} ± {stdev(apart) / len(apart) ** 0.5:.3f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, RATES)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    options = parser.parse_args(arguments)
    rows = read_rows(ROWS)
    if options.table:
        print(table(rows))
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    done = {(row["network"], row["seed"], row["start"]) for row in rows}
    for name in networks_of(parser, options):
        data = sources(options.cifar, options.text, _SAMPLES)[NETWORKS[name].data]()
        for seed, (start, scheme) in product(map(int, options.seeds.split(",")), STARTS[name].items()):
            if (name, seed, start) in done:
                continue
            row = {"network": name, "seed": seed, "start": start, "val": round(trained(name, scheme, seed, data), 4)}
            append_rows(ROWS, row)
            print(row, flush=True)


if __name__ == "__main__":
    main()
