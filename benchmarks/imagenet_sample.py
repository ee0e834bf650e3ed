"""NIO on networks of ImageNet size and images of ImageNet, for as many steps as there is time for.

    python benchmarks/imagenet_sample.py --data DIR --network resnet50 --minutes 12

Writes results/imagenet-sample.json: GradCosine and gradient norm before and after, on batches that no step has seen, and
what that takes beside an epoch of training. Every step is kept in a checkpoint beside the results: a call that was
killed goes on from there, and a later one adds steps until there are --steps. Needs timm and ``initopt[data]``.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cases import Case
from contenders import TRAINING, contender
from networks import NETWORKS, build
from results import RESULTS, Results, load, machine, save
from tables import markdown
from timing import synchronize
from torch import Tensor

import initopt
from initopt import functional, presets
from initopt.data import imagenet
from initopt.gram.measurement import Measurement
from initopt.methods.records import StepRecord
from initopt.runs.result import Result

__all__ = ["EPOCH", "SETTINGS", "Sample", "imagenet_sample_section", "main", "run_sample"]

EPOCH = 1_281_167
"""Training images of ImageNet-1k."""

MODELS = {
    "resnet50": "resnet50-bn",
    "swin_tiny_patch4_window7_224": "swin-t",
    "tiny-resnet-bn": "tiny-resnet-bn",
}
"""Their names in ``networks.NETWORKS``, by the names of timm; the last one is to try this out."""

SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "published": presets.published,
}
"""Options of ``initopt.nio``. Those published are of the paper's run on ResNet-50, but for its batch size of 64."""

TIMED = 2
"""Training steps that are timed before NIO, and again after it."""

Batches = Iterable[tuple[Tensor, Tensor]]

TEXT = """\
## Images of ImageNet

NIO on networks of timm at 224 x 224, with the standard augmentation. GradCosine and gradient norm are means with their
standard errors over batches that no step has seen, and in parentheses the mean difference with its own, which is smaller
since the batches are the same. While the gradient norm is above its bound, a step lowers it and does not look at
GradCosine; how many steps did so is in parentheses. Training steps, without an optimizer or loading, were timed before and
after NIO (median and range); the steps of NIO (median) include loading. On a CPU these are seconds of processor
time, since the machine had other work. An epoch is 1,281,167 images in such training steps; of its cost, the last column
has the steps that were taken, and 100 steps. `defaults` are those of `initopt.nio`; `published` is
`presets.published`.
"""


@dataclass(frozen=True)
class Sample:
    """What is done.

    Attributes:
        network: a key of ``MODELS``.
        setting: a key of ``SETTINGS``.
        batch_size: B.
        steps: the most steps of NIO.
        measure_batches: batches that are held back.
    """

    network: str
    setting: str = "defaults"
    batch_size: int = 64
    steps: int = 100
    measure_batches: int = 6

    def __post_init__(self) -> None:
        if self.setting == "published" and self.network.startswith("swin"):
            raise SystemExit(f"no published setting is known for {self.network}; take --setting defaults")

    @property
    def key(self) -> str:
        """Its name in the results."""
        return f"{self.network} {self.setting} B={self.batch_size}"


class _OutOfTime(Exception):  # noqa: N818 - no error
    """Ends the steps; the checkpoint has them all."""


def run_sample(
    sample: Sample, batches: Batches, out: Path, head: Mapping[str, Any], device: str, deadline: float
) -> Results:
    """Take the steps that ``out`` does not have yet, as far as time allows, and measure.

    Args:
        sample: what is done.
        batches: can be iterated over again, and are then the same.
        out: the results; a checkpoint of the steps is written beside them.
        head: machine and settings that results in one file share.
        device: ``"cpu"`` or ``"cuda"``.
        deadline: no step begins after this ``time.monotonic()``, but for the first.
    """
    results = load(out, dict(head))
    stored = results["cases"].setdefault(sample.key, {"training_seconds": [], "step_seconds": []})
    if stored.get("steps", 0) >= sample.steps:
        print(f"{sample.key}: all {sample.steps} steps are done")
        return results
    model = build(MODELS[sample.network], device)
    twin = copy.deepcopy(model)  # training steps write to the statistics of batch norms
    batch = tuple(tensor.to(device) for tensor in next(iter(batches)))
    clock = _clock(device)

    def time_training(times: int) -> None:
        for number in range(times):
            with contender(TRAINING, Case(MODELS[sample.network]), twin, batch)() as step:
                begun = clock()
                step()
                seconds = clock() - begun
            print(f"training step: {seconds:.2f} s", flush=True)
            if number >= times - TIMED:
                stored["training_seconds"].append(seconds)
        save(out, results)

    def keep(seconds: float) -> None:
        stored["step_seconds"].append(seconds)
        save(out, results)

    time_training(TIMED + 1)  # the first one chooses kernels
    options = {**SETTINGS[sample.setting], "measure_batches": sample.measure_batches, "seed": 0}
    checkpoint = out.with_name(f"{out.stem}-{sample.key.replace(' ', '-')}.checkpoint")
    result = _as_far_as_time_allows(model, batches, sample.steps, deadline, options, checkpoint, clock, keep)
    time_training(TIMED)
    results["cases"][sample.key] = stored | _told(sample, result)
    save(out, results)
    print(_table([results["cases"][sample.key]]))
    return results


def _clock(device: str) -> Callable[[], float]:
    """Seconds; on a CPU those of this process alone, whatever else the machine does."""

    def now() -> float:
        synchronize(device)
        return time.process_time() if device == "cpu" else time.perf_counter()

    return now


def _as_far_as_time_allows(
    model: torch.nn.Module,
    batches: Batches,
    steps: int,
    deadline: float,
    options: Mapping[str, Any],
    checkpoint: Path,
    clock: Callable[[], float],
    keep: Callable[[float], None],
) -> Result:
    begun = clock()

    def watch(record: StepRecord) -> None:
        nonlocal begun
        seconds = clock() - begun
        print(f"[{record.step + 1}/{steps}] {record.summary()}  {seconds:.2f} s", flush=True)
        keep(seconds)
        if time.monotonic() > deadline and record.step + 1 < steps:
            raise _OutOfTime(record.step + 1)
        begun = clock()

    kept = {**options, "checkpoint": checkpoint, "checkpoint_every": 1, "progress": False}
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    try:
        return initopt.nio(model, batches, callbacks=watch, **kept | {"steps": steps})
    except _OutOfTime as stop:
        (done,) = stop.args
        print(f"out of time after {done} steps", flush=True)
        return initopt.nio(model, batches, **kept | {"steps": done})


def _told(sample: Sample, result: Result) -> dict[str, Any]:
    assert result.before is not None
    assert result.after is not None
    options = {name: result.options[name] for name in ("num_subbatches", "overlap", "objective", "lr", "max_grad_norm")}
    return {
        "network": sample.network,
        "setting": sample.setting,
        "batch_size": sample.batch_size,
        "options": options | {"batch_norm": result.options["batch_norm"]},
        "engine": result.engine,
        "steps": len(result.history),
        "wall_seconds": result.seconds,
        "before": _figures(result.before),
        "after": _figures(result.after),
        "scales": result.scales,
        "history": [[getattr(record, name) for name in ("grad_cosine", "grad_norm")] for record in result.history],
    }


def _figures(measured: Measurement) -> dict[str, Any]:
    """Means, standard errors, and the single batches, of which pairs can be made."""
    of_batches = {"grad_cosine": functional.grad_cosine(measured.gram), "grad_norm": functional.grad_norm(measured.gram)}
    return {
        name: {"mean": getattr(measured, name), "sem": measured.sem[name], "batches": values.tolist()}
        for name, values in of_batches.items()
    }


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[float, float]:
    """Mean difference of two figures on the same batches, and its standard error.

    >>> _difference({"batches": [0.0, 0.0]}, {"batches": [1.0, 3.0]})
    (2.0, 1.0)
    """
    pairs = [new - old for old, new in zip(before["batches"], after["batches"], strict=True)]
    sem = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else math.nan
    return statistics.fmean(pairs), sem


def _shares(case: Mapping[str, Any]) -> tuple[float, float]:
    """The cost of the steps taken, and of 100 steps, over that of an epoch."""
    epoch = math.ceil(EPOCH / case["batch_size"]) * statistics.median(case["training_seconds"])
    step = statistics.median(case["step_seconds"])
    return case["steps"] * step / epoch, 100 * step / epoch


def _above_the_bound(case: Mapping[str, Any]) -> int:
    """The steps that lowered the gradient norm, in the place of the objective."""
    return sum(norm > case["options"]["max_grad_norm"] for _, norm in case["history"])


def _table(cases: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for case in cases:
        figures = []
        for name, digits in (("grad_cosine", 3), ("grad_norm", 2)):
            before, after = case["before"][name], case["after"][name]
            mean, sem = _difference(before, after)
            figures.append(f"{before['mean']:.{digits}f} ± {before['sem']:.{digits}f}")
            changed = f"{mean:+.{digits}f} ± {sem:.{digits}f}"
            figures.append(f"{after['mean']:.{digits}f} ± {after['sem']:.{digits}f} ({changed})")
        step, training = statistics.median(case["step_seconds"]), statistics.median(case["training_seconds"])
        taken, hundred = _shares(case)
        options = case["options"]
        rows.append(
            [
                f"{NETWORKS[MODELS[case['network']]].title}, `{case['setting']}`",
                f"{case['batch_size']} / {options['num_subbatches']}",
                f"{case['steps']} ({_above_the_bound(case)})",
                *figures,
                f"{training:.3g} [{min(case['training_seconds']):.3g}..{max(case['training_seconds']):.3g}] s",
                f"{step:.3g} s ({step / training:.1f})",
                f"{100 * taken:.2g} %, {100 * hundred:.2g} %",
            ]
        )
    head = ["network, setting", "batch / D", "steps (lowering the norm)", "GradCosine before", "after"]
    return markdown([*head, "gradient norm before", "after", "training step", "NIO step", "share of an epoch"], rows)


def imagenet_sample_section(results: Mapping[str, Any], name: str) -> str:
    """The part of the page about a results file; cases that have not come to their end are left out."""
    about = results["machine"]
    device = f"{about['processor']}, threads: {about['threads']}" if about["device"] == "cpu" else about["device"]
    versions = ", ".join(f"{title} {about[key]}" for title, key in (("PyTorch", "torch"), ("timm", "timm")) if key in about)
    cases = [case for case in results["cases"].values() if "steps" in case]
    where = f"{device}, {versions}; data: {results['data']} ([{name}.json](../benchmarks/results/{name}.json))."
    return "\n\n".join([TEXT.rstrip(), where, _table(cases)]) + "\n"


def head_of(device: str, threads: int, data: str) -> dict[str, Any]:
    """What all results of a file share."""
    timm = {"timm": importlib.metadata.version("timm")} if importlib.util.find_spec("timm") else {}
    return {"machine": machine(device, threads) | timm, "data": data}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="images in the layout of the hub")
    parser.add_argument(
        "--about", default="ImageNet", metavar="TEXT", help='what is in it: "a sample of 1,000 images", say'
    )
    parser.add_argument("--network", choices=MODELS, default="resnet50")
    parser.add_argument("--setting", choices=SETTINGS, default="defaults")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100, help="the most steps")
    parser.add_argument("--measure-batches", type=int, default=6, help="batches that are held back to measure on")
    parser.add_argument("--minutes", type=float, default=12.0, help="no step of this call begins later")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--out", type=Path, default=RESULTS / "imagenet-sample.json")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    sample = Sample(options.network, options.setting, options.batch_size, options.steps, options.measure_batches)
    torch.set_num_threads(options.threads)
    deadline = time.monotonic() + 60 * options.minutes
    splits = imagenet(options.data, streaming=True, image_size=options.image_size)
    head = head_of(options.device, options.threads, options.about)
    run_sample(sample, splits.batches(options.batch_size), options.out, head, options.device, deadline)
    print(f"results: {options.out}")


if __name__ == "__main__":
    main()
