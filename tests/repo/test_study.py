"""The study of the defaults runs, goes on, and its own loop is NIO."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

STUDY = Path(__file__).parents[2] / "benchmarks" / "study"
if not STUDY.is_dir():
    pytest.skip("the study comes with the repository alone", allow_module_level=True)

SAME = """
import copy, torch, initopt
from ideas import Idea, nio_with
from starts import UNCENTRED
from torch import nn
from train import loss_of

def plain():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))

def normed():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

for make in (plain, normed):
    torch.manual_seed(0)
    one = make()
    centred, too = copy.deepcopy(one), copy.deepcopy(one)
    two, others = copy.deepcopy(one), [copy.deepcopy(one) for _ in range(7)]
    batches = [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(60)]
    initopt.nio(one, batches, loss_of, steps=15, measure_steps=0, progress=False, **UNCENTRED)
    nio_with(two, batches, Idea(), steps=15)
    initopt.nio(centred, batches, loss_of, steps=15, measure_steps=0, progress=False)
    nio_with(too, batches, Idea(centred="subbatch"), steps=15)
    for its, other in ((one, two), (centred, too)):
        for expected, found in zip(its.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    changed = [Idea(logarithms=True), Idea(averaged=True), Idea(per_channel=True), Idea(preconditioned="entry"),
               Idea(preconditioned="tensor"), Idea(batches=4),
               Idea(centred="batch")]
    for other, idea in zip(others, changed, strict=True):
        nio_with(other, batches, idea, steps=15)
        assert any(not torch.allclose(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True)), idea
"""


def python(*arguments: str, cwd: Path = STUDY) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_loop_of_the_ideas_is_nio_and_every_idea_changes_it() -> None:
    python("-c", SAME)


def test_a_study_goes_on_and_makes_pages(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    call = ["study.py", "--cifar", "none", "--text", "none", "--networks", "mlp-tanh", "--seeds", "0", "--out", str(out)]
    python(*call, "--starts", "default")
    first = out.read_text()
    python(*call, "--starts", "default;nio")
    assert out.read_text().startswith(first)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["start"] for row in rows] == 4 * ["default"] + 4 * ["nio"]
    assert rows[-1]["grad_norm"][1] > rows[-1]["grad_norm"][0]
    script = "import json, sys; from defaults_page import page; print(page(map(json.loads, open(sys.argv[1]))))"
    written = python("-c", script, str(out))
    assert "| nio | +" in written
    assert "<!-- table" not in written
