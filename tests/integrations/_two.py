"""Starts a script in two processes, as ``torchrun`` does, and gathers what each of them found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.helpers import with_the_tests


def in_two_processes(name: str, folder: Path) -> list[dict[str, Any]]:
    """What the processes of a script of this folder have handed to :func:`found`, by rank."""
    script = Path(__file__).with_name(name)
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(script), str(folder)]
    environment = with_the_tests() | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text("utf-8")) for rank in range(2)]


def found(**values: Any) -> None:
    """Hand values over to the test, from one of the processes."""
    Path(sys.argv[1], f"{os.environ['RANK']}.json").write_text(json.dumps(values), "utf-8")
