"""Time and peak memory of a NIO step by every engine, beside a plain training step and the published way.

    python benchmarks/engines.py [--suite cpu] [--out benchmarks/results/engines-cpu.json] [--only resnet56]

Goes on where an earlier call with the same --out left off.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from cases import SUITES, Case
from contenders import OBJECTIVE, TRAINING, contender, contender_names, model_and_batch
from memory import MALLOC, accelerator_memory, process_memory
from results import RESULTS, Results, load, machine, save
from tables import memory_cell, time_cell
from timing import take_turns

__all__ = ["main", "run_cases"]


def run_cases(cases: Sequence[Case], out: Path, device: str, threads: int, repetitions: int) -> Results:
    """Measure what ``out`` does not have yet.

    Args:
        cases: what to measure.
        out: the results; written after every step.
        device: ``"cpu"`` or ``"cuda"``.
        threads: threads of PyTorch.
        repetitions: least number of turns.
    """
    torch.set_num_threads(threads)
    head = {
        "machine": machine(device, threads),
        "settings": {"objective": OBJECTIVE, "dtype": "float32", "repetitions": repetitions, "malloc": MALLOC},
    }
    results = load(out, head)
    for number, case in enumerate(cases, 1):
        print(f"[{number}/{len(cases)}] {case.key}", flush=True)
        names = contender_names(case)
        stored = results["cases"].setdefault(case.key, {})
        if not set(names) <= set(stored.get("contenders", {})):
            stored |= _timed(case, names, device, repetitions)
            save(out, results)
        if case.memory:
            _add_memory(case, stored["contenders"], device, threads, lambda: save(out, results))
        _show(stored["contenders"])
    return results


def _timed(case: Case, names: Sequence[str], device: str, repetitions: int) -> dict[str, Any]:
    model, data = model_and_batch(case, device)
    found = take_turns({name: contender(name, case, model, data) for name in names}, device, repetitions)
    about = {key: getattr(case, key) for key in ("network", "num_subbatches", "batch_norm", "batch_size", "overlap")}
    return {**about, "parameters": sum(p.numel() for p in model.parameters()), "contenders": found}


def _add_memory(case: Case, contenders: dict[str, Any], device: str, threads: int, keep: Any) -> None:
    missing = [name for name, found in contenders.items() if "memory" not in found and "skipped" not in found]
    on_device = model_and_batch(case, device) if missing and device != "cpu" else None
    for name in missing:
        if on_device is None:
            memory = process_memory(case, name, threads)
        else:
            memory = accelerator_memory(contender(name, case, *on_device))
        contenders[name]["memory"] = memory
        keep()
    del on_device
    gc.collect()


def _show(contenders: dict[str, Any]) -> None:
    unit = contenders[TRAINING].get("seconds")
    for name, found in contenders.items():
        took = f"{statistics.median(found['seconds']):10.4f} s" if found.get("seconds") else ""
        why = f"   {found['skipped']}" if "skipped" in found else ""
        print(f"  {name:>14} {took:>12}   {time_cell(found, unit):>24}   {memory_cell(found, None):>10}{why}", flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="cpu")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/engines-SUITE.json")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", metavar="NETWORK", help="the cases of one network")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    cases = [case for case in SUITES[options.suite] if options.only in (None, case.network)]
    if not cases:
        known = ", ".join(dict.fromkeys(case.network for case in SUITES[options.suite]))
        raise SystemExit(f"no network {options.only!r} in suite {options.suite!r}, which has {known}")
    out = options.out or RESULTS / f"engines-{options.suite}.json"
    run_cases(cases, out, options.device, options.threads, options.repetitions)
    print(f"results: {out}")


if __name__ == "__main__":
    main()
