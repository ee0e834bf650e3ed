import dataclasses
import json
import math

import pyarrow
import pyarrow.parquet
import pytest
from synthetic_comparison import ugly

from initopt.comparison.report import write_report
from initopt.comparison.store import load_comparison
from initopt.storage import write_json


def fill(found, folder):
    """Write a comparison as it is stored: a folder for each run."""
    runs = [*found.runs, *found.selection]
    for number, run in enumerate(runs):
        where = folder / "runs" / str(number) / run.initialization.replace("/", "-") / f"lr={run.lr:g}" / f"seed={run.seed}"
        where.mkdir(parents=True)
        record = dataclasses.asdict(run)
        columns = {
            name: [point[name] for point in record["curve"]] for name in ("step", "epoch", "subset", "loss", "accuracy")
        }
        pyarrow.parquet.write_table(pyarrow.table(columns), where / "curve.parquet")
        write_json(where / "run.json", {name: value for name, value in record.items() if name != "curve"})
    names = ("recipe", "networks", "initializations", "seeds", "versions")
    write_json(
        folder / "comparison.json", {"format": "initopt comparison 1"} | {name: getattr(found, name) for name in names}
    )


@pytest.fixture
def folder(tmp_path):
    fill(ugly(), tmp_path)
    return tmp_path


def comparable(runs):
    """Runs in one order, with what is not a number as something that equals itself."""
    plain = [json.dumps(dataclasses.asdict(run), sort_keys=True) for run in runs]
    assert any("NaN" in text for text in plain)
    return sorted(plain)


def test_comes_back_as_it_was(folder):
    found, expected = load_comparison(folder), ugly()
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
    with pytest.raises(ValueError, match=r"comparison\.json does not exist"):
        write_report(tmp_path)
    (tmp_path / "comparison.json").write_text('{"format": "something else"}')
    with pytest.raises(ValueError, match="is no 'initopt comparison 1' file"):
        write_report(tmp_path)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("damage", ["curve.parquet", "run.json", "no curve", "a field"])
def test_a_run_that_is_not_whole(folder, damage):
    file = next((folder / "runs").rglob("run.json"))
    if damage == "no curve":
        file.with_name("curve.parquet").unlink()
    elif damage == "a field":
        file.write_text(json.dumps({name: value for name, value in json.loads(file.read_text()).items() if name != "seed"}))
    else:
        file.with_name(damage).write_bytes(file.with_name(damage).read_bytes()[:-20])
    with pytest.raises(ValueError, match=str(file.parent)):
        load_comparison(folder)


def test_infinite_values(tmp_path):
    found = ugly()
    run = found.runs[0]
    endless = dataclasses.replace(
        run, after={"grad_norm": math.inf}, curve=(dataclasses.replace(run.curve[0], loss=math.inf),)
    )
    fill(dataclasses.replace(found, runs=[endless], selection=[]), tmp_path)
    assert load_comparison(tmp_path).runs == [endless]
