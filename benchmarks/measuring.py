"""Time and peak memory of a sample-wise measurement of large networks, beside a plain training step.

    PYTHONPATH=src python benchmarks/measuring.py

``initopt.measure`` with as many sub-batches as samples, which compares the gradients of all pairs of 64 samples, of
networks with some 100 million parameters. Every figure comes from a process of its own, which has taken a step before. The
measurement includes the check of its first batch. Writes results/measuring.json; goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cases import Case
from contenders import TRAINING, contender, model_and_batch
from memory import MALLOC, add_options, answered, apart, peak_memory
from results import RESULTS, load, machine, save
from torch import nn

import initopt

__all__ = ["CASES", "MEASURE", "main"]

MEASURE = "measure"
CASES = tuple(Case(network, 64) for network in ("mlp-100m", "vit-85m", "gpt-100m"))
SMOKE = (Case("tiny-gpt", 8, batch_size=8),)


def measured(case: Case, name: str) -> dict[str, Any]:
    """One figure, in this process."""
    model, data = model_and_batch(case, "cpu")
    parameters = sum(p.numel() for p in model.parameters())
    seconds = 0.0

    def step() -> None:
        nonlocal seconds
        begun = time.perf_counter()
        if name == TRAINING:
            with contender(TRAINING, case, model, data)() as train:
                train()
        else:
            initopt.measure(model, [data], num_subbatches=case.num_subbatches, progress=False)
        seconds = time.perf_counter() - begun

    _warm_up(case, model, data)
    memory = peak_memory(step)
    return {"parameters": parameters, "seconds": seconds, "memory": memory}


def _warm_up(case: Case, model: nn.Module, data: Any) -> None:
    few = tuple(tensor[:4] for tensor in data)
    with contender(TRAINING, case, model, few)() as train:
        train()
    initopt.measure(model, [few], num_subbatches=2, progress=False)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "measuring.json")
    add_options(parser)
    parser.add_argument("--smoke", action="store_true", help="on a tiny network: does it work?")
    options = parser.parse_args(arguments)
    if answered(options, measured):
        return
    head = {"machine": machine("cpu", options.threads), "settings": {"dtype": "float32", "malloc": MALLOC}}
    results = load(options.out, head)
    for case in SMOKE if options.smoke else CASES:
        stored = results["cases"].setdefault(case.key, {"network": case.network, "batch_size": case.batch_size})
        for name in (TRAINING, MEASURE):
            if name not in stored:
                stored[name] = apart(__file__, case, name, options.threads)
                save(options.out, results)
            peak = stored[name]["memory"]["peak"] - stored[name]["memory"]["before"]
            print(f"{case.network:>10} {name:>14} {stored[name]['seconds']:8.2f} s {peak / 1e6:8.0f} MB", flush=True)
    print(f"results: {options.out}")


if __name__ == "__main__":
    main()
