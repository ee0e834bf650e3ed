"""The event file of a run, for TensorBoard."""

from __future__ import annotations

import math
from pathlib import Path

from initopt.comparison.record import RunRecord

__all__ = ["EVENTS", "write_events"]

EVENTS = "events.out.tfevents.run"
"""The name of the file, the same in all runs."""


def write_events(record: RunRecord, folder: Path) -> None:
    """Write the curve of a run, and what was measured of its start, into a folder."""
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(log_dir=str(folder)) as writer:
        title = f"{record.network}, {record.initialization}, seed {record.seed}, lr={record.lr!r}: {record.status}"
        writer.add_text("run", title, 0)
        for when, figures in (("own start", record.before), ("start", record.after)):
            for name, value in (figures or {}).items():
                if not name.endswith("_sem"):
                    writer.add_scalar(f"{when}/{name}", value, 0)
        for point in record.curve:
            writer.add_scalar(f"loss/{point.subset}", point.loss, point.step)
            if point.accuracy is not None and math.isfinite(point.accuracy):
                writer.add_scalar(f"accuracy/{point.subset}", point.accuracy, point.step)
    (written,) = folder.glob("events.out.tfevents.*")
    written.rename(folder / EVENTS)
