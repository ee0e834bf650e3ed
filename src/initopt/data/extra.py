"""The packages that data sets other than the digits need."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["require_extra"]

_PACKAGES = {"datasets": "datasets", "kornia": "kornia", "PIL": "pillow"}


def require_extra() -> None:
    """Refuse to go on without the packages of the extra ``data``.

    Raises:
        ImportError: the message says what to install.
    """
    missing = [package for module, package in _PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise ImportError(f"this data set needs {', '.join(missing)}: pip install 'initopt[data]'")
