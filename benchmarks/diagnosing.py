"""Time and peak memory of `initopt.check` and `initopt.diagnose`, beside a plain training step.

    PYTHONPATH=src python benchmarks/diagnosing.py

`check` looks at the weights alone; `check, batch` at one batch of 64, too; `diagnose` at 4 batches of 64, of which it
differentiates 2, and tries no remedy. Contenders run by turns. Memory is that of a process of its own. Writes
results/diagnosing.json; goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from cases import Case
from contenders import TRAINING, Contender, Step, contender, model_and_batch
from memory import MALLOC, add_options, answered, apart, peak_memory
from networks import NETWORKS
from results import RESULTS, load, machine, save
from tables import markdown
from timing import take_turns
from torch import nn

import initopt

__all__ = ["CASES", "NAMES", "diagnosing_section", "main"]

CASES = tuple(Case(name) for name in ("resnet56-bn", "vit", "gpt", "wrn-16-4"))
SMOKE = (Case("tiny-gpt", 8, batch_size=8),)
NAMES = (TRAINING, "check", "check, batch", "diagnose")
BATCHES = 4

TEXT = """\
## Diagnoses

[`check` and `diagnose`](diagnosis.md) beside a training step on a batch of 64: `check` of the weights alone and with one
batch, and `diagnose` on 4 batches without a remedy. That is 4 passes forwards and 2 backwards, as much work as 2.7 training
steps (a pass backwards counts as two forwards), beside the statistics of every output. Memory as above.
"""


def _contender(name: str, case: Case, model: nn.Module, data: Any) -> Contender:
    return contender(TRAINING, case, model, data) if name == TRAINING else partial(_looking, name, model, data)


@contextmanager
def _looking(name: str, model: nn.Module, data: Any) -> Iterator[Step]:
    if name == "check":
        yield lambda: initopt.check(model)
    elif name == "check, batch":
        yield lambda: initopt.check(model, data)
    else:
        yield lambda: initopt.diagnose(model, [data] * BATCHES, tries=(), seed=0, progress=False)


def _here(case: Case, name: str) -> dict[str, Any]:
    """Memory, in this process."""
    model, data = model_and_batch(case, "cpu")
    with _contender(name, case, model, tuple(tensor[:8] for tensor in data))() as step:
        step()
    with _contender(name, case, model, data)() as step:
        return peak_memory(step)


def diagnosing_section(results: dict[str, Any], name: str) -> str:
    """The part of the page about a results file."""
    rows = []
    for case in results["cases"].values():
        found = case["contenders"]
        step = statistics.median(found[TRAINING]["seconds"])
        peaks = {each: case["memory"][each]["peak"] - case["memory"][each]["before"] for each in NAMES}
        row = [NETWORKS[case["network"]].title, f"{1000 * step:.0f} ms, {peaks[TRAINING] / 1e6:.0f} MB"]
        for each in NAMES[1:]:
            times = [seconds / step for seconds in found[each]["seconds"]]
            spread = f"{statistics.median(times):.2g} [{min(times):.2g}..{max(times):.2g}]"
            row.append(f"{spread}, {peaks[each] / 1e6:.0f} MB ({peaks[each] / peaks[TRAINING]:.2g})")
        rows.append(row)
    about = results["machine"]
    where = f"{about['processor']}, threads: {about['threads']}, PyTorch {about['torch']}"
    source = f"([{name}.json](../benchmarks/results/{name}.json))"
    return "\n\n".join([TEXT.rstrip(), f"{where} {source}.", markdown(["network", TRAINING, *NAMES[1:]], rows)]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "diagnosing.json")
    add_options(parser)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="on a tiny network: does it work?")
    options = parser.parse_args(arguments)
    if answered(options, _here):
        return
    settings = {"dtype": "float32", "malloc": MALLOC, "batches": BATCHES, "repetitions": options.repetitions}
    results = load(options.out, {"machine": machine("cpu", options.threads), "settings": settings})
    for case in SMOKE if options.smoke else CASES:
        if case.key in results["cases"]:
            continue
        memory = {name: apart(__file__, case, name, options.threads) for name in NAMES}
        model, data = model_and_batch(case, "cpu")
        contenders = {name: _contender(name, case, model, data) for name in NAMES}
        found = take_turns(contenders, "cpu", options.repetitions)
        about = {"network": case.network, "batch_size": case.batch_size}
        results["cases"][case.key] = about | {"contenders": found, "memory": memory}
        save(options.out, results)
        print(case.key, flush=True)
    print(f"results: {options.out}")


if __name__ == "__main__":
    main()
