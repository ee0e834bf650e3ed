"""The curve of a run as a Parquet file, which is how initopt stored curves before they were part of ``run.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from initopt._support.reading import read_bytes
from initopt.comparison.storage.record import MOST_POINTS, CurvePoint, Subset

__all__ = ["read_curve"]

_KINDS = {"step": "int64", "epoch": "float64", "subset": "string", "loss": "float64", "accuracy": "float64"}
_CODECS = ("SNAPPY", "UNCOMPRESSED")
"""How initopt wrote them. A few bytes of the others can stand for gigabytes."""


def read_curve(path: Path) -> tuple[CurvePoint, ...]:
    """Read the points of a curve.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it holds anything else, or more points than a curve may have; or if pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            f"{path.name} is a Parquet file of an earlier version of initopt; pip install pyarrow reads it"
        ) from None
    content = pyarrow.BufferReader(read_bytes(path))
    try:
        # A row can repeat a string of any length in a bit; as a dictionary, it is in memory once.
        file = pyarrow.parquet.ParquetFile(content, read_dictionary=["subset"])
        _refuse_unlike(file, path.name)
        columns: dict[str, list[Any]] = {name: file.read([name]).column(0) for name in _KINDS}
        return tuple(map(_point, *(_values(name, column) for name, column in columns.items())))
    except (pyarrow.ArrowException, OSError, MemoryError, OverflowError) as error:
        raise ValueError(f"{path.name} is no curve: {error}") from None


def _refuse_unlike(file: Any, name: str) -> None:
    schema = file.schema_arrow
    kinds = {field.name: str(getattr(field.type, "value_type", field.type)) for field in schema}
    wanted = {column: {"float64": "double"}.get(kind, kind) for column, kind in _KINDS.items()}
    if kinds != wanted or len(schema) != len(wanted):
        raise ValueError(f"{name} has the columns {kinds}, not {wanted}")
    if file.metadata.num_rows > MOST_POINTS:
        raise ValueError(f"{name} has {file.metadata.num_rows:,} points; a curve has {MOST_POINTS:,} or fewer")
    for group in range(file.metadata.num_row_groups):
        for column in range(len(schema)):
            codec = file.metadata.row_group(group).column(column).compression
            if codec not in _CODECS:
                raise ValueError(f"{name} is compressed by {codec}, which initopt does not write")


def _values(name: str, column: Any) -> list[Any]:
    if name == "subset":
        for chunk in column.chunks:
            if any(len(entry.as_buffer() or b"") > 20 for entry in chunk.dictionary):
                raise ValueError("the subset of a point is too long")
    values: list[Any] = column.to_pylist()
    return values


def _point(step: Any, epoch: Any, subset: Any, loss: Any, accuracy: Any) -> CurvePoint:
    if step is None or epoch is None or loss is None or subset not in get_args(Subset):
        raise ValueError(f"a point of the curve is not whole: step {step}, epoch {epoch}, loss {loss}, subset {subset!r}")
    return CurvePoint(step, epoch, subset, loss, accuracy)
