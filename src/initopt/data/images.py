"""Image data sets as Hugging Face ``datasets`` reads them: from its hub, or from a folder."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from initopt._support.checks import require
from initopt._support.reading import printable

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Pixels", "Source", "decode", "decoded", "open_source"]


@dataclass(frozen=True)
class Source:
    """A split of a data set whose images are still files.

    Attributes:
        records: a ``datasets.Dataset``, or an ``IterableDataset`` where it is a stream; its columns are ``image``, a dict
            of the ``bytes`` of a file or its ``path``, and ``label``, an integer.
        classes: the names of the labels.
        name: what a message calls it.
    """

    records: Any
    classes: tuple[str, ...]
    name: str

    def labels(self) -> np.ndarray:
        """The labels of all images, shape ``(N,)``; not for a stream."""
        return np.asarray(self.records.with_format("numpy")["label"][:])


def open_source(
    repository: str | None,
    path: str | os.PathLike[str] | None,
    *,
    streaming: bool = False,
    image: tuple[str, ...] = ("image", "img"),
    label: tuple[str, ...] = ("label",),
) -> dict[str, Source]:
    """The splits of a data set, by name.

    Args:
        repository: its name on the hub; not looked at if there is a path.
        path: a folder with parquet files, or with a folder of images for each class.
        streaming: read samples as they are needed, rather than all at first.
        image: what the column of the images may be called.
        label: what the column of the labels may be called.

    Raises:
        ImportError: without the extra ``data``.
        FileNotFoundError, NotADirectoryError: if there is no such folder, or nothing in it.
        ConnectionError: if the hub cannot be reached, and has nothing stored here.
        PermissionError: if the hub does not give the data set to everybody.
        ValueError: if it has other columns, or no training split.
    """
    require("this data set", "data", "datasets", "kornia", "PIL")
    if path is None:
        assert repository is not None
        found, name = _from_hub(repository, streaming), repository
    else:
        found, name = _from_folder(Path(path).expanduser(), streaming), str(path)
    if "train" not in found:
        raise ValueError(f"{name} has no split 'train', but {', '.join(map(repr, found))}")
    return {split: _as_source(split, records, name, image, label) for split, records in found.items()}


def _from_hub(repository: str, streaming: bool) -> dict[str, Any]:
    import datasets
    from huggingface_hub import constants  # which knows what values of the variable say no
    from huggingface_hub.errors import GatedRepoError

    try:
        return _load(repository, streaming)
    except (GatedRepoError, OSError, ValueError) as error:  # offline, ``datasets`` raises either, by what it has stored
        not_found = isinstance(error, datasets.exceptions.DatasetNotFoundError)
        if isinstance(error, GatedRepoError) or (not_found and "gated" in str(error)):
            raise PermissionError(
                f"{repository} is given only to those who accept its terms: accept them on https://huggingface.co/datasets/"
                f"{repository}, log in (hf auth login), and try again; or give path=, a folder that has it"
            ) from None
        offline = " (HF_HUB_OFFLINE is set, so nothing is downloaded)" if constants.HF_HUB_OFFLINE else ""
        raise ConnectionError(
            f"{repository} cannot be had from the Hugging Face hub: {error}{offline}. Download it where there is a "
            f"network, hf download {repository} --repo-type dataset --local-dir DIR, and give path=DIR"
        ) from None


def _from_folder(folder: Path, streaming: bool) -> dict[str, Any]:
    if not folder.exists():
        raise FileNotFoundError(f"path: there is no folder {folder}")
    if not folder.is_dir():
        raise NotADirectoryError(f"path: {folder} is no folder; give the one that it is in")
    import datasets
    from datasets.data_files import EmptyDatasetError

    try:
        return _load(str(folder), streaming)
    except (EmptyDatasetError, FileNotFoundError, datasets.exceptions.DataFilesNotFoundError):
        raise FileNotFoundError(
            f"path: {folder} has no data: neither parquet files, such as train-00000-of-00001.parquet, nor a folder of "
            "images for each class"
        ) from None
    except (ValueError, OSError, datasets.exceptions.DatasetGenerationError) as error:
        cause = error.__cause__ or error
        raise ValueError(f"path: {folder} cannot be read: {cause}") from None


def _load(name: str, streaming: bool) -> dict[str, Any]:
    import datasets

    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return dict(datasets.load_dataset(name, streaming=streaming))
    finally:
        if not shown:
            datasets.enable_progress_bars()


def _as_source(split: str, records: Any, name: str, image: tuple[str, ...], label: tuple[str, ...]) -> Source:
    import datasets

    features = records.features or {}
    pictures = next((column for column in image if isinstance(features.get(column), datasets.Image)), None)
    labels = next((column for column in label if isinstance(features.get(column), datasets.ClassLabel)), None)
    if pictures is None or labels is None:
        found = ", ".join(f"{column} ({type(feature).__name__})" for column, feature in features.items()) or "none"
        raise ValueError(
            f"{name}, split {split!r}, has the columns {found}; expected are images (Image) in {' or '.join(image)}, and "
            f"labels (ClassLabel) in {' or '.join(label)}"
        )
    classes = tuple(features[labels].names)
    records = records.select_columns([pictures, labels]).cast_column(pictures, datasets.Image(decode=False))
    renamed = {old: new for old, new in ((pictures, "image"), (labels, "label")) if old != new}
    return Source(records.rename_columns(renamed) if renamed else records, classes, f"{name}, split {split!r}")


def decode(file: Mapping[str, Any], where: str) -> Image:
    """The image in a file, in three colours.

    Args:
        file: a dict of the ``bytes`` of the file, or of its ``path``.
        where: what a message calls it.

    Raises:
        ValueError: if it cannot be decoded; the message says which it is.
    """
    from PIL import Image

    try:
        content = file.get("bytes")
        with Image.open(file["path"] if content is None else io.BytesIO(content)) as picture:
            return picture.convert("RGB")
    except Exception as error:  # decoders raise what they like
        path = f" ({printable(str(file['path']))})" if file and file.get("path") else ""
        raise ValueError(
            f"{where}{path} is no image that can be decoded: {error}; repair or remove it, or take the data set anew"
        ) from None


class Pixels(Dataset[tuple[Tensor, Tensor]]):
    """Images of one size, decoded in memory, and normalized and augmented when they are asked for.

    Augmentation draws from torch's global generator, for a whole batch at once where a loader asks for one. Samples are on
    the device of the pixels, and everything is computed there.

    Args:
        pixels: of the images, uint8, shape ``(N, 3, H, W)``.
        labels: int64, shape ``(N,)``.
        mean: of each colour, on a scale from 0 to 1.
        std: the same for the standard deviation.
        augment: changes a batch of normalized images; nothing, by default.

    A sample is an image, float32 of shape ``(3, H, W)``, and its label, int64 of shape ``()``. A list of indices gives a
    batch: images of shape ``(B, 3, H, W)`` and labels of shape ``(B,)``.

    >>> white = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    >>> image, label = Pixels(white, torch.tensor([0, 1]), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))[1]
    >>> image.unique().tolist(), label
    ([2.0], tensor(1))
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        augment: nn.Module | None = None,
    ) -> None:
        self.pixels, self.labels = pixels, labels
        self._colours = mean, std
        self._mean, self._std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) * 255 for values in (mean, std))
        self._augment = augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | list[int]) -> tuple[Tensor, Tensor]:
        if not isinstance(index, int):
            return self._batch(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} images; got index {index}")
        images, labels = self._batch([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Several samples; loaders of torch ask for whole batches by this."""
        return list(zip(*self._batch(indices), strict=True))

    @torch.no_grad()
    def _batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(indices, device="cpu").to(self.pixels.device, non_blocking=self.pixels.is_cuda)
        images = (self.pixels[chosen].float() - self._mean) / self._std
        if self._augment is not None:
            images = self._augment(images)
        return images, self.labels[chosen]

    def to(self, device: torch.device | str) -> Pixels:
        """The same images on another device."""
        return Pixels(self.pixels.to(device), self.labels.to(device), *self._colours, self._augment)


def decoded(source: Source, indices: np.ndarray, size: int) -> tuple[Tensor, Tensor]:
    """Decode images that have a side of ``size`` pixels.

    Returns:
        The pixels, uint8 of shape ``(N, 3, size, size)``, and the labels, int64 of shape ``(N,)``.

    Raises:
        ValueError: if an image is broken or of another size; the message says which.
    """
    pixels = np.empty((len(indices), size, size, 3), dtype=np.uint8)
    labels = np.empty(len(indices), dtype=np.int64)
    for place, (index, record) in enumerate(zip(indices, source.records.select(indices), strict=True)):
        where = f"{source.name}: image {index}"
        picture = decode(record["image"], where)
        if picture.size != (size, size):
            raise ValueError(f"{where} has {picture.width} x {picture.height} pixels; expected are {size} x {size}")
        pixels[place], labels[place] = np.asarray(picture), record["label"]
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)
