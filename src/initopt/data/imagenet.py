"""ImageNet."""

from __future__ import annotations

import os

from initopt.data.pictures import load_pictures
from initopt.data.splits import Sizes, Splits

__all__ = ["image_folder", "imagenet"]


def imagenet(
    path: str | os.PathLike[str] | None = None,
    *,
    streaming: bool = False,
    image_size: int = 224,
    train_samples: int | None = None,
    validation_samples: int | None = None,
    test_samples: int | None = None,
    augment: bool | list[str] = True,
) -> Splits:
    """ImageNet-1k: 1.28 million images in 1000 classes (Russakovsky et al., 2015).

    The test part are the 50,000 images of ImageNet's validation split, since the labels of its test split are not public.
    The validation part is split off the training split. Images are decoded when they are asked for.

    Args:
        path: a folder with the parquet files of ``ILSVRC/imagenet-1k``, or with folders ``train`` and ``val`` of a
            folder of images for each class; from the Hugging Face hub, by default, which needs an account that accepted
            the terms.
        streaming: read images as they are needed, rather than all 150 GB at first. A part whose size is given is read into
            memory, undecoded (some 110 KB an image); another is a stream, which can be measured and initialized on
            (:meth:`initopt.data.Splits.batches`), but not be trained on in a comparison. By default, there is no
            validation part then.
        image_size: side of what the network is shown, in pixels.
        train_samples: how many images to train on, all classes alike (of a stream, as they come); all that are left, by
            default.
        validation_samples: how many to split off the training split; 10,000, by default, or a tenth if that is less; 0 for
            none.
        test_samples: how many to test on; all, by default. Without a split for it, a tenth of the training split.
        augment: ``True`` for ``["crop", "flip"]``: a random part of the image, mirrored or not; or one of them. Otherwise,
            and outside of training, the middle of the image.

    Returns:
        The parts; images are float32 of shape ``(3, image_size, image_size)``, with means (0.485, 0.456, 0.406) and
        standard deviations (0.229, 0.224, 0.225) of the colours taken out; labels are integers.

    Raises:
        ImportError: without the extra: ``pip install 'initopt[data]'``.
        OSError: if the folder is not there, or the hub is not to be reached, or closed to you; the message says what to do.
        ValueError: if there are too few images, or the columns are others. A broken image is one when it is asked for.
    """
    return load_pictures(
        "ILSVRC/imagenet-1k",
        path,
        Sizes(train_samples, validation_samples, test_samples),
        streaming=streaming,
        image_size=image_size,
        augment=augment,
    )


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
    return load_pictures(
        None,
        path,
        Sizes(train_samples, validation_samples, test_samples),
        streaming=streaming,
        image_size=image_size,
        augment=augment,
    )
