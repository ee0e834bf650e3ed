"""Processes that do not outlive the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait

import torch

__all__ = ["end_with_parent", "processor_threads"]


def end_with_parent() -> None:
    """Have this process end as soon as the one that started it has ended, however that was (``kill -9``, say).

    Only in a process that :mod:`multiprocessing` has started; elsewhere, nothing happens.
    """
    threading.Thread(target=_end, daemon=True).start()


def _end() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def processor_threads(count: int) -> Iterator[None]:
    """Use a number of processor threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
