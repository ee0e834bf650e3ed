"""The folder that travels to a machine with a GPU: images as they are stored, and wheels of what is missing there."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename

__all__ = ["Bundle", "Files", "Records", "make_wheels_importable", "read_files", "write_files"]

_ABOUT, _WHEELS = "bundle.json", "wheels"


class Records(list[dict[str, Any]]):
    """Records of images, as :class:`initopt.data.images.Source` has them: dicts of an ``image`` and its ``label``."""

    def select(self, indices: Iterable[int]) -> Records:
        """Some of them."""
        return Records(self[index] for index in indices)


@dataclass(frozen=True)
class Files:
    """Image files and their labels.

    Attributes:
        contents: the bytes of each file.
        labels: int64, shape ``(N,)``.
        classes: the names of the labels.
    """

    contents: Sequence[bytes]
    labels: np.ndarray
    classes: tuple[str, ...]

    def records(self) -> Records:
        """What :mod:`initopt.data` reads."""
        pairs = zip(self.contents, self.labels.tolist(), strict=True)
        return Records({"image": {"bytes": content}, "label": label} for content, label in pairs)


def write_files(path: Path, parts: dict[str, Files]) -> None:
    """Write the files of some parts of a data set as one."""
    arrays: dict[str, np.ndarray] = {"classes": np.array(next(iter(parts.values())).classes)}
    for part, files in parts.items():
        arrays[f"{part}.bytes"] = np.frombuffer(b"".join(files.contents), dtype=np.uint8)
        arrays[f"{part}.ends"] = np.cumsum([len(content) for content in files.contents])
        arrays[f"{part}.labels"] = files.labels
    np.savez(path, **arrays)  # uncompressed: JPEG is that already


def read_files(path: Path) -> dict[str, Files]:
    """The inverse of :func:`write_files`."""
    with np.load(path) as arrays:
        classes = tuple(arrays["classes"].tolist())
        found = {}
        for part in [name.removesuffix(".bytes") for name in arrays.files if name.endswith(".bytes")]:
            whole, ends = arrays[f"{part}.bytes"].tobytes(), arrays[f"{part}.ends"].tolist()
            contents = [whole[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
            found[part] = Files(contents, arrays[f"{part}.labels"], classes)
    return found


@dataclass(frozen=True)
class Bundle:
    """A folder that ``prepare.py`` made."""

    folder: Path

    def __post_init__(self) -> None:
        if not (self.folder / _ABOUT).is_file():
            raise SystemExit(f"--bundle {self.folder} has no {_ABOUT}; make it with benchmarks/gpu/prepare.py --out DIR")

    @property
    def about(self) -> dict[str, Any]:
        """What is in it."""
        found: dict[str, Any] = json.loads((self.folder / _ABOUT).read_text(encoding="utf-8"))
        return found

    @property
    def wheels(self) -> list[Path]:
        """All wheels."""
        return sorted((self.folder / _WHEELS).glob("*.whl"))

    def files(self, name: str) -> dict[str, Files]:
        """The parts of ``"cifar10"`` or ``"imagenet"``."""
        return read_files(self.folder / f"{name}.npz")


def make_wheels_importable(wheels: Iterable[Path], folder: Path) -> dict[str, str]:
    """Unpack what is not installed, for this process and those that it starts.

    Args:
        wheels: of which those are left out whose package is installed, or that are for another Python.
        folder: where they go.

    Returns:
        What was done with each, by file name.
    """
    tags = set(sys_tags())
    done: dict[str, str] = {}
    for wheel in wheels:
        name, version, _, wanted = parse_wheel_filename(wheel.name)
        try:
            done[wheel.name] = f"left out: {importlib.metadata.version(name)} is installed"
            continue
        except importlib.metadata.PackageNotFoundError:
            pass
        if not wanted & tags:
            done[wheel.name] = "left out: it is for another Python"
            continue
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        done[wheel.name] = f"unpacked: {version}"
    if folder.is_dir() and str(folder) not in sys.path:
        sys.path.append(str(folder))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(folder)]))
        importlib.invalidate_caches()
    return done
