"""The event file of a run, for TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from initopt.comparison.storage.record import RunRecord

__all__ = ["EVENTS", "write_events"]

EVENTS = "events.out.tfevents.run"
"""The name of the file, the same in all runs; TensorBoard knows such a file by the middle of its name."""


def write_events(record: RunRecord, folder: Path) -> None:
    """Write the curve of a run, and what was measured of its start, into a folder.

    Not with ``SummaryWriter``, which writes in a thread of its own, where a full disk would be noticed too late.

    Raises:
        OSError: if the file cannot be written.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    now = time.time()
    with (folder / EVENTS).open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        for step, summary in _summaries(record):
            writer.write(Event(wall_time=now, step=step, summary=summary).SerializeToString())


def _summaries(record: RunRecord) -> Iterator[tuple[int, Any]]:
    from torch.utils.tensorboard.summary import scalar, text

    title = f"{record.network}, {record.initialization}, seed {record.seed}, lr={record.lr!r}: {record.status}"
    yield 0, text("run", title)  # type: ignore[no-untyped-call]
    for when, figures in (("own start", record.before), ("start", record.after)):
        for name, value in (figures or {}).items():
            if not name.endswith("_sem"):
                yield 0, scalar(f"{when}/{name}", value)  # type: ignore[no-untyped-call]
    for point in record.curve:
        yield point.step, scalar(f"loss/{point.subset}", point.loss)  # type: ignore[no-untyped-call]
        if point.accuracy is not None:
            yield point.step, scalar(f"accuracy/{point.subset}", point.accuracy)  # type: ignore[no-untyped-call]
