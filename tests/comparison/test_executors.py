"""Who does the runs does not matter: the table is the same, and only the process that compares writes to the folder."""

import dataclasses
import functools
import threading
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import torch

import initopt.comparison.running.execute as execute_module
import initopt.comparison.running.workers as workers_module
from initopt._support.reading import read_json
from initopt.comparison.running import executors
from initopt.comparison.spec.hardware import Hardware
from tests.comparing import NIO, RECIPE, compare, raising, small, table
from tests.forks import forking

pytestmark = pytest.mark.training

GRID = RECIPE | {"lr": [0.01, 0.1]}


class Promise:
    """As little as a future may have."""

    def __init__(self, value=None, error=None):
        self.value, self.error = value, error

    def result(self):
        if self.error is not None:
            raise self.error
        return self.value


class AtOnce:
    """Calls a function as soon as it is submitted.

    Args:
        fails: what to raise in the place of a call, given its number (the first is 0) and its group of runs, if any.
    """

    def __init__(self, fails=lambda number, group: None):
        self.fails, self.groups = fails, []

    def submit(self, function, *arguments):
        group = arguments[2] if len(arguments) > 2 else None
        error = self.fails(len(self.groups), group)
        self.groups.append(group)
        return Promise(error=error) if error else Promise(function(*arguments))


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The table of a comparison in one process."""
    folder = tmp_path_factory.mktemp("one") / "out"
    compare(folder, recipe=GRID)
    return table(folder)


class TestTheSameTable:
    @pytest.mark.heavy
    def test_by_the_least_that_there_can_be(self, tmp_path, expected):
        executor = AtOnce()
        compare(tmp_path / "out", recipe=GRID, executor=executor)
        assert table(tmp_path / "out") == expected
        assert [len(group or ()) for group in executor.groups] == [0] + [2] * 4 + [1] * 4

    def test_by_threads_which_share_the_generators_of_this_process(self, tmp_path, expected):
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(3) as executor:
            compare(tmp_path / "out", recipe=GRID, executor=executor)
        assert table(tmp_path / "out") == expected
        assert torch.get_num_threads() == threads

    @pytest.mark.processes
    def test_by_processes_which_write_nothing(self, tmp_path, expected, monkeypatch):
        stored = []
        original = execute_module.store_run
        monkeypatch.setattr(execute_module, "store_run", lambda *a: (stored.append(a[1]), original(*a)))
        with ProcessPoolExecutor(2, forking()) as executor:
            compare(tmp_path / "out", recipe=GRID, executor=executor)
        assert table(tmp_path / "out") == expected
        assert len(stored) == len(expected) == 12

    @pytest.mark.heavy
    def test_a_folder_is_gone_on_with_by_another(self, tmp_path, expected):
        def stop(number, group):
            return KeyboardInterrupt() if number == 6 else None

        with pytest.raises(KeyboardInterrupt):
            compare(tmp_path / "out", recipe=GRID, executor=AtOnce(stop))
        executor = AtOnce()
        compare(tmp_path / "out", recipe=GRID, executor=executor)
        assert len(executor.groups) == 1 + 3
        assert table(tmp_path / "out") == expected


def test_gpus_that_are_not_there(tmp_path):
    """Nobody waits for runs on a processor who has asked for a GPU, unless by name."""
    executor = AtOnce()
    executor.num_gpus = 0.5
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=r"has num_gpus=0.5 for each run, but torch sees no GPU .* accelerator='cpu'"):
        compare(tmp_path / "out", executor=executor, accelerator="auto")
    assert not (tmp_path / "out" / "runs").exists()
    assert executor.groups == [None]
    compare(tmp_path / "out", seeds=1, initializations=["default"], executor=executor)


class TestCallsThatComeToNothing:
    @pytest.mark.heavy
    def test_are_tried_once_more_run_by_run(self, tmp_path, expected):
        executor = AtOnce(lambda number, group: OSError("gone") if number in (1, 9) else None)
        compare(tmp_path / "out", recipe=GRID, executor=executor)
        assert table(tmp_path / "out") == expected
        assert [len(group or ()) for group in executor.groups].count(2) == 4
        assert len(executor.groups) == 1 + (4 + 2) + (4 + 1)

    def test_twice_are_runs_that_failed_and_the_others_go_on(self, tmp_path):
        def fails(number, group):
            return MemoryError("none left") if group and group[0].seed == 1 else None

        executor = AtOnce(fails)
        found = compare(tmp_path / "out", initializations=["default"], executor=executor)
        assert [(run.seed, run.status) for run in found.runs] == [(0, "done"), (1, "failed")]
        assert found.runs[1].error == "the executor came to no result twice, the last time to MemoryError: none left"
        assert len(executor.groups) == 1 + 3

    def test_are_left_to_an_executor_that_tries_them_again_itself(self, tmp_path):
        executor = AtOnce(lambda number, group: MemoryError() if group and group[0].seed == 1 else None)
        executor.max_retries = 1
        found = compare(tmp_path / "out", initializations=["default"], executor=executor)
        assert [(run.seed, run.status) for run in found.runs] == [(0, "done"), (1, "failed")]
        assert len(executor.groups) == 1 + 2

    @pytest.mark.heavy
    @pytest.mark.processes
    @pytest.mark.usefixtures("workers_are_forked")
    def test_an_executor_that_breaks_whole(self, tmp_path):
        """As those of the standard library do: what is done is stored, and another one goes on."""
        arguments = {"models": {"net": functools.partial(raising, 1, "kill")}, "initializations": ["default"], "seeds": 3}
        with (
            ProcessPoolExecutor(1, forking()) as executor,
            pytest.raises(RuntimeError, match="takes no more runs .*; what is done is stored, and the same call with"),
        ):
            compare(tmp_path / "out", executor=executor, **arguments)
        found = compare(tmp_path / "out", workers=2, **arguments)
        assert [run.status for run in found.runs] == ["done", "failed", "done"]
        assert "killed by SIGKILL" in found.runs[1].error


class TestWhileItGoesOn:
    @pytest.mark.heavy
    def test_runs_are_stored_in_the_order_in_which_they_are_done(self, tmp_path):
        class LastFirst:
            """Does the calls of a group of four backwards, each when the one before is stored."""

            def __init__(self):
                self.calls = []

            def submit(self, function, *arguments):
                future = Future()
                if len(arguments) == 2:
                    future.set_result(function(*arguments))
                    return future
                self.calls.append((future, function, arguments))
                if len(self.calls) == 4:
                    threading.Thread(target=self.work, daemon=True).start()
                return future

            def work(self):
                for number, (future, function, arguments) in enumerate(reversed(self.calls)):
                    while len(list((tmp_path / "out").rglob("run.json"))) < number:
                        assert not stopped.wait(0.01)
                    future.set_result(function(*arguments))

        stopped = threading.Event()
        found = compare(tmp_path / "out", executor=LastFirst())
        stopped.set()
        assert [run.status for run in found.runs] == ["done"] * 4

    def test_an_interrupt_cancels_what_has_not_begun(self, tmp_path, monkeypatch):
        promises = []

        class Slow(AtOnce):
            def submit(self, function, *arguments):
                if len(self.groups) < 2:  # the first call, and the first run
                    return super().submit(function, *arguments)
                promises.append(Future())
                return promises[-1]

        def interrupted(*arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr(execute_module, "store_run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compare(tmp_path / "out", seeds=4, executor=Slow())
        assert all(promise.cancelled() for promise in promises)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"executor": 3}, r"executor must be an object with submit\(function, \*arguments\), which .*; got 3"),
        ({"executor": ThreadPoolExecutor}, r"executor must be an object with submit.*got <class"),
        ({"executor": AtOnce(), "workers": 2}, "an executor has workers of its own: leave out either workers=2 or the"),
        ({"executor": AtOnce(), "devices": 2}, "an executor does each run on one device; with devices=2, leave it out"),
        ({"executor": AtOnce(lambda *_: OSError("no network"))}, r"cannot do runs; .* came to OSError: no network\nWhat"),
        ({"executor": AtOnce(), "accelerator": "cuda"}, "Lightning Fabric does not run with accelerator='cuda'"),
        ({"devices": [0, 1], "workers": 2}, r"Lightning Fabric does not run with .*devices=\[0\]"),
        ({"devices": 2, "workers": 2}, r"use workers=1, or list those that they are to take in turn, devices=\[0, 1\]"),
        (
            {"initializations": [NIO | {"options": {"objective": lambda gram: gram}}], "workers": 2},
            "cannot be sent to other",
        ),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="some of these are right with a GPU")
def test_refuses_before_any_work(tmp_path, changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        compare(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_refuses_what_has_no_result(tmp_path):
    class Pool:
        def submit(self, function, *arguments):
            return 3

    with pytest.raises(TypeError, match=r"executor.submit\(\) must return an object with result\(\); .* returned 3"):
        compare(tmp_path / "out", executor=Pool())


class TestDevices:
    @pytest.fixture
    def used(self, monkeypatch):
        """The devices of all engines that are made, all of them on the CPU."""
        used, original = [], Hardware.fabric

        def fabric(self, precision):
            used.append(self.devices)
            return original(dataclasses.replace(self, accelerator="cpu", devices=1), precision)

        monkeypatch.setattr(Hardware, "fabric", fabric)
        return used

    def test_all_gpus_in_turn(self, monkeypatch, used):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
        hardware = Hardware("gpu").for_workers("cuda", "32-true")
        assert used == [[0], [1], [2]]  # each is known to be there
        assert (hardware.accelerator, hardware.devices) == ("cuda", [0, 1, 2])
        assert [hardware.of_worker(number).devices for number in range(5)] == [[0], [1], [2], [0], [1]]

    def test_one_cpu_for_all(self):
        hardware = Hardware("auto").for_workers("cpu", "32-true")
        assert [hardware.of_worker(number).devices for number in range(3)] == [1, 1, 1]

    @pytest.mark.heavy
    def test_a_comparison_that_lists_them(self, tmp_path, monkeypatch, used):
        """Each run is on one device, whichever, so the folder is that of a comparison on one."""

        class Here(AtOnce):
            def __init__(self, count, begin, *arguments, daemon):
                super().__init__()
                for worker in range(count):
                    executors._prepared.clear()
                    begin(*arguments, worker)

            def __enter__(self):
                return self

            def __exit__(self, *exception):
                pass

        monkeypatch.setattr(workers_module, "Workers", Here)
        compare(tmp_path / "out", models={"small": small}, devices=[2, 5], workers=3)
        assert used == [[2], [2], [5], [2], [5], [2]]  # what there is, that it is there, and the three workers
        assert read_json(tmp_path / "out" / "comparison.json")["hardware"]["devices"] == 1
        compare(tmp_path / "out", models={"small": small}, devices=1)
