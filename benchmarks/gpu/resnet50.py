"""Part (c): all steps of NIO on a ResNet-50 at batch 64, and what they take beside an epoch of training."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from bundle import Bundle, Records
from cases import Case
from contenders import TRAINING, contender
from imagenet_sample import EPOCH, SETTINGS
from networks import build
from tables import markdown
from tasks import Plan, Result, Task, Tell
from timing import time_once

import initopt
from initopt.batches.subbatches import SubBatches
from initopt.data.augmentation import View
from initopt.data.loader import seeded_batches
from initopt.data.pictures import Pictures

__all__ = ["resnet50_plan", "resnet50_table", "run_nio"]

_STEPS, _MEASURED, _TRAINING_STEPS = 100, 10, 10

_RECKONED = {"defaults": 45.0, "published": 50.0}
"""Seconds on an H100: 15 for the network, its batches and choosing kernels, and 100 steps, with measurements as much as 10
more, of 4 and 4.5 training steps of 0.07 s."""


def resnet50_plan(bundle: Path, device: str, loaders: int, dry: bool) -> Plan:
    """A task for each setting."""
    size: dict[str, Any] = {}
    if dry:
        size = {"network": "tiny-resnet-bn", "classes": 10, "batch_size": 8, "side": 16, "steps": 3, "measured": 2}

    def plan(results: Mapping[str, Result]) -> list[Task]:
        arguments = {"bundle": bundle, "device": device, "loaders": loaders, **size}
        return [
            Task(setting, run_nio, {"setting": setting, **arguments}, alone=5.0 if dry else seconds)
            for setting, seconds in _RECKONED.items()
        ]

    return plan


def run_nio(
    setting: str,
    bundle: Path,
    device: str,
    loaders: int,
    tell: Tell,
    network: str = "resnet50-bn",
    classes: int = 1000,
    batch_size: int = 64,
    side: int = 224,
    steps: int = _STEPS,
    measured: int = _MEASURED,
) -> Result:
    """NIO with a setting of ``imagenet_sample.SETTINGS``, on random parts of the images of the bundle."""
    records = Bundle(bundle).files("imagenet")["train"].records()
    if len(records) < batch_size:
        raise ValueError(f"the bundle has {len(records)} images of ImageNet, fewer than a batch of {batch_size}")
    for record in records:
        record["label"] %= classes  # a tiny network has fewer
    batches = _batches(records, batch_size, steps + measured, side, loaders)
    first = tuple(tensor.to(device) for tensor in next(iter(batches)))
    model = build(network, device)
    twin = build(network, device)  # training steps write to the statistics of batch norms
    training = contender(TRAINING, Case(network, batch_size=batch_size), twin, first)
    training_seconds = [time_once(training, device) for _ in range(_TRAINING_STEPS + 3)][3:]  # the first choose kernels
    del twin, training
    ends: list[float] = []

    def watch(record: Any) -> None:
        ends.append(time.perf_counter())
        tell(len(ends) / steps)

    options = SETTINGS[setting] | {"steps": steps, "measure_batches": measured, "seed": 0, "progress": False}
    result = initopt.nio(model, batches, callbacks=watch, **options)
    assert result.before is not None
    assert result.after is not None
    return {
        "network": network,
        "batch_size": batch_size,
        "engine": result.engine,
        "training_seconds": training_seconds,
        "step_seconds": [after - before for before, after in pairwise(ends)],
        "steps": steps,
        "seconds": result.seconds,
        "options": {name: result.options[name] for name in ("num_subbatches", "overlap", "split", "batch_norm", "lr")},
        "floor": SubBatches(
            count=result.options["num_subbatches"], overlap=result.options["overlap"], split=result.options["split"]
        ).noise_cosine(batch_size),
        "figures": {
            name: [[getattr(when, name), when.sem[name]] for when in (result.before, result.after)]
            for name in ("grad_cosine", "grad_norm")
        },
        "history": [[record.grad_cosine, record.grad_norm] for record in result.history],  # type: ignore[union-attr]
        "scales": result.scales,
    }


def _batches(records: Records, batch_size: int, count: int, side: int, loaders: int) -> Iterable[Any]:
    """Batches of random parts of the few images there are: no image is in a batch twice.

    Those held back show other parts of the same images.
    """
    show = View(side, ("crop", "flip"))
    pictures = Pictures(records, lambda index: f"image {index} of the bundle", show)
    return seeded_batches(pictures, list(_orders(len(records), batch_size, count)), 0, loaders=loaders)


def _orders(images: int, batch_size: int, count: int) -> Iterator[list[int]]:
    generator = torch.Generator().manual_seed(0)
    while count > 0:
        order = torch.randperm(images, generator=generator).tolist()
        for begin in range(0, images - batch_size + 1, batch_size)[:count]:
            yield order[begin : begin + batch_size]
            count -= 1


def resnet50_table(results: Mapping[str, Result]) -> str:
    """Seconds, the share of an epoch, and GradCosine before and after beside its floor."""
    rows = []
    for setting, found in results.items():
        if "failed" in found:
            continue
        training, step = (statistics.median(found[name]) for name in ("training_seconds", "step_seconds"))
        whole = found["steps"] * statistics.fmean(found["step_seconds"])
        epoch = math.ceil(EPOCH / found["batch_size"]) * training
        cosine, norm = (
            f"{before[0]:.3f} ± {before[1]:.3f} → {after[0]:.3f} ± {after[1]:.3f}"
            for before, after in found["figures"].values()
        )
        seconds = [f"{1000 * training:.1f} ms", f"{1000 * step:.1f} ms ({step / training:.1f})"]
        seconds += [f"{whole:.1f} s ({100 * whole / epoch:.2g} %)", f"{found['seconds']:.1f} s"]
        rows.append([f"`{setting}`", found["engine"], *seconds, cosine, f"{found['floor']:.3f}", norm])
    head = ["setting", "engine", "training step", "NIO step (training steps)", "all steps (of an epoch)", "and measuring"]
    return markdown([*head, "GradCosine", "its floor", "gradient norm"], rows)
