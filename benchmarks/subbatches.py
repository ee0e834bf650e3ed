"""GradCosine over the size of a batch, the number of its sub-batches and their overlap, with what a formula says of it.

    python benchmarks/subbatches.py --cifar10 DIR

ResNet-110 on CIFAR-10 at its own start, three seeds, as in figure 2 of the paper (arXiv 2210.05956). Without batch norm,
all sub-batches of a batch follow from the Gram matrix of its samples, so each batch of 128 is measured once, sample by
sample. With batch norm, a sub-batch is normalized by itself, so each split is measured. The formula has one number of the
network in it, the noise scale; without batch norm it is estimated from the samples.
"""

from __future__ import annotations

import argparse
import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

import initopt
from initopt import functional
from initopt.batches.subbatches import SubBatches, Windows
from initopt.data import cifar10
from initopt.zoo import cifar_resnet

ROOT = Path(__file__).parents[1]
DEPTH, BATCH, BATCHES, SEEDS = 110, 128, 8, (0, 1, 2)
SIZES = (32, 64, 128)
COUNTS = (2, 4, 8, 16, 32, 64, 128)
OVERLAPS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
SPLITS = ("cyclic", "published")
WITH_NORM = [(count, 0.0) for count in (2, 4, 8, 16)] + [(4, overlap) for overlap in (0.2, 0.5, 0.8)]


def of_windows(samples: Tensor, windows: Windows) -> float:
    """GradCosine of sub-batches, out of the Gram matrix of the samples' gradients."""
    means = windows.weights()
    return float(functional.grad_cosine(means @ samples @ means.T))


def splits(size: int) -> list[tuple[int, float, str]]:
    """Every number of sub-batches without overlap, and every overlap at D = 4."""
    plain = [(count, 0.0, "cyclic") for count in COUNTS if count <= size]
    return plain + [(4, overlap, split) for overlap in OVERLAPS if overlap for split in SPLITS]


def without_norm(seed: int, batches: list[Any], depth: int) -> list[dict[str, Any]]:
    """A row for each size, number and overlap: means over the batches."""
    torch.manual_seed(seed)
    grams = initopt.measure(
        cifar_resnet(depth, norm="none"), batches, num_subbatches=len(batches[0][1]), centre=None, seed=0, progress=False
    ).gram
    noise = float(functional.noise_scale(grams, 1.0))
    rows = []
    for size in [size for size in SIZES if size <= grams.shape[-1]]:
        for count, overlap, split in splits(size):
            windows = SubBatches(count=count, overlap=overlap, split=split).windows(size)
            parts = [gram[i : i + size, i : i + size] for gram in grams for i in range(0, len(gram), size)]
            values = torch.tensor([of_windows(part, windows) for part in parts])
            rows.append(
                {
                    "norm": "none",
                    "seed": seed,
                    "noise_scale": noise,
                    "batch": size,
                    "count": count,
                    "overlap": overlap,
                    "split": split,
                    "grad_cosine": float(values.mean()),
                    "sd": float(values.std()),
                    "expected": windows.expected_cosine(max(noise, 0.0)),
                    "floor": windows.expected_cosine(),
                }
            )
    return rows


def with_norm(seed: int, batches: list[Any], depth: int) -> list[dict[str, Any]]:
    """A row for each number and overlap that is measured."""
    rows = []
    for count, overlap in WITH_NORM:
        torch.manual_seed(seed)
        found = initopt.measure(
            cifar_resnet(depth), batches, num_subbatches=count, overlap=overlap, centre=None, seed=0, progress=False
        )
        windows = SubBatches(count=count, overlap=overlap).windows(len(batches[0][1]))
        rows.append(
            {
                "norm": "batch",
                "seed": seed,
                "noise_scale": found.noise_scale,
                "batch": len(batches[0][1]),
                "count": count,
                "overlap": overlap,
                "split": "cyclic",
                "grad_cosine": found.grad_cosine,
                "sd": found.sem["grad_cosine"] * math.sqrt(found.num_batches),
                "floor": windows.expected_cosine(),
            }
        )
    return rows


def picture(rows: list[dict[str, Any]]) -> Figure:
    """Left: sizes without overlap. Right: overlaps at D = 4."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = {32: "#56B4E9", 64: "#0072B2", 128: "#000000"}
    bare = [row for row in rows if row["norm"] == "none"]
    for size in sorted({row["batch"] for row in bare}):
        points = [row for row in bare if row["batch"] == size and not row["overlap"]]
        left.plot(
            [size / row["count"] for row in points],
            [row["grad_cosine"] for row in points],
            "o",
            color=colours.get(size, "#000000"),
            label=f"B = {size}",
        )
    for seed in sorted({row["seed"] for row in bare}):
        noise = next(row["noise_scale"] for row in bare if row["seed"] == seed)
        places = [2 ** (k / 8) for k in range(49)]
        label = "b / (b + noise scale), each seed" if seed == bare[0]["seed"] else None
        left.plot(places, [b / (b + noise) for b in places], color="#7f7f7f", linewidth=1, label=label)
    normed = [row for row in rows if row["norm"] == "batch" and not row["overlap"]]
    sizes = [row["batch"] / row["count"] for row in normed]
    label = f"with batch norm, B = {normed[0]['batch']}" if normed else None
    left.plot(sizes, [row["grad_cosine"] for row in normed], "s", color="#D55E00", mfc="none", label=label)
    left.set(xscale="log", xlabel="samples in a sub-batch, without overlap", ylabel="GradCosine")
    left.set_xticks([1, 2, 4, 8, 16, 32, 64], labels=["1", "2", "4", "8", "16", "32", "64"])
    left.minorticks_off()
    left.legend(frameon=False)
    for split, colour in zip(SPLITS, ("#0072B2", "#CC79A7"), strict=True):
        points = [
            row
            for row in bare
            if row["batch"] == 64 and row["count"] == 4 and (row["split"] == split or not row["overlap"])
        ]
        points.sort(key=lambda row: row["overlap"])
        right.plot(
            [row["overlap"] for row in points],
            [row["grad_cosine"] for row in points],
            "o",
            color=colour,
            label=f"{split} windows",
        )
        first = [row for row in points if row["seed"] == points[0]["seed"]]
        right.plot(
            [row["overlap"] for row in first], [row["floor"] for row in first], ":", color=colour, label="noise floor"
        )
    right.set(xlabel="overlap, B = 64 and D = 4", ylabel="GradCosine")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
    return figure


def main() -> None:
    """Measure what is not stored yet, and draw all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", help="folder of the data set; only the picture is made without it")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "subbatches.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "assets" / "subbatches.png")
    parser.add_argument("--depth", type=int, default=DEPTH)
    parser.add_argument("--batches", type=int, default=BATCHES)
    parser.add_argument("--batch_size", type=int, default=BATCH)
    given = parser.parse_args()
    rows = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else []
    if given.cifar10:
        data = cifar10(given.cifar10)
        for seed in SEEDS:
            batches = list(islice(data.batches(given.batch_size, seed=seed), given.batches))
            for norm, measure in (("none", without_norm), ("batch", with_norm)):
                if not any((row["seed"], row["norm"]) == (seed, norm) for row in rows):
                    rows += measure(seed, batches, given.depth)
                    given.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
                    print(f"seed {seed}, norm {norm}: {len(rows)} rows", flush=True)
    picture(rows).savefig(given.picture, dpi=120)


if __name__ == "__main__":
    main()
