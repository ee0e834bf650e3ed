"""The demo: a comparison by the recipe of that name, whose folder is whole or not there."""

import contextlib
import io
import stat

import pytest
import torch
import yaml
from torch.utils.data import Subset

import initopt
from initopt.cli.commands import demo as demo_module
from initopt.cli.commands.demo import run_demo
from initopt.comparison import load_comparison
from initopt.comparison.analysis.summary import summarize
from initopt.comparison.report.findings import findings
from initopt.data import Splits
from initopt.recipes import RECIPES
from tests.forks import python

pytestmark = pytest.mark.training

TINY = {"epochs": 2, "nio_steps": 2}
STARTS = ["default", "Xavier for tanh", "NIO"]


@contextlib.contextmanager
def captured():
    """Standard output as a pipe would have it: no terminal, 80 columns."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(stream):
        for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
            patch.delenv(name, raising=False)
        yield stream


@pytest.fixture(scope="module", autouse=True)
def few_digits():
    """A fourth of them to train on. All are in ``test_without_the_packages_of_any_extra``."""

    def planned(epochs, nio_steps):
        plan = original(epochs, nio_steps)
        whole = initopt.data.digits()
        few = Splits(*(Subset(part, range(0, len(part), 4)) for part in (whole.train, whole.validation, whole.test)))
        return plan | {"data": few, "recipe": plan["recipe"] | {"measure_batches": 2}}

    original = demo_module._plan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_module, "_plan", planned)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "new" / "out"


@pytest.fixture(scope="module")
def output(folder):
    """What a run of the demo into ``folder`` prints."""
    with captured() as stream:
        run_demo(folder, seeds=2, **TINY)
        stream.flush()
        return stream.buffer.getvalue().decode()


class TestOutput:
    def test_table_and_words(self, output, folder):
        lines = output.splitlines()
        head = next(line for line in lines if line.strip().startswith("initialization"))
        assert head.split("  ")[-1].strip() == "gradient norm"
        assert "after epoch 1" in head
        assert [line.strip()[:7] for line in lines[lines.index(head) + 1 :][:3]] == ["default", "Xavier ", "NIO    "]
        assert lines[-2] == f"Picture and numbers: {folder}"
        assert lines[-1] == "Next, ask about a network of your own: initopt diagnose --help, initopt choose --help"
        assert "2 epochs of SGD (batch 64, learning rate 0.05, momentum 0.9)" in " ".join(lines)
        assert "NIO took " in output

    def test_the_words_are_those_of_the_report(self, output, folder):
        (said,) = findings(summarize(load_comparison(folder / "results.json")))
        assert said in " ".join(output.split())

    def test_is_plain_and_narrow(self, output):
        assert "\x1b" not in output
        assert "\r" not in output
        assert max(len(line) for line in output.splitlines()[:-1]) <= 80

    @pytest.mark.heavy
    def test_prints_ascii_where_the_output_is(self, tmp_path):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        with contextlib.redirect_stdout(stream):
            run_demo(tmp_path / "out", seeds=2, epochs=1, nio_steps=1)
            stream.flush()
        assert "Mean +- standard deviation over seeds" in stream.buffer.getvalue().decode()


class TestFolder:
    def test_files(self, output, folder):
        assert {path.name for path in folder.iterdir()} == {".initopt-demo", "demo.png", "results.json"}
        assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")
        assert [path.name for path in folder.parent.iterdir()] == ["out"]

    def test_can_be_entered_by_its_owner(self, output, folder):
        assert folder.stat().st_mode & stat.S_IXUSR

    def test_numbers(self, output, folder):
        found = load_comparison(folder / "results.json")
        assert (found.initializations, found.seeds, len(found.runs)) == (STARTS, [0, 1], 6)
        assert found.versions["torch"] == torch.__version__
        assert found.recipe["epochs"] == 2
        assert {run.status for run in found.runs} == {"done"}
        assert {len(run.scales or {}) for run in found.runs if run.initialization == "NIO"} == {20}
        default, nio = (run for run in found.runs if run.seed == 0 and run.initialization in ("default", "NIO"))
        assert default.before == default.after == nio.before != nio.after

    @pytest.mark.heavy
    def test_same_numbers_twice(self, output, folder, tmp_path):
        run_demo(tmp_path / "again", seeds=1, **TINY)
        first, again = load_comparison(folder / "results.json"), load_comparison(tmp_path / "again" / "results.json")
        assert [run.curve for run in again.runs] == [run.curve for run in first.runs if run.seed == 0]

    @pytest.mark.heavy
    def test_is_replaced_by_a_second_run(self, tmp_path):
        for seeds in (2, 1):
            run_demo(tmp_path / "out", seeds=seeds, epochs=1, nio_steps=1)
        assert len(load_comparison(tmp_path / "out" / "results.json").seeds) == 1

    @pytest.mark.heavy
    def test_that_of_an_earlier_version_is_replaced(self, tmp_path):
        out = tmp_path / "out"
        (out / "seed-0").mkdir(parents=True)
        (out / ".initopt-demo").touch()
        (out / "results.json").write_text("{}")
        (out / "seed-0" / "result.json").write_text('{"format": "initopt result 1"}')
        run_demo(out, seeds=1, epochs=1, nio_steps=1)
        assert not (out / "seed-0").exists()

    def test_of_others_is_refused_before_any_work(self, tmp_path, monkeypatch):
        monkeypatch.setattr(initopt, "compare", None)
        (tmp_path / "results.json").write_text("{}")
        with pytest.raises(FileExistsError, match=r"was not written by initopt; choose another folder or remove it first"):
            run_demo(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["results.json"]

    def test_with_a_file_of_others_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(initopt, "compare", None)
        for name in (".initopt-demo", "results.json", "thesis.tex"):
            (tmp_path / name).write_text("{}")
        with pytest.raises(FileExistsError, match=r"it holds files that initopt did not write: thesis\.tex"):
            run_demo(tmp_path)

    def test_refuses_a_file(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(FileExistsError, match="was not written by initopt"):
            run_demo(tmp_path / "file")

    @pytest.mark.heavy
    @pytest.mark.parametrize("where", ["training", "writing"])
    def test_leaves_nothing_when_interrupted(self, tmp_path, monkeypatch, where):
        def interrupt(*args, **options):
            raise KeyboardInterrupt

        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)
        if where == "training":
            monkeypatch.setattr("initopt.comparison.running.run.train", interrupt)
        else:
            monkeypatch.setattr(demo_module, "published", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_demo(tmp_path / "out", seeds=1, epochs=1, nio_steps=1)
        assert not any(tmp_path.iterdir())

    @pytest.mark.heavy
    def test_a_run_that_fails_is_an_error_and_leaves_nothing(self, tmp_path, monkeypatch):
        def fail(*args, **options):
            raise ZeroDivisionError("out of cheese")

        monkeypatch.setattr("initopt.comparison.running.run.train", fail)
        with pytest.raises(RuntimeError, match="the demo came to no result: ZeroDivisionError: out of cheese"):
            run_demo(tmp_path / "out", seeds=1, epochs=1, nio_steps=1)
        assert not any(tmp_path.iterdir())


@pytest.mark.heavy
def test_puts_threads_and_random_state_back(tmp_path):
    torch.set_num_threads(2)
    state = torch.get_rng_state()
    run_demo(tmp_path / "out", seeds=1, epochs=1, nio_steps=1, threads=1)
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["seeds", "epochs", "nio_steps", "threads"])
def test_refuses_numbers(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name} must be an integer of 1 or more; got 0"):
        run_demo(tmp_path / "out", **{name: 0})


def test_the_recipe_is_what_is_run_by_default():
    recipe = yaml.safe_load(RECIPES["demo"].read_text())
    assert recipe["seeds"] == run_demo.__defaults__[1]
    assert recipe["recipe"]["epochs"] == run_demo.__defaults__[2]
    assert [start if isinstance(start, str) else start["name"] for start in recipe["initializations"]] == STARTS


@pytest.mark.heavy
@pytest.mark.processes
def test_without_the_packages_of_any_extra(tmp_path):
    code = (
        "import sys; sys.modules |= dict.fromkeys(('jinja2', 'lightning_fabric', 'pandas', 'pyarrow', 'scipy'))\n"
        "from initopt.cli import main\n"
        f"main(['demo', '--seeds', '1', '--epochs', '1', '--nio_steps', '1', '--out', {str(tmp_path / 'out')!r}])"
    )
    ended = python(code)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "out" / "demo.png").is_file()
