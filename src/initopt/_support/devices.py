"""The memory of devices."""

from __future__ import annotations

from pathlib import Path

import torch

__all__ = ["free_memory"]


def free_memory(device: torch.device) -> float | None:
    """Bytes that can still be allocated on a device; ``None`` where that cannot be told."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + reserved)
    if device.type != "cpu":
        return None
    found = [free for free in (_system_memory(), _container_memory()) if free is not None]
    return min(found) if found else None


def _system_memory() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return 1024.0 * kilobytes[0] if kilobytes else None


def _container_memory() -> float | None:
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = (folder.joinpath(name).read_text("ascii").strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    return None if limit == "max" else float(limit) - float(used)
