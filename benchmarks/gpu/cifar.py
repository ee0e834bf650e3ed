"""Training on CIFAR-10 from the default start, from NIO's and from GradInit's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from results import load, machine, save
from tables import markdown
from torch import nn
from torch.nn import functional as F

import initopt
from initopt.comparison import Comparison, Network
from initopt.comparison.outcome import Outcome
from initopt.data import cifar10
from initopt.zoo import cifar_resnet, vgg

__all__ = ["epochs_within", "run_cifar"]

STARTS = ("default", "nio", "gradinit")
SEEDS = 3

INITIALIZING = 1200
"""Training steps that the initializations of a seed cost together, at the most: 100 steps of NIO take 400, and 100 of
GradInit, on two batches each, 600; the rest is for measurements."""

BESIDE = 1.5
"""What an epoch takes over its forward and backward passes: optimizer, loading, and a look at the test images."""

RECIPE: dict[str, Any] = {
    "optimizer": "sgd",
    "optimizer_options": {"momentum": 0.9, "weight_decay": 5e-4},
    "lr": 0.1,
    "schedule": "cosine",
}
WITHOUT_NORM = {"clip_grad_norm": 1.0}
"""As the paper and GradInit's have it for networks without batch norm."""


@dataclass(frozen=True)
class _Scale:
    networks: Mapping[str, Network]
    batch_size: int
    data: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)


def _both_norms(title: str, factory: Any, depth: int, **arguments: Any) -> dict[str, Network]:
    return {
        f"{title}, batch norm": Network(partial(factory, depth, norm="batch", **arguments)),
        f"{title}, no norm": Network(partial(factory, depth, norm="none", **arguments), WITHOUT_NORM),
    }


_SCALES = {
    "cuda": _Scale(
        _both_norms("ResNet-110", cifar_resnet, 110) | _both_norms("VGG-19", vgg, 19), 128, {"validation_samples": 0}
    ),
    "cpu": _Scale(
        _both_norms("ResNet-8", cifar_resnet, 8) | _both_norms("VGG-7", vgg, 7, width=4),
        8,
        {"train_samples": 96, "validation_samples": 0, "test_samples": 16},
        {"steps": 2},
    ),
}


def run_cifar(data: Path, out: Path, device: str, threads: int, minutes: float) -> None:
    """Train every network from every start with three seeds, as many epochs as fit into the minutes.

    A network takes all the minutes, if it can, so that a call does one and the next call the next. The epochs are settled
    once, from the time of a training step, and stored: a call that was killed goes on with them, run by run.

    Args:
        data: a folder with CIFAR-10 in the layout of the hub.
        out: the results; the runs are beside them, in a folder for each network.
        device: ``"cuda"``, or ``"cpu"`` for tiny networks.
        threads: threads of PyTorch.
        minutes: no network begins later.
    """
    deadline = time.monotonic() + 60 * minutes
    scale = _SCALES[device]
    about = {"seeds": SEEDS, "batch_size": scale.batch_size, "recipe": RECIPE, "data": dict(scale.data)}
    results = load(out, {"machine": machine(device, threads), "settings": about})
    splits = partial(cifar10, data, **scale.data)
    left = [name for name in scale.networks if "runs" not in results["cases"].get(name, {})]
    for number, name in enumerate(left):
        if number and time.monotonic() > deadline:
            print(f"out of time: {len(left) - number} networks are left; call again to go on")
            break
        network = scale.networks[name]
        stored = results["cases"].setdefault(name, {})
        if "epochs" not in stored:
            stored["step_seconds"] = _step_seconds(network, scale.batch_size, device)
            samples = len(splits().train)  # type: ignore[arg-type]
            stored["epochs"] = epochs_within(minutes, stored["step_seconds"], samples // scale.batch_size)
            save(out, results)
        print(f"{name}: {stored['epochs']} epochs, {1000 * stored['step_seconds']:.1f} ms a training step", flush=True)
        found = initopt.compare(
            {name: network},
            splits,
            [_initialization(start, scale) for start in STARTS],
            recipe=RECIPE | {"batch_size": scale.batch_size, "epochs": stored["epochs"]},
            seeds=SEEDS,
            accelerator=device,
            threads=threads,
            out=out.with_suffix("") / name.replace(", ", "-").replace(" ", "-"),
        )
        stored["runs"] = [_told(found, run) for run in found.runs]
        save(out, results)
        print(_table(stored["runs"]), flush=True)


def _initialization(start: str, scale: _Scale) -> str | dict[str, Any]:
    if start == "default":
        return start
    joined = 2 if start == "gradinit" else 1  # batches in a step
    return {"method": start, "options": scale.options, "batch_size": scale.batch_size // joined}


def epochs_within(minutes: float, step_seconds: float, steps_per_epoch: int) -> int:
    """The epochs for which there is time, one at least, all seeds, starts and initializations included.

    >>> epochs_within(minutes=5, step_seconds=0.02, steps_per_epoch=390)
    2
    """
    of_a_seed = 60 * minutes / SEEDS - INITIALIZING * step_seconds
    return max(1, int(of_a_seed / (len(STARTS) * BESIDE * steps_per_epoch * step_seconds)))


def _step_seconds(network: Network, batch_size: int, device: str) -> float:
    """Median time of a training step, forward and backward, on a batch of noise."""
    model: nn.Module = network.make().to(device)
    images = torch.randn(batch_size, 3, 32, 32, device=device)
    labels = torch.randint(10, (batch_size,), device=device)
    seconds = []
    for _ in range(8):
        begun = time.perf_counter()
        F.cross_entropy(model(images), labels).backward()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[3:])  # the first ones choose kernels


def _told(found: Comparison, run: Any) -> dict[str, Any]:
    told = {name: getattr(run, name) for name in ("initialization", "seed", "status", "error", "steps", "step_seconds")}
    told |= {name: getattr(run, name) for name in ("initialization_seconds", "seconds", "before", "after")}
    curve = [[point.epoch, point.loss, point.accuracy] for point in run.curve if point.subset == "test"]
    return told | {"test_accuracy": Outcome.of(found.runs).final(run), "test_curve": curve}


def _table(runs: list[dict[str, Any]]) -> str:
    rows = []
    for start in STARTS:
        own = [run for run in runs if run["initialization"] == start]
        accuracies = [run["test_accuracy"] for run in own]
        ended = ", ".join(sorted({run["status"] for run in own}))
        spread = f"{100 * statistics.mean(accuracies):.1f} ± {100 * statistics.stdev(accuracies):.1f} %"
        seconds = statistics.mean(run["initialization_seconds"] for run in own)
        rows.append([start, spread, f"{seconds:.1f} s", ended])
    return markdown(["start", "test accuracy (standard deviation)", "initialization", "runs"], rows)
