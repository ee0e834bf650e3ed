"""Small data sets of images, in the layouts that real ones have."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
from PIL import Image

CLASSES = ("cat", "dog")


def picture(label: int, number: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """Noise, brighter for the second class."""
    noise = np.random.default_rng((label, number)).integers(0, 128, (*size[::-1], 3))
    return Image.fromarray((noise + 100 * label).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def write_split(
    folder: Path,
    split: str,
    count: int,
    *,
    columns: Sequence[str] = ("img", "label"),
    size: tuple[int, int] = (32, 32),
    broken: int | None = None,
) -> None:
    """A parquet file of a split, half of it cats and half of it dogs, as the hub has them."""
    labels = [number % len(CLASSES) for number in range(count)]
    offset = 10_000 * len(split)
    files = [png(picture(label, offset + number, size)) for number, label in enumerate(labels)]
    if broken is not None:
        files[broken] = files[broken][:40]
    image, label = columns
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=list(CLASSES))})
    records = {image: [{"bytes": file, "path": f"{i}.png"} for i, file in enumerate(files)], label: labels}
    folder.mkdir(parents=True, exist_ok=True)
    made = datasets.Dataset.from_dict(records, features=features)
    made.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))


def write_folders(folder: Path, count: int) -> None:
    """A folder of images for each class."""
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            picture(label, number, (40, 30)).save(folder / name / f"{number}.png")


def work_offline(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Have the libraries of the Hugging Face hub use no network, and a cache of this test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
