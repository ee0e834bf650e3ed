"""Raw results as JSON, written whole after every case, and the numbers that are made of them."""

from __future__ import annotations

import platform
import statistics
from pathlib import Path
from typing import Any

import torch

import initopt
from initopt._support.files import write_file, write_json
from initopt._support.reading import read_json

__all__ = ["RESULTS", "load", "machine", "memory_of", "processor", "ratios", "save"]

Results = dict[str, Any]

RESULTS = Path(__file__).parent / "results"


def machine(device: str, threads: int) -> dict[str, Any]:
    """Where and with what it is measured."""
    about: dict[str, Any] = {"processor": processor(), "device": device}
    if device != "cpu":
        tf32 = {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32}
        about |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "tf32": tf32}
    return about | {
        "threads": threads,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "initopt": initopt.__version__,
    }


def processor() -> str:
    """The name of the processor, as well as it is known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def load(path: Path, head: dict[str, Any]) -> Results:
    """The results so far, or none.

    Args:
        path: the JSON file.
        head: what must be the same for results to go into one file.

    Raises:
        SystemExit: if the file was begun elsewhere or otherwise.
    """
    if not path.exists():
        return {**head, "cases": {}}
    results: Results = read_json(path)
    different = [key for key in head if results.get(key) != head[key]]
    if different:
        raise SystemExit(f"{path} was begun with another {' and '.join(different)}; choose another --out, or remove it")
    return results


def save(path: Path, results: Results) -> None:
    """Write results whole."""
    write_file(path, lambda temporary: write_json(temporary, results))


def ratios(seconds: list[float], unit: list[float]) -> tuple[float, float, float]:
    """Median, minimum and maximum, in units of the median of ``unit``.

    >>> ratios([4.0, 6.0, 5.0], [2.0, 2.5, 1.0])
    (2.5, 2.0, 3.0)
    """
    one = statistics.median(unit)
    return statistics.median(seconds) / one, min(seconds) / one, max(seconds) / one


def memory_of(contender: dict[str, Any]) -> float | None:
    """Peak above the resting process in MB (10^6 bytes), if it was measured."""
    memory = contender.get("memory", {})
    return (memory["peak"] - memory["before"]) / 1e6 if "peak" in memory else None
