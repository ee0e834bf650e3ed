import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path

import pytest

import initopt
from initopt._support.files import write_json
from initopt.comparison import load_comparison
from initopt.comparison.analysis.summary import summarize
from initopt.comparison.report.findings import caveats, findings
from initopt.comparison.report.report import to_document, to_markdown, write_report
from initopt.comparison.storage.job import Job
from initopt.comparison.storage.store import FORMAT, RECORD, load_runs, published, write_run
from initopt.diagnosis import Finding
from tests import synthetic_comparison
from tests.comparing import as_before, compare
from tests.synthetic_comparison import ugly

PUBLISHED = Path(__file__).parents[2] / "docs" / "comparisons"


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


@pytest.mark.heavy
def test_report(folder):
    page = write_report(folder)
    assert page == folder / "report" / "report.html"
    assert "Runs that diverged: 1 of 5 from default and 5 of 5 from trunc_normal" in page.read_text()


def test_a_run_that_is_being_put_in_place_is_not_there_yet(folder):
    run = next((folder / "runs").rglob("run.json")).parent
    before = len(load_comparison(folder).runs)
    run.rename(run.with_name(f".{run.name}.x"))
    assert len(load_comparison(folder).runs) == before - 1


def test_no_comparison(tmp_path):
    with pytest.raises(ValueError, match=r"holds no comparison, for want of comparison\.json"):
        write_report(tmp_path)
    (tmp_path / "comparison.json").write_text('{"format": "something else"}')
    with pytest.raises(ValueError, match="is no 'initopt comparison 2' file"):
        write_report(tmp_path)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("damage", ["run.json", "no curve", "a field", "no run.json"])
def test_a_run_that_is_not_whole_is_left_out_and_named(folder, damage):
    before = len([*load_comparison(folder).runs, *load_comparison(folder).selection])
    file = next((folder / "runs").rglob("run.json"))
    if damage == "no run.json":
        file.rename(file.with_name("other.json"))
    elif damage in ("a field", "no curve"):
        gone = {"a field": "seed", "no curve": "curve"}[damage]
        file.write_text(json.dumps({name: value for name, value in json.loads(file.read_text()).items() if name != gone}))
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


def test_findings_come_back_and_runs_without_any_are_read(tmp_path):
    seen = Finding("A204", "error", ("0", "2"), "the signal shrinks", "other weights")
    runs = [synthetic_comparison.run("plain", "default", seed) for seed in range(3)]
    kept = [dataclasses.replace(each, findings=found) for each, found in zip(runs, [None, (), (seen,)], strict=True)]
    fill(synthetic_comparison.comparison(kept), tmp_path)
    place = Job.of(kept[0]).place(tmp_path) / "run.json"
    stored = json.loads(place.read_text())
    assert stored.pop("findings") is None
    place.write_text(json.dumps(stored))  # as an earlier version has written it
    loaded = load_comparison(tmp_path)
    assert [each.findings for each in loaded.runs] == [None, (), (seen,)]
    assert [each.findings for each in _reread(loaded, tmp_path).runs] == [None, (), (seen,)]
    table = loaded.to_dataframe()
    assert table.findings.fillna("nobody looked").tolist() == ["nobody looked", "", "A204"]


def _reread(found, folder):
    path = folder / "published.json"
    path.write_text(published(found), encoding="utf-8")
    return load_comparison(path)


class TestOfEarlierVersions:
    @pytest.mark.heavy
    def test_is_read_and_reported_but_not_gone_on_with(self, tmp_path):
        out = tmp_path / "out"
        found = compare(out)
        as_before(out)
        again = load_comparison(out)
        assert again == found
        assert write_report(out).is_file()
        with pytest.raises(initopt.MismatchError, match="of an earlier version .* not gone on with; choose another folder"):
            compare(out)
        assert load_comparison(out) == found
        assert load_runs(out) == found.runs

    def test_without_pyarrow(self, tmp_path, monkeypatch):
        compare(tmp_path / "out", initializations=["default"], seeds=1)
        as_before(tmp_path / "out")
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        found = load_comparison(tmp_path / "out")
        assert found.runs == []
        (problem,) = found.problems
        assert "curve.parquet is a Parquet file of an earlier version of initopt; pip install pyarrow reads it" in problem

    @pytest.mark.parametrize("path", sorted(PUBLISHED.glob("*-runs.json")), ids=lambda path: path.stem)
    def test_published_runs(self, path):
        found = load_comparison(path)
        assert found.runs
        assert {run.purpose for run in found.selection} <= {"selection"}
        assert all(len(network.entries) == len(found.initializations) for network in summarize(found).networks)
        assert list(findings(summarize(found)))

    @pytest.mark.heavy
    def test_a_report_of_published_runs(self):
        summary = summarize(load_comparison(PUBLISHED / "cifar10-vit-runs.json"))
        assert to_markdown(to_document(summary), "figures").startswith("# Initializations compared")

    def test_a_file_of_something_else(self, tmp_path):
        path = tmp_path / "runs.json"
        path.write_text("{}")
        with pytest.raises(ValueError, match="runs.json is no file of published runs: it has no format"):
            load_comparison(path)


class TestToDataFrame:
    def test_a_row_for_each_run(self, folder):
        found = load_comparison(folder)
        table = found.to_dataframe()
        assert len(table) == len(found.runs) + len(found.selection)
        row = table[(table.network == "single seed") & (table.initialization == "nio")].iloc[0]
        (run,) = [run for run in found.runs if (run.network, run.initialization) == ("single seed", "nio")]
        assert row.after_grad_cosine == run.after["grad_cosine"]
        assert row.test_accuracy == [point.accuracy for point in run.curve if point.subset == "test"][-1]
        assert (table[table.status == "failed"].error.str.count("\n") == 0).all()

    def test_a_row_for_each_look(self, folder):
        found = load_comparison(folder)
        table = found.to_dataframe(curves=True)
        assert len(table) == sum(len(run.curve) for run in [*found.runs, *found.selection])
        assert list(table.columns) == [
            "network", "initialization", "seed", "lr", "purpose", "step", "epoch", "subset", "loss", "accuracy",
        ]  # fmt: skip

    def test_nothing(self, folder):
        empty = dataclasses.replace(load_comparison(folder), runs=[], selection=[])
        assert len(empty.to_dataframe()) == len(empty.to_dataframe(curves=True)) == 0
        assert "status" in empty.to_dataframe().columns
