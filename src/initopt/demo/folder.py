"""The folder that the demo leaves."""

from __future__ import annotations

import os
from pathlib import Path

from initopt._support.files import Contents, check_replaceable, write_folder, write_json
from initopt.demo.experiment import Experiment
from initopt.demo.picture import save_picture
from initopt.demo.record import to_record
from initopt.runs.result import CONTENTS

__all__ = ["check_folder", "save_experiment"]

_CONTENTS = Contents(".initopt-demo", ("results.json", "demo.png"), inner=CONTENTS)


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be written, before the work and not after it.

    Raises:
        FileExistsError: if something is there that no demo wrote.
        PermissionError: if its parent is not writable.
    """
    check_replaceable(folder, _CONTENTS)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(folder.parent, os.W_OK):
        raise PermissionError(f"{folder.parent} is not writable; choose another folder")


def save_experiment(experiment: Experiment, folder: Path, threads: int) -> None:
    """Write picture, numbers and results, whole or not at all; an earlier demo's folder is replaced.

    Args:
        experiment: what came out.
        folder: where to.
        threads: with how many processor threads.

    Raises:
        FileExistsError: if something is there that no demo wrote.
    """

    def write(into: Path) -> None:
        (into / _CONTENTS.marker).write_text("`initopt demo` wrote this folder and replaces it when it is run again.\n")
        write_json(into / "results.json", to_record(experiment, threads))
        save_picture(experiment, into / "demo.png")
        for run in experiment.runs:
            run.result.save(into / f"seed-{run.seed}")

    write_folder(folder, write, _CONTENTS)
