"""All 100 steps of NIO on ResNet-50 at batch 64, and what they take beside an epoch of training."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from imagenet_sample import SETTINGS, Sample, head_of, run_sample
from random_images import RandomImages

from initopt.data import Splits, imagenet

__all__ = ["run_resnet50"]


@dataclass(frozen=True)
class _Scale:
    network: str
    batch_size: int
    steps: int
    measure_steps: int
    side: int
    classes: int


_SCALES = {
    "cuda": _Scale("resnet50", 64, 100, 20, 224, 1000),
    "cpu": _Scale("tiny-resnet-bn", 8, 3, 2, 16, 10),
}


def run_resnet50(data: Path | None, out: Path, device: str, threads: int, deadline: float) -> None:
    """NIO at its defaults, and with the published setting, as far as time allows.

    Args:
        data: a folder with ImageNet, or a part of it, in the layout of the hub; random images if there is none.
        out: the results; goes on where they end.
        device: ``"cuda"``, or ``"cpu"`` for a tiny network.
        threads: threads of PyTorch.
        deadline: no step begins after this ``time.monotonic()``, but for the first of a call.
    """
    scale = _SCALES[device]
    if data is None:
        count = scale.batch_size * (scale.steps + scale.measure_steps)
        splits = Splits(RandomImages(count, scale.side, scale.classes), None, None)
    else:
        splits = imagenet(data, streaming=True, image_size=scale.side)
    head = head_of(device, threads, "random images" if data is None else "ImageNet")
    for setting in SETTINGS:
        if time.monotonic() > deadline:
            print(f"out of time: {setting!r} is left; call again to go on")
            break
        sample = Sample(scale.network, setting, scale.batch_size, scale.steps, scale.measure_steps)
        run_sample(sample, splits.batches(scale.batch_size), out, head, device, deadline)
