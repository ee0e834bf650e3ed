"""What GradCosine says of networks between alive and dead, with and without centring.

    python benchmarks/centring.py [--out benchmarks/results/centring.json] [--picture docs/assets/centring.png]

Deep plain networks of digits, all of whose weights are multiplied by one number: at 1, PyTorch's own start, the outputs
hardly depend on the inputs; at about 2.4, for ReLU, signals keep their size. Beside them, the same networks after 100 steps
of NIO on uncentred gradients. Every point is a mean over ten batches of 64; three seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

import initopt
from initopt.data import digits
from initopt.zoo import plain_mlp

ROOT = Path(__file__).parents[1]
FACTORS = tuple(np.round(np.linspace(1.0, 2.8, 10), 2))
SEEDS = (0, 1, 2)


def convolutions(depth: int = 14, width: int = 16) -> nn.Sequential:
    """Convolutions of 3 x 3 with ReLU, without norm."""
    layers = [layer for i in range(depth) for layer in (nn.Conv2d(width if i else 1, width, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4 * width, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "10 ReLU layers": lambda: plain_mlp(64, depth=11, width=32, activation=nn.ReLU),
    "20 ReLU layers": lambda: plain_mlp(64, depth=21, width=32, activation=nn.ReLU),
    "20 tanh layers": lambda: plain_mlp(64, depth=21, width=32),
    "14 convolutions": convolutions,
}


def measured(model: nn.Module, batches: Any) -> dict[str, float]:
    """The figures of one network."""
    found = initopt.measure(model, batches, num_batches=10, seed=0, progress=False)
    names = ("grad_cosine", "centred_grad_cosine", "grad_norm", "centred_grad_norm", "output_spread")
    return {name: getattr(found, name) for name in names}


def rows() -> list[dict[str, Any]]:
    """All points."""
    found: list[dict[str, Any]] = []
    for name, make in NETWORKS.items():
        for seed in SEEDS:
            batches = list(digits().batches(64, seed=seed))
            for factor in FACTORS:
                torch.manual_seed(seed)
                model = make()
                with torch.no_grad():
                    for parameter_name, parameter in model.named_parameters():
                        parameter.mul_(1.0 if parameter_name.endswith("bias") else float(factor))
                found.append({"network": name, "seed": seed, "start": float(factor)} | measured(model, batches))
            torch.manual_seed(seed)
            model = make()
            options: dict[str, Any] = {"centre": None, "max_grad_norm": 5.0, "measure_batches": 0, "progress": False}
            initopt.nio(model, batches, seed=seed, **options)
            found.append({"network": name, "seed": seed, "start": "uncentred nio"} | measured(model, batches))
            print(name, seed, flush=True)
    return found


def draw(points: list[dict[str, Any]]) -> Figure:
    """GradCosine of both kinds against the spread of the outputs."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True)
    shown = (("grad_cosine", "whole gradients", "#7f7f7f", "o"), ("centred_grad_cosine", "centred", "#0072B2", "D"))
    scaled = [point for point in points if point["start"] != "uncentred nio"]
    after = [point for point in points if point["start"] == "uncentred nio"]
    for name, label, colour, marker in shown:
        axes[0].plot(
            [p["output_spread"] for p in scaled], [p[name] for p in scaled], marker, ms=4, color=colour, label=label
        )
        axes[0].plot([p["output_spread"] for p in after], [p[name] for p in after], marker, ms=9, mfc="none", color=colour)
    axes[0].set_title("GradCosine; large and hollow: after NIO on whole gradients", loc="left", fontsize=10)
    axes[0].legend(fontsize=9, frameon=False, loc="upper left")
    for some, size, face in ((scaled, 4, "#0072B2"), (after, 9, "none")):
        share = [p["centred_grad_norm"] / p["grad_norm"] for p in some]
        axes[1].plot([p["output_spread"] for p in some], share, "D", ms=size, color="#0072B2", mfc=face)
    axes[1].set_yscale("log")
    axes[1].set_title("share of the centred gradient in the norm", loc="left", fontsize=10)
    for axis in axes:
        axis.set_xscale("log")
        axis.axvline(1e-3, color="#D55E00", lw=1, ls="--")
        axis.set_xlabel("spread of the outputs over the inputs", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="0.92")
        axis.set_axisbelow(True)
    axes[0].annotate("ignores its input", (1e-3, axes[0].get_ylim()[0]), (-4, 4), textcoords="offset points", ha="right",
                     fontsize=8, color="#D55E00")  # fmt: skip
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "centring.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "assets" / "centring.png")
    options = parser.parse_args()
    torch.set_num_threads(1)
    points = rows()
    options.out.write_text(json.dumps(points, indent=1) + "\n")
    draw(points).savefig(options.picture, dpi=110)


if __name__ == "__main__":
    main()
