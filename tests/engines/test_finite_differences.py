"""Derivatives by finite differences, on the gallery, against the definition."""

import pytest

from tests.engines._cases import check, engine_cases

pytestmark = pytest.mark.gallery


@pytest.mark.parametrize(("name", "mode", "engine"), engine_cases("differences"))
def test_gram_and_derivatives(name: str, mode: str, engine: str) -> None:
    """Also of networks for which torch has no second derivative."""
    check(name, mode, engine)
