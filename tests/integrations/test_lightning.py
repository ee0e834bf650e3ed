"""The callbacks of Lightning, in ``make test-integrations``."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

pytest.importorskip("lightning.pytorch")

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.nn import functional as F
from torch.utils.data import DataLoader

import initopt
from initopt.integrations.lightning import Diagnose, FindLearningRate, Initialize
from tests.helpers import values
from tests.integrations._lit import SEARCH, Lit, data, fit, loader, trainer
from tests.integrations._two import in_two_processes

pytestmark = pytest.mark.filterwarnings("default")

SHORT = {"steps": 4, "measure_batches": 2, "on_harm": "warn", "progress": False}


class TestInitialize:
    def test_as_by_hand(self):
        batches = DataLoader(data(), batch_size=16)
        start = Initialize("nio", seed=0, **SHORT)
        fit([start], batches=batches)
        torch.manual_seed(0)
        by_hand = initopt.nio(Lit().net, batches, nn.CrossEntropyLoss(), seed=0, **SHORT)
        assert any(scale != 1 for scale in start.result.scales.values())
        for name, scale in by_hand.scales.items():
            assert math.isclose(start.result.scales[f"net.{name}"], scale, rel_tol=1e-5), name
        assert start.result.before.centred_grad_cosine is not None

    @pytest.mark.parametrize("callback", [Initialize("nio", **SHORT), Diagnose(tries=())], ids=["initialize", "diagnose"])
    @pytest.mark.parametrize("generator", [None, 3])
    def test_training_sees_what_it_would_have_seen(self, callback, generator):
        def batches():
            return loader(generator=None if generator is None else torch.Generator().manual_seed(generator))

        plain, first = fit([], batches=batches(), max_epochs=2)
        module, second = fit([callback], batches=batches(), max_epochs=2)
        extra = len(module.seen) - len(plain.seen)
        assert extra == 0
        assert module.seen == plain.seen
        assert first.callback_metrics["count"] == second.callback_metrics["count"] == 160
        assert first.global_step == second.global_step

    def test_diagnosis_changes_no_figure_of_training(self):
        _, first = fit([])
        _, second = fit([Diagnose(tries=())])
        assert first.callback_metrics == second.callback_metrics

    @pytest.mark.processes
    def test_workers_that_stay(self):
        options = {"num_workers": 1, "persistent_workers": True}
        plain, _ = fit([], batches=loader(**options), max_epochs=2)
        module, _ = fit([Initialize("nio", **SHORT)], batches=loader(**options), max_epochs=2)
        assert module.seen == plain.seen

    def test_several_loaders(self):
        class Both(Lit):
            def training_step(self, batch, batch_idx):
                assert set(batch) == {"one", "two"}
                return super().training_step(batch["one"], batch_idx)

        start = Initialize("nio", **SHORT)
        plain, _ = fit([], Both(), batches={"one": loader(), "two": loader()})
        module, _ = fit([start], Both(), batches={"one": loader(), "two": loader()})
        assert module.seen == plain.seen
        assert len(start.result.history) == 4

    def test_a_limit_of_batches(self):
        start = Initialize("nio", steps=8, measure_batches=0, progress=False)
        seen = []
        module = Lit()
        step = module.training_step
        module.training_step = lambda batch, batch_idx: (
            seen.append(tuple(batch[0][:, 0].tolist())) or step(batch, batch_idx)
        )
        fit([start], module, limit_train_batches=3)
        whole = {batch for batch in seen if len(batch) == 16}
        assert len(whole) <= 6  # three batches of the callback's passes, and of training, which draws another order

    def test_a_checkpoint_is_left_alone(self, tmp_path):
        _, first = fit([], enable_checkpointing=True, default_root_dir=tmp_path)
        first.save_checkpoint(tmp_path / "some.ckpt")
        module, start, look = Lit(), Initialize("nio", **SHORT), Diagnose()
        again = trainer([start, look], max_epochs=2)
        again.fit(module, loader(), ckpt_path=tmp_path / "some.ckpt")
        assert (start.result, look.result) == (None, None)
        assert again.global_step == 20

    def test_a_second_fit_of_one_trainer_is_left_alone(self):
        start = Initialize("nio", **SHORT)
        module, made = fit([start])
        assert start.result is not None
        made.fit_loop.max_epochs = 2
        made.fit(module, loader())
        assert start.result is None

    def test_manual_optimization_is_refused_before_any_step(self):
        class Manual(Lit):
            def __init__(self):
                super().__init__()
                self.automatic_optimization = False

        module = Manual()
        before = values(module)
        with pytest.raises(
            ValueError, match=r"Manual has manual optimization: .*give loss=, a function of \(module, batch\)"
        ):
            fit([Initialize("nio", **SHORT)], module)
        assert module.seen == []
        assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())

    def test_manual_optimization_with_a_loss(self):
        class Manual(Lit):
            def __init__(self):
                super().__init__()
                self.automatic_optimization = False

            def training_step(self, batch, batch_idx):
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                optimizer.step()

        start = Initialize("nio", lambda module, batch: F.cross_entropy(module.net(batch[0]), batch[1]), **SHORT)
        module, made = fit([start], Manual())
        assert len(start.result.history) == 4
        assert made.global_step == len(module.seen) == 10

    def test_a_step_that_reads_its_batches_itself_is_refused(self):
        class Reading(Lit):
            def training_step(self, dataloader_iter):
                raise AssertionError

        with pytest.raises(ValueError, match="the training_step of Reading reads its batches itself"):
            fit([Initialize("nio", **SHORT)], Reading())

    def test_a_step_without_loss_is_refused(self):
        class Skipping(Lit):
            def training_step(self, batch, batch_idx):
                return None

        with pytest.raises(initopt.LossError, match="the training_step of Skipping returned no loss for a batch"):
            fit([Initialize("nio", **SHORT)], Skipping())

    def test_a_step_that_returns_a_dict_or_takes_no_number(self):
        class Other(Lit):
            def training_step(self, batch):
                return {"loss": super().training_step(batch, 0), "more": 1}

        start = Initialize("nio", **SHORT)
        fit([start], Other())
        assert len(start.result.history) == 4

    @pytest.mark.parametrize(
        ("precision", "dtypes"),
        [("bf16-mixed", "torch.float32 torch.bfloat16"), ("bf16-true", "torch.bfloat16 torch.bfloat16"),
         ("64-true", "torch.float64 torch.float64")],
    )  # fmt: skip
    def test_precision(self, precision, dtypes):
        start, module, during = Initialize("nio", **SHORT), Lit(), set()
        step = module.training_step

        def noting(batch, batch_idx):
            found = step(batch, batch_idx)
            during.update(module.dtypes)
            return found

        module.training_step = noting
        fit([start], module, precision=precision)
        assert during - {"torch.float64 torch.float64"} == {dtypes} - {"torch.float64 torch.float64"}
        assert dtypes in during  # beside the double precision in which derivatives are checked
        assert len(start.result.history) == 4

    def test_an_exception_puts_everything_back(self):
        class Failing(Lit):
            calls = 0

            def training_step(self, batch, batch_idx):
                Failing.calls += 1
                if Failing.calls == 20:
                    raise KeyError("what I did")
                return super().training_step(batch, batch_idx)

        torch.manual_seed(0)
        module = Failing()
        before = values(module)
        with pytest.raises(KeyError, match="what I did"):
            fit([Initialize("nio", **SHORT)], module)
        assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
        assert "log" not in vars(module)
        assert module.count._update_count == 0

    def test_what_is_wrong_is_said_when_it_is_made(self):
        with pytest.raises(ValueError, match="unknown method 'nioo'"):
            Initialize("nioo")
        with pytest.raises(TypeError, match="step"):
            Initialize("nio", step=3)
        with pytest.raises(TypeError, match=r"diagnose\(\) has no option 'tried'; did you mean 'tries'\?"):
            Diagnose(tried=())
        with pytest.raises(TypeError, match=r"find_lr\(\) has no option 'budgets'; did you mean 'budget'\?"):
            FindLearningRate(budgets=3)
        with pytest.raises(TypeError, match="loss_fn must be None, a criterion"):
            Initialize("nio", 3)

    def test_a_compiled_module(self):
        class Silent(Lit):  # dynamo does not get through the log
            def training_step(self, batch, batch_idx):
                return F.cross_entropy(self.net(batch[0]), batch[1])

        start = Initialize("nio", **SHORT)
        fit([start], torch.compile(Silent(), backend="eager"))
        assert "differences" not in start.result.engine

    @pytest.mark.processes
    def test_two_processes(self, tmp_path):
        first, second = in_two_processes("two_lightning.py", tmp_path)
        assert first["equal"]
        assert first["order"]
        assert second["order"]
        assert first["scales"] == second["scales"]
        assert first["cosine"] == second["cosine"]
        assert first["count"] == 160
        assert first["searched"]
        assert first["suggested"] == second["suggested"] == pytest.approx(first["rate"])
        assert first["losses"] == second["losses"]
        assert first["order_after_search"]
        assert any(scale != 1 for scale in first["scales"].values())
        assert first["equal_parts"]
        assert first["in_parts"]
        assert first["order_of_parts"]
        assert first["scales_of_parts"] == second["scales_of_parts"] == pytest.approx(first["scales"], rel=1e-6)
        assert not {"S601", "S602"} & set(first["findings_of_parts"])
        assert first["losses_of_parts"] == second["losses_of_parts"]


class TestLogging:
    def test_figures_and_pictures(self, tmp_path):
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        board, table = TensorBoardLogger(tmp_path / "board"), CSVLogger(tmp_path / "table")
        start, look = Initialize("nio", **SHORT), Diagnose(tries=())
        fit([start, look], logger=[board, table], log_every_n_steps=1)
        events = EventAccumulator(board.log_dir)
        events.Reload()
        tags = events.Tags()
        assert set(tags["images"]) == {"initopt/Initialize", "initopt/Diagnose"}
        (before,) = events.Scalars("initopt/grad_cosine_before")
        assert before.step == 0
        assert math.isclose(before.value, start.result.before.grad_cosine, rel_tol=1e-5)
        assert len(events.Scalars("loss_step")) == 10  # and none of the callback's own
        assert "initopt/warnings" in (tmp_path / "table" / "lightning_logs" / "version_0" / "metrics.csv").read_text(
            "utf-8"
        )

    def test_a_logger_that_takes_images(self):
        taken = []

        class Images(pl.loggers.logger.DummyLogger):
            def log_image(self, key, images, step):
                taken.append((key, images[0].shape, step))

            @property
            def experiment(self):
                return None

        fit([Initialize("nio", **SHORT)], logger=Images())
        ((key, shape, step),) = taken
        assert (key, len(shape), shape[2], step) == ("initopt/Initialize", 3, 4, 0)


def test_remedies_are_tried_on_a_copy_of_the_module():
    class Deep(Lit):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            width = self.net[0].in_features
            layers = [layer for _ in range(24) for layer in (nn.Linear(width, width), nn.Tanh())]
            self.net = nn.Sequential(*layers, nn.Linear(width, 3))

    look = Diagnose(tries=("orthogonal",), progress=False)
    fit([look], Deep(), max_epochs=1)
    assert "A204" in {finding.rule for finding in look.result.findings}
    assert look.result.tried[0].better


class TestFindLearningRate:
    def test_says_only(self):
        search = FindLearningRate(**SEARCH)
        module, made = fit([search])
        assert search.result.suggested > 0
        assert made.optimizers[0].param_groups[0]["lr"] == 0.1
        assert made.callback_metrics["count"] == 160
        assert len(module.seen) == 10

    def test_sets_the_rate_and_that_of_schedules(self):
        class Scheduled(Lit):
            def configure_optimizers(self):
                optimizer = super().configure_optimizers()
                return [optimizer], [torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, total_iters=1)]

        search = FindLearningRate(set_rate=True, **SEARCH)
        _, made = fit([search], Scheduled())
        assert search.result.own == 0.1  # and not the tenth of it that the warm-up begins with
        assert math.isclose(made.optimizers[0].param_groups[0]["lr"], search.result.suggested, rel_tol=1e-6)

    def test_is_for_one_optimizer(self):
        class Two(Lit):
            def __init__(self):
                super().__init__()
                self.automatic_optimization = False

            def configure_optimizers(self):
                return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.net[0], self.net[3])]

        search = FindLearningRate(lambda module, batch: F.cross_entropy(module.net(batch[0]), batch[1]))
        with pytest.raises(ValueError, match="find_lr is for a training with one optimizer, and this one has several"):
            fit([search], Two())


def test_what_shards_is_refused():
    made = trainer([])
    made.strategy.__class__ = type("FSDPStrategy", (type(made.strategy),), {})
    with pytest.raises(ValueError, match="FSDPStrategy"):
        Initialize("nio").setup(made, Lit(), "fit")


def test_the_data_is_that_of_the_tests():
    assert len(data()) == 160
