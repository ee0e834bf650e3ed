"""NIO's fixed bound beside one in the geometry of the optimizer, polar factors, and what a trial says of the outcome.

    python benchmarks/study/optimizer_bound.py --text FILE [--seeds 0,1,2] [--networks "gelu-10,lstm"]

Each start is trained as in the study, at two of its network's learning rates, and judged on the validation split; the test
split is not touched. NIO keeps its weights whatever comes of them; what the trial
would have done is in the row. benchmarks/results/optimizer-bound.jsonl has a row for each run; those that are there are not
done again. Without networks to run, ``--seeds ""``, it prints the tables of docs/optimizer-bound.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain, islice, product, repeat
from pathlib import Path
from typing import Any

import torch
from command import append_rows, read_rows
from ideas import loss_of
from subjects import NETWORKS, Network
from torch import Tensor, nn
from torch.nn import functional as F

import initopt
from initopt._support.files import plain, unplain
from initopt.data import Splits, digits, text
from initopt.zoo import small_vit

ROWS = Path(__file__).parents[1] / "results" / "optimizer-bound.jsonl"
LRS = {
    "mlp-tanh": (0.1, 0.3),
    "mlp-relu": (0.1, 0.3),
    "gelu-10": (0.1, 0.3),
    "vit-digits": (0.003, 0.01),
    "lstm": (0.003, 0.01),
    "gpt-wide": (0.003, 0.01),
}
"""Two learning rates of each network, of which the first is done first."""

KAPPAS = (0.3, 1.0, 3.0)
STARTS = ("own", "nio", *(f"kappa {kappa:g}" for kappa in KAPPAS), "polar", "polar, nio")
STEPS = {"digits": 100, "text": 25}
"""Of NIO, by data: its default, and a quarter of it for the sake of time."""

SAMPLES = {"train_samples": 3200, "validation_samples": 1000, "test_samples": 64}
"""Of text: 50 training steps, half of the study's."""

OWN = {
    "vit-digits": Network(
        "ViT, 4 blocks, 32 wide, digits",
        lambda: small_vit(8, 2, depth=4, width=32, heads=2, in_channels=1),
        "digits",
        "adamw",
        passes=6,
    )
}
SUBJECTS = NETWORKS | OWN


@torch.no_grad()
def polar(model: nn.Module) -> None:
    """Replace every weight by its nearest orthogonal matrix, with a row for each output, at its own norm."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            u, _, v = torch.linalg.svd(parameter.flatten(1), full_matrices=False)
            parameter.copy_((u @ v).view_as(parameter) * (parameter.norm() / (u @ v).norm()))


def optimizer(network: Network, lr: float) -> Any:
    """What makes the optimizer of a network's training."""
    recipe = network.recipe()
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[recipe["optimizer"]]
    return partial(kind, lr=lr, **recipe["optimizer_options"])


def begin(start: str, model: nn.Module, network: Network, batches: Iterable[Any], lr: float) -> dict[str, Any]:
    """Give a model a start; what is to be kept of it."""
    if start.startswith("polar"):
        polar(model)
    if start in ("own", "polar"):
        return {}
    kappa = float(start.split()[1]) if start.startswith("kappa") else None
    told = {"optimizer": optimizer(network, lr), "clip_grad_norm": network.clip, "max_decrease": kappa}
    found = initopt.nio(model, batches, loss_of, steps=STEPS[network.data], seed=0, progress=False, on_harm="warn", **told)
    trial = found.trial
    kept: dict[str, Any] = {"verdict": found.verdict, "seconds_of_nio": found.seconds}
    if found.after is not None:
        kept["grad_norm"] = found.after.grad_norm
    if trial is not None:
        kept |= {"outcome": trial.outcome, "trial_old": trial.old.loss, "trial_new": trial.new.loss}
    return kept


def train(model: nn.Module, network: Network, batches: Iterable[Any], lr: float) -> None:
    """Train as the study does; a loss that is not finite ends it."""
    made = optimizer(network, lr)(model.parameters())
    model.train()
    for _, batch in product(range(network.recipe()["epochs"]), batches):
        made.zero_grad()
        loss = loss_of(model, batch)
        if not torch.isfinite(loss):
            return
        loss.backward()
        if network.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), network.clip)
        made.step()


@torch.no_grad()
def judge(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Accuracy in percent, and mean loss."""
    model.eval()
    hits, losses = [], []
    for inputs, targets in batches:
        logits = model(inputs).flatten(0, -2)
        hits.append(float((logits.argmax(-1) == targets.flatten()).float().mean()))
        losses.append(float(F.cross_entropy(logits, targets.flatten())))
    return {"accuracy": 100 * statistics.mean(hits), "loss": statistics.mean(losses)}


def run(name: str, start: str, lr: float, seed: int, splits: Splits) -> dict[str, Any]:
    """One start, trained and judged."""
    network = SUBJECTS[name]
    torch.manual_seed(seed)
    model = network.model()
    source = list(islice(chain.from_iterable(repeat(splits.batches(64, seed=1000 + seed))), STEPS[network.data] + 10))
    begun = time.perf_counter()
    kept = begin(start, model, network, source, lr)
    torch.manual_seed(seed)
    train(model, network, splits.batches(64, seed=seed), lr)
    found = judge(model, splits.batches(64, subset="validation"))
    return {
        "network": name,
        "start": start,
        "lr": lr,
        "seed": seed,
        **found,
        **kept,
        "seconds": time.perf_counter() - begun,
    }


def known() -> list[dict[str, Any]]:
    """The rows that are there."""
    return list(map(unplain, read_rows(ROWS)))


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Validation accuracy of each start, and how far the trial was right."""
    starts = [start for start in STARTS if any(r["start"] == start for r in rows)]
    lines = [f"| network | rate | {' | '.join(starts)} |", f"|---|---{'|---' * len(starts)}|"]
    by = {(r["network"], r["lr"], r["start"], r["seed"]): r for r in rows}
    seeds = sorted({r["seed"] for r in rows})
    for name, rates in LRS.items():
        for lr in rates:
            cells = []
            for start in starts:
                found = [by[name, lr, start, seed]["accuracy"] for seed in seeds if (name, lr, start, seed) in by]
                spread = (
                    f" ± {statistics.stdev(found):.1f}" if len(found) == len(seeds) else f" ({len(found)} of {len(seeds)})"
                )
                cells.append(f"{statistics.mean(found):.1f}{spread}" if found else "")
            if any(cells):
                lines.append(f"| {SUBJECTS[name].title} | {lr:g} | {' | '.join(cells)} |")
    lines += [
        "",
        "| trial says | runs | new start better in the end | worse | mean difference in accuracy |",
        "|---|---|---|---|---|",
    ]
    for outcome in ("better", "alike", "neither", "worse"):
        differences = [
            r["accuracy"] - by[r["network"], r["lr"], "own", r["seed"]]["accuracy"]
            for r in rows
            if r.get("outcome") == outcome and (r["network"], r["lr"], "own", r["seed"]) in by
        ]
        if differences:
            ups, downs = sum(d > 1 for d in differences), sum(d < -1 for d in differences)
            lines.append(f"| {outcome} | {len(differences)} | {ups} | {downs} | {statistics.mean(differences):+.1f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", metavar="FILE", help="tinyshakespeare.txt")
    parser.add_argument("--networks", default=",".join(LRS))
    parser.add_argument("--starts", default=";".join(STARTS), help="names, with semicolons between them")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--first", action="store_true", help="the first learning rate of each network alone")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    data = {"digits": digits, "text": partial(text, options.text, length=32, **SAMPLES)}
    splits: dict[str, Splits] = {}
    done = {(r["network"], r["start"], r["lr"], r["seed"]) for r in known()}
    seeds = [int(seed) for seed in options.seeds.split(",") if seed]
    for which, seed, name, start in product(
        range(1 if options.first else 2), seeds, options.networks.split(","), options.starts.split(";")
    ):
        kind, lr = SUBJECTS[name].data, LRS[name][which]
        if (name, start, lr, seed) in done:
            continue
        if kind not in splits:
            splits[kind] = data[kind]()
        row = plain(run(name, start, lr, seed, splits[kind]))
        append_rows(ROWS, row)
        print(row, flush=True)
    print(tables(known()))


if __name__ == "__main__":
    main()
