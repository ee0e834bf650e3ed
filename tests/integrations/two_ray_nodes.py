"""Two Ray nodes on this machine, and what comparisons on them come to: for ``tests/integrations/test_ray_nodes.py``."""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from initopt.integrations.ray import RayExecutor
from tests.comparing import RECIPE, compare, table
from tests.integrations._nodes import here, nodes, noted
from tests.system._sessions import descendants, session

GRID = RECIPE | {"lr": [0.01, 0.1]}


class Counting(RayExecutor):
    """One that counts the calls of runs."""

    calls = 0

    def submit(self, function, /, *arguments):
        self.calls += len(arguments) > 2
        return super().submit(function, *arguments)


def compared(root: Path, name: str, executor: RayExecutor, **changes: object) -> dict[str, object]:
    """A comparison, its table, and the nodes that its networks were made on."""
    folder = root / name
    folder.mkdir(exist_ok=True)
    calls = executor.calls
    changes = {"models": {"small": functools.partial(noted, folder)}, "recipe": GRID} | changes
    try:
        found = compare(root / f"{name} out", executor=executor, **changes)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {
        "table": table(root / f"{name} out"),
        "failed": sum(run.status != "done" for run in found.runs),
        "nodes": sorted(nodes(folder)),
        "calls": executor.calls - calls,
    }


def added(cluster: Cluster, **resources: int) -> tuple[object, str]:
    """A new node, and its name."""
    before = {node["NodeID"] for node in ray.nodes()}
    node = cluster.add_node(**resources)
    (name,) = {node["NodeID"] for node in ray.nodes()} - before
    return node, name


def without_a_node(root: Path, name: str, cluster: Cluster, executor: RayExecutor) -> dict[str, object]:
    """A comparison of which one of two nodes dies while it trains."""
    node, doomed = added(cluster, num_cpus=1)
    folder = root / name
    folder.mkdir()
    (folder / "doomed").write_text(doomed)
    found: list[tuple[int, list[int]]] = []

    def kill() -> None:
        while not (folder / "in training").exists():
            time.sleep(0.05)
        there = descendants(node.all_processes["raylet"][0].process.pid)
        cluster.remove_node(node, allow_graceful=False)
        deadline = time.monotonic() + 60
        while (left := sorted(there & set(session(os.getsid(0))))) and time.monotonic() < deadline:
            time.sleep(0.1)
        found.append((len(there), left))

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    result = compared(root, name, executor)
    killer.join(120)
    return result | {"killed": found, "doomed": doomed}


if __name__ == "__main__":
    root = Path(sys.argv[1])
    found: dict[str, object] = {}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    with Counting(cluster.address) as executor:
        found["both"] = compared(root, "2 nodes", executor)
        found["sees"] = executor.submit(os.getenv, "CUDA_VISIBLE_DEVICES").result()
        cluster.remove_node(second)
        found["retried by Ray"] = without_a_node(root, "2 retried by Ray", cluster, executor)
        found["retried by us"] = without_a_node(root, "2 retried by us", cluster, Counting(max_retries=0))

        _, found["gpu node"] = added(cluster, num_cpus=2, num_gpus=1)
        with_gpu = Counting(num_gpus=0.5)
        found["with a gpu"] = compared(root, "1 with a gpu", with_gpu, recipe=RECIPE, seeds=1)
        found["sees with a gpu"] = with_gpu.submit(os.getenv, "CUDA_VISIBLE_DEVICES").result()
        found["is on"] = with_gpu.submit(here).result()
        for accelerator in ("auto", "cuda"):
            found[accelerator] = compared(root, f"1 {accelerator}", with_gpu, accelerator=accelerator)
    cluster.shutdown()
    (root / "found.json").write_text(json.dumps(found))
