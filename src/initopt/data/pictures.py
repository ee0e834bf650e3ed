"""Images that are decoded when they are asked for, one by one or in a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from initopt._support.checks import check_integer
from initopt.data.augmentation import CHANGES, Augment, View, chosen_names
from initopt.data.images import Source, decode
from initopt.data.splits import Sizes, Splits, select, test_split

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["PictureStream", "Pictures", "Show", "picture_splits", "read", "streamed_splits", "views"]

_BUFFER, _SEED = 1000, 20221006

Show = Callable[["Image"], Tensor]


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images that are read and decoded each time.

    Args:
        records: of the images; each has an ``image``, a dict of the ``bytes`` of a file or its ``path``, and a ``label``.
        names: of the images, for messages.
        show: what is made of an image; may draw from torch's global generator.

    A sample is what is made of an image, and its label.
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
        skip: how many images to leave out, the first ones of the order that :func:`read` has.
        seed: of the order in which images are drawn, file by file and from a buffer of 1000; ``None`` for that of
            :func:`read`.
    """

    def __init__(self, source: Source, show: Show, skip: int = 0, seed: int | None = None) -> None:
        self._source, self._show, self._skip, self._seed = source, show, skip, seed

    def shuffled(self, seed: int) -> PictureStream:
        """The same images in another order."""
        return PictureStream(self._source, self._show, self._skip, seed)

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        records = self._source.records
        if self._skip or self._seed is None:
            records = _mixed(records, _SEED).skip(self._skip)
        if self._seed is not None:
            records = _mixed(records, self._seed)
        for number, record in enumerate(records):
            yield self._show(decode(record["image"], f"{self._source.name}: image {number} of the stream")), record["label"]


def read(source: Source, begin: int, count: int, show: Show) -> Pictures:
    """Some images of a stream, read into memory as they are stored, undecoded.

    Args:
        source: the split, a stream.
        begin: how many images to leave out before, in an order that is always the same.
        count: how many images.
        show: what is made of an image.

    Raises:
        ValueError: if there are too few.
    """
    records = list(islice(_mixed(source.records, _SEED).skip(begin), count))
    if len(records) < count:
        raise ValueError(
            f"{source.name} has {begin + len(records)} images, of which {begin} are in other parts; {count} more were "
            "asked for: lower train_samples, validation_samples or test_samples"
        )
    return Pictures(records, lambda index: f"{source.name}: image {begin + index} of the stream", show)


def _mixed(records: Any, seed: int) -> Any:
    # One file at a time: threads that read several would give an order of their own, and take five seconds to end.
    return records.shuffle(seed=seed, buffer_size=_BUFFER, max_buffer_input_shards=1)


def views(image_size: int, augment: Augment) -> dict[str, View]:
    """What is shown of an image in each part.

    Raises:
        ValueError: if an augmentation is unknown, or the size is no positive integer.
    """
    size = check_integer("image_size", image_size, 1)
    plain = View(size)
    changes = chosen_names(augment, usual=CHANGES, known=CHANGES)
    return {"train": View(size, changes) if changes else plain, "validation": plain, "test": plain}


def picture_splits(sources: Mapping[str, Source], sizes: Sizes, shown: Mapping[str, View], name: str) -> Splits:
    """The parts of a data set that is stored in whole.

    Args:
        sources: its splits.
        sizes: of the parts.
        shown: what is shown of an image in each part.
        name: of the data set, for messages.

    Raises:
        ValueError: if there are too few images.
    """
    chosen = select({split: source.labels() for split, source in sources.items()}, sizes, name)
    made: dict[str, Dataset[object]] = {}
    for part, (split, indices) in chosen.items():
        source = sources[split]
        made[part] = Pictures(source.records.select(indices), _Names(source.name, indices.tolist()), shown[part])
    return Splits(made["train"], made.get("validation"), made["test"], sources["train"].classes)


class _Names:
    def __init__(self, source: str, indices: list[int]) -> None:
        self._source, self._indices = source, indices

    def __call__(self, index: int) -> str:
        return f"{self._source}: image {self._indices[index]}"


def streamed_splits(sources: Mapping[str, Source], sizes: Sizes, shown: Mapping[str, View]) -> Splits:
    """The parts of a data set that is read as it is needed.

    A part with a given size is read into memory, undecoded; one without is a stream, if it has a split of its own. Those
    that have none are the first images of the training split.

    Args:
        sources: its splits, streams.
        sizes: of the parts.
        shown: what is shown of an image in each part.

    Raises:
        ValueError: if there are too few images.
    """
    test = test_split(sources) or "train"
    origins = {
        "validation": "validation" if "validation" in sources and test != "validation" else "train",
        "test": test,
        "train": "train",
    }
    made: dict[str, Dataset[object]] = {}
    taken = 0
    for part, origin in origins.items():
        size, source = getattr(sizes, part), sources[origin]
        begin = taken if origin == "train" else 0
        if size:
            made[part] = read(source, begin, size, shown[part])
            taken = begin + size if origin == "train" else taken
        elif size is None and (part == "train" or origin != "train"):
            made[part] = PictureStream(source, shown[part], begin)
    return Splits(made["train"], made.get("validation"), made.get("test"), sources["train"].classes)
