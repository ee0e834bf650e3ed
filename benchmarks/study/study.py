"""The study from which the defaults of NIO come.

    python benchmarks/study/study.py --cifar DIR --text FILE [--networks vgg7,vit] [--starts "base;cosine"]
        [--seeds 0,1,2] [--part 0/2] [--wide] [--out benchmarks/results/defaults.jsonl]

Every start is trained at all learning rates of its network, on batches that follow from the seed. A line of the result is
one training. Goes on where an earlier call with the same --out left off; calls with parts 0/2 and 1/2 run side by side.
With --wide, the learning rates are those of two decades, and the result is benchmarks/results/learning-rates.jsonl.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from data import Batch, Data, load, set_threads
from ideas import nio_with
from networks import NETWORKS, TWO_DECADES, Network
from starts import FILTERS, STARTS, Start
from torch import nn
from train import judge, loss_of, train

import initopt
from initopt.model.preserve import preserved
from initopt.schemes import apply_

__all__ = ["RESULTS", "WIDE", "main"]

RESULTS = Path(__file__).parents[1] / "results" / "defaults.jsonl"
WIDE = RESULTS.with_name("learning-rates.jsonl")
_MEASURED, _STEPS = 5, 105


def begin(model: nn.Module, network: Network, start: Start, data: Data, seed: int) -> dict[str, Any]:
    """Initialize in place; what is known of it."""
    a_step = start.idea.batches if start.idea is not None else 2  # GradInit halves them; one start takes 200 steps
    batches = data.for_start(seed, _MEASURED + _STEPS * a_step)
    held, others = batches[:_MEASURED], batches[_MEASURED:]
    before, loss_before = _measured(model, held)
    begun = time.perf_counter()
    scales, constrained = None, None
    options = dict(start.options)
    if "scale_params" in options:
        options["scale_params"] = FILTERS[options["scale_params"]]
    if start.method == "gradinit" and network.optimizer == "adamw":
        options |= {"optimizer": "adam", "eta": 0.001}
    if start.relative_bound is not None:
        options["max_grad_norm"] = max(1.0, start.relative_bound * before.grad_norm)
    if start.after is not None:
        initopt.optimize(model, others, loss_of, method=start.after, measure_batches=0, seed=seed, progress=False)
    if start.method == "scheme":
        apply_(model, options["scheme"], others[0], loss_of, seed=seed)
    elif start.idea is not None:
        nio_with(model, others, start.idea)
    elif start.method is not None:
        taken: Iterable[Batch] = _halved(others) if start.method == "gradinit" else others
        result = initopt.optimize(
            model, taken, loss_of, method=start.method, measure_batches=0, seed=seed, progress=False, **options
        )
        scales = result.scales
        if start.method == "nio":
            constrained = sum(record.constrained for record in result.history)
    seconds = time.perf_counter() - begun
    after, loss_after = _measured(model, held)
    return {
        "seconds": seconds,
        "start_loss": [loss_before, loss_after],
        "grad_cosine": [before.grad_cosine, after.grad_cosine],
        "grad_norm": [before.grad_norm, after.grad_norm],
        "constrained": constrained,
        "scales": scales,
    }


def _measured(model: nn.Module, batches: Sequence[Batch]) -> tuple[initopt.Measurement, float]:
    measured = initopt.measure(model, batches, loss_of, seed=0, progress=False)
    model.train()
    with torch.no_grad(), preserved(model):
        losses = [float(loss_of(model, batch)) for batch in batches]
    return measured, sum(losses) / len(losses)


def _halved(batches: Sequence[Batch]) -> Iterable[Batch]:
    """GradInit joins two batches in a step."""
    for inputs, targets in batches:
        half = len(targets) // 2
        yield inputs[:half], targets[:half]
        yield inputs[half:], targets[half:]


def trained(network: Network, name: str, seed: int, data: Data, lrs: Sequence[float]) -> list[dict[str, Any]]:
    """One start of one seed at several learning rates."""
    start = STARTS[name]
    torch.manual_seed(seed)
    model = network.model()
    about = begin(model, network, start, data, seed)
    batches = data.training(seed, network.passes)
    parts = ("validation",) if network.role != "confirmation" else ("validation", "test")
    found = []
    for lr in lrs:
        trainee = copy.deepcopy(model)
        torch.manual_seed(seed)
        clip = network.clip if start.clip is None else start.clip
        losses = train(trainee, batches, network.optimizer, lr, start.warmup_steps, clip)
        judged = {part: judge(trainee, data.judged(part)) for part in parts} if math.isfinite(losses["late_loss"]) else {}
        found.append({"lr": lr} | losses | judged)
    return [about | row for row in found]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, required=True, metavar="DIR", help="CIFAR-10 in the layout of the hub")
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="tinyshakespeare.txt")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--starts", default=";".join(STARTS), help="names, with semicolons between them")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--wide", action="store_true", help="train at learning rates over two decades")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    out: Path = options.out or (WIDE if options.wide else RESULTS)
    set_threads()
    warnings.simplefilter("ignore")
    part, parts = map(int, options.part.split("/"))
    jobs = [
        (network, start, int(seed))
        for start in options.starts.split(";")
        for network in options.networks.split(",")
        for seed in options.seeds.split(",")
    ]
    for network, start, seed in jobs[part::parts]:
        if (network, start, seed) in _done(out):
            continue
        lrs = TWO_DECADES[NETWORKS[network].optimizer] if options.wide else NETWORKS[network].lrs
        data = load(NETWORKS[network].data, options.cifar, options.text)
        head = {"network": network, "start": start, "seed": seed}
        try:
            rows = trained(NETWORKS[network], start, seed, data, lrs)
        except (initopt.NonFiniteError, initopt.ZeroGradientError) as error:
            rows = [{"failed": str(error)}]
        with out.open("a") as file:  # one write, so that parts side by side do not mix
            file.write("".join(json.dumps(head | row) + "\n" for row in rows))
        print(network, start, seed, [row.get("validation", {}).get("accuracy") for row in rows], flush=True)


def _done(path: Path) -> set[tuple[str, str, int]]:
    if not path.exists():
        return set()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {(row["network"], row["start"], row["seed"]) for row in rows}


if __name__ == "__main__":
    main()
