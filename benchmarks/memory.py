"""Peak memory of one step above that of a process which holds model and batch.

On a CPU, every figure comes from a process of its own (this file is its command). It builds model and batch, warms up
on a few samples, hands unused memory back to the system, has the kernel forget the high-water mark of the resident
memory, takes one step and reads the mark. On an accelerator it is the allocator's own count.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import Case
from contenders import Contender, Step, contender, contender_names, model_and_batch

__all__ = ["MALLOC", "accelerator_memory", "add_options", "answered", "apart", "peak_memory", "process_memory"]

MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Settings of glibc's allocator in the measuring processes: what is freed goes back to the system at once.

By default it keeps much of what was freed, by rules that depend on the order of sizes, and the mark tells of these rules.
"""

_WARM_UP_SAMPLES = 4


def process_memory(case: Case, name: str, threads: int, timeout: float = 600) -> dict[str, Any]:
    """Memory of a contender on a CPU, in bytes, from a process of its own.

    Returns:
        ``before``, the resident memory before the step, ``peak``, its high-water mark, and ``method``; or ``skipped``.
    """
    try:
        return apart(__file__, case, name, threads, timeout)
    except subprocess.TimeoutExpired:
        return {"skipped": f"took more than {timeout:.0f} s"}
    except subprocess.CalledProcessError as error:
        last = error.stderr.strip().splitlines()[-1:] or [f"the process ended with {error.returncode}: out of memory?"]
        return {"skipped": last[0][:200]}


def apart(script: str, case: Case, what: str, threads: int, timeout: float | None = None) -> dict[str, Any]:
    """The figures of a script that has :func:`add_options`, from a process of its own.

    Args:
        script: its file.
        case: what is measured.
        what: a name that the script knows.
        threads: of PyTorch.
        timeout: seconds.
    """
    arguments = ["--case", json.dumps(dataclasses.asdict(case)), "--what", what, "--threads", str(threads)]
    environment = os.environ | MALLOC | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, str(Path(script).resolve()), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--threads``, and the options of a process that :func:`apart` starts."""
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--what", help=argparse.SUPPRESS)


def answered(options: argparse.Namespace, measure: Callable[[Case, str], dict[str, Any]]) -> bool:
    """Set the threads, and print the figures if this is a process that :func:`apart` has started; whether it is."""
    torch.set_num_threads(options.threads)
    if options.case:
        print(json.dumps(measure(Case(**json.loads(options.case)), options.what)))
    return bool(options.case)


def accelerator_memory(contender: Contender) -> dict[str, Any]:
    """Memory of a contender on a CUDA device, in bytes, allocated before the step and at its peak."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    try:
        with contender() as step:
            step()
    except torch.OutOfMemoryError:
        return {"skipped": "out of memory"}
    return {"before": before, "peak": torch.cuda.max_memory_allocated(), "method": "torch.cuda.max_memory_allocated"}


def measure_here(case: Case, name: str) -> dict[str, Any]:
    """Memory of a contender in this process, which has done nothing else yet."""
    model, data = model_and_batch(case, "cpu")
    few = min(_WARM_UP_SAMPLES, case.batch_size)
    for warm_up in dict.fromkeys([contender_names(case)[0], name]):
        with contender(warm_up, case, model, tuple(tensor[:few] for tensor in data), num_subbatches=2)() as step:
            step()
    # A new one: an engine that checks or searches at its first step does so in this one, too, and needs no more for it.
    measured = contender(name, case, model, data)
    with measured() as step:
        return peak_memory(step)


def peak_memory(step: Step) -> dict[str, Any]:
    """Resident memory before a step and its high-water mark in it, in bytes, of this process."""
    gc.collect()
    _give_back()
    forgets = _forget_high_water()
    before = _status("VmRSS") if forgets else _high_water()
    step()
    peak = _status("VmHWM") if forgets else _high_water()
    return {"before": before, "peak": peak, "method": "VmHWM, reset" if forgets else "ru_maxrss"}


def _give_back() -> None:
    """Free memory that the allocator holds back goes to the system, where the C library can do so."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _forget_high_water() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _high_water() -> int:
    """A mark that never falls, and begins where the process was that started this one."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the peak memory of one step; started by engines.py.")
    add_options(parser)
    if not answered(parser.parse_args(), measure_here):
        parser.error("--case and --what are needed")


if __name__ == "__main__":
    main()
