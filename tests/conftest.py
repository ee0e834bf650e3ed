import multiprocessing
import signal
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.forks import forking

# The processes of pytest-xdist ignore Ctrl-C, which some tests send themselves and their children.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("initopt", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("initopt")

FIRST = (
    "system/test_survival.py", "system/test_attack_state.py", "cli/test_cli.py", "engines/test_united.py",
    "comparison/test_runs.py", "recipes/test_files.py", "runs/test_shared.py", "model/test_sharded.py",
    "system/test_attack_files.py", "comparison/test_executors.py", "cli/test_demo.py", "repo/test_study.py",
    "choice/test_learning_rate.py", "choice/test_gallery.py", "diagnosis/test_gallery.py", "engines/test_auto.py",
)  # fmt: skip
"""The files that take longest. They go first, so that no process has one of them left when the other is done."""


TRAINING = tuple(
    Path(__file__).parents[1] / "src" / "initopt" / name
    for name in ("choice/choosing.py", "choice/learning_rate.py", "cli/commands/demo.py", "comparison/comparing.py")
)
"""The files whose examples train networks."""


@pytest.hookimpl(tryfirst=True)  # before items are deselected by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(FIRST)}
    if missing := [str(place) for place in [*ranks, *TRAINING] if not place.is_file()]:
        raise pytest.UsageError(f"tests/conftest.py names these, and they are not there: {', '.join(missing)}")
    for item in items:
        if item.path in TRAINING:
            item.add_marker("heavy")
        if item.get_closest_marker("gallery") and _waits(item):
            item.add_marker("heavy")
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def _waits(item: pytest.Item, one_in: int = 3) -> bool:
    """Whether a test of one network of the gallery is left to ``make test-heavy``: of three, two are.

    Which ones, follows from the name of the test alone, so that it stays when networks are added.
    """
    return hasattr(item, "callspec") and zlib.crc32(item.nodeid.encode()) % one_in != 0


@pytest.fixture(autouse=True)
def one_thread_and_the_default_dtype() -> Iterator[None]:
    """The gallery's models are far too small for threads to help, and no test may leave another dtype behind."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


@pytest.fixture
def workers_are_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of comparisons come from the server of ``tests.forks``; those of a user start Python anew."""
    context = forking()
    monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: context)
