"""What runs do: paired, honest with the test data, and a result also when they diverge or fail."""

import dataclasses
import functools
import itertools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import initopt
from initopt.comparison import Network, load_comparison
from initopt.comparison.analysis.summary import summarize
from initopt.comparison.report.report import to_document, to_markdown
from initopt.comparison.running.batches import EpochOrder, start_batches
from initopt.comparison.running.evaluation import Judge, hits
from initopt.comparison.running.execute import choose_lr
from initopt.comparison.running.start import own_start
from initopt.data import Splits
from initopt.model.losses import as_loss
from tests.comparing import NIO, RECIPE, Raising, blobs, compare, raising, small, small_linear, table
from tests.helpers import with_the_tests

pytestmark = pytest.mark.training


def points(run, subset):
    return [point for point in run.curve if point.subset == subset]


class TestAgainstPlainTraining:
    """A run is what a training loop of torch alone gives, to the last digit."""

    @pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
    def test_same_losses(self, tmp_path, optimizer):
        recipe = RECIPE | {"optimizer": optimizer, "lr": 0.01, "schedule": "cosine", "warmup_steps": 2}
        found = compare(tmp_path / "out", initializations=["default"], seeds=[3], recipe=recipe | {"clip_grad_norm": 0.5})
        (run,) = found.runs
        splits, model = blobs(), own_start(Network(small), 3)
        kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer]
        updates = kind(model.parameters(), lr=0.01)
        factors = iter([0.5, 1, *(math.cos(k * math.pi / 20) ** 2 for k in range(10))])
        order = EpochOrder(96, 16, seed=3)
        expected = [self.look(model, splits.test)]
        for order.epoch in (0, 1):
            for indices in order:
                inputs, labels = splits.train[indices]
                updates.param_groups[0]["lr"] = 0.01 * next(factors)
                updates.zero_grad()
                F.cross_entropy(model.train()(inputs), labels).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                updates.step()
            expected.append(self.look(model, splits.test))
        found = np.array([(point.loss, point.accuracy) for point in points(run, "test")])
        assert found == pytest.approx(np.array(expected), rel=1e-6)
        assert [(p.step, p.epoch) for p in points(run, "test")] == [(0, 0.0), (6, 1.0), (12, 2.0)]
        assert (run.status, run.steps) == ("done", 12)

    @staticmethod
    def look(model, dataset):
        inputs, labels = dataset[:]
        with torch.no_grad():
            output = model.eval()(inputs)
        return F.cross_entropy(output, labels).item(), (output.argmax(1) == labels).float().mean().item()


class TestPairs:
    def test_same_draw_and_same_batches_for_all_initializations_of_a_seed(self, tmp_path, monkeypatch):
        seen, starts = {}, {}

        class Spy(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = small(dropout=0.5)

            def forward(self, x):
                if self.training and self.taught:
                    seen.setdefault(self.key, []).append(x.detach().clone())
                return self.inner(x)

        import initopt.comparison.running.run as run_module

        def spying(fabric, plan, splits, job, model):
            model.taught, model.key = True, (job.initialization, job.seed)
            starts[model.key] = [parameter.detach().clone() for parameter in model.parameters()]
            return original(fabric, plan, splits, job, model)

        original = run_module._trained
        monkeypatch.setattr(run_module, "_trained", spying)
        monkeypatch.setattr(Spy, "taught", False, raising=False)
        warm = {"name": "warm-up", "recipe": {"warmup_steps": 3}}
        compare(tmp_path / "out", models={"spy": Spy}, initializations=["default", warm, NIO])
        for seed in (0, 1):
            reference = seen["default", seed]
            assert len(reference) == 12
            for name in ("warm-up", "nio"):
                assert all(torch.equal(a, b) for a, b in zip(seen[name, seed], reference, strict=True))
            assert all(map(torch.equal, starts["default", seed], starts["warm-up", seed]))
            # NIO changes the scales of the same draw.
            ratio = starts["nio", seed][4] / starts["default", seed][4]
            assert ratio.std() < 1e-6
            assert not torch.equal(*(starts[name, seed][4] for name in ("nio", "default")))
        assert not torch.equal(seen["default", 0][0], seen["default", 1][0])
        assert not torch.equal(seen["default", 0][0], seen["default", 0][6])

    def test_processes_share_the_batches_of_one(self):
        whole = list(EpochOrder(50, 8, seed=1))
        halves = [list(EpochOrder(50, 8, seed=1, rank=rank, world_size=2)) for rank in (0, 1)]
        assert [sorted([*a, *b]) for a, b in zip(*halves, strict=True)] == [sorted(batch) for batch in whole]
        assert sorted(itertools.chain(*whole))[0] >= 0
        assert len(set(itertools.chain(*whole))) == 48

    def test_an_initialization_sees_no_batch_that_measures(self):
        dataset = blobs().train
        held, others = start_batches(dataset, 16, 2, seed=5)
        rows = torch.cat([inputs for inputs, _ in [*held, *others]])
        assert (len(held), len(others)) == (2, 4)
        assert len(rows.unique(dim=0)) == 96
        assert all(torch.equal(a[0], b[0]) for a, b in zip(others, others, strict=True))

    def test_a_data_set_of_single_samples_gives_the_same_batches(self):
        dataset = blobs().train
        single = torch.utils.data.Subset(dataset, range(96))
        for a, b in zip(start_batches(dataset, 16, 2, 0)[0], start_batches(single, 16, 2, 0)[0], strict=True):
            assert torch.equal(a[0], b[0])
            assert torch.equal(a[1], b[1])


class TestMeasuring:
    def test_before_and_after_on_the_same_held_back_batches(self, tmp_path):
        found = compare(tmp_path / "out", seeds=1)
        default, nio = found.runs
        model, (held, others) = own_start(Network(small), 0), start_batches(blobs().train, 16, 2, 0)
        before = initopt.measure(model, held, seed=0)
        initopt.optimize(model, others, method="nio", steps=3, measure_batches=0, seed=0)
        after = initopt.measure(model, held, seed=0)
        assert default.before == default.after == nio.before
        assert nio.before["grad_cosine"] == pytest.approx(before.grad_cosine, abs=1e-6)
        assert nio.after["grad_norm"] == pytest.approx(after.grad_norm, rel=1e-5)
        assert nio.after["grad_norm_sem"] == pytest.approx(after.sem["grad_norm"], rel=1e-4)
        assert default.scales is None
        own = own_start(Network(small), 0).state_dict()
        assert set(nio.scales) == {name for name, _ in model.named_parameters()}
        for name, parameter in model.named_parameters():
            assert torch.allclose(parameter, own[name] * nio.scales[name])
        assert 0 < default.initialization_seconds < nio.initialization_seconds
        assert nio.initialization_steps == nio.initialization_seconds / nio.step_seconds

    def test_nothing(self, tmp_path):
        found = compare(tmp_path / "out", seeds=1, recipe=RECIPE | {"measure_batches": 0})
        assert all(run.before is None and run.after is None for run in found.runs)
        assert all(run.findings is None for run in found.runs)

    @pytest.mark.heavy
    def test_the_layers_of_the_start_that_is_trained_from(self, tmp_path):
        found = compare(tmp_path / "out", models={"deep": deep}, initializations=["default", "orthogonal"], seeds=1)
        default, orthogonal = found.runs
        held, _ = start_batches(blobs().train, 16, 2, 0)
        alone = initopt.diagnose(own_start(Network(deep), 0), held, tries=(), seed=0)
        assert default.findings == tuple(finding for finding in alone.findings if finding.severity != "note")
        assert "A204" in {finding.rule for finding in default.findings}
        assert orthogonal.findings == ()
        assert [run.findings for run in load_comparison(tmp_path / "out").runs] == [run.findings for run in found.runs]
        assert "A204 vanishing signal" in to_markdown(to_document(summarize(found)), "figures")

    def test_a_start_without_gradient_is_trained_all_the_same(self, tmp_path):
        found = compare(tmp_path / "out", models={"dead": dead}, initializations=["default"], seeds=1)
        assert found.runs[0].status == "done"
        assert found.runs[0].before is None


def deep():
    sizes = [small()[0].in_features, *[16] * 12]
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())]
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, std=0.3 / layer.in_features**0.5)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers, nn.Linear(16, 3))


def dead():
    model = small()
    with torch.no_grad():
        model[4].weight.zero_()
        model[4].bias.copy_(torch.tensor([0.0, 0.0, -1e4]))
    model[4].bias.requires_grad_(False)
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    model[0].weight.requires_grad_(True)
    return nn.Sequential(*model, nn.Hardtanh(0.0, 1e-30))


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return compare(tmp_path_factory.mktemp("template") / "out", initializations=["default"], seeds=1).runs[0]


class TestChoice:
    @pytest.fixture(autouse=True)
    def _template(self, template):
        self.template = template

    def made(self, lr, accuracy, seed=0, status="done"):
        point = dataclasses.replace(self.template.curve[-1], subset="validation", accuracy=accuracy)
        start = dataclasses.replace(point, step=0, accuracy=0.3)
        return dataclasses.replace(
            self.template, lr=lr, seed=seed, status=status, curve=() if status == "failed" else (start, point)
        )

    def test_the_best_mean(self):
        runs = [self.made(0.1, 0.9), self.made(0.1, 0.5, 1), self.made(0.2, 0.8), self.made(0.2, 0.8, 1)]
        assert choose_lr(runs) == 0.2

    def test_of_equals_the_least(self):
        assert choose_lr([self.made(0.2, 0.8), self.made(0.1, 0.8)]) == 0.1

    def test_a_run_that_diverged_counts_as_untrained(self):
        runs = [
            self.made(0.1, 0.99, status="diverged"),
            self.made(0.1, 0.99, 1),
            self.made(0.2, 0.7),
            self.made(0.2, 0.7, 1),
        ]
        assert choose_lr(runs) == 0.2

    def test_one_that_failed_is_out_unless_there_is_no_other(self):
        runs = [self.made(0.1, 0.99), self.made(0.1, 0, 1, status="failed"), self.made(0.2, 0.4), self.made(0.2, 0.4, 1)]
        assert choose_lr(runs) == 0.2
        assert choose_lr(runs[:2]) == 0.1
        assert choose_lr(runs[1:2]) is None

    def test_by_the_loss_where_there_is_no_accuracy(self):
        runs = [
            dataclasses.replace(run, curve=tuple(dataclasses.replace(p, accuracy=None, loss=loss) for p in run.curve))
            for run, loss in [(self.made(0.1, 0), 2.0), (self.made(0.2, 0), 1.0)]
        ]
        assert choose_lr(runs) == 0.2


class TestSelection:
    @pytest.mark.heavy
    def test_on_the_validation_split_with_seeds_of_its_own(self, tmp_path):
        found = compare(tmp_path / "out", recipe=RECIPE | {"lr": [0.001, 0.1]}, seeds=2, selection_seeds=[7, 8])
        assert {run.seed for run in found.selection} == {7, 8}
        assert {run.seed for run in found.runs} == {0, 1}
        assert all(not points(run, "test") and points(run, "validation") for run in found.selection)
        assert all(points(run, "test") and not points(run, "validation") for run in found.runs)
        for name in ("default", "nio"):
            ours = [run for run in found.selection if run.initialization == name]
            means = {
                lr: np.mean([points(run, "validation")[-1].accuracy for run in ours if run.lr == lr]) for lr in (0.001, 0.1)
            }
            (chosen,) = {run.lr for run in found.runs if run.initialization == name}
            assert means[chosen] == max(means.values())

    @pytest.mark.heavy
    def test_runs_of_a_start_do_not_depend_on_each_other(self, tmp_path):
        """Several learning rates share a start; each gives what it gives alone."""
        both = compare(tmp_path / "both", recipe=RECIPE | {"lr": [0.01, 0.1]}, seeds=1)
        for lr in (0.01, 0.1):
            alone = compare(tmp_path / str(lr), recipe=RECIPE | {"lr": lr}, seeds=[1000, 1001])
            for run in alone.runs:
                twin = next(
                    other
                    for other in both.selection
                    if (other.initialization, other.seed, other.lr) == (run.initialization, run.seed, lr)
                )
                assert points(twin, "train") == points(run, "train")

    def test_all_failed(self, tmp_path):
        broken = functools.partial(always, "exception")
        found = compare(
            tmp_path / "out", models={"broken": broken}, initializations=["default"], recipe=RECIPE | {"lr": [0.1, 1.0]}
        )
        assert [run.status for run in found.runs] == ["failed"] * 2
        assert found.runs[0].error.startswith(
            "no learning rate could be chosen, since all runs that were to choose it failed: RuntimeError: out of cheese"
        )
        assert (
            compare(
                tmp_path / "out", models={"broken": broken}, initializations=["default"], recipe=RECIPE | {"lr": [0.1, 1.0]}
            ).runs
            == found.runs
        )


def always(how):
    return Raising(small(), how)


class TestEndings:
    def test_a_loss_that_is_not_finite(self, tmp_path):
        found = compare(tmp_path / "out", models={"net": functools.partial(raising, 1, "nan")}, initializations=["default"])
        good, bad = found.runs
        assert (good.status, good.error) == ("done", None)
        assert (bad.status, bad.error, bad.steps) == ("diverged", "the training loss of step 1 is nan", 1)
        assert math.isnan(bad.curve[-1].loss)
        assert points(bad, "test")[0].step == 0

    def test_a_learning_rate_that_is_far_too_high(self, tmp_path):
        found = compare(
            tmp_path / "out",
            models={"linear": linear},
            initializations=["default"],
            seeds=1,
            recipe=RECIPE | {"lr": 1e4, "epochs": 3},
        )
        (run,) = found.runs
        assert run.status == "diverged"
        assert run.error.startswith("the training loss is ")
        assert "in the end, and was 1." in run.error or "in the end, and was 0." in run.error
        assert run.steps == 18

    @pytest.mark.heavy
    def test_one_run_that_raises(self, tmp_path):
        models = {"net": functools.partial(raising, 2, "exception")}
        found = compare(tmp_path / "out", models=models, initializations=["default", NIO], seeds=4)
        statuses = {(run.initialization, run.seed): run.status for run in found.runs}
        assert {key for key, status in statuses.items() if status != "done"} == {("default", 2), ("nio", 2)}
        failed = next(run for run in found.runs if run.status == "failed")
        assert failed.error.startswith("RuntimeError: out of cheese\n\nTraceback (most recent call last):")
        assert 'raise RuntimeError("out of cheese")' in failed.error
        assert (failed.steps, failed.curve) == (0, ())
        assert found.problems == ()

    def test_failed_runs_are_done_again_only_if_asked(self, tmp_path, monkeypatch):
        def flaky():
            if os.environ.get("CHEESE") != "here":
                raise RuntimeError("out of cheese")
            return small()

        arguments = {"models": {"flaky": flaky}, "initializations": ["default"], "seeds": 1}
        assert compare(tmp_path / "out", **arguments).runs[0].status == "failed"
        monkeypatch.setenv("CHEESE", "here")
        assert compare(tmp_path / "out", **arguments).runs[0].status == "failed"
        assert compare(tmp_path / "out", **arguments, retry_failed=True).runs[0].status == "done"


def linear():
    return nn.Linear(6, 3)


class TestOtherTasks:
    def test_a_loss_of_ones_own_and_no_classes(self, tmp_path):
        data = Splits(*(torch.utils.data.TensorDataset(torch.randn(64, 6), torch.randn(64, 3)) for _ in range(3)))
        found = compare(tmp_path / "out", data=data, loss_fn=nn.MSELoss(), models={"linear": linear}, seeds=1)
        assert {run.status for run in found.runs} == {"done"}
        assert all(point.accuracy is None for run in found.runs for point in run.curve)
        assert found.runs[0].curve[-1].loss < found.runs[0].curve[0].loss

    @pytest.mark.filterwarnings("ignore:initopt. gradients are not centred")
    def test_dicts_for_a_model_that_returns_its_loss(self, tmp_path):
        found = compare(tmp_path / "out", data=Dicts, models={"own loss": OwnLoss}, seeds=1)
        assert {run.status for run in found.runs} == {"done"}

    def test_label_smoothing_is_for_training_only(self, tmp_path):
        plain = compare(tmp_path / "a", initializations=["default"], seeds=1).runs[0]
        smooth = compare(
            tmp_path / "b", initializations=["default"], seeds=1, recipe=RECIPE | {"label_smoothing": 0.3}
        ).runs[0]
        assert points(plain, "test")[0] == points(smooth, "test")[0]
        assert points(plain, "train")[0] != points(smooth, "train")[0]

    @pytest.mark.heavy
    @pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
    def test_precision(self, tmp_path, precision):
        found = compare(tmp_path / "out", seeds=1, recipe=RECIPE | {"precision": precision})
        assert {run.status for run in found.runs} == {"done"}
        exact = compare(tmp_path / "exact", seeds=1)
        for a, b in zip(found.runs, exact.runs, strict=True):
            assert a.curve[-1].loss == pytest.approx(b.curve[-1].loss, rel=0.05)
            assert [p.loss for p in a.curve] != [p.loss for p in b.curve]

    def test_looks_within_an_epoch(self, tmp_path):
        found = compare(tmp_path / "out", initializations=["default"], seeds=1, recipe=RECIPE | {"looks_per_epoch": 3})
        assert [p.step for p in points(found.runs[0], "test")] == [0, 2, 4, 6, 8, 10, 12]
        coarse = compare(tmp_path / "coarse", initializations=["default"], seeds=1)
        assert points(found.runs[0], "test")[-1] == points(coarse.runs[0], "test")[-1]


class Dicts:
    def __init__(self):
        self.train = self.test = [{"x": torch.randn(6), "y": torch.randn(3)} for _ in range(64)]
        self.validation = None


class OwnLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = linear()

    def forward(self, x, y):
        return {"loss": F.mse_loss(self.inner(x), y)}


class TestJudge:
    def test_every_sample_counts_once(self):
        model, dataset = small(), blobs(samples=90).test
        loss, accuracy = Judge(dataset, 16, as_loss(None), torch.device("cpu"))(model)
        inputs, labels = dataset[:]
        with torch.no_grad():
            output = model.eval()(inputs)
        assert loss == pytest.approx(F.cross_entropy(output, labels).item(), rel=1e-6)
        assert accuracy == pytest.approx((output.argmax(1) == labels).double().mean().item())

    @pytest.mark.parametrize(
        ("shape", "targets", "expected"),
        [
            ((4, 3), torch.tensor([0, 1, 2, -100]), 3),
            ((4, 5, 3), torch.zeros(4, 5, dtype=torch.long), 20),
            ((4, 3, 5), torch.zeros(4, 5, dtype=torch.long), 20),
            ((4, 1), torch.zeros(4, dtype=torch.long), None),
            ((4,), torch.zeros(4, dtype=torch.long), None),
            ((4, 3), torch.zeros(4, 3), None),
        ],
    )
    def test_where_there_are_classes(self, shape, targets, expected):
        found = hits(torch.randn(shape), (None, targets))
        assert (found if found is None else found[1].item()) == expected

    def test_other_batches_have_none(self):
        assert hits(torch.randn(4, 3), {"labels": torch.zeros(4)}) is None
        assert hits({"loss": 1}, (torch.zeros(4), torch.zeros(4, dtype=torch.long))) is None


def test_the_users_random_state_and_threads_stay(tmp_path):
    torch.manual_seed(5)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    torch.set_num_threads(2)
    compare(tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert torch.get_num_threads() == 2


@pytest.mark.heavy
def test_same_results_whatever_was_drawn_before(tmp_path):
    compare(tmp_path / "a", models={"net": functools.partial(small, dropout=0.3)})
    torch.manual_seed(12345)
    compare(tmp_path / "b", models={"net": functools.partial(small, dropout=0.3)})
    assert table(tmp_path / "a") == table(tmp_path / "b")


@pytest.mark.heavy
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("ddp_spawn", marks=pytest.mark.slow)])
@pytest.mark.processes
def test_two_processes_share_each_run(tmp_path, strategy):
    """By gloo; without batch norm, whose statistics each would have of its own half."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from tests.comparing import RECIPE, compare, small_linear\n"
        "if __name__ == '__main__':\n"
        "    compare(sys.argv[1], recipe=RECIPE | {'lr': [0.01, 0.1]}, seeds=1, selection_seeds=1,\n"
        "            models={'linear': small_linear}, devices=2, strategy=sys.argv[2])\n"
    )
    command = [sys.executable, str(script), str(tmp_path / "two"), strategy]
    subprocess.run(command, check=True, env=with_the_tests(), capture_output=True, timeout=600)
    arguments = {"recipe": RECIPE | {"lr": [0.01, 0.1]}, "models": {"linear": small_linear}}
    compare(tmp_path / "one", **arguments, seeds=1, selection_seeds=1)
    one, two = load_comparison(tmp_path / "one"), load_comparison(tmp_path / "two")
    assert [(run.initialization, run.lr, run.status) for run in two.runs] == [
        (run.initialization, run.lr, run.status) for run in one.runs
    ]
    for a, b in zip(one.runs + one.selection, two.runs + two.selection, strict=True):
        assert [p.loss for p in a.curve] == pytest.approx([p.loss for p in b.curve], rel=1e-5)
