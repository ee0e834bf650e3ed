"""docs/benchmarks.md from the JSON files, so that the page says what was measured.

    python benchmarks/report.py

A file that is missing leaves its part of the page out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accuracy import accuracy_table
from contenders import PUBLISHED, TRAINING
from diagnosing import diagnosing_section
from imagenet_sample import imagenet_sample_section
from measuring import MEASURE
from methods import methods_section
from networks import NETWORKS
from profile_step import products
from results import RESULTS, ratios
from tables import case_title, contenders_of, left_out, markdown, memory_table, time_table

from initopt._support.files import write_file
from initopt._support.reading import read_json

__all__ = ["main", "page"]

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"

INTRODUCTION = """\
# Benchmarks

<!-- Written by benchmarks/report.py from the JSON files in benchmarks/results; do not edit. -->

What a step of NIO costs, in units of a **plain training step**: forward and backward of the same network on the same
batch, in training mode, without an optimizer. A NIO step here is what an [engine](gradcosine.md#engines) does in one:
the Gram matrix of the D sub-batch gradients, and the derivative of the objective `cosine+norm` along every tensor.
`published` is the way of the code published with the paper, made anew ([published.py](../benchmarks/published.py)): one
forward pass over the whole batch, D backward passes through it, and a double backward through all of them. Batches are
64 samples, float32, random weights and data; sub-batches do not overlap unless it says so (an overlap of r makes
engines r times dearer).

Contenders run by turns, A B C A B C, after a warm-up. Times are **median [least..largest]** of their runs over the
median of the training step. Memory is the peak during one step above the process that rests with model and batch, and
in parentheses in units of the training step's. On a CPU it comes from a fresh process for each figure, in which glibc
gives freed memory back at once (by its own rules it keeps some, and what a process shows is then larger); on a GPU it
is what PyTorch's allocator counts. A dash: not measured, for the reason below; an empty cell: the engine does not do
that. `differences` searches its step length anew every 50 batches, which is not in its time.

All raw numbers: [benchmarks/results](../benchmarks/results). To repeat: `make benchmark`.
"""


def page(folder: Path) -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for name, title, picture in (
        ("engines-cpu", "CPU", True),
        ("engines-cuda", "GPU", False),
        ("imagenet-cuda", "GPU, ImageNet size", False),
    ):
        path = folder / f"{name}.json"
        if path.exists():
            parts.append(section(read_json(path), title, name, picture))
    path = folder / "methods-cpu.json"
    if path.exists():
        parts.append(methods_section(read_json(path), path.stem))
    path = folder / "diagnosing.json"
    if path.exists():
        parts.append(diagnosing_section(read_json(path), path.stem))
    path = folder / "imagenet-sample.json"
    if path.exists():
        parts.append(imagenet_sample_section(read_json(path), path.stem))
    path = folder / "measuring.json"
    if path.exists():
        parts.append(measuring_section(read_json(path)))
    path = folder / "profile.json"
    if path.exists():
        parts.append(profile_section(read_json(path)))
    path = folder / "accuracy.json"
    if path.exists():
        parts.append(accuracy_table(read_json(path)))
    return "\n".join(parts)


def section(results: dict[str, Any], title: str, name: str, picture: bool) -> str:
    """Tables of one results file."""
    cases = list(results["cases"].values())
    machine = results["machine"]
    device = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    threads = f", threads: {machine['threads']}" if machine["device"] == "cpu" else ""
    parts = [
        f"## {title}",
        f"{device}{threads}, PyTorch {machine['torch']} ([{name}.json](../benchmarks/results/{name}.json)).",
    ]
    at_four = [case for case in cases if case["num_subbatches"] == 4]
    parts += [f"### D = 4\n\n{summary(at_four)}"]
    if picture:
        parts.append("![Time and memory of a step at D = 4, over networks](assets/benchmark-networks.png)")
    parts += ["Time:", time_table(at_four, "network", case_title)]
    parts += ["Memory:", memory_table(at_four, "network", case_title)]
    for network in dict.fromkeys(case["network"] for case in cases):
        own = [case for case in cases if case["network"] == network and not case["overlap"]]
        counts = sorted({case["num_subbatches"] for case in own})
        if len(counts) < 3:
            continue
        own.sort(key=lambda case: case["num_subbatches"])
        parts.append(f"### {case_title(own[0])}: from D = {counts[0]} to D = {counts[-1]}")
        if picture and network == "resnet56":
            parts.append("![Time and memory of a step against D, ResNet-56](assets/benchmark-resnet56.png)")
        parts += ["Time:", time_table(own, "D", lambda case: str(case["num_subbatches"]))]
        if any("memory" in case["contenders"][TRAINING] for case in own):
            parts += ["Memory:", memory_table(own, "D", lambda case: str(case["num_subbatches"]))]
    notes = dict.fromkeys(case["note"] for case in cases if "note" in case)
    parts += [f"{case_titles(cases, note)}: {note}." for note in notes]
    missing = left_out(cases)
    if missing:
        parts += ["Not measured:", missing]
    return "\n\n".join(parts) + "\n"


def measuring_section(results: dict[str, Any]) -> str:
    """Sample-wise measurements of large networks."""
    rows = []
    for case in results["cases"].values():
        training, measure = case[TRAINING], case[MEASURE]
        peaks = [(found["memory"]["peak"] - found["memory"]["before"]) / 1e6 for found in (training, measure)]
        rows.append(
            [
                f"{NETWORKS[case['network']].title} ({training['parameters'] / 1e6:.0f} M parameters)",
                f"{training['seconds']:.2f} s, {peaks[0]:.0f} MB",
                f"{measure['seconds']:.2f} s ({measure['seconds'] / training['seconds']:.1f})",
                f"{peaks[1]:.0f} MB ({peaks[1] / peaks[0]:.2f})",
            ]
        )
    table = markdown(["network", TRAINING, "time", "memory"], rows)
    return f"{MEASURING}\n\n{table}\n"


PROFILE = """\
## What a step is made of

Seconds of the profiler in one thread, in units of the training step of the same network, by kind of operation
([profile.json](../benchmarks/results/profile.json)). *Products* counts how often a linear layer is passed (forwards, back,
or for its weight's gradient) over the whole batch; divided by the 3 of a training step, that is what a step costs at least.

With the statistics of the whole batch, the loss of each sub-batch depends on all samples, so that each of the D backward
passes, and what follows it, goes over the whole batch: 2 + 5 D products, or 7.3 training steps at D = 4. No exact engine
that differentiates through these passes gets below that. `differences` gets by with 1 + 2 D + 2 D, or 5.7."""


MEASURING = """\
## Sample-wise measurements of large networks

`initopt.measure` with D = B = 64: the gradients of all pairs of samples are compared, and none of them is ever formed whole
(a block of rows of one weight's gradients at a time; see
[contributions.py](../src/initopt/engines/stacked/contributions.py)). One batch, with the check of the first one; in
parentheses, in units of the training step
([measuring.json](../benchmarks/results/measuring.json))."""


def case_titles(cases: list[dict[str, Any]], note: str) -> str:
    """The cases that a note is about."""
    return "; ".join(f"{case_title(c)}, D = {c['num_subbatches']}" for c in cases if c.get("note") == note)


def profile_section(results: dict[str, Any]) -> str:
    """What the time of steps goes into, in units of a training step."""
    rows = []
    for case in results["cases"].values():
        unit = sum(case["seconds"][TRAINING].values())
        for name, seconds in case["seconds"].items():
            count = products(name, case["num_subbatches"], case["batch_norm"])
            kinds = [f"{value / unit:.2f}" for value in seconds.values()]
            rows.append([case_title(case), name, f"{count / 3:.2f}", *kinds, f"{sum(seconds.values()) / unit:.2f}"])
    head = ["network", "engine", "products / 3", *next(iter(results["cases"].values()))["seconds"][TRAINING], "all"]
    return f"{PROFILE}\n\n{markdown(head, rows)}\n"


def summary(cases: list[dict[str, Any]]) -> str:
    """A sentence about the first case: every contender's median."""
    if not cases:
        return ""
    contenders = cases[0]["contenders"]
    unit = contenders[TRAINING].get("seconds")
    medians = {
        name: ratios(contenders[name]["seconds"], unit)[0]
        for name in contenders_of(cases[:1])
        if unit and contenders[name].get("seconds")
    }
    told = ", ".join(f"`{name}` {median:.2g}" for name, median in medians.items() if name != PUBLISHED)
    published = f"; the published way {medians[PUBLISHED]:.2g}" if PUBLISHED in medians else ""
    return f"On {case_title(cases[0])}, a step takes, in training steps: {told}{published}."


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    write_file(options.out, lambda temporary: temporary.write_text(page(options.results), encoding="utf-8"))
    print(f"page: {options.out}")


if __name__ == "__main__":
    main()
