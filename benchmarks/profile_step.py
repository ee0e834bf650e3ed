"""What the time of a step goes into: linear layers, batch norm, and all else.

    PYTHONPATH=src python benchmarks/profile_step.py

Self times of PyTorch's profiler for the networks with batch norm, in one thread, by kind of operation. Writes
results/profile.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from cases import Case
from contenders import PUBLISHED, TRAINING, Contender, contender, contender_names, model_and_batch
from results import RESULTS, load, machine, save
from torch.profiler import ProfilerActivity, profile

__all__ = ["CASES", "KINDS", "main", "products"]

CASES = (Case("resnet56"), Case("resnet56-bn"), Case("resnet56-bn", batch_norm="batch"))
SMOKE = (Case("tiny-resnet-bn", 2, batch_size=8),)

KINDS = {"linear layers": ("convolution", "mm", "addmm", "bmm"), "batch norm": ("batch_norm", "batchnorm")}
"""Parts of an operation's name that tell its kind; what has none of them is ``other``."""


def products(name: str, count: int, batch_norm: str) -> float:
    """How often a linear layer is passed in one direction: as a map of inputs, of its transpose, or for a weight gradient.

    A training step has 3. Exact engines contract the second derivative with the weight, which spares 2 of 9; ``coupled``
    has D backward passes over the whole batch, and all but one of the products behind each.
    """
    whole = batch_norm == "batch"
    known = {
        TRAINING: 3.0,
        "graph": 7.0,
        "groups": 7.0,
        "recompute": 9.0,
        "plain": 12.0,
        "differences": 1.0 + 4.0 * count if whole else 5.0,
        "coupled": 2.0 + 5.0 * count,
        PUBLISHED: 3.0 + 6.0 * count,
    }
    return known[name]


def kind_of(operation: str) -> str:
    """The kind of an operation.

    >>> kind_of("aten::convolution_backward"), kind_of("_BatchNormGradientsBackward"), kind_of("aten::mul")
    ('linear layers', 'batch norm', 'other')
    """
    bare = operation.lower().removeprefix("aten::")
    for kind, names in KINDS.items():
        if any(name == bare or (len(name) > 4 and name in bare) for name in names):
            return kind
    return "other"


def profiled(step: Contender) -> dict[str, float]:
    """Seconds by kind of the second of two steps."""
    with step() as run:
        run()
        with profile(activities=[ProfilerActivity.CPU]) as found:
            run()
    seconds = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in found.key_averages():
        seconds[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "profile.json")
    parser.add_argument("--smoke", action="store_true", help="on a tiny network: does it work?")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = load(options.out, {"machine": machine("cpu", 1)})
    for case in SMOKE if options.smoke else CASES:
        if case.key in results["cases"]:
            continue
        model, data = model_and_batch(case, "cpu")
        names = contender_names(case)
        seconds: dict[str, Any] = {name: profiled(contender(name, case, model, data)) for name in names}
        about = {
            "network": case.network,
            "batch_norm": case.batch_norm,
            "num_subbatches": case.num_subbatches,
            "overlap": 0,
        }
        results["cases"][case.key] = about | {"seconds": seconds}
        save(options.out, results)
        print(f"{case.key}: {', '.join(f'{name} {sum(s.values()):.2f} s' for name, s in seconds.items())}", flush=True)
    print(f"results: {options.out}")


if __name__ == "__main__":
    main()
