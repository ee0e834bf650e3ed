"""The engine that runs all sub-batches in one pass over the whole batch, on the gallery, against the definition."""

import pytest

from tests.engines._cases import check, engine_cases

pytestmark = pytest.mark.gallery


@pytest.mark.parametrize(("name", "mode", "engine"), engine_cases("coupled"))
def test_gram_and_derivatives(name: str, mode: str, engine: str) -> None:
    check(name, mode, engine)
