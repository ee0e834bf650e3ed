import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# The processes of pytest-xdist ignore Ctrl-C, which some tests send themselves and their children.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("initopt", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("initopt")


@pytest.fixture(autouse=True)
def one_thread_and_the_default_dtype() -> Iterator[None]:
    """The gallery's models are far too small for threads to help, and no test may leave another dtype behind."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
