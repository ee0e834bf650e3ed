"""The entry point of the demo."""

from __future__ import annotations

from pathlib import Path

__all__ = ["run_demo"]


def run_demo(
    out: Path = Path("initopt-demo"),
    seeds: int = 5,
    epochs: int = 10,
    nio_steps: int = 100,
    threads: int | None = None,
) -> None:
    """Train a deep network on handwritten digits from its default start and from NIO's, and compare.

    Args:
        out: folder for the picture, the numbers and the optimized weights; one that an earlier demo wrote is replaced.
        seeds: how many times to do it, each with another start and another order of the data.
        epochs: passes over the training set.
        nio_steps: steps of the optimization of the start.
        threads: processor threads for PyTorch; its own choice, if not given.
    """
    raise NotImplementedError
