"""Only folders that hold nothing but what initopt wrote are replaced, and never halfway."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from initopt.storage import check_replaceable, write_folder

MARKER = "result.json"


def writer(content: str, marker: str = MARKER) -> Callable[[Path], None]:
    def write(into: Path) -> None:
        (into / marker).write_text(f'{{"format": "initopt result 1", "content": "{content}"}}')

    return write


def test_files_of_others_in_a_folder_of_ours_are_named_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_folder(folder, writer("first"), MARKER)
    for name in ("weights.safetensors", "grams.safetensors", "plot.png", "config.yaml"):
        (folder / name).touch()
    write_folder(folder, writer("second"), MARKER)
    (folder / "trained.pt").write_text("days of work")
    (folder / "logs").mkdir()
    with pytest.raises(FileExistsError, match=r"initopt did not write: logs, trained\.pt; move them elsewhere"):
        write_folder(folder, writer("third"), MARKER)
    assert (folder / "trained.pt").read_text() == "days of work"
    assert "second" in (folder / MARKER).read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("content", ['{"accuracy": 1}', "[]", '{"form', '{"format": "other 1"}'])
def test_a_file_of_the_same_name_does_not_make_a_folder_ours(tmp_path: Path, content: str) -> None:
    (tmp_path / MARKER).write_text(content)
    with pytest.raises(FileExistsError, match="was not written by initopt"):
        check_replaceable(tmp_path, MARKER)


def test_a_folder_of_results_is_looked_through(tmp_path: Path) -> None:
    marker, folder = ".initopt-demo", tmp_path / "demo"

    def write(into: Path) -> None:
        (into / marker).touch()
        (into / "seed-0").mkdir()
        writer("inner")(into / "seed-0")

    write_folder(folder, write, marker)
    write_folder(folder, write, marker)
    (folder / "seed-0" / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="seed-0/notes.txt"):
        write_folder(folder, write, marker)
    with pytest.raises(FileExistsError, match="was not written by initopt"):
        check_replaceable(folder, MARKER)


def test_a_link_stays_and_the_folder_it_leads_to_is_replaced(tmp_path: Path) -> None:
    real, link = tmp_path / "disk" / "real", tmp_path / "link"
    write_folder(real, writer("first"), MARKER)
    link.symlink_to(real)
    write_folder(link, writer("second"), MARKER)
    assert link.is_symlink()
    assert "second" in (real / MARKER).read_text()


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rename_that_fails_leaves_the_earlier_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    folder = tmp_path / "out"
    write_folder(folder, writer("first"), MARKER)
    rename, calls = os.replace, []

    def replace(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == failing + 1:
            raise OSError("Device or resource busy")
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="busy"):
        write_folder(folder, writer("second"), MARKER)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert "first" in (folder / MARKER).read_text()
