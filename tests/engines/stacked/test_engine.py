"""The engine that runs all sub-batches side by side, on the gallery: right, or refused."""

import pytest

from initopt.engines.stacked.operations import NotCoveredError
from initopt.testing import ENTRIES, evaluate
from tests.engines._cases import BEYOND_GROUPS, check, engine_cases

pytestmark = pytest.mark.gallery


@pytest.mark.parametrize(("name", "mode", "engine"), engine_cases("groups"))
def test_gram_and_derivatives(name: str, mode: str, engine: str) -> None:
    check(name, mode, engine)


@pytest.mark.parametrize(("name", "message"), BEYOND_GROUPS.items())
def test_what_is_beyond_it_is_refused(name: str, message: str) -> None:
    with pytest.raises(NotCoveredError, match=message):
        evaluate("groups", ENTRIES[name], functions=["cosine"])
