"""Only folders that hold nothing but what initopt wrote are replaced, and never halfway."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import initopt._support.workshop as workshop_module
from initopt._support import files as storage
from initopt._support.files import Contents, check_replaceable, write_file, write_folder
from initopt._support.workshop import clear_leftovers
from initopt.runs.result import CONTENTS

MARKER = "result.json"


def writer(content: str, marker: str = MARKER) -> Callable[[Path], None]:
    def write(into: Path) -> None:
        (into / marker).write_text(f'{{"format": "initopt result 1", "content": "{content}"}}')

    return write


def test_files_of_others_in_a_folder_of_ours_are_named_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_folder(folder, writer("first"), CONTENTS)
    for name in ("weights.safetensors", "grams.safetensors", "plot.png", "config.yaml"):
        (folder / name).touch()
    write_folder(folder, writer("second"), CONTENTS)
    (folder / "trained.pt").write_text("days of work")
    (folder / "logs").mkdir()
    with pytest.raises(FileExistsError, match=r"initopt did not write: logs, trained\.pt; move them elsewhere"):
        write_folder(folder, writer("third"), CONTENTS)
    assert (folder / "trained.pt").read_text() == "days of work"
    assert "second" in (folder / MARKER).read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("content", ['{"accuracy": 1}', "[]", '{"form', '{"format": "other 1"}'])
def test_a_file_of_the_same_name_does_not_make_a_folder_ours(tmp_path: Path, content: str) -> None:
    (tmp_path / MARKER).write_text(content)
    with pytest.raises(FileExistsError, match="was not written by initopt"):
        check_replaceable(tmp_path, CONTENTS)


def test_a_folder_of_results_is_looked_through(tmp_path: Path) -> None:
    demo, folder = Contents(".initopt-demo", inner=CONTENTS), tmp_path / "demo"

    def write(into: Path) -> None:
        (into / demo.marker).touch()
        (into / "seed-0").mkdir()
        writer("inner")(into / "seed-0")

    write_folder(folder, write, demo)
    write_folder(folder, write, demo)
    (folder / "seed-0" / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="seed-0/notes.txt"):
        write_folder(folder, write, demo)
    with pytest.raises(FileExistsError, match="was not written by initopt"):
        check_replaceable(folder, CONTENTS)


def test_a_link_stays_and_the_folder_it_leads_to_is_replaced(tmp_path: Path) -> None:
    real, link = tmp_path / "disk" / "real", tmp_path / "link"
    write_folder(real, writer("first"), CONTENTS)
    link.symlink_to(real)
    write_folder(link, writer("second"), CONTENTS)
    assert link.is_symlink()
    assert "second" in (real / MARKER).read_text()


@pytest.fixture(params=["one step", "two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without an operating system that lets two paths change places."""
    if request.param == "two renames":
        monkeypatch.setattr(storage, "exchange", lambda one, other: False)
    return str(request.param)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rename_that_fails_leaves_the_earlier_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    folder = tmp_path / "out"
    write_folder(folder, writer("first"), CONTENTS)
    rename, calls = os.replace, []

    def replace(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == failing + 1:
            raise OSError("Device or resource busy")
        rename(source, target)

    monkeypatch.setattr(storage, "exchange", lambda one, other: False)
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="busy"):
        write_folder(folder, writer("second"), CONTENTS)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert "first" in (folder / MARKER).read_text()


def test_what_appears_while_a_folder_is_being_replaced_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Files of others that come in between the last look and the exchange are found in what was displaced."""
    folder = tmp_path / "out"
    write_folder(folder, writer("first"), CONTENTS)
    put_in_place = storage._put_in_place

    def late(*arguments: Any) -> None:
        (folder / "events.log").write_text("mine")
        put_in_place(*arguments)

    monkeypatch.setattr(storage, "_put_in_place", late)
    with pytest.raises(FileExistsError, match=r"events\.log"):
        write_folder(folder, writer("second"), CONTENTS)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (folder / "events.log").read_text() == "mine"
    assert "first" in (folder / MARKER).read_text()


def test_a_folder_in_the_place_of_a_file_of_ours_is_not_ours(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_folder(folder, writer("first"), CONTENTS)
    (folder / "plot.png").mkdir()
    (folder / "plot.png" / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match=r"did not write: plot\.png"):
        write_folder(folder, writer("second"), CONTENTS)
    assert (folder / "plot.png" / "thesis.tex").exists()


@pytest.mark.parametrize("below", ["", "below"])
def test_the_current_folder_is_not_replaced_under_its_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    (tmp_path / "out" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "out" / below)
    with pytest.raises(FileExistsError, match="is the current folder, or one above it"):
        check_replaceable(Path("." if not below else ".."), CONTENTS)


def save_and_be_killed(folder: Path, call: int, way: str) -> bool:
    """Save in a process that is killed at its n-th call into the file system; whether it came to an end before."""
    process = os.fork()
    if process:
        return os.waitpid(process, 0)[1] == 0
    calls = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return wrapper

    if way == "one step":
        storage.exchange = counted(storage.exchange)
    for name in ("replace", "rename", "rmdir", "unlink", "mkdir", "open", "chmod", "fsync", "scandir"):
        setattr(os, name, counted(getattr(os, name)))
    try:
        write_folder(folder, writer("second"), CONTENTS)
    finally:
        os._exit(0)


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.processes
def test_a_kill_anywhere_in_a_save_leaves_one_result_and_the_next_save_clears_up(tmp_path: Path, way: str) -> None:
    folder, seen, done, call = tmp_path / "out", [], False, 0
    while not done:
        call += 1
        write_folder(folder, writer("first"), CONTENTS)
        done = save_and_be_killed(folder, call, way)
        if way == "one step":
            assert (folder / MARKER).is_file()
        check_replaceable(folder, CONTENTS)  # clears up, and puts back what was set aside
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        seen.append("second" if "second" in (folder / MARKER).read_text() else "first")
    assert call > 20
    assert seen == sorted(seen)
    assert set(seen) == {"first", "second"}


def test_a_file_at_the_end_of_a_link_is_written_and_the_link_stays(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "real")
    for content in ("first", "second"):
        write_file(link, lambda temporary, content=content: temporary.write_text(content))  # type: ignore[misc]
        assert link.is_symlink()
        assert (tmp_path / "disk" / "real").read_text() == content
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["disk", "link", "real"]


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        with pytest.raises(ValueError, match="is a (folder|device or a pipe); give the path of a file"):
            write_file(path, lambda temporary: temporary.write_text("x"))  # type: ignore[arg-type, return-value]


def test_a_leftover_of_a_file_is_cleared_by_the_next_write_and_nothing_else(tmp_path: Path) -> None:
    left = tmp_path / ".run.ckpt.initopt-abcdefgh"
    left.mkdir()
    (left / "lock").touch()
    (left / "new").write_text("half")
    others = [".run.ckpt.metadata", ".run.ckpt.old", ".other.ckpt.initopt-abcdefgh", ".run.ckpt.initopt-ABC"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / ".run.ckpt.initopt-12345678").symlink_to(tmp_path / ".run.ckpt.old")
    write_file(tmp_path / "run.ckpt", lambda temporary: temporary.write_text("whole"))  # type: ignore[arg-type, return-value]
    expected = sorted(["run.ckpt", ".run.ckpt.initopt-12345678", *others])
    assert sorted(path.name for path in tmp_path.iterdir()) == expected


def test_a_workshop_that_is_cleared_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may come between the making of a lock and the locking."""
    take, path, calls = workshop_module._take, tmp_path / "file", []

    def late(lock: int) -> bool | None:
        calls.append(lock)
        if len(calls) == 1:
            clear_leftovers(path)  # the other process, which locks and removes it
        return take(lock)

    monkeypatch.setattr(workshop_module, "_take", late)
    write_file(path, lambda temporary: temporary.write_text("whole"))  # type: ignore[arg-type, return-value]
    assert path.read_text() == "whole"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_an_error_names_the_path_that_its_user_knows(tmp_path: Path) -> None:
    def full(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device", str(temporary))

    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/run\.ckpt'"):
        write_file(tmp_path / "run.ckpt", full)
    assert list(tmp_path.iterdir()) == []
