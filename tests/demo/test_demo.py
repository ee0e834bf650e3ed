import contextlib
import io
import json
import math
import stat

import pytest
import torch
from torch import nn

import initopt
from initopt.demo import experiment as experiment_module
from initopt.demo import run_demo
from initopt.demo.experiment import Experiment, SeedRun, run_seed
from initopt.demo.picture import draw
from initopt.demo.recipe import create_model, create_optimizer
from initopt.demo.selection import GRID, select
from initopt.demo.spread import Spread
from initopt.demo.starts import STARTS, xavier_
from initopt.demo.training import Curve, train
from initopt.demo.verdict import verdict

TINY = {"epochs": 2, "nio_steps": 2}


@pytest.fixture(scope="module")
def tiny():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums of another number of threads differ in the last digit
    found = run_seed(0, **TINY)
    torch.set_num_threads(threads)
    return found


def made_up(tiny, default, nio):
    """An experiment with these accuracies, a list of epochs for every seed."""

    def run(seed, first, second):
        curves = {"default": first, "xavier": first, "nio": second}
        return SeedRun(seed, tiny.result, {name: Curve(values, values, 1.0) for name, values in curves.items()})

    return Experiment([run(seed, *pair) for seed, pair in enumerate(zip(default, nio, strict=True))])


@contextlib.contextmanager
def captured():
    """Standard output as a pipe would have it: no terminal, 80 columns."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(stream):
        for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
            patch.delenv(name, raising=False)
        yield stream


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


class TestRunDemo:
    def test_tables(self, output, folder):
        assert "Test accuracy in %, mean ± standard deviation over seeds" in output
        assert "after epoch" in output
        assert "NIO - default" in output
        assert "GradCosine" in output
        assert "training, 2 epochs" in output
        assert output.splitlines()[-1] == f"Plots, numbers and optimized weights: {folder}"
        assert "After 2 epochs the network reads" in output

    def test_is_plain_and_narrow(self, output):
        assert "\x1b" not in output
        assert "\r" not in output
        assert max(len(line) for line in output.splitlines()[:-1]) <= 80

    def test_files(self, output, folder):
        assert {path.name for path in folder.iterdir()} == {
            ".initopt-demo",
            "demo.png",
            "results.json",
            "seed-0",
            "seed-1",
        }
        assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")
        assert [path.name for path in folder.parent.iterdir()] == ["out"]

    def test_folders_can_be_entered_by_their_owner(self, output, folder):
        assert all(path.stat().st_mode & stat.S_IXUSR for path in (folder, folder / "seed-0", folder / "seed-1"))

    def test_results_load_into_the_network(self, output, folder):
        model = create_model(seed=1)
        start = [parameter.detach().clone() for parameter in model.parameters()]
        result = initopt.Result.load(folder / "seed-1", model)
        assert len(result.history) == 2
        for before, after, scale in zip(start, model.parameters(), result.scales.values(), strict=True):
            torch.testing.assert_close(after.detach(), before * scale)

    def test_numbers(self, output, folder):
        record = json.loads((folder / "results.json").read_text())
        assert record["format"] == "initopt demo 1"
        assert record["versions"]["torch"] == torch.__version__
        assert record["recipe"]["nio"]["steps"] == 2
        assert [run["seed"] for run in record["runs"]] == [0, 1]
        last = [run["curves"]["nio"]["accuracy"][-1] for run in record["runs"]]
        assert record["summary"]["accuracy"]["nio"][-1]["mean"] == pytest.approx(sum(last) / 2)
        assert record["verdict"].split() == output[output.index("After 2") : output.index("Plots,")].split()

    def test_is_replaced_by_a_second_run(self, tmp_path):
        for seeds in (2, 1):
            run_demo(tmp_path / "out", seeds=seeds, epochs=1, nio_steps=1)
        assert not (tmp_path / "out" / "seed-1").exists()
        record = json.loads((tmp_path / "out" / "results.json").read_text())
        assert record["summary"]["nio_minus_default"][0]["std"] == "nan"

    def test_prints_ascii_where_the_output_is(self, tmp_path):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        with contextlib.redirect_stdout(stream):
            run_demo(tmp_path / "out", seeds=1, epochs=1, nio_steps=1)
            stream.flush()
        assert "mean +- standard error over batches" in stream.buffer.getvalue().decode()

    def test_refuses_a_foreign_folder_before_any_work(self, tmp_path, monkeypatch):
        monkeypatch.setattr("initopt.demo.run.run_seed", None)
        (tmp_path / "results.json").write_text("{}")
        with pytest.raises(FileExistsError, match=r"was not written by initopt; choose another folder or remove it first"):
            run_demo(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["results.json"]

    def test_refuses_a_file(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(FileExistsError, match="was not written by initopt"):
            run_demo(tmp_path / "file")

    def test_leaves_nothing_when_interrupted(self, tmp_path, monkeypatch):
        def interrupt(*args):
            raise KeyboardInterrupt

        monkeypatch.setattr("initopt.demo.folder.save_picture", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_demo(tmp_path / "out", seeds=1, epochs=1, nio_steps=1)
        assert not any(tmp_path.iterdir())

    def test_puts_threads_and_random_state_back(self, tmp_path):
        torch.set_num_threads(2)
        state = torch.get_rng_state()
        run_demo(tmp_path / "out", seeds=1, epochs=1, nio_steps=1, threads=1)
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize("name", ["seeds", "epochs", "nio_steps", "threads"])
    def test_refuses_numbers(self, name, tmp_path):
        with pytest.raises(ValueError, match=f"{name} must be an integer of 1 or more; got 0"):
            run_demo(tmp_path / "out", **{name: 0})


class TestExperiment:
    def test_same_numbers_twice(self, tiny):
        again = run_seed(0, **TINY)
        for start in STARTS:
            assert again.curves[start].accuracy == tiny.curves[start].accuracy
            assert again.curves[start].train_loss == tiny.curves[start].train_loss
        assert again.result.scales == tiny.result.scales
        assert again.result.after.grad_cosine == tiny.result.after.grad_cosine

    def test_all_starts_see_the_same_batches_in_the_same_order(self, monkeypatch):
        seen = []

        def spy(model, loader, optimizer, epochs, look_at, epoch_done):
            seen.append(torch.cat([labels for _ in range(epochs) for _, labels in loader]))
            return train(model, loader, optimizer, 1, look_at)

        monkeypatch.setattr(experiment_module, "train", spy)
        run_seed(0, **TINY)
        assert len(seen) == 3
        assert all(torch.equal(order, seen[0]) for order in seen)

    def test_starts(self, tiny, monkeypatch):
        starts = {}

        def spy(model, *args):
            starts[len(starts)] = [parameter.detach().clone() for parameter in model.parameters()]
            return Curve([0.5], [0.5], 0.0)

        monkeypatch.setattr(experiment_module, "train", spy)
        run_seed(0, **TINY)
        default, _, nio = starts.values()
        assert all(torch.equal(a, b) for a, b in zip(default, create_model(0).parameters(), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(nio, tiny.result.weights.values(), strict=True))

    def test_nio_sees_no_image_on_which_it_is_measured(self, monkeypatch):
        taken = []
        monkeypatch.setattr(initopt, "nio", lambda model, batches, **options: taken.append((batches, options)))
        monkeypatch.setattr(experiment_module, "train", lambda *args: None)
        run_seed(0, **TINY)
        (batches, options), held = taken[0], taken[0][1]["measure_batches"]
        assert isinstance(batches, list)
        assert 0 < held < len(batches)
        rows = torch.cat([images for images, _ in batches]).flatten(1)
        assert len(rows.unique(dim=0)) == len(rows)
        assert options["steps"] == 2

    def test_reports_progress(self):
        ticks = []
        run_seed(0, epochs=1, nio_steps=2, advance=lambda: ticks.append(1))
        assert len(ticks) == 2 + 3


class TestVerdict:
    def test_help(self, tiny):
        found = made_up(tiny, [[0.1, 0.8], [0.1, 0.82], [0.1, 0.81]], [[0.85, 0.9], [0.85, 0.91], [0.85, 0.92]])
        assert verdict(found) == (
            "After 2 epochs the network reads 81.0% of the test digits rightly from the default start and 91.0% from NIO's "
            "(+10.0 points, 95% interval +7.5 to +12.5 over 3 seeds), so NIO helped; what the default start reached after "
            "2 epochs, NIO's reached after 1."
        )

    def test_harm(self, tiny):
        found = made_up(tiny, [[0.9], [0.92], [0.91]], [[0.8], [0.81], [0.82]])
        assert "(-10.0 points, 95% interval -12.5 to -7.5 over 3 seeds), so NIO did harm here." in verdict(found)

    def test_no_difference(self, tiny):
        found = made_up(tiny, [[0.9], [0.8], [0.9]], [[0.8], [0.9], [0.9]])
        assert verdict(found).endswith("so at the end this run shows no clear difference.")

    def test_equal(self, tiny):
        assert verdict(made_up(tiny, [[0.9], [0.9]], [[0.9], [0.9]])).endswith("no clear difference.")

    def test_one_seed(self, tiny):
        assert verdict(made_up(tiny, [[0.1]], [[0.9]])).endswith(
            "which is one seed and so no evidence yet: try more seeds."
        )


class TestPicture:
    def test_labels(self, tiny):
        curves, cosine, norm = draw(Experiment([tiny, tiny])).axes
        assert curves.get_xlabel() == "epoch"
        assert curves.get_ylabel() == "test accuracy"
        assert "mean of 2 seeds, band: ± 1 standard deviation" in curves.get_title(loc="left")
        assert curves.get_legend().get_texts()[0].get_text() == "NIO"
        assert cosine.get_title(loc="left").startswith("GradCosine")
        assert norm.get_title(loc="left").startswith("Gradient norm")

    def test_one_seed_has_no_band(self, tiny):
        curves = draw(Experiment([tiny])).axes[0]
        assert not curves.collections
        assert "one seed" in curves.get_title(loc="left")

    def test_curves_are_the_means(self, tiny):
        found = made_up(tiny, [[0.1, 0.3], [0.3, 0.5]], [[0.6, 0.8], [0.8, 1.0]])
        lines = {line.get_label(): list(line.get_ydata()) for line in draw(found).axes[0].lines}
        assert lines["NIO"] == pytest.approx([0.7, 0.9])
        assert lines["PyTorch default"] == pytest.approx([0.2, 0.4])


class TestSpread:
    def test_margin_of_two(self):
        assert Spread.of([0.0, 2.0]).margin == pytest.approx(12.71)

    def test_one_value_has_no_uncertainty(self):
        spread = Spread.of([1.0])
        assert math.isnan(spread.sem)
        assert math.isnan(spread.margin)

    def test_many_values(self):
        assert Spread(0.0, 1.0, 100).margin == pytest.approx(0.226)


def test_xavier_keeps_the_signal():
    model = create_model(seed=0)
    xavier_(model, seed=0)
    weights = [module.weight for module in model if isinstance(module, nn.Linear)]
    assert weights[3].std().item() == pytest.approx(5 / 3 / 8, rel=0.05)


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    data = (torch.randn(64, 1, 8, 8), torch.randint(10, (64,)))
    curve = train(model, [data], create_optimizer(model), 20, data)
    assert curve.train_loss[-1] < curve.train_loss[0]
    assert curve.accuracy[-1] > curve.accuracy[0]
    assert curve.seconds > 0


def test_selection_looks_at_validation_images(monkeypatch):
    seen = []

    def spy(model, loader, optimizer, epochs, look_at):
        seen.append(len(look_at[0]))
        return Curve([0.5], [0.5], 0.0)

    monkeypatch.setattr("initopt.demo.selection.train", spy)
    found = dict(select(1, seeds=(100, 101)))
    assert list(found) == list(GRID)
    assert set(seen) == {362}
    assert all(curves == [[0.5], [0.5]] for curves in found.values())
