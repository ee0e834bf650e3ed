"""From the file of an image to its pixels."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from initopt.reading import printable

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["decode"]


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
