"""Runs on a Ray cluster: this machine alone, in ``make test-ray``."""

import builtins
import functools
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from torch import nn

from initopt.integrations.ray import RayExecutor
from tests.comparing import RECIPE, compare, raising, small, table
from tests.helpers import with_the_tests
from tests.system._sessions import assert_none_left

GRID = RECIPE | {"lr": [0.01, 0.1]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_cpus": -1}, "num_cpus must be a number 0 or more; got -1"),
        ({"num_gpus": "all"}, "num_gpus must be a number 0 or more; got 'all'"),
        ({"max_retries": -1}, "max_retries must be an integer of 0 or more; got -1"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        RayExecutor(**options)


def test_without_ray(monkeypatch):
    original = builtins.__import__

    def refusing(name, *arguments, **options):
        if name == "ray":
            raise ImportError("no module of that name")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refusing)
    with pytest.raises(ImportError, match=r"RayExecutor needs Ray: pip install 'initopt\[ray\]'"):
        RayExecutor()


@pytest.mark.slow
def test_the_command_line_refuses_resources_without_a_cluster(tmp_path):
    command = [sys.executable, "-m", "initopt", "compare", "--models.a", "tests.comparing.small_digits"]
    command += ["--initializations", "default", "--out", str(tmp_path / "out"), "--ray-num-gpus", "1"]
    ended = subprocess.run(command, env=with_the_tests(), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert "--ray_num_gpus is of a Ray cluster, and there is no --ray_address" in ended.stderr


def add(one, other):
    one += other  # arrays that Ray had unpacked itself could not be written to
    return one


def fail():
    raise KeyError("what I did")


@pytest.fixture(scope="class")
def executor():
    pytest.importorskip("ray")
    handler = signal.getsignal(signal.SIGTERM)
    with RayExecutor("local", num_cpus=1) as executor:
        assert signal.getsignal(signal.SIGTERM) is handler
        yield executor
    with pytest.raises(RuntimeError, match="Ray has been shut down in this process"):
        executor.submit(add, 1, 2)


@pytest.mark.filterwarnings("default")  # those of Ray about itself
class TestReal:
    def test_calls(self, executor):
        array = np.ones(3)
        futures = [executor.submit(add, array, number) for number in range(3)]
        assert [future.result().tolist() for future in futures] == [[1] * 3, [2] * 3, [3] * 3]
        with pytest.raises(KeyError, match="what I did"):
            executor.submit(fail).result()
        assert repr(executor) == "RayExecutor(num_cpus=1, num_gpus=0, max_retries=1)"

    def test_same_table_as_one_process(self, tmp_path, executor):
        compare(tmp_path / "one", recipe=GRID)
        compare(tmp_path / "ray", recipe=GRID, executor=executor)
        assert table(tmp_path / "one") == table(tmp_path / "ray")

    def test_a_run_that_kills_its_process(self, tmp_path, executor):
        models = {"net": functools.partial(raising, 1, "kill")}
        found = compare(tmp_path / "out", models=models, initializations=["default"], seeds=3, executor=executor)
        assert {run.seed: run.status for run in found.runs} == {0: "done", 1: "failed", 2: "done"}
        assert "came to no result twice, the last time to WorkerCrashedError" in found.runs[1].error

    def test_networks_that_only_this_process_has(self, tmp_path, executor):
        found = compare(tmp_path / "out", models={"net": lambda: nn.Sequential(small())}, executor=executor)
        assert [run.status for run in found.runs] == ["done"] * 4

    def test_hardware_that_is_not_there(self, tmp_path, executor):
        with pytest.raises(
            ValueError, match="cannot do runs; its first call came to ValueError: Lightning Fabric does not"
        ):
            compare(tmp_path / "out", executor=executor, accelerator="cuda")

    def test_another_address_while_it_is_at_work(self, executor):
        with pytest.raises(ValueError, match="Ray is at work in this process already; leave out address='auto'"):
            RayExecutor("auto")

    def test_more_than_any_machine_has(self, executor):
        with pytest.warns(UserWarning, match=r"no machine of the Ray cluster has num_cpus=1 and num_gpus=64 \(they have"):
            RayExecutor(num_gpus=64)

    def test_what_is_cancelled_ends(self, executor):
        future = executor.submit(time.sleep, 600)
        found = []

        def wait():
            try:
                found.append(future.result())
            except Exception as error:
                found.append(type(error).__name__)

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        time.sleep(1)
        future.cancel()
        thread.join(60)
        assert found in (["TaskCancelledError"], ["WorkerCrashedError"])


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_the_command_line_leaves_nothing_running(tmp_path, number, status):
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "initopt", "compare", "--models.a", "tests.comparing.small_digits", "--ray-address"]
    command += ["local", "--initializations", "default,nio", "--recipe.epochs", "20", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, env=with_the_tests(), stderr=subprocess.DEVNULL, start_new_session=True)
    while not list((tmp_path / "out").rglob("run.json")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, number)
    assert process.wait(120) == status
    assert_none_left(process.pid)
