"""Engines that run every sub-batch by itself, on every architecture of the gallery, against the definition."""

import pytest

from tests.engines._cases import check, engine_cases

pytestmark = pytest.mark.gallery


@pytest.mark.parametrize(("name", "mode", "engine"), engine_cases("graph", "recompute", "plain"))
def test_gram_and_derivatives(name: str, mode: str, engine: str) -> None:
    check(name, mode, engine)
