"""The study of the defaults runs, goes on, and its own loop is NIO."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.forks import python

pytestmark = pytest.mark.processes

STUDY = Path(__file__).parents[2] / "benchmarks" / "study"
if not STUDY.is_dir():
    pytest.skip("the study comes with the repository alone", allow_module_level=True)

SAME = """
import copy, torch, initopt
from ideas import Idea, loss_of, nio_with
from starts import UNCENTRED
from torch import nn

def plain():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))

def normed():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

for make in (plain, normed):
    torch.manual_seed(0)
    one = make()
    centred, too = copy.deepcopy(one), copy.deepcopy(one)
    two, others = copy.deepcopy(one), [copy.deepcopy(one) for _ in range(8)]
    batches = [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(60)]
    initopt.nio(one, batches, loss_of, steps=15, measure_batches=0, progress=False, **UNCENTRED)
    nio_with(two, batches, idea=Idea(), steps=15)
    initopt.nio(centred, batches, loss_of, steps=15, measure_batches=0, progress=False)
    nio_with(too, batches, idea=Idea(centred="subbatch"), steps=15)
    for its, other in ((one, two), (centred, too)):
        for expected, found in zip(its.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    changed = [Idea(logarithms=True), Idea(averaged=True), Idea(per_channel=True), Idea(preconditioned="entry"),
               Idea(preconditioned="tensor"), Idea(batches=4),
               Idea(centred="batch"), Idea(excess=True)]
    for other, idea in zip(others, changed, strict=True):
        nio_with(other, batches, idea=idea, steps=15)
        assert any(not torch.allclose(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True)), idea
"""


def said(program: str, *arguments: str) -> str:
    """What a program in the folder of the study, or a file there, prints."""
    if program.endswith(".py"):
        program = f"import runpy; runpy.run_path({str(STUDY / program)!r}, run_name='__main__')"
    done = python(program, *arguments, cwd=STUDY)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.heavy
def test_the_loop_of_the_ideas_is_nio_and_every_idea_changes_it() -> None:
    said(SAME)


@pytest.mark.heavy
def test_every_start_is_an_initialization() -> None:
    script = """
from command import sources
from study import experiment
from starts import STARTS, in_folders
from subjects import NETWORKS
from initopt.comparison.spec.plan import Plan
from initopt.comparison.spec.hardware import Hardware

for name in ("mlp-tanh", "gpt"):
    call = experiment(name, list(STARTS), [0, 1, 2], sources(None, None))
    parts = [call.pop(part) for part in ("models", "data", "initializations")]
    plan = Plan.create(*parts, recipe=None, hardware=Hardware(), **call)
    assert list(plan.initializations) == list(map(in_folders, STARTS))
    assert all(start.describe() for start in plan.initializations.values())
    assert len(plan.selection_jobs()) == 3 * len(NETWORKS[name].lrs) * len(STARTS)
"""
    said(script)


COMMAND = """
import sys
from pathlib import Path
from command import append_rows, networks_of, parser_of, read_rows

parser = parser_of("Of a script.", ["mlp-tanh", "gpt"])
options = parser.parse_args(["--text", "some.txt"])
assert networks_of(parser, options) == ["mlp-tanh", "gpt"]
assert options.text == Path("some.txt") and options.cifar is None
for networks, words in (("vgg7", "by --cifar"), ("vgg70", "unknown network 'vgg70'")):
    sys.stderr = open(sys.argv[1], "w+")
    try:
        networks_of(parser, parser.parse_args(["--networks", networks]))
    except SystemExit:
        sys.stderr.seek(0)
        assert words in sys.stderr.read()
    else:
        raise AssertionError(networks)
file = Path(sys.argv[2])
assert read_rows(file) == []
append_rows(file, {"a": 1})
append_rows(file, {"b": None}, {"c": "ä"})
assert read_rows(file) == [{"a": 1}, {"b": None}, {"c": "ä"}]
"""


def test_a_command_line_asks_for_the_data_of_its_networks_and_rows_grow(tmp_path: Path) -> None:
    python("-c", COMMAND, str(tmp_path / "said"), str(tmp_path / "rows.jsonl"))


@pytest.mark.slow
def test_a_study_goes_on_and_makes_pages(tmp_path: Path) -> None:
    call = ["study.py", "--networks", "mlp-tanh", "--seeds", "0", "--starts", "default;nio", "--out", str(tmp_path)]
    assert "mlp-tanh" in said(*call)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}
    assert len(before) == 2 * (4 + 1)
    said(*call)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")} == before
    said("defaults_page.py", str(tmp_path), "--out", str(tmp_path / "page.md"))
    written = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "| nio | +" in written
    assert "<!-- table" not in written


def test_the_stored_rows_are_read_and_say_what_the_page_says(tmp_path: Path) -> None:
    said("defaults_page.py", "--out", str(tmp_path / "page.md"))
    page = STUDY.parents[1] / "docs" / "defaults.md"
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == page.read_text(encoding="utf-8")


def test_the_page_of_the_optimizers_bound_has_the_tables_of_its_rows() -> None:
    tables = said("optimizer_bound.py", "--seeds", "").strip()
    page = (STUDY.parents[1] / "docs" / "optimizer-bound.md").read_text(encoding="utf-8")
    assert "| ReLU MLP, 10 layers |" in tables
    for table in tables.split("\n\n"):
        assert table in page


POLAR = """
import torch
from optimizer_bound import polar
from torch import nn

model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 20))
before = [p.detach().clone() for p in model.parameters()]
polar(model)
for old, new in zip(before, model.parameters(), strict=True):
    torch.testing.assert_close(new.norm(), old.norm())
    if new.ndim > 1:
        values = torch.linalg.svdvals(new.detach().flatten(1))
        torch.testing.assert_close(values, values[0].expand_as(values))
        assert float((old * new).sum()) > 0.8 * float(old.norm() * new.norm()), "the nearest one"
    else:
        assert torch.equal(old, new)
"""


def test_polar_factors_keep_directions_and_norms() -> None:
    said(POLAR)


CHOOSING = """
from choosing import WARM_UP, Subject
from choosing_page import networks_in, page
from evidence_page import by_network
from initopt.choice.starts import as_starts
from initopt.data import digits

subject = Subject("mlp-relu", digits(), 0.1, steps=2, horizon=3)
warm = next(start for start in subject.starts() if start.name == WARM_UP)
starts = [*as_starts(["orthogonal"]), warm]
found = [subject.train(start, seed, times) for times in (1, 3) for start in starts for seed in (100, 101)]
assert [row["start"] for row in found] == 2 * ["own", "own", "orthogonal", "orthogonal", WARM_UP, WARM_UP]
assert all(0 <= row["accuracy"] <= 1 for row in found)
assert [row["lr"] for row in found] == [0.1] * 6 + [3 * 0.1] * 6
assert found[4]["loss"] != found[0]["loss"]  # after three steps at a fiftieth of the rate and more
for row, accuracy in zip(found, (0.1, 0.2, 0.4, 0.6, 0.7, 0.7, 0.1, 0.1, 0.5, 0.7, 0.8, 0.8)):
    row["accuracy"], row["diverged"] = accuracy, False
rows = [{"start": name, "outcome": "better"} for name in ("own", "orthogonal")]
choice = {"start": "orthogonal", "lr": 0.1, "changes": True, "verdict": "so", "cost": {"total": 48.0}, "rows": rows}
race = {"kind": "choice", "network": "mlp-relu", "steps": 2, "epoch": 16, "choice": choice}
text = page([race, *found])
line = "| 0.1 | 2 | orthogonal | 15.0 | 50.0 | orthogonal, 50.0 | +35.0 (+30.0 to +40.0) | same | 48 | 10 |"
assert f"| ReLU MLP, 10 layers {line}" in text
assert "On 1 network, another start is chosen 1 time." in text
assert "| orthogonal | 50.0 | 60.0 | -20.0 (-30.0 to -10.0) |" in text
table = by_network(networks_in([race, *found]))
assert "| ReLU MLP, 10 layers | 15.0 | +35.0 ± 7.1 |  | +35.0 ± 7.1 |" in table
assert table.endswith("| +55.0 ± 7.1 |")
"""


@pytest.mark.heavy
def test_the_page_of_the_choices_has_what_the_rows_say() -> None:
    said(CHOOSING)
