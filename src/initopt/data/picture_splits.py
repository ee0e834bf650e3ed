"""The three parts of a data set of images that do not fit into memory."""

from __future__ import annotations

from collections.abc import Mapping

from torch.utils.data import Dataset

from initopt.checks import check_integer
from initopt.data.augmentation import Augment, chosen_names
from initopt.data.hub import Source
from initopt.data.pictures import Pictures, PictureStream, read
from initopt.data.selection import Sizes, select, test_split
from initopt.data.splits import Splits
from initopt.data.views import CHANGES, View

__all__ = ["picture_splits", "streamed_splits", "views"]


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
