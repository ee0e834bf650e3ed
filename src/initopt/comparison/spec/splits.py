"""What ``data`` may be, and how to know it again."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, default_collate

from initopt._support.words import unknown
from initopt.data import SOURCES, Splits
from initopt.data.pictures import PictureStream
from initopt.model.randomness import seeded
from initopt.runs.checkpoint import fingerprint

__all__ = ["load_splits", "sizes_and_fingerprint"]

_PARTS = ("train", "validation", "test")
_LOOKED_AT = 64


def load_splits(data: Any) -> Splits:
    """Load the parts of the data that the user gave.

    Args:
        data: a name in :data:`initopt.data.SOURCES`, an object with the parts as attributes, or a factory of one.

    Raises:
        TypeError, ValueError: if a part is missing or is nothing that can be indexed; the message says which.
    """
    if isinstance(data, str):
        if data not in SOURCES:
            raise ValueError(f"{unknown('data', data, SOURCES)}, or give an object with train, validation and test")
        data = SOURCES[data]
    if not all(hasattr(data, part) for part in ("train", "test")) and callable(data):
        with seeded(0):
            data = data()
    missing = [part for part in ("train", "test") if getattr(data, part, None) is None]
    if missing:
        raise TypeError(
            f"data must have the attributes train, validation and test, as initopt.data.Splits has; {type(data).__name__} "
            f"has no {' and no '.join(missing)}"
        )
    return Splits(**{part: _as_dataset(part, getattr(data, part, None)) for part in _PARTS})


def _as_dataset(part: str, value: Any) -> Any:
    if part == "validation" and value is None:
        return None
    if isinstance(value, (tuple, list)) and len(value) and all(isinstance(item, Tensor) for item in value):
        value = TensorDataset(*value)
    if not hasattr(value, "__getitem__") or not hasattr(value, "__len__"):
        raise TypeError(
            f"data.{part} must be a data set of samples with a length (torch.utils.data.Dataset), or a tuple of tensors; "
            f"got {type(value).__name__}"
            + (f"; give {part}_samples, which reads that many" if isinstance(value, PictureStream) else "")
        )
    if len(value) == 0:
        raise ValueError(f"data.{part} is empty")
    return value


def sizes_and_fingerprint(splits: Splits) -> dict[str, Any]:
    """Size of each part and a hash of its first samples, so that other data under the same name are noticed."""
    found: dict[str, Any] = {}
    for part in _PARTS:
        dataset = getattr(splits, part)
        if dataset is not None:
            found[part] = {"samples": len(dataset), "fingerprint": _fingerprint(dataset)}
    return found


def _fingerprint(dataset: Dataset[Any]) -> str:
    with seeded(0):
        return fingerprint(default_collate([dataset[index] for index in range(min(len(dataset), _LOOKED_AT))]))  # type: ignore[arg-type]
