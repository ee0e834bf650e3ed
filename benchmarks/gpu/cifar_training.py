"""A training on CIFAR-10 with the data and their augmentation on the device, from a start that is made there."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bundle import Bundle
from tasks import Result, Tell
from timing import synchronize
from torch import Tensor, nn
from torch.nn import functional as F

import initopt
from initopt._support.files import write_file
from initopt.data import Splits
from initopt.data.augmentation import augmentation
from initopt.data.images import Pixels, Source, decoded
from initopt.model.randomness import seeded
from initopt.runs.checkpoint import fingerprint
from initopt.zoo import cifar_resnet, small_vit, vgg

__all__ = ["NETWORKS", "STARTS", "TINY", "Recipe", "Setting", "decode_once", "time_steps", "train_once"]

STARTS = ("own", "lsuv", "nio")

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "VGG-16, no norm": partial(vgg, 16, norm="none"),
    "ResNet-56, batch norm": partial(cifar_resnet, 56),
    "ResNet-56, no norm": partial(cifar_resnet, 56, norm="none"),
    "ViT, 9 blocks, 192 wide": partial(small_vit, 32, 4, depth=9, width=192, heads=3),
}

TINY: dict[str, Callable[[], nn.Module]] = {
    "VGG-16, no norm": partial(vgg, 7, width=4, norm="none"),
    "ResNet-56, batch norm": partial(cifar_resnet, 8),
    "ResNet-56, no norm": partial(cifar_resnet, 8, norm="none"),
    "ViT, 9 blocks, 192 wide": partial(small_vit, 32, 8, depth=1, width=24, heads=1),
}
"""What stands in for each network where only the way is tried."""

_WARM = 5
"""Steps before steps are timed, at the least."""

_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_WEIGHTS, _EPOCHS = 0, 10_000  # streams of random numbers: the weights of a seed; at most so many epochs of one


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        optimizer: ``"sgd"`` with momentum 0.9 and weight decay 5e-4, or ``"adamw"`` with weight decay 0.05.
        lr: peak of a cosine schedule that ends at 0.
        warmup: share of the steps in which the rate rises from 0.
        clip: bound on the gradient norm.
    """

    optimizer: str
    lr: float
    warmup: float = 0.0
    clip: float | None = None

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step.

        >>> [round(Recipe("sgd", 1.0, warmup=0.5).rate(step, 8), 2) for step in range(8)]
        [0.25, 0.5, 0.75, 1.0, 1.0, 0.85, 0.5, 0.15]
        """
        rising = round(self.warmup * steps)
        if step < rising:
            return self.lr * (step + 1) / rising
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))

    def create(self, model: nn.Module, device: str) -> torch.optim.Optimizer:
        """The optimizer."""
        fused = device == "cuda"
        if self.optimizer == "sgd":
            return torch.optim.SGD(model.parameters(), self.lr, momentum=0.9, weight_decay=5e-4, fused=fused)
        return torch.optim.AdamW(model.parameters(), self.lr, weight_decay=0.05, fused=fused)


@dataclass(frozen=True)
class Setting:
    """What all runs share.

    Attributes:
        pixels: the file that :func:`decode_once` made.
        device: where everything happens.
        batch_size: B.
        nio_steps: steps of NIO.
        measured: batches to measure a start on.
        tiny: whether tiny networks stand in for the others.
    """

    pixels: Path
    device: str
    batch_size: int = 128
    nio_steps: int = 100
    measured: int = 5
    tiny: bool = False

    def network(self, name: str, seed: int) -> nn.Module:
        """A network with its own start, which follows from the seed."""
        with seeded(seed, _WEIGHTS):
            return (TINY if self.tiny else NETWORKS)[name]().to(self.device)

    def splits(self) -> Splits:
        """The data, on the device if they fit there."""
        with np.load(self.pixels) as arrays:
            parts = {
                part: Pixels(
                    torch.from_numpy(arrays[f"{part}.pixels"]),
                    torch.from_numpy(arrays[f"{part}.labels"]),
                    _MEAN,
                    _STD,
                    augmentation(("crop", "flip"), 32) if part == "train" else None,
                )
                for part in ("train", "test")
            }
        return Splits(parts["train"], None, parts["test"]).to(self.device)


def decode_once(bundle: Path, path: Path, most: int | None = None) -> dict[str, int]:
    """Decode the images of CIFAR-10 in a bundle.

    Args:
        bundle: its folder.
        path: of the file that is written, unless it is there.
        most: images of a part; all, if not given.

    Returns:
        How many images each part has.
    """
    if not path.exists():
        arrays: dict[str, np.ndarray] = {}
        for part, files in Bundle(bundle).files("cifar10").items():
            source = Source(files.records(), files.classes, f"the bundle, {part}")
            pixels, labels = decoded(source, np.arange(len(files.labels))[:most], 32)
            arrays |= {f"{part}.pixels": pixels.numpy(), f"{part}.labels": labels.numpy()}
        write_file(path, lambda temporary: _save(temporary, arrays))
    with np.load(path) as arrays:
        return {part: len(arrays[f"{part}.labels"]) for part in ("train", "test")}


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with path.open("wb") as file:  # else numpy would give it another name
        np.savez(file, **arrays)


def _deterministic(device: str) -> None:
    """The same results for a seed, whatever runs beside: no kernels that sum in any order, none that are chosen by time."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*deterministic")
    if device == "cuda":
        torch.cuda.empty_cache()


def _steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    batches: Any,
    setting: Setting,
    first: int,
    steps: int,
) -> Iterator[Tensor]:
    """Training steps, of which nothing waits for the device; gives their losses."""
    for number, (images, labels) in enumerate(batches, first):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(number, steps)
        with torch.autocast(setting.device, torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        yield loss.detach()


@torch.no_grad()
def _judged(model: nn.Module, splits: Splits, setting: Setting) -> tuple[float, float]:
    """Mean loss and accuracy on the test images."""
    model.eval()
    count, size = len(splits.test), 4 * setting.batch_size  # type: ignore[arg-type]
    loss, hits = [], []
    for begin in range(0, count, size):
        images, labels = splits.test[list(range(begin, min(begin + size, count)))]  # type: ignore[index]
        with torch.autocast(setting.device, torch.bfloat16):
            logits = model(images)
        loss.append(F.cross_entropy(logits.float(), labels, reduction="sum"))
        hits.append((logits.argmax(-1) == labels).sum())
    model.train()
    return float(torch.stack(loss).sum()) / count, int(torch.stack(hits).sum()) / count


def time_steps(network: str, recipe: Recipe, setting: Setting, begin: float, seconds: float, tell: Tell) -> Result:
    """Seconds of a training step while others run beside it.

    Args:
        network: which.
        recipe: how it is trained.
        setting: of all runs.
        begin: until this ``time.time()``, and for a few steps at least, it warms up.
        seconds: how long to count.
        tell: is not told anything.
    """
    _deterministic(setting.device)
    model, splits = setting.network(network, 0), setting.splits()
    optimizer = recipe.create(model, setting.device)
    warm, begun, count, number = 0, math.inf, 0, 0
    while True:
        for _ in _steps(model, optimizer, recipe, splits.batches(setting.batch_size, seed=number), setting, 0, 1000):
            now = time.time()
            if begun < math.inf:
                count += 1
                if now > begun + seconds:
                    synchronize(setting.device)
                    return {"network": network, "step_seconds": (time.time() - begun) / count}
            elif now > begin and warm >= _WARM:
                synchronize(setting.device)
                begun = time.time()
            warm += 1
        number += 1


def train_once(
    network: str, recipe: Recipe, start: str, seed: int, epochs: int, setting: Setting, cache: Path | None, tell: Tell
) -> Result:
    """Train a network from a start.

    Args:
        network: which.
        recipe: how.
        start: one of :data:`STARTS`.
        seed: of the weights, of the order of the images, and of what augmentation draws.
        epochs: how many.
        setting: of all runs.
        cache: where the start is, or is put, for other recipes; ``None`` to make it anew.
        tell: is told of the progress.
    """
    _deterministic(setting.device)
    splits = setting.splits()
    model = setting.network(network, seed)
    about = _begin(model, network, start, seed, splits, setting, cache)
    optimizer = recipe.create(model, setting.device)
    steps_per_epoch = len(splits.train) // setting.batch_size  # type: ignore[arg-type]
    curve = [[0, math.nan, *_judged(model, splits, setting)]]
    begun = time.perf_counter()
    for epoch in range(epochs):
        batches = splits.batches(setting.batch_size, seed=_EPOCHS * seed + epoch)
        first, steps = epoch * steps_per_epoch, epochs * steps_per_epoch
        losses = list(_steps(model, optimizer, recipe, batches, setting, first, steps))
        loss = float(torch.stack(losses).mean())
        curve.append([epoch + 1, loss, *_judged(model, splits, setting)])
        tell((epoch + 1) / epochs)
        if not math.isfinite(loss):
            break
    return {
        "network": network,
        "start": start,
        "seed": seed,
        "lr": recipe.lr,
        "warmup": recipe.warmup,
        "epochs": epochs,
        "diverged": not math.isfinite(curve[-1][1]),
        "curve": [[None if math.isnan(value) else value for value in point] for point in curve],
        "seconds": time.perf_counter() - begun,
        "fingerprint": fingerprint(dict(model.state_dict())),
        **about,
    }


def _begin(
    model: nn.Module, network: str, start: str, seed: int, splits: Splits, setting: Setting, cache: Path | None
) -> dict[str, Any]:
    """Give the model a start; the figures of its own weights and of these, on the same batches."""
    name = f"{network}-{start}-{seed}".replace(", ", "-").replace(" ", "-")
    path = None if cache is None else cache / f"{name}.pt"
    if path is not None and path.exists():
        stored = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(stored["state"])
        return dict(stored["about"])
    batches = splits.batches(setting.batch_size, seed=_EPOCHS * seed + _EPOCHS - 1)
    taken = list(islice(batches, setting.measured + setting.nio_steps))
    held, others = taken[: setting.measured], taken[setting.measured :]
    about: dict[str, Any] = {"before": _figures(model, held)}
    synchronize(setting.device)
    begun = time.perf_counter()
    if start != "own":
        steps = {"steps": setting.nio_steps} if start == "nio" else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            initopt.optimize(model, others, method=start, measure_batches=0, seed=seed, progress=False, **steps)
    synchronize(setting.device)
    about |= {"start_seconds": time.perf_counter() - begun, "after": _figures(model, held)}
    if path is not None:
        stored = {"state": dict(model.state_dict()), "about": about}
        write_file(path, lambda temporary: torch.save(stored, temporary))
    return about


def _figures(model: nn.Module, held: list[Any]) -> dict[str, float] | None:
    """GradCosine and gradient norm; ``None`` where there are none, since gradients are not finite, or all zero."""
    try:
        found = initopt.measure(model, held, seed=0, progress=False)
    except (initopt.NonFiniteError, initopt.ZeroGradientError):
        return None
    return {"grad_cosine": found.grad_cosine, "grad_norm": found.grad_norm}
