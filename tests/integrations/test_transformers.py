"""The callbacks of transformers, in ``make test-integrations``."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import BatchEncoding, Trainer

import initopt
from initopt.integrations.transformers import Diagnose, FindLearningRate, Initialize
from tests.helpers import values
from tests.integrations._hf import Noting, Tokens, llama, trainer
from tests.integrations._two import in_two_processes

pytestmark = pytest.mark.filterwarnings("default")

SHORT = {"steps": 3, "measure_batches": 2, "on_harm": "warn", "progress": False}


def begun(made, callback):
    made.add_callback(callback)
    made.train()
    return made


class TestInitialize:
    def test_as_by_hand(self, tmp_path):
        made = trainer(tmp_path, train_sampling_strategy="sequential")
        start = Initialize("nio", trainer=made, seed=0, **SHORT)
        begun(made, start)
        by_hand = initopt.nio(llama(), DataLoader(Tokens(), batch_size=16), seed=0, **SHORT)
        assert any(scale != 1 for scale in start.result.scales.values())
        for name, scale in by_hand.scales.items():
            assert math.isclose(start.result.scales[name], scale, rel_tol=1e-5), name

    @pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"label_smoothing_factor": 0.1}])
    def test_training_sees_what_it_would_have_seen(self, tmp_path, options):
        plain = trainer(tmp_path, num_train_epochs=2, **options)
        plain.train()
        made = trainer(tmp_path, num_train_epochs=2, **options)
        begun(made, Initialize("nio", trainer=made, **SHORT))
        assert made.seen == plain.seen
        assert len(made.seen) == 12
        assert made.state.global_step == plain.state.global_step

    def test_nothing_is_logged_or_counted_meanwhile(self, tmp_path):
        made = trainer(tmp_path)
        begun(made, Initialize("nio", trainer=made, **SHORT))
        assert made.calls == len(made.figures) == 6
        own = [entry for entry in made.state.log_history if "own" in entry]
        assert len(own) == 6
        assert "log" not in vars(made)
        (told,) = [entry for entry in made.state.log_history if "initopt/seconds" in entry]
        assert {"initopt/grad_cosine_before", "initopt/grad_norm_after", "step"} <= set(told)

    def test_label_smoothing_is_in_the_loss(self, tmp_path):
        plain, smooth = trainer(tmp_path), trainer(tmp_path, label_smoothing_factor=0.5)
        losses = []
        for made in (plain, smooth):
            start = Initialize("nio", trainer=made, seed=0, **SHORT)
            begun(made, start)
            losses.append(start.result.before.grad_norm)
        assert losses[1] < 0.9 * losses[0]

    def test_a_loss_function_of_the_trainer(self, tmp_path):
        counts = []

        def per_token(outputs, labels, num_items_in_batch=None):
            counts.append(int(num_items_in_batch))
            logits = outputs.logits[:, :-1].flatten(0, 1)
            return F.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch

        made = trainer(tmp_path, Trainer, compute_loss_func=per_token)
        start = Initialize("nio", trainer=made, **SHORT)
        begun(made, start)
        assert len(start.result.history) == 3
        assert all(count % 8 == 0 for count in counts[:10])

    def test_an_own_loss_needs_no_trainer(self, tmp_path):
        seen = []

        def loss(model, batch):
            seen.append(sorted(batch))
            return model(**batch).loss

        start = Initialize("nio", loss, **SHORT)
        trainer(tmp_path, callbacks=[start]).train()
        assert len(start.result.history) == 3
        assert seen[0] == ["input_ids", "labels"]

    def test_without_trainer_and_loss(self, tmp_path):
        made = trainer(tmp_path, callbacks=[Initialize("nio")])
        with pytest.raises(
            ValueError, match=r"Initialize needs the trainer.*trainer.add_callback\(Initialize\(\.\.\., trainer=trainer\)\)"
        ):
            made.train()
        assert made.state.global_step == 0

    def test_the_trainer_can_be_told_later(self, tmp_path):
        start = Initialize("nio", **SHORT)
        made = trainer(tmp_path, callbacks=[start])
        start.trainer = made
        made.train()
        assert len(start.result.history) == 3

    def test_another_trainer(self, tmp_path):
        made = trainer(tmp_path, callbacks=[Initialize("nio", trainer=trainer(tmp_path))])
        with pytest.raises(ValueError, match="was given another trainer than the one that it is a callback of"):
            made.train()

    def test_a_checkpoint_is_left_alone(self, tmp_path, capsys):
        trainer(tmp_path, save_strategy="epoch").train()
        made = trainer(tmp_path, num_train_epochs=2)
        start, look = Initialize("nio", trainer=made), Diagnose(trainer=made)
        made.add_callback(start)
        made.add_callback(look)
        made.train(resume_from_checkpoint=True)
        assert (start.result, look.result) == (None, None)
        assert made.state.global_step == 12
        assert "Initialize leaves a training alone that goes on from a checkpoint" in capsys.readouterr().out

    def test_batches_of_a_tokenizer(self, tmp_path):
        def collate(samples):
            return BatchEncoding({name: torch.stack([sample[name] for sample in samples]) for name in samples[0]})

        made = trainer(tmp_path, data_collator=collate)
        start = Initialize("nio", trainer=made, **SHORT)
        begun(made, start)
        assert len(start.result.history) == 3

    @pytest.mark.parametrize("options", [{"bf16": True}, {"gradient_checkpointing": True}])
    def test_precision_and_checkpointing(self, tmp_path, options):
        made = trainer(tmp_path, **options)
        start = Initialize("nio", trainer=made, **SHORT)
        begun(made, start)
        assert len(start.result.history) == 3

    def test_an_exception_puts_everything_back(self, tmp_path):
        class Failing(Noting):
            def compute_loss(self, *args, **options):
                if self.calls == 12:
                    raise KeyError("what I did")
                return super().compute_loss(*args, **options)

        made = trainer(tmp_path, Failing)
        made.add_callback(Initialize("nio", trainer=made, **SHORT))
        before = values(made.model)
        with pytest.raises(KeyError, match="what I did"):
            made.train()
        assert all(torch.equal(before[name], value) for name, value in made.model.state_dict().items())
        assert (made.calls, "log" in vars(made), made.state.log_history) == (0, False, [])

    def test_what_is_wrong_is_said_when_it_is_made(self):
        with pytest.raises(TypeError, match="trainer must be a transformers.Trainer; got str"):
            Initialize("nio", trainer="trainer")
        with pytest.raises(ValueError, match="unknown method 'nioo'"):
            Initialize("nioo")

    @pytest.mark.processes
    def test_two_processes(self, tmp_path):
        first, second = in_two_processes("two_transformers.py", tmp_path)
        assert first["equal"]
        assert first["order"]
        assert second["order"]
        assert first["steps"] == 3
        assert first["scales"] == second["scales"]
        assert first["suggested"] == second["suggested"]
        assert first["losses"] == second["losses"]
        assert first["order_after_search"]
        assert any(scale != 1 for scale in first["scales"].values())
        assert first["in_parts"]
        assert first["order_of_parts"]
        assert first["scales_of_parts"] == second["scales_of_parts"] == pytest.approx(first["scales"], rel=1e-6)
        assert not {"S601", "S602"} & set(first["findings_of_parts"])

    @pytest.mark.parametrize("name", ["fsdp", "deepspeed"])
    def test_what_spreads_weights_otherwise_is_refused(self, tmp_path, name):
        made = trainer(tmp_path)
        start = Initialize("nio", trainer=made)
        setattr(made.args, name, ["full_shard"])
        with pytest.raises(ValueError, match="spreads the weights over processes in a way that initopt does not know"):
            begun(made, start)


def test_diagnose_looks_at_the_optimizer(tmp_path):
    made = trainer(tmp_path, learning_rate=1e-12)
    look = Diagnose(trainer=made, tries=())
    begun(made, look)
    assert "O502" in {finding.rule for finding in look.result.findings}
    assert any(entry.get("initopt/warnings", 0) > 0 for entry in made.state.log_history)


def test_the_rate_that_was_found_is_set(tmp_path):
    made = trainer(tmp_path, learning_rate=1e-3, warmup_steps=2, logging_steps=1, lr_scheduler_type="constant_with_warmup")
    options = {"budget": 520, "seeds": 1, "steps": 10, "warmup_steps": 0, "progress": False}
    search = FindLearningRate(trainer=made, set_rate=True, **options)
    begun(made, search)
    assert math.isclose(search.result.own, 1e-3)  # and not what the warm-up begins with, which is zero
    rates = [entry["learning_rate"] for entry in made.state.log_history if "learning_rate" in entry]
    assert math.isclose(rates[-1], search.result.suggested, rel_tol=1e-6)
