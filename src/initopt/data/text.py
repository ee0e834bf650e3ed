"""A text, character by character."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import TensorDataset

from initopt._support.checks import check_integer
from initopt.data.splits import Sizes, Splits

__all__ = ["text"]

_SHARE = 10


def text(
    path: str | os.PathLike[str],
    *,
    length: int = 128,
    train_samples: int | None = None,
    validation_samples: int | None = None,
    test_samples: int | None = None,
) -> Splits:
    """A text file for language models that predict the next character.

    The text is cut into windows, one after the other. The first ones are trained on, then come those of validation, and
    the last ones test: no character of one part is seen in another, as input or as target. What is in validation and test
    does not depend on ``train_samples``.

    Args:
        path: the file, in UTF-8.
        length: characters in a window, T.
        train_samples: how many windows to train on, from the beginning of the text; all that are left, by default.
        validation_samples: how many windows of validation; a tenth, by default; 0 for none.
        test_samples: how many windows to test on; a tenth, by default.

    Returns:
        The parts. A sample is T characters and the T that follow each of them, both int64 of shape ``(T,)``: the numbers of
        the characters in ``classes``, which are all those of the file in the order of their code points.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not in UTF-8, or too short.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "text.txt").write_text("to be or not to be " * 10)
    ...     splits = text(Path(folder, "text.txt"), length=6)
    >>> inputs, targets = splits.train[0]
    >>> "".join(splits.classes[number] for number in inputs), "".join(splits.classes[number] for number in targets)
    ('to be ', 'o be o')
    """
    check_integer("length", length, 1)
    Sizes(train_samples, validation_samples, test_samples)  # refuses what cannot be
    content = _read(Path(path).expanduser())
    points = np.frombuffer(content.encode("utf-32-le"), dtype=np.uint32)
    characters, numbers = np.unique(points, return_inverse=True)
    tokens = torch.from_numpy(numbers.astype(np.int64))
    windows = len(tokens) // length
    sizes = {
        "validation": windows // _SHARE if validation_samples is None else validation_samples,
        "test": max(windows // _SHARE, 1) if test_samples is None else test_samples,
    }
    # A part ends with the target of its last character, so that one window less fits into the text than its length says.
    parts = sum(size > 0 for size in sizes.values()) + 1
    available = (len(tokens) - parts) // length - sum(sizes.values())
    if available < (train_samples or 1):
        raise ValueError(
            f"{path} has {len(tokens)} characters, too few for {train_samples or 1} windows of {length} to train on, "
            f"{sizes['validation']} of validation and {sizes['test']} to test on; lower length or the numbers of samples"
        )
    made, begin = {}, 0
    for part, size in ({"train": available} | sizes).items():
        if size:
            used = train_samples if part == "train" and train_samples is not None else size
            piece = tokens[begin : begin + used * length + 1]
            made[part] = TensorDataset(piece[:-1].view(used, length), piece[1:].view(used, length))
            begin += size * length + 1
    return Splits(made["train"], made.get("validation"), made["test"], tuple(map(chr, characters)))


def _read(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"path: there is no file {path}; give a text file, in UTF-8")
    content = path.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not in UTF-8 (byte {error.start} is {content[error.start]:#04x}); convert it, with "
            "iconv -t UTF-8 say"
        ) from None
