"""Two Ray nodes on one machine, in ``make test-ray``: who does a run, what becomes of it when its node dies, and GPUs.

One script does it all, in a session of its own, since a cluster takes its time to start.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.comparing import RECIPE, compare, table
from tests.helpers import with_the_tests
from tests.system._sessions import assert_none_left

pytest.importorskip("ray")
pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the script has found, once none of its processes is left."""
    folder = tmp_path_factory.mktemp("nodes")
    # A token of its own: one that this user has already, the process that compares would take, and the nodes would not.
    environment = with_the_tests() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    script = Path(__file__).with_name("two_ray_nodes.py")
    command = [sys.executable, "-W", "ignore", str(script), str(folder)]
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said, start_new_session=True)
        assert process.wait(1500) == 0, (folder / "said").read_text()[-4000:]
    assert_none_left(process.pid)
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The table of one process."""
    folder = tmp_path_factory.mktemp("one") / "out"
    compare(folder, recipe=RECIPE | {"lr": [0.01, 0.1]})
    return table(folder)


def test_runs_on_both_nodes(found, expected):
    assert len(found["both"]["nodes"]) == 2
    assert found["both"]["table"] == expected
    assert found["both"]["calls"] == 8


@pytest.mark.parametrize(("who", "more"), [("retried by Ray", 0), ("retried by us", 2)])
def test_a_node_that_dies_while_it_trains(found, expected, who, more):
    of_both = found[who]
    assert of_both["doomed"] in of_both["nodes"]
    assert len(of_both["nodes"]) == 2
    assert of_both["table"] == expected
    assert of_both["failed"] == 0
    assert of_both["calls"] == 8 + more
    ((there, left),) = of_both["killed"]
    assert there >= 2
    assert left == []


def test_a_run_that_asks_for_a_gpu_is_where_one_is_declared(found):
    assert found["with a gpu"]["nodes"] == [found["gpu node"]] == [found["is on"]]
    assert len(found["with a gpu"]["table"]) == 2
    assert found["with a gpu"]["failed"] == 0
    assert found["sees with a gpu"] == "0"


def test_a_run_that_asks_for_none_sees_none(found):
    assert found["sees"] == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_declared_and_not_there(found):
    """Of ``accelerator="auto"``, and where it is asked for by name."""
    assert "Lightning Fabric does not run with accelerator='cuda'" in found["cuda"]["error"]
    assert "has num_gpus=0.5 for each run, but torch sees no GPU where it does them" in found["auto"]["error"]
    assert "accelerator='cpu'" in found["auto"]["error"]
