"""A folder of images of one's own."""

from __future__ import annotations

import os

from initopt.data.hub import open_source
from initopt.data.picture_splits import picture_splits, streamed_splits, views
from initopt.data.selection import Sizes
from initopt.data.splits import Splits

__all__ = ["image_folder"]


def image_folder(
    path: str | os.PathLike[str],
    *,
    streaming: bool = False,
    image_size: int = 224,
    train_samples: int | None = None,
    validation_samples: int | None = None,
    test_samples: int | None = None,
    augment: bool | list[str] = True,
) -> Splits:
    """Images in a folder for each class.

    These folders are in ``path``, or in ``train``, ``val`` and ``test`` there. Without ``test``, ``val`` is the test part;
    a part without a folder is split off ``train``, by default a tenth of it, for test at least one image. Parquet files
    with columns ``image`` and ``label`` will do as well. Images are decoded when they are asked for.

    Args:
        path: the folder.
        streaming: as for :func:`initopt.data.imagenet`.
        image_size: side of what the network is shown, in pixels.
        train_samples: how many images to train on, all classes alike; all that are left, by default.
        validation_samples: how many to choose learning rates on; 0 for none.
        test_samples: how many to test on.
        augment: as for :func:`initopt.data.imagenet`.

    Returns:
        The parts, as :func:`initopt.data.imagenet` has them.

    Raises:
        ImportError, OSError, ValueError: as :func:`initopt.data.imagenet`.
    """
    sizes, shown = Sizes(train_samples, validation_samples, test_samples), views(image_size, augment)
    sources = open_source(None, path, streaming=streaming)
    if streaming:
        return streamed_splits(sources, sizes, shown)
    return picture_splits(sources, sizes, shown, str(path))
