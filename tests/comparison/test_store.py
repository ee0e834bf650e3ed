import dataclasses
import json
import math
import shutil

import pytest

from initopt._support.files import write_json
from initopt.comparison.analysis.summary import summarize
from initopt.comparison.report.findings import caveats
from initopt.comparison.report.report import write_report
from initopt.comparison.storage.job import Job
from initopt.comparison.storage.store import FORMAT, RECORD, load_comparison, load_runs, write_run
from tests.synthetic_comparison import ugly


def storable():
    """Awkward names, but for slashes, which no name of a comparison has."""

    def renamed(runs):
        return [dataclasses.replace(run, initialization=run.initialization.replace("/", "")) for run in runs]

    found = ugly()
    return dataclasses.replace(
        found,
        initializations=[name.replace("/", "") for name in found.initializations],
        runs=renamed(found.runs),
        selection=renamed(found.selection),
    )


def fill(found, folder):
    """Write a comparison as it is stored: a folder for each run."""
    for run in [*found.runs, *found.selection]:
        where = Job.of(run).place(folder)
        where.mkdir(parents=True)
        write_run(run, where)
    names = ("recipe", "networks", "initializations", "seeds", "versions")
    write_json(folder / RECORD, {"format": FORMAT} | {name: getattr(found, name) for name in names})


@pytest.fixture
def folder(tmp_path):
    fill(storable(), tmp_path)
    return tmp_path


def comparable(runs):
    """Runs in one order, with what is not a number as something that equals itself."""
    plain = [json.dumps(dataclasses.asdict(run), sort_keys=True) for run in runs]
    assert any("NaN" in text for text in plain)
    return sorted(plain)


def test_comes_back_as_it_was(folder):
    found, expected = load_comparison(folder), storable()
    assert comparable(found.runs) == comparable(expected.runs)
    assert comparable(found.selection) == comparable(expected.selection)
    assert (found.networks, found.initializations, found.seeds) == (
        expected.networks,
        expected.initializations,
        expected.seeds,
    )
    assert found.recipe == expected.recipe


def test_report(folder):
    page = write_report(folder)
    assert page == folder / "report" / "report.html"
    assert "Runs that diverged: 1 of 5 from default and 5 of 5 from trunc_normal" in page.read_text()
    first = page.read_bytes()
    assert write_report(folder).read_bytes() == first


def test_a_run_that_is_being_put_in_place_is_not_there_yet(folder):
    run = next((folder / "runs").rglob("run.json")).parent
    before = len(load_comparison(folder).runs)
    run.rename(run.with_name(f".{run.name}.x"))
    assert len(load_comparison(folder).runs) == before - 1


def test_no_comparison(tmp_path):
    with pytest.raises(ValueError, match=r"holds no comparison, for want of comparison\.json"):
        write_report(tmp_path)
    (tmp_path / "comparison.json").write_text('{"format": "something else"}')
    with pytest.raises(ValueError, match="is no 'initopt comparison 1' file"):
        write_report(tmp_path)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("damage", ["curve.parquet", "run.json", "no curve", "a field", "no run.json"])
def test_a_run_that_is_not_whole_is_left_out_and_named(folder, damage):
    before = len([*load_comparison(folder).runs, *load_comparison(folder).selection])
    file = next((folder / "runs").rglob("run.json"))
    if damage.startswith("no "):
        file.with_name({"no curve": "curve.parquet"}.get(damage, "run.json")).unlink()
    elif damage == "a field":
        file.write_text(json.dumps({name: value for name, value in json.loads(file.read_text()).items() if name != "seed"}))
    else:
        file.with_name(damage).write_bytes(file.with_name(damage).read_bytes()[:-20])
    found = load_comparison(folder)
    assert len([*found.runs, *found.selection]) == before - 1
    assert len(found.problems) == 1
    assert found.problems[0].startswith(f"{file.parent} is not a whole run")
    assert found.problems[0].endswith("remove the folder to run it again")
    assert any("1 cannot be read and are left out" in sentence for sentence in caveats(summarize(found)))
    with pytest.raises(ValueError, match="is not a whole run"):
        load_runs(folder)


def test_a_copy_in_another_place_does_not_count_twice(folder):
    run = next((folder / "runs").rglob("run.json")).parent
    before = load_comparison(folder)
    shutil.copytree(run, run.with_name("seed=99"))
    found = load_comparison(folder)
    assert len(found.runs) == len(before.runs)
    (problem,) = found.problems
    assert problem.startswith(f"{run.with_name('seed=99')} holds the run ")
    assert problem.endswith("which does not belong there; it is left out")


def test_infinite_values(tmp_path):
    found = storable()
    run = found.runs[0]
    endless = dataclasses.replace(
        run, after={"grad_norm": math.inf}, curve=(dataclasses.replace(run.curve[0], loss=math.inf),)
    )
    fill(dataclasses.replace(found, runs=[endless], selection=[]), tmp_path)
    assert load_comparison(tmp_path).runs == [endless]
