"""Tensors in a safetensors file, complex ones included."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from initopt._support.reading import bounded_json, of_form, opened

__all__ = ["kind", "load_tensors", "save_tensors"]

_COMPLEX = "complex"
_METADATA = "__metadata__"
_LONGEST = 100_000_000
"""The most bytes of a header, as the format has it."""

_SYSTEM = re.compile(r"\(os error (\d+)\)")


def kind(tensor: Tensor) -> str:
    """The dtype and shape of a tensor.

    >>> kind(torch.zeros(2, 3))
    'float32 [2, 3]'
    """
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors and metadata into a file.

    The format has no ``complex128``, and older versions no complex numbers at all: these are stored as their real and
    imaginary parts along a last dimension, and their names under the key ``complex`` of the metadata.

    Args:
        tensors: by name; no two may share memory.
        path: where to.
        metadata: strings to store beside them.

    Raises:
        OSError: if the file cannot be written, for want of space, say.
    """
    names = [name for name, value in tensors.items() if value.is_complex()]
    dense = {name: value.detach().cpu().resolve_conj() for name, value in tensors.items()}
    real = {name: (torch.view_as_real(value) if name in names else value).contiguous() for name, value in dense.items()}
    try:
        save_file(real, path, {**(metadata or {}), _COMPLEX: json.dumps(names)})
    except SafetensorError as error:
        found = _SYSTEM.search(str(error))
        if found is None:
            raise OSError(f"{path} cannot be written: {error}") from None
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file, all of it from one opening: another process may replace it meanwhile.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is truncated or of another format; the message names it.
    """
    with opened(path) as (file, size):
        try:
            header = _header(file, size)
            file.seek(0)
            tensors = load(file.read())
            metadata = of_form(dict[str, str], header.get(_METADATA, {}), _METADATA)
            for name in of_form(list[str], bounded_json(metadata.pop(_COMPLEX, "[]")), _COMPLEX):
                tensors[name] = torch.view_as_complex(tensors[name])
        except (SafetensorError, AssertionError, KeyError, MemoryError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is truncated or no safetensors file ({error})") from None
    return tensors, metadata


class _Entry(TypedDict):
    """A tensor in a header."""

    data_offsets: list[int]


def _header(file: BinaryIO, size: int) -> dict[str, Any]:
    """The header of a file, which has to account for all of its bytes before these are read."""
    length = int.from_bytes(file.read(8), "little")
    if length > min(size, _LONGEST):
        raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
    header = of_form(dict[str, Any], bounded_json(file.read(length).decode("utf-8")), "the header")
    ends = [max(of_form(_Entry, value, name)["data_offsets"]) for name, value in header.items() if name != _METADATA]
    if 8 + length + max(ends, default=0) != size:
        raise ValueError(f"the header is of {8 + length + max(ends, default=0):,} bytes, and the file has {size:,}")
    return header
