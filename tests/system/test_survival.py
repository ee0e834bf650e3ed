"""Whatever happens to a comparison: nothing that is done is lost, nothing is done twice, and the rest is done."""

import dataclasses
import errno
import functools
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

import initopt
import initopt.comparison.running.execute as execute_module
import initopt.comparison.running.run as run_module
from initopt._support.reading import read_json
from initopt._support.workshop import workshop
from initopt.comparison import Network, load_comparison
from initopt.comparison.storage.folder import opened
from initopt.comparison.storage.store import RECORD
from tests.comparing import NIO, RECIPE, DeadOnArrival, blobs, compare, noisy_blobs, raising, small, table
from tests.forks import Python
from tests.helpers import with_the_tests
from tests.system._sessions import assert_none_left, session

pytestmark = pytest.mark.processes

GRID = RECIPE | {"lr": [0.01, 0.1]}


def folders(out):
    """The folders of the runs, with the time at which they were put in place."""
    return {file.parent: file.stat().st_mtime_ns for file in (out / "runs").rglob("run.json")}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Comparisons that are done, by name."""
    folder = tmp_path_factory.mktemp("stored")
    compare(folder / "plain")
    compare(folder / "grid", recipe=GRID)
    compare(folder / "failed", models={"net": functools.partial(raising, 1, "exception")}, seeds=2)
    return folder


@pytest.fixture
def done(stored, tmp_path):
    """A comparison in the folder ``out``."""
    shutil.copytree(stored / "plain", tmp_path / "out")


@pytest.fixture
def done_grid(stored, tmp_path):
    """A comparison of several learning rates in the folder ``out``."""
    shutil.copytree(stored / "grid", tmp_path / "out")


@pytest.fixture
def counted(monkeypatch):
    """The jobs that are run, in this process."""
    jobs = []
    original = run_module._trained

    def counting(fabric, plan, splits, job, model):
        jobs.append(job)
        return original(fabric, plan, splits, job, model)

    monkeypatch.setattr(run_module, "_trained", counting)
    return jobs


def given(data):
    return data


class TestGoingOn:
    def test_runs_nothing_twice(self, tmp_path, counted):
        compare(tmp_path / "out", recipe=GRID)
        before, jobs = folders(tmp_path / "out"), list(counted)
        assert len(jobs) == len(set(jobs)) == len(before) == 8 + 4
        compare(tmp_path / "out", recipe=GRID)
        assert counted == jobs
        assert folders(tmp_path / "out") == before

    @pytest.mark.parametrize("kind", ["splits", "object", "argument"])
    def test_data_that_are_made_anew_are_known_again(self, tmp_path, kind):
        """By what is in them, and not by where they are in memory."""
        held = []  # so that no address is used twice
        for _ in range(2):
            held.append(blobs())
            parts = types.SimpleNamespace(**vars(held[-1]))
            data = {"splits": held[-1], "object": parts, "argument": functools.partial(given, held[-1])}[kind]
            compare(tmp_path / "out", data=data, seeds=1)
        assert " at 0x" not in (tmp_path / "out" / RECORD).read_text()

    @pytest.mark.heavy
    @pytest.mark.parametrize("lost", ["selection", "final", "a group"])
    @pytest.mark.usefixtures("done_grid")
    def test_does_what_is_missing_and_no_more(self, tmp_path, counted, lost):
        first = load_comparison(tmp_path / "out")
        expected, runs = table(tmp_path / "out"), tmp_path / "out" / "runs" / "small" / "nio"
        (lr,) = {run.lr for run in first.runs if run.initialization == "nio"}
        gone = {
            "selection": [runs / "lr=0.01" / "seed=1001"],
            "final": [runs / f"lr={lr!r}" / "seed=1"],
            "a group": [runs / name / "seed=1000" for name in ("lr=0.01", "lr=0.1")],
        }[lost]
        for place in gone:
            shutil.rmtree(place)
        counted.clear()
        compare(tmp_path / "out", recipe=GRID)
        assert sorted(job.place(tmp_path / "out") for job in counted) == sorted(gone)
        assert table(tmp_path / "out") == expected

    @pytest.mark.heavy
    def test_an_interrupt_leaves_what_is_done(self, stored, tmp_path, monkeypatch):
        original, calls = run_module._trained, []

        def interrupted(*arguments):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return original(*arguments)

        monkeypatch.setattr(run_module, "_trained", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compare(tmp_path / "out")
        assert len(folders(tmp_path / "out")) == 2
        found = compare(tmp_path / "out")
        assert [run.status for run in found.runs] == ["done"] * 4
        assert table(tmp_path / "out") == table(stored / "plain")


class TestAnotherRecipe:
    @pytest.mark.parametrize(
        ("changes", "lines"),
        [
            ({"recipe": RECIPE | {"epochs": 3}}, ["recipe.epochs was 2 and is 3"]),
            ({"recipe": RECIPE | {"lr": [0.1, 1.0]}}, ["recipe.lr was 0.1 and is [0.1, 1.0]"]),
            ({"seeds": 3}, ["seeds was [0, 1] and is [0, 1, 2]"]),
            ({"initializations": ["default"]}, ["initializations.nio is gone"]),
            ({"initializations": [NIO, "default"]}, ["initializations are in another order: they were default, nio"]),
            ({"initializations": ["default", "nio"]}, ["initializations.nio.steps[0].options.steps was 3 and is 100"]),
            (
                {"models": {"small": functools.partial(small, width=4)}},
                ["networks.small.model was 'tests.comparing.small' and is {'class_path': 'tests.comparing.small', "],
            ),
            ({"models": {"other": small}}, ["networks.small is gone", "networks.other is new"]),
            ({"threads": 2}, ["hardware.threads was 1 and is 2"]),
        ],
    )
    @pytest.mark.usefixtures("done")
    def test_is_refused_with_what_differs(self, tmp_path, changes, lines):
        before = table(tmp_path / "out")
        with pytest.raises(
            initopt.MismatchError, match="holds another comparison, which this one cannot go on with"
        ) as error:
            compare(tmp_path / "out", **changes)
        for line in lines:
            assert f"\n  {line}" in str(error.value)
        assert table(tmp_path / "out") == before

    @pytest.mark.heavy
    def test_other_data_under_the_same_name(self, tmp_path, monkeypatch):
        from tests import comparing

        compare(tmp_path / "out", data=source)
        monkeypatch.setitem(DATA, "seed", 1)
        with pytest.raises(initopt.MismatchError, match=r"data\.train\.fingerprint was '\w+' and is '\w+'"):
            compare(tmp_path / "out", data=source)
        assert comparing.blobs  # the module that the data come from

    @pytest.mark.usefixtures("workers_are_forked")
    def test_workers_are_no_part_of_it(self, tmp_path):
        compare(tmp_path / "out", seeds=1)
        assert len(compare(tmp_path / "out", seeds=1, workers=2).runs) == 2


DATA = {"seed": 0}


def source():
    from tests.comparing import blobs

    return blobs(seed=DATA["seed"])


class TestFolder:
    def test_of_others(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("mine")
        with pytest.raises(FileExistsError, match=r"holds files, but no comparison \(thesis.tex\); choose another folder"):
            compare(tmp_path)
        assert [item.name for item in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_file(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(FileExistsError, match="is a file; choose another folder"):
            compare(tmp_path / "file")

    def test_another_version(self, tmp_path):
        (tmp_path / RECORD).write_text('{"format": "initopt comparison 99"}')
        with pytest.raises(ValueError, match="is no 'initopt comparison 2' file; was it written by another version"):
            compare(tmp_path)

    def test_one_that_cannot_be_written(self, tmp_path, monkeypatch):
        monkeypatch.setattr("initopt.comparison.storage.folder.os.access", lambda path, mode: False)
        with pytest.raises(PermissionError, match="is not writable; choose another folder"):
            compare(tmp_path / "out")

    @pytest.mark.usefixtures("done")
    def test_two_at_a_time(self, tmp_path):
        record = {name: value for name, value in read_json(tmp_path / "out" / RECORD).items() if name != "format"}
        versions = record.pop("versions")
        with (
            opened(tmp_path / "out", record, versions),
            pytest.raises(BlockingIOError, match="another process is at work in .*; wait until it is done"),
        ):
            compare(tmp_path / "out")
        compare(tmp_path / "out")

    @pytest.mark.usefixtures("done")
    def test_what_was_being_written_is_removed(self, tmp_path):
        place = next(iter(folders(tmp_path / "out")))
        half = killed_while_writing(place)
        shutil.copytree(place, half / "new", dirs_exist_ok=True)
        others = [killed_while_writing(tmp_path / "out" / name) for name in (RECORD, "report")]
        shutil.rmtree(place)
        assert len(load_comparison(tmp_path / "out").runs) == 3
        compare(tmp_path / "out")
        assert not [left for left in (half, *others) if left.exists()]

    @pytest.mark.heavy
    def test_a_new_one_of_which_only_the_lock_was_made(self, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / ".lock").touch()
        killed_while_writing(tmp_path / "out" / RECORD)
        assert len(compare(tmp_path / "out").runs) == 4

    @pytest.mark.usefixtures("done")
    def test_nothing_of_others_is_removed(self, tmp_path):
        """Hidden folders below, a swap file, and what only looks like a leftover, in a place that is not that of a run."""
        run = next(iter(folders(tmp_path / "out")))
        kept = [
            tmp_path / "out" / "runs" / ".git" / "HEAD",
            run.parent / ".ipynb_checkpoints" / "a.ipynb",
            run.parent / ".seed=0.backup00" / "run.json",
            run.parent / ".notes.initopt-abcdefgh" / "new",
            run.parent.parent / ".seed=0.initopt-abcdefgh" / "new",
            tmp_path / "out" / f".{RECORD}.swp",
            tmp_path / "out" / ".report.md.swp",
            run.parent / ".seed=7.initopt-abcdefgh" / "mine",
        ]
        for path in kept:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("mine")
        compare(tmp_path / "out")
        assert [path.read_text() for path in kept] == ["mine"] * len(kept)

    @pytest.mark.usefixtures("done")
    def test_what_another_process_is_at_is_not_removed(self, tmp_path):
        place = next(iter(folders(tmp_path / "out")))
        with workshop(place) as shop:
            shop.new.write_text("half of it")
            compare(tmp_path / "out")
            assert shop.new.exists()

    @pytest.mark.parametrize("where", ["runs", "runs/small", "runs/small/nio/lr=0.1", "runs/small/nio/lr=0.1/seed=0"])
    @pytest.mark.usefixtures("done")
    def test_no_link_is_followed(self, tmp_path, where):
        victim = tmp_path / "victim"
        (tmp_path / "out" / where).rename(victim)
        (victim / ".ssh").mkdir()
        (victim / ".seed=0.initopt-abcdefgh").mkdir()
        (tmp_path / "out" / where).symlink_to(victim)
        before = sorted(victim.rglob("*"))
        with pytest.warns(UserWarning, match=f"{where} is a link, which is not followed"):
            found = compare(tmp_path / "out", retry_failed=True)
        assert found.problems
        assert sorted(victim.rglob("*")) == before

    @pytest.mark.usefixtures("done")
    def test_a_hidden_link_is_left_alone(self, tmp_path):
        (tmp_path / "out" / "runs" / ".trash").symlink_to(tmp_path)
        assert len(compare(tmp_path / "out").runs) == 4

    @pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
    @pytest.mark.usefixtures("done")
    def test_a_lock_that_is_none(self, tmp_path, kind):
        lock, victim = tmp_path / "out" / ".lock", tmp_path / "thesis.tex"
        victim.write_text("mine")
        lock.unlink()
        {"link": lambda: lock.symlink_to(victim), "folder": lock.mkdir, "fifo": lambda: os.mkfifo(lock)}[kind]()
        with pytest.raises(FileExistsError, match=r"\.lock is not the file that initopt writes"):
            compare(tmp_path / "out")
        assert victim.read_text() == "mine"


def killed_while_writing(target):
    """What is left of it: a folder with a lock that nobody holds."""
    left = target.with_name(f".{target.name}.initopt-abcdefgh")
    (left / "new").mkdir(parents=True)
    (left / "lock").touch()
    return left


class TestRetry:
    """``retry_failed`` in a folder of somebody else: no path is built from what a record says."""

    NAMES = ("network", "initialization", "lr", "seed")

    def failed_run(self, stored, tmp_path):
        shutil.copytree(stored / "failed", tmp_path / "out")
        return next(file.parent for file in (tmp_path / "out" / "runs").rglob("run.json") if '"failed"' in file.read_text())

    @pytest.mark.parametrize("name", NAMES)
    def test_removes_nothing_outside(self, stored, tmp_path, name):
        place = self.failed_run(stored, tmp_path)
        victim = tmp_path / "victim"
        victim.mkdir()
        (victim / "seed=1").mkdir()
        (victim / "thesis.tex").write_text("mine")
        record = json.loads((place / "run.json").read_text())
        hostile = {"seed": "x/../../../../../../victim", "lr": "../../../../../victim"}.get(name, str(victim))
        (place / "run.json").write_text(json.dumps(record | {name: hostile}))
        with pytest.warns(UserWarning, match="not all of the comparison"):
            found = compare(
                tmp_path / "out",
                models={"net": functools.partial(raising, 1, "exception")},
                seeds=2,
                retry_failed=True,
            )
        assert any(str(place) in problem for problem in found.problems)
        assert sorted(item.name for item in victim.iterdir()) == ["seed=1", "thesis.tex"]

    def test_a_copy_of_a_failed_run_beside_a_good_one(self, stored, tmp_path):
        place = self.failed_run(stored, tmp_path)
        good = next(other for other in place.parent.iterdir() if other != place)
        copy = place.with_name("seed=1 before")
        shutil.copytree(place, copy)
        shutil.copyfile(good / "run.json", place / "run.json")  # a failed run that claims to be the good one
        record = json.loads((good / "run.json").read_text())
        (place / "run.json").write_text(json.dumps(record | {"status": "failed"}))
        before = (good / "run.json").read_text()
        with pytest.warns(UserWarning, match="which does not belong there"):
            compare(
                tmp_path / "out",
                models={"net": functools.partial(raising, 1, "exception")},
                seeds=2,
                retry_failed=True,
            )
        assert (good / "run.json").read_text() == before
        assert copy.is_dir()

    def test_a_folder_with_notes_in_it_is_kept(self, stored, tmp_path):
        place = self.failed_run(stored, tmp_path)
        (place / "notes.txt").write_text("why did it fail?")
        with pytest.raises(FileExistsError, match=r"holds files that initopt did not write: notes\.txt"):
            compare(
                tmp_path / "out",
                models={"net": functools.partial(raising, 1, "exception")},
                seeds=2,
                retry_failed=True,
            )
        assert (place / "notes.txt").exists()


class TestStorageThatFails:
    def test_a_full_disk(self, tmp_path, monkeypatch):
        """One run cannot be stored; it is reported, the others are done, and the next call does it."""
        import initopt.comparison.storage.folder as folder_module

        original = folder_module.write_run

        def full(record, folder):
            if (record.initialization, record.seed) == ("default", 1):
                (folder / "half").write_text("a part of it")
                raise OSError(errno.ENOSPC, "No space left on device")
            original(record, folder)

        monkeypatch.setattr(folder_module, "write_run", full)
        with pytest.warns(
            UserWarning, match=r"not all of the comparison in .*\n.*: its result could not be stored: .*No space left"
        ):
            found = compare(tmp_path / "out")
        assert len(found.runs) == 3
        (problem,) = found.problems
        assert problem.startswith("small from default, seed 1, lr=0.1: its result could not be stored")
        assert not list((tmp_path / "out").rglob("half"))
        monkeypatch.undo()
        assert len(compare(tmp_path / "out").runs) == 4

    @pytest.mark.slow
    def test_a_limit_on_files(self, tmp_path):
        """The operating system itself refuses to write on, at the curves of runs that are looked at often."""
        often = Network(small, {"looks_per_epoch": 6, "epochs": 40})
        arguments = {"models": {"seldom": small, "often": often}, "initializations": ["default"]}
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))
        try:
            with pytest.warns(UserWarning, match="its result could not be stored: .*File too large"):
                found = compare(tmp_path / "out", **arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        assert [(run.network, run.seed) for run in found.runs] == [("seldom", 0), ("seldom", 1)]
        assert len(found.problems) == 2
        assert not list((tmp_path / "out").rglob(".seed*"))
        assert len(compare(tmp_path / "out", **arguments).runs) == 4

    @pytest.mark.heavy
    def test_a_selection_run_that_could_not_be_stored_leaves_the_choice_open(self, stored, tmp_path, monkeypatch):
        import initopt.comparison.storage.folder as folder_module

        original = folder_module.write_run

        def full(record, into):
            if record.purpose == "selection" and (record.initialization, record.seed) == ("nio", 1001):
                raise OSError(errno.ENOSPC, "No space left on device")
            original(record, into)

        monkeypatch.setattr(folder_module, "write_run", full)
        with pytest.warns(UserWarning, match="not all of the comparison"):
            found = compare(tmp_path / "out", recipe=GRID)
        assert {run.initialization for run in found.runs} == {"default"}
        assert any(
            "small from nio: no learning rate can be chosen, since not all runs are there" in p for p in found.problems
        )
        monkeypatch.undo()
        compare(tmp_path / "out", recipe=GRID)
        assert table(tmp_path / "out") == table(stored / "grid")

    @pytest.mark.parametrize("damage", ["truncated", "unreadable", "of another run"])
    @pytest.mark.usefixtures("done")
    def test_a_stored_run_that_cannot_be_read(self, tmp_path, monkeypatch, counted, damage):
        place = tmp_path / "out" / "runs" / "small" / "nio" / "lr=0.1" / "seed=0"
        shutil.rmtree(tmp_path / "out" / "runs" / "small" / "default")
        counted.clear()
        if damage == "truncated":
            (place / "run.json").write_bytes((place / "run.json").read_bytes()[:-100])
        elif damage == "unreadable":
            original = os.open

            def refusing(path, *args, **kwargs):
                if Path(path).parent == place:
                    raise PermissionError(errno.EACCES, "Permission denied", str(path))
                return original(path, *args, **kwargs)

            monkeypatch.setattr(os, "open", refusing)
        else:
            record = json.loads((place / "run.json").read_text())
            (place / "run.json").write_text(json.dumps(record | {"seed": 7}))
        with pytest.warns(UserWarning, match="not all of the comparison in .* is there"):
            found = compare(tmp_path / "out")
        assert len(counted) == 2  # those of the default start
        assert {run.seed for run in found.runs if run.initialization == "default"} == {0, 1}
        assert any(str(place) in problem for problem in found.problems)
        assert (place / "run.json").exists()


class TestWorkers:
    @pytest.mark.heavy
    def test_same_results_for_any_number_of_them(self, stored, tmp_path):
        compare(tmp_path / "two", recipe=GRID, workers=2)
        assert table(stored / "grid") == table(tmp_path / "two")

    @pytest.mark.slow
    def test_a_run_that_kills_its_process(self, tmp_path):
        models = {"net": functools.partial(raising, 1, "kill")}
        found = compare(tmp_path / "out", models=models, initializations=["default"], seeds=3, workers=2)
        statuses = {run.seed: run.status for run in found.runs}
        assert statuses == {0: "done", 1: "failed", 2: "done"}
        failed = next(run for run in found.runs if run.status == "failed")
        assert failed.error == "the process of the run ended twice (killed by SIGKILL); it may be that memory ran out"

    @pytest.mark.slow
    def test_those_that_die_while_they_start_are_replaced(self, tmp_path):
        (tmp_path / "dead").mkdir()
        models = {"net": DeadOnArrival(tmp_path / "dead", 2)}
        found = compare(tmp_path / "out", models=models, initializations=["default"], workers=2)
        assert [run.status for run in found.runs] == ["done", "done"]
        assert len(list((tmp_path / "dead").iterdir())) == 2

    @pytest.mark.slow
    def test_not_for_ever(self, tmp_path):
        (tmp_path / "dead").mkdir()
        models = {"net": DeadOnArrival(tmp_path / "dead", 99)}
        with pytest.raises(
            RuntimeError, match="5 worker processes in a row ended .* killed by SIGKILL; it may be that memory"
        ):
            compare(tmp_path / "out", models=models, initializations=["default"], workers=2)

    @pytest.mark.slow
    def test_one_that_raises(self, tmp_path, capfd):
        models = {"net": functools.partial(raising, 1, "exception")}
        found = compare(tmp_path / "out", models=models, initializations=["default"], seeds=3, workers=2)
        assert capfd.readouterr() == ("", "")  # they end without a word
        assert {run.seed: run.status for run in found.runs} == {0: "done", 1: "failed", 2: "done"}

    @pytest.mark.usefixtures("workers_are_forked")
    def test_none_is_left_after_an_interrupt(self, tmp_path, monkeypatch):
        def interrupted(*arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr(execute_module, "store_run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compare(tmp_path / "out", workers=2)
        assert multiprocessing.active_children() == []

    @pytest.mark.heavy
    @pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes as Linux has them")
    @pytest.mark.parametrize(
        ("moment", "number", "status"),
        [
            ("they start", signal.SIGINT, 130),
            pytest.param("they work", signal.SIGTERM, 143, marks=pytest.mark.slow),
            pytest.param("they start", signal.SIGTERM, 143, marks=pytest.mark.slow),
            pytest.param("they work", signal.SIGINT, 130, marks=pytest.mark.slow),
        ],
    )
    def test_all_end_without_a_word(self, tmp_path, number, status, moment):
        """After Ctrl-C, which a terminal sends to all of them, and after SIGTERM, which a cluster sends to all."""
        command = [
            sys.executable,
            "-m",
            "initopt",
            "compare",
            "--models.a",
            "tests.comparing.small_digits",
            "--workers",
            "2",
        ]
        command += ["--initializations", "default,nio", "--recipe.epochs", "50", "--out", str(tmp_path / "out")]
        process = subprocess.Popen(command, env=with_the_tests(), stderr=subprocess.PIPE, start_new_session=True, text=True)
        awaited = {"they start": "comparison.json", "they work": "run.json"}[moment]
        while not list((tmp_path / "out").rglob(awaited)):
            assert process.poll() is None
            time.sleep(0.01)
        while moment == "they start" and len(session(process.pid)) < 3:  # the one that leads, and a worker or two
            time.sleep(0.01)
        os.killpg(process.pid, number)
        assert process.communicate(timeout=120)[1] == ""
        assert process.returncode == status
        assert_none_left(process.pid)

    @pytest.mark.slow
    def test_a_script_without_the_line_that_it_needs(self, tmp_path):
        script = tmp_path / "script.py"
        script.write_text(
            "from pathlib import Path\nfrom tests.comparing import compare\n"
            "compare(Path(__file__).parent / 'out', workers=2)\n"
        )
        ended = subprocess.run(
            [sys.executable, str(script)], env=with_the_tests(), capture_output=True, text=True, timeout=120
        )
        assert ended.returncode == 1
        assert "needs the line: if __name__ == '__main__':" in ended.stderr


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
class TestLoaders:
    @pytest.mark.heavy
    @pytest.mark.usefixtures("workers_are_forked")
    @pytest.mark.parametrize(("workers", "recipe"), [(1, GRID), (2, RECIPE)])
    def test_same_results_for_any_number_of_them(self, tmp_path, workers, recipe):
        options = {"models": {"net": functools.partial(small, dropout=0.5)}, "data": noisy_blobs, "recipe": recipe}
        for loaders in (0, 2):
            compare(tmp_path / str(loaders), **options, seeds=1, selection_seeds=1, workers=workers, loaders=loaders)
        assert table(tmp_path / "0") == table(tmp_path / "2")
        assert '"status": "failed"' not in "".join(table(tmp_path / "0"))

    @pytest.mark.heavy
    def test_a_folder_is_gone_on_with_by_another_number(self, tmp_path, counted):
        compare(tmp_path / "out", data=noisy_blobs)
        expected = table(tmp_path / "out")
        shutil.rmtree(tmp_path / "out" / "runs" / "small" / "nio" / "lr=0.1" / "seed=1")
        counted.clear()
        compare(tmp_path / "out", data=noisy_blobs, loaders=2)
        assert len(counted) == 1
        assert table(tmp_path / "out") == expected


KILLED = """
import sys
from contextlib import nullcontext
from pathlib import Path
from tests.comparing import NIO, RECIPE, compare, small

def elsewhere(name):
    from initopt.integrations.ray import RayExecutor
    return RayExecutor("local") if name == "ray" else nullcontext()

if __name__ == "__main__":
    epochs, report, models = {"quick": (10, False, "a"), "thorough": (60, True, "ab")}[sys.argv[3]]
    with elsewhere(sys.argv[2]) as executor:
        compare(Path(sys.argv[1]), models=dict.fromkeys(models, small), initializations=["default", NIO],
                recipe=RECIPE | {"lr": [0.01, 0.1], "epochs": epochs}, seeds=4, executor=executor,
                workers=1 if executor else int(sys.argv[2]), report=report, retry_failed=True)
"""
RUNS = {"quick": 2 * (2 * 2 + 4), "thorough": 2 * 2 * (2 * 2 + 4)}


def is_a_worker(line):
    return "spawn_main" in line or line.startswith("ray::_call")


class Killed:
    """A comparison that is killed by kill -9 again and again, and then left alone."""

    def __init__(self, folder, workers, kind):
        self.folder, self.workers, self.kind = folder, workers, kind
        self.script, self.said = folder / "script.py", folder / "stderr"
        self.script.write_text(KILLED)

    def start(self, name, workers=None):
        arguments = str(self.folder / name), str(workers or self.workers), self.kind
        if self.kind == "quick":
            return Python(KILLED, *arguments, said=self.folder, environment=with_the_tests(), new_session=True)
        command = [sys.executable, str(self.script), *arguments]
        with self.said.open("wb") as said:
            return subprocess.Popen(command, env=with_the_tests(), stderr=said, start_new_session=True)

    def stored(self):
        return len(list((self.folder / "killed" / "runs").glob("*/*/*/*/run.json")))

    def kill(self, more, pause, group=False, worker=False):
        """Kill it when some more runs are stored, and a pause after that.

        Args:
            more: how many more.
            pause: in seconds.
            group: whether all its processes are killed, or the one that leads.
            worker: whether one of its workers is killed first, and it goes on from there.
        """
        process, goal = self.start("killed"), self.stored() + more
        self.wait(process, goal)
        if worker:
            self.kill_a_worker(process)
            self.wait(process, goal + more)
        time.sleep(pause)
        assert process.poll() is None, "it was done before it could be killed"
        os.killpg(process.pid, signal.SIGKILL) if group else process.kill()
        process.wait()
        assert_none_left(process.pid)

    def wait(self, process, goal):
        while self.stored() < goal:
            self.pause(process)

    def pause(self, process):
        assert process.poll() is None, f"it has ended by itself: {self.said.read_text()[-3000:]}"
        time.sleep(0.01)

    def kill_a_worker(self, process):
        while not (workers := [n for n, line in session(process.pid).items() if is_a_worker(line)]):
            self.pause(process)
        os.kill(workers[0], signal.SIGKILL)

    def check(self):
        for name, workers in (("killed", None), ("unbroken", 1)):
            assert self.start(name, workers).wait(300) == 0
        tables = [table(self.folder / name) for name in ("killed", "unbroken")]
        assert tables[0] == tables[1]
        assert len(tables[0]) == RUNS[self.kind]
        assert not [path for path in (self.folder / "killed").rglob(".*") if path.name not in (".lock", ".initopt-report")]


@pytest.mark.heavy
def test_killed_twice(tmp_path):
    comparison = Killed(tmp_path, workers=1, kind="quick")
    comparison.kill(1, 0.02)
    comparison.kill(9, 0.0)  # among the final runs
    assert comparison.stored() >= 10
    comparison.check()


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "group"), [(1, False), (2, True), (2, False)])
def test_killed_at_ten_random_moments(tmp_path, workers, group):
    comparison = Killed(tmp_path, workers, kind="thorough")
    draws = random.Random(workers)
    for _ in range(10):
        more = draws.choice([0, 1, 2])
        comparison.kill(more, draws.uniform(0, 0.1) if more else draws.uniform(0, 3), group)
    comparison.check()


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["2", "ray"])
def test_ten_kills_of_workers_and_of_the_one_that_leads(tmp_path, workers):
    if workers == "ray":
        pytest.importorskip("ray")
    comparison = Killed(tmp_path, workers, kind="thorough")
    draws = random.Random(1)
    for _ in range(10):
        comparison.kill(draws.choice([0, 1]), draws.uniform(0, 0.5), worker=True)
    comparison.check()


def test_the_table_leaves_nothing_out_but_times(tmp_path):
    found = compare(tmp_path / "out", seeds=1)
    fields = {field.name for field in dataclasses.fields(found.runs[0])}
    missing = fields - set(json.loads(table(tmp_path / "out")[0]))
    assert missing == {"initialization_seconds", "initialization_steps", "step_seconds", "seconds"}
