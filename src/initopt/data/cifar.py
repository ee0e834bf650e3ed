"""CIFAR-10 and CIFAR-100."""

from __future__ import annotations

import os

from initopt.data.augmentation import AUGMENTATIONS, Augment, augmentation, chosen_names
from initopt.data.images import Pixels, decoded, open_source
from initopt.data.splits import Sizes, Splits, select

__all__ = ["cifar10", "cifar100"]

_SIDE = 32

Colours = tuple[float, float, float]


def cifar10(
    path: str | os.PathLike[str] | None = None,
    *,
    train_samples: int | None = None,
    validation_samples: int | None = None,
    test_samples: int | None = None,
    augment: bool | list[str] = True,
) -> Splits:
    """CIFAR-10: 60,000 images of 32 x 32 pixels in ten classes (Krizhevsky, 2009).

    The images are decoded once, and kept in memory: 184 MB. Those that are trained on are augmented anew each time.

    Args:
        path: a folder with the parquet files of ``uoft-cs/cifar10``; from the Hugging Face hub, by default.
        train_samples: how many images to train on, all classes alike; all that are left, by default.
        validation_samples: how many to split off the training split; a tenth of it, by default; 0 for none.
        test_samples: how many of the test split; all, by default.
        augment: ``True`` for ``["crop", "flip"]``: shifted by up to 4 pixels, mirrored or not; or some of these and
            ``"cutout"``, a blank square of half the side.

    Returns:
        The parts; images are float32 of shape ``(3, 32, 32)``, with means (0.4914, 0.4822, 0.4465) and standard deviations
        (0.2470, 0.2435, 0.2616) of the colours taken out; labels are int64. Which images a part has is always the same.

    Raises:
        ImportError: without the extra: ``pip install 'initopt[data]'``.
        OSError: if the folder is not there, or the hub is not to be reached; the message says what to do.
        ValueError: if there are too few images, one is broken, or the columns are others; the message says which.
    """
    sizes, colours = (
        Sizes(train_samples, validation_samples, test_samples),
        ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    )
    return _cifar("uoft-cs/cifar10", path, ("label",), sizes, augment, colours)


def cifar100(
    path: str | os.PathLike[str] | None = None,
    *,
    train_samples: int | None = None,
    validation_samples: int | None = None,
    test_samples: int | None = None,
    augment: bool | list[str] = True,
) -> Splits:
    """CIFAR-100: 60,000 images of 32 x 32 pixels in a hundred classes (Krizhevsky, 2009).

    As :func:`cifar10`, from ``uoft-cs/cifar100``. The labels are the hundred fine ones. The means of the colours are
    (0.5071, 0.4865, 0.4409), their standard deviations (0.2673, 0.2564, 0.2762).

    Args:
        path: a folder with the parquet files; from the Hugging Face hub, by default.
        train_samples: how many images to train on, all classes alike; all that are left, by default.
        validation_samples: how many to split off the training split; a tenth of it, by default; 0 for none.
        test_samples: how many of the test split; all, by default.
        augment: as for :func:`cifar10`.

    Returns:
        The parts.

    Raises:
        ImportError, OSError, ValueError: as :func:`cifar10`.
    """
    sizes, colours = (
        Sizes(train_samples, validation_samples, test_samples),
        ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    )
    return _cifar("uoft-cs/cifar100", path, ("fine_label", "label"), sizes, augment, colours)


def _cifar(
    repository: str,
    path: str | os.PathLike[str] | None,
    label: tuple[str, ...],
    sizes: Sizes,
    augment: Augment,
    colours: tuple[Colours, Colours],
) -> Splits:
    names = chosen_names(augment, usual=("crop", "flip"), known=AUGMENTATIONS)
    sources = open_source(repository, path, image=("img", "image"), label=label)
    labels = {split: source.labels() for split, source in sources.items()}
    changes = {"train": augmentation(names, _SIDE)}
    made = {
        part: Pixels(*decoded(sources[split], indices, _SIDE), *colours, changes.get(part))
        for part, (split, indices) in select(labels, sizes, str(path or repository)).items()
    }
    return Splits(made["train"], made.get("validation"), made["test"], sources["train"].classes)
