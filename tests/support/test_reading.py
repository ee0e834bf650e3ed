"""Files that are damaged, or made to do harm: a ValueError that names the file, soon, and nothing else."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

import initopt
from initopt._support.reading import of_form, read_json
from initopt._support.tensorfile import load_tensors, save_tensors
from initopt.comparison import load_comparison
from initopt.comparison.report.report import write_report
from initopt.comparison.storage.record import CurvePoint
from initopt.comparison.storage.store import load_run, write_run
from initopt.runs.checkpoint import Checkpoint
from tests.comparing import as_before, compare
from tests.helpers import make_batches, make_model
from tests.synthetic_comparison import run

Damage = Callable[[Any], Any]


def at(*path: Any, value: Any = None, missing: bool = False) -> Damage:
    """A change of one place in a record."""

    def change(record: Any) -> Any:
        place = record
        for step in path[:-1]:
            place = place[step]
        if missing:
            del place[path[-1]]
        else:
            place[path[-1]] = value
        return record

    return change


def deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    initopt.nio(
        make_model(), make_batches(), steps=3, measure_batches=2, checkpoint=folder / "run.ckpt", progress=False
    ).save(folder / "result")
    return folder


class TestResult:
    @pytest.mark.parametrize(
        "damage",
        [
            at("history", missing=True),
            at("history", value=3),
            at("history", 0, value="x"),
            at("history", 0, "grad_norm", value="x"),
            at("history", 0, "step", value=-5),
            at("history", 1, "step", value=10**9),
            at("history", 0, "extra", value=1),
            at("measurements", value=[]),
            at("measurements", "before", "sem", value=True),
            at("measurements", "before", "sem", value={}),
            at("measurements", "before", "num_batches", value=7),
            at("measurements", "before", "small_batch", value=[None]),
            at("measurements", "later", value={}),
            at("scales", value={"a": None}),
            at("scales", value={"a": 10**400}),
            at("tensors", value=[1]),
            at("versions", value=True),
            at("options", value=deep(200)),
            at("options", value="x"),
            at("seconds", value=[]),
            lambda record: [record],
            lambda record: deep(100_000),
        ],
    )
    def test_record(self, saved: Path, tmp_path: Path, damage: Damage) -> None:
        folder = tmp_path / "result"
        folder.mkdir()
        for file in (saved / "result").iterdir():
            os.link(file, folder / file.name)
        record = json.loads((saved / "result" / "result.json").read_text())
        (folder / "result.json").unlink()
        (folder / "result.json").write_text(as_json(damage(record)))
        with pytest.raises(ValueError, match=r"result\.json"):
            initopt.Result.load(folder)

    @pytest.mark.parametrize("name", ["result.json", "weights.safetensors", "grams.safetensors"])
    @pytest.mark.parametrize("kind", ["pipe", "folder", "empty", "half", "of zeros"])
    def test_file(self, saved: Path, tmp_path: Path, name: str, kind: str) -> None:
        folder = tmp_path / "result"
        folder.mkdir()
        for file in (saved / "result").iterdir():
            if file.name != name:
                os.link(file, folder / file.name)
        whole, path = (saved / "result" / name).read_bytes(), folder / name
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "of zeros": bytes(len(whole))}[kind])
        with pytest.raises(ValueError, match=name):
            initopt.Result.load(folder)

    def test_what_is_written_is_read(self, saved: Path) -> None:
        assert len(initopt.Result.load(saved / "result").history) == 3


def as_json(value: Any) -> str:
    """As ``json.dumps``, of lists that are nested more deeply than that can."""
    levels, inner = 0, value
    while type(inner) is list and len(inner) == 1:
        levels, inner = levels + 1, inner[0]
    return "[" * levels + json.dumps(inner) + "]" * levels if levels > 500 else json.dumps(value)


class TestTensors:
    @pytest.mark.parametrize(
        "metadata", [{"complex": '["nope"]'}, {"complex": '["a"]'}, {"complex": "3"}, {"complex": "[" * 100_000}]
    )
    def test_names_of_complex_ones(self, tmp_path: Path, metadata: dict[str, str]) -> None:
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(3)}, tmp_path / "file", metadata)
        with pytest.raises(ValueError, match="file is truncated or no safetensors file"):
            load_tensors(tmp_path / "file")

    def test_a_dtype_that_torch_does_not_have(self, tmp_path: Path) -> None:
        header = json.dumps({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
        (tmp_path / "file").write_bytes(len(header).to_bytes(8, "little") + header + b"0")
        with pytest.raises(ValueError, match="file is truncated or no safetensors file"):
            load_tensors(tmp_path / "file")

    @pytest.mark.parametrize("size", [2**40, 7])
    def test_a_size_that_its_header_does_not_account_for(self, tmp_path: Path, size: int) -> None:
        """Found out before so much is read."""
        save_tensors({"a": torch.zeros(3)}, tmp_path / "file")
        os.truncate(tmp_path / "file", size)
        with pytest.raises(ValueError, match="file is truncated or no safetensors file"):
            load_tensors(tmp_path / "file")

    def test_a_full_disk_is_an_os_error(self, tmp_path: Path) -> None:
        """So that a message is all there is of it; the library's own error is of no such kind."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                save_tensors({"a": torch.zeros(5000)}, tmp_path / "file")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)

    @pytest.mark.heavy
    def test_a_file_that_is_replaced_while_it_is_read(self, tmp_path: Path) -> None:
        """Each version has one value in all places, and the reader sees one version."""
        path, done = tmp_path / "file", threading.Event()
        sizes = [10, 500, 3000]

        def write(version: int) -> None:
            size = sizes[version % len(sizes)]
            tensors = {f"{number}": torch.full((size,), float(version)) for number in range(20)}
            save_tensors(tensors, tmp_path / f"{version % 2}")
            os.replace(tmp_path / f"{version % 2}", path)

        write(0)

        def keep_writing() -> None:
            version = 0
            while not done.is_set():
                version += 1
                write(version)

        writer = threading.Thread(target=keep_writing)
        writer.start()
        try:
            for _ in range(300):
                found = load_tensors(path)[0]
                assert len(torch.cat(list(found.values())).unique()) == 1
        finally:
            done.set()
            writer.join()


class TestCheckpoint:
    @pytest.mark.parametrize(
        "damage",
        [
            at("identity", missing=True),
            at("identity", value=[]),
            at("identity", "parameters", value={}),
            at("identity", "generators", value=["loader"]),
            at("history", value=[{}]),
            at("history", 0, "seconds", value=None),
            at("seed", value="0"),
            at("seed", value=-1),
            at("engine", value=7),
            at("engine", value={"engine": "nope", "reason": "", "inner": {}}),
            at("random", value={}),
            at("random", "numpy", "state", "key", value=[1, 2]),
            at("random", "numpy", "state", "pos", value=10**6),
            at("random", "numpy", "state", "pos", value=-1),
            at("random", "python", value=[3, [1], None]),
            at("random", "python", value=None),
            lambda record: [],
        ],
    )
    def test_record(self, saved: Path, tmp_path: Path, damage: Damage) -> None:
        tensors, metadata = load_tensors(saved / "run.ckpt")
        record = damage(json.loads(metadata["initopt"]))
        save_tensors(tensors, tmp_path / "run.ckpt", {"initopt": json.dumps(record)})
        self.refused(tmp_path)

    @pytest.mark.parametrize(
        "damage",
        [
            at("start/0.weight", missing=True),
            at("start/0.weight", value=torch.zeros(2)),
            at("start/more", value=torch.zeros(2)),
            at("nowhere/a", value=torch.zeros(2)),
            at("a", value=torch.zeros(2)),
            at("state/scales", missing=True),
            at("state/scales", value=torch.zeros(2)),
            at("random/torch_cpu", value=torch.zeros(7)),
            at("random/torch_cpu", value=torch.zeros(5056, dtype=torch.uint8)),
            at("random/torch_cpu", missing=True),
            at("generator/loader", value=torch.zeros(5056, dtype=torch.uint8)),
        ],
    )
    def test_tensors(self, saved: Path, tmp_path: Path, damage: Damage) -> None:
        tensors, metadata = load_tensors(saved / "run.ckpt")
        save_tensors(damage(tensors), tmp_path / "run.ckpt", metadata)
        self.refused(tmp_path)

    @pytest.mark.parametrize("kind", ["pipe", "folder", "empty", "half"])
    def test_file(self, saved: Path, tmp_path: Path, kind: str) -> None:
        path, whole = tmp_path / "run.ckpt", (saved / "run.ckpt").read_bytes()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2]}[kind])
        self.refused(tmp_path)
        with pytest.raises(ValueError, match=r"run\.ckpt"):
            Checkpoint.read(path)

    def refused(self, folder: Path) -> None:
        model, state = make_model(), np.random.get_state()[1].copy()
        with pytest.raises(ValueError, match=r"run\.ckpt"):
            initopt.nio(model, make_batches(), steps=3, measure_batches=2, checkpoint=folder / "run.ckpt", progress=False)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), make_model().parameters(), strict=True))
        assert np.array_equal(np.random.get_state()[1], state)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared") / "out"
    compare(folder)
    return folder


@pytest.fixture(scope="module")
def compared_before(compared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("before") / "out"
    shutil.copytree(compared, folder)
    as_before(folder)
    return folder


class TestComparison:
    """One run that cannot be read is a problem that the report tells; the others are there."""

    @pytest.mark.parametrize(
        "damage",
        [
            at("versions", value=True),
            at("versions", missing=True),
            at("scales", value=deep(500)),
            at("curve", value=None),
            at("curve", missing=True),
            at("curve", value=[[0, 0.0, "test", 1.0]]),
            at("curve", value=[[0, 0.0, "test", 1.0, 0.5, 1]]),
            at("curve", value=["abcde"]),
            at("curve", value=[{"step": 0, "epoch": 0.0, "subset": "test", "loss": 1.0, "accuracy": 0.5}]),
            at("curve", 0, 0, value=True),
            at("curve", 0, 0, value=1.5),
            at("curve", 0, 0, value=10**30),
            at("curve", 0, 1, value=True),
            at("curve", 0, 2, value=["test"]),
            at("curve", 0, 2, value="x" * 30_000),
            at("curve", 0, 3, value=None),
            at("curve", 0, 3, value="1.0"),
            at("curve", 0, 3, value=10**400),
            at("curve", 0, 4, value=deep(50)),
            at("seed", value=True),
            at("seed", value="0"),
            at("lr", value=None),
            at("purpose", value="none"),
            at("status", value="none"),
            at("before", value={"grad_norm": []}),
            at("network", value="../../victim"),
            at("network", value=""),
            at("initialization", value=".hidden"),
            lambda record: [],
        ],
    )
    def test_record(self, compared: Path, damage: Damage) -> None:
        path = compared / "runs" / "small" / "nio" / "lr=0.1" / "seed=0" / "run.json"
        whole = path.read_text()
        try:
            path.write_text(as_json(damage(json.loads(whole))))
            self.one_problem(compared)
        finally:
            path.write_text(whole)

    def test_a_curve_of_too_many_points(self, compared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("initopt.comparison.storage.store.MOST_POINTS", 4)
        found = load_comparison(compared)
        assert len(found.problems) == 4
        assert "the curve has 5 points; a curve has 4 or fewer" in found.problems[0]

    @pytest.mark.parametrize("kind", ["pipe", "other columns", "of strings", "many points", "gzip", "a null", "long text"])
    def test_curve_of_an_earlier_version(self, compared_before: Path, tmp_path: Path, kind: str) -> None:
        path = compared_before / "runs" / "small" / "nio" / "lr=0.1" / "seed=0" / "curve.parquet"
        path.rename(tmp_path / "whole")
        try:
            hostile_curve(path, kind)
            self.one_problem(compared_before)
        finally:
            path.unlink()
            (tmp_path / "whole").rename(path)

    @pytest.mark.heavy
    def test_half_a_character_in_an_error(self, compared: Path) -> None:
        """The name of a file in another encoding, in the message of a run that failed, does not end the report."""
        path = compared / "runs" / "small" / "nio" / "lr=0.1" / "seed=0" / "run.json"
        whole = path.read_text()
        try:
            path.write_text(json.dumps(json.loads(whole) | {"status": "failed", "error": "cannot decode caf\udce9.png"}))
            page = write_report(compared)
            assert "caf\\udce9.png" in page.read_text(encoding="utf-8")
            assert load_comparison(compared).problems == ()
        finally:
            path.write_text(whole)

    @pytest.mark.parametrize(
        "damage",
        [
            at("networks", value=[1]),
            at("initializations", value="x"),
            at("seeds", value="x"),
            at("recipe", value=1),
            at("versions", missing=True),
            lambda record: deep(50_000),
        ],
    )
    def test_what_was_begun(self, compared: Path, damage: Damage) -> None:
        path = compared / "comparison.json"
        whole = path.read_text()
        try:
            path.write_text(as_json(damage(json.loads(whole))))
            with pytest.raises(ValueError, match=r"comparison\.json"):
                write_report(compared)
        finally:
            path.write_text(whole)

    @staticmethod
    def one_problem(folder: Path) -> None:
        found = load_comparison(folder)
        (problem,) = found.problems
        assert "seed=0" in problem
        assert len(found.runs) == 3


def hostile_curve(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
        return
    rows = 2_000_000 if kind == "many points" else 1000
    text = "x" * 30_000 if kind == "long text" else "test"
    columns: dict[str, Any] = {
        "step": pyarrow.array(np.zeros(rows, dtype=np.int64)),
        "epoch": pyarrow.array(np.zeros(rows)),
        "subset": pyarrow.array([text] * min(rows, 1000) if rows == 1000 else ["test"] * rows),
        "loss": pyarrow.array(np.zeros(rows)),
        "accuracy": pyarrow.array(np.zeros(rows)),
    }
    if kind == "other columns":
        columns["more"] = columns["loss"]
    if kind == "of strings":
        columns["loss"] = pyarrow.array(["1"] * rows)
    if kind == "a null":
        columns["loss"] = pyarrow.array([None] * rows, pyarrow.float64())
    pyarrow.parquet.write_table(pyarrow.table(columns), path, compression="gzip" if kind == "gzip" else "snappy")


def test_a_curve_is_read_as_it_was_written(tmp_path: Path) -> None:
    for curve in (
        (CurvePoint(0, 0.0, "test", 1.5, None), CurvePoint(3, 0.5, "train", float("inf"), 0.25)),
        (),
    ):
        record = replace(run(), curve=curve)
        write_run(record, tmp_path)
        assert load_run(tmp_path) == record


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    with (tmp_path / "run.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"run\.json has more than 67,108,864 bytes"):
        read_json(tmp_path / "run.json")


class _Stored(TypedDict):
    name: str
    later: NotRequired[int | None]


def test_what_a_form_does_not_require_may_be_missing() -> None:
    assert of_form(_Stored, {"name": "a"}) == {"name": "a"}
    assert of_form(_Stored, {"name": "a", "later": 3}) == {"name": "a", "later": 3}
    with pytest.raises(ValueError, match="it has no 'name'"):
        of_form(_Stored, {"later": 3})
    with pytest.raises(ValueError, match="later must be an integer"):
        of_form(_Stored, {"name": "a", "later": "3"})
