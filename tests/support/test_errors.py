"""Warnings of initopt can be told from those of others, and are about the user's own line."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

import initopt
from initopt._support.errors import warn


def test_a_warning_is_about_the_line_that_called_into_initopt() -> None:
    with pytest.warns(initopt.InitoptWarning, match="mind the step") as caught:
        warn("mind the step")
    assert caught[0].filename == __file__


def test_the_files_of_all_rooms_are_looked_past() -> None:
    room = str(Path(initopt.__file__).parent / "runs" / "made_up.py")
    scope = {"warn": warn}
    exec(compile("def entry():\n    warn('mind the step')", room, "exec"), scope)
    with pytest.warns(initopt.InitoptWarning) as caught:
        scope["entry"]()  # type: ignore[operator]
    assert caught[0].filename == __file__


def test_they_can_be_silenced_alone() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", initopt.InitoptWarning)
        warn("mind the step")
        with pytest.raises(UserWarning, match="of others"):
            warnings.warn("of others", UserWarning, stacklevel=1)
