"""The device that the user asked for, if it is there."""

from __future__ import annotations

import torch

__all__ = ["find_device"]


def find_device(name: str) -> torch.device:
    """The device of a name.

    Args:
        name: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` and so on, or ``"auto"``: CUDA where it is available.

    Raises:
        ValueError: if there is no such device; the message says what there is.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    available = ["cpu", *(["cuda"] if count else []), *(f"cuda:{number}" for number in range(count))]
    if name not in available:
        built = "" if torch.version.cuda else "; this PyTorch was built without CUDA"
        raise ValueError(
            f"--device {name} is not available; available: {', '.join(available)}{built}. "
            "Try --device auto, which takes CUDA where there is one"
        )
    return torch.device(name)
