"""Images that are decoded when they are asked for, one by one or in a stream."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from initopt._support.checks import check_integer
from initopt.data.augmentation import CHANGES, Augment, View, chosen_names
from initopt.data.images import Source, decode, open_source
from initopt.data.splits import Sizes, Splits, origins, select

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["PictureStream", "Pictures", "Show", "load_pictures"]

_BUFFER, _SEED = 1000, 20221006

Show = Callable[["Image"], Tensor]


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images that are read and decoded each time; a sample is what is made of an image, and its label.

    Args:
        records: of the images; each has an ``image``, a dict of the ``bytes`` of a file or its ``path``, and a ``label``.
        names: of the images, for messages.
        show: what is made of an image; may draw from torch's global generator.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]], names: Callable[[int], str], show: Show) -> None:
        self._records, self._names, self._show = records, names, show

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        record = self._records[index]
        return self._show(decode(record["image"], self._names(index))), int(record["label"])


class PictureStream(IterableDataset[tuple[Tensor, int]]):
    """Images that are read and decoded as they come.

    Args:
        source: the split, a stream.
        show: what is made of an image; may draw from torch's global generator.
        skip: how many images to leave out, the first ones of the order that is always the same.
        seed: of the order in which images are drawn, file by file and from a buffer of 1000; ``None`` for the order that is
            always the same.
    """

    def __init__(self, source: Source, show: Show, skip: int = 0, seed: int | None = None) -> None:
        self._source, self._show, self._skip, self._seed = source, show, skip, seed

    def shuffled(self, seed: int) -> PictureStream:
        """The same images in another order."""
        return PictureStream(self._source, self._show, self._skip, seed)

    def first(self, count: int) -> Pictures:
        """The first images, read into memory as they are stored, undecoded; a ValueError if there are too few."""
        records = list(islice(_mixed(self._source.records, _SEED).skip(self._skip), count))
        if len(records) < count:
            raise ValueError(
                f"{self._source.name} has {self._skip + len(records)} images, of which {self._skip} are in other parts; "
                f"{count} more were asked for: lower train_samples, validation_samples or test_samples"
            )
        return Pictures(records, lambda index: self._name(self._skip + index), self._show)

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        records = self._source.records
        if self._skip or self._seed is None:
            records = _mixed(records, _SEED).skip(self._skip)
        if self._seed is not None:
            records = _mixed(records, self._seed)
        for number, record in enumerate(records):
            yield self._show(decode(record["image"], self._name(number))), record["label"]

    def _name(self, number: int) -> str:
        return f"{self._source.name}: image {number} of the stream"


def _mixed(records: Any, seed: int) -> Any:
    # One file at a time: threads that read several would give an order of their own, and take five seconds to end.
    return records.shuffle(seed=seed, buffer_size=_BUFFER, max_buffer_input_shards=1)


def load_pictures(
    repository: str | None,
    path: str | os.PathLike[str] | None,
    sizes: Sizes,
    *,
    streaming: bool,
    image_size: int,
    augment: Augment,
) -> Splits:
    """The parts of a data set of images of any size.

    Where it has a validation split, a test split beside it is left alone for a data set of the hub: its labels are not
    public there.

    Args:
        repository: its name on the hub; ``None`` for a folder of one's own.
        path: a folder that has it; from the hub, by default.
        sizes: of the parts.
        streaming: whether to read images as they are needed.
        image_size: side of what the network is shown, in pixels.
        augment: whether to change training images, or the names of the changes.

    Raises:
        ImportError, OSError, ValueError: as :func:`initopt.data.imagenet`.
    """
    size = check_integer("image_size", image_size, 1)
    plain = View(size)
    changes = chosen_names(augment, usual=CHANGES, known=CHANGES)
    shown = {"train": View(size, changes) if changes else plain, "validation": plain, "test": plain}
    sources = open_source(repository, path, streaming=streaming)
    if repository is not None and "validation" in sources:
        sources.pop("test", None)
    made = _streamed(sources, sizes, shown) if streaming else _stored(sources, sizes, shown, str(path or repository))
    return Splits(made["train"], made.get("validation"), made.get("test"), sources["train"].classes)


def _stored(
    sources: Mapping[str, Source], sizes: Sizes, shown: Mapping[str, View], name: str
) -> dict[str, Dataset[object]]:
    """The parts of what is stored in whole."""
    chosen = select({split: source.labels() for split, source in sources.items()}, sizes, name)
    return {
        part: Pictures(
            sources[split].records.select(indices), partial(_name, sources[split].name, indices.tolist()), shown[part]
        )
        for part, (split, indices) in chosen.items()
    }


def _name(source: str, indices: Sequence[int], index: int) -> str:
    return f"{source}: image {indices[index]}"


def _streamed(sources: Mapping[str, Source], sizes: Sizes, shown: Mapping[str, View]) -> dict[str, Dataset[object]]:
    """The parts of what is read as it is needed.

    A part with a given size is read into memory, undecoded; one without is a stream, if it has a split of its own. Those
    that have none are the first images of the training split.
    """
    made: dict[str, Dataset[object]] = {}
    taken = 0
    for part in ("validation", "test", "train"):
        origin, size = origins(sources)[part], getattr(sizes, part)
        stream = PictureStream(sources[origin], shown[part], taken if origin == "train" else 0)
        if size:
            made[part] = stream.first(size)
            taken += size if origin == "train" else 0
        elif size is None and (part == "train" or origin != "train"):
            made[part] = stream
    return made
