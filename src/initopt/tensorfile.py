"""Tensors in a safetensors file, complex ones included."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["load_tensors", "save_tensors"]

_COMPLEX = "complex"


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a file.

    The format has no ``complex128``, and older versions no complex numbers at all: these are stored as their real and
    imaginary parts along a last dimension, and their names under the key ``complex`` of the metadata.

    Args:
        tensors: by name; no two may share memory.
        path: where to.
        metadata: strings to store beside them.
    """
    names = [name for name, value in tensors.items() if value.is_complex()]
    dense = {name: value.detach().cpu().resolve_conj() for name, value in tensors.items()}
    real = {name: (torch.view_as_real(value) if name in names else value).contiguous() for name, value in dense.items()}
    save_file(real, path, {**(metadata or {}), _COMPLEX: json.dumps(names)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file.

    Raises:
        FileNotFoundError: if there is none.
        SafetensorError: if it is truncated or of another format.
    """
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
        # Copies: what the library gives is a map of the file, and breaks when somebody writes over it.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
    for name in json.loads(metadata.pop(_COMPLEX, "[]")):
        tensors[name] = torch.view_as_complex(tensors[name])
    return tensors, metadata
