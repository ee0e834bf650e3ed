"""New weights are tried by the user's own optimizer, and given up where they train worse."""

from __future__ import annotations

import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import initopt
from initopt import Result
from initopt.methods import NIO
from initopt.runs.trial import Trial, TrialRun
from tests.helpers import make_batches, values
from tests.processes import in_processes, share_of

SGD = partial(torch.optim.SGD, lr=0.3, momentum=0.9)


def batches(count: int = 30, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Noisy prototypes, one for each class."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.randn(10, 64, generator=generator)
    targets = torch.randint(10, (count, 64), generator=generator)
    return [(prototypes[t] + 0.5 * torch.randn(64, 64, generator=generator), t) for t in targets]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [layer for i in range(6) for layer in (nn.Linear(32 if i else 64, 32), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(32, 10))


def run(model: nn.Module, **options: Any) -> Result:
    """NIO in few steps; the new weights do not bear the learning rate, which is three times as high as they like."""
    settings: dict[str, Any] = {
        "steps": 12,
        "lr": 0.1,
        "measure_batches": 5,
        "diagnose": False,
        "seed": 0,
        "optimizer": SGD,
    }
    return initopt.nio(model, batches(), **(settings | options))


class TestWeightsThatTrainWorse:
    def test_are_given_up_and_the_rate_that_would_do_is_said(self) -> None:
        model = network()
        before = values(model)
        with pytest.warns(
            initopt.InitoptWarning, match="so the weights are as before. At a third of your rate, 0.1,"
        ) as told:
            result = run(model, optimizer=SGD)
        assert len(told) == 1
        assert result.trial is not None
        assert result.trial.outcome == "worse"
        assert result.trial.new.loss > result.trial.old.loss
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert all(scale == 1 for scale in result.scales.values())
        assert any(scale != 1 for scale in (result.tried_scales or {}).values())
        assert result.verdict.startswith("restored: after 12 training steps at your learning rate 0.3, the loss is ")
        assert f"with the old weights {result.trial.old.loss:.3g}" in result.verdict
        assert result.trial.slower is not None
        assert result.trial.slower.lr == pytest.approx(0.1)
        assert f"the new weights come to a loss of {result.trial.slower.loss:.3g}" in str(result)
        assert "a trial of 36 training steps" in str(result)

    @pytest.mark.heavy
    def test_the_optimizer_itself_will_do(self) -> None:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
        with pytest.warns(initopt.InitoptWarning, match="at your learning rate 0.3"):
            found = run(model, optimizer=optimizer).trial
        with pytest.warns(initopt.InitoptWarning, match="at your learning rate 0.3"):
            assert run(network(), optimizer=SGD).trial == found
        assert not optimizer.state
        assert optimizer.param_groups[0]["lr"] == 0.3

    @pytest.mark.heavy
    def test_are_kept_or_refused_where_that_is_asked_for(self) -> None:
        worse = SGD
        with pytest.warns(initopt.InitoptWarning, match="The new weights are kept, since on_harm='warn'"):
            kept = run(network(), optimizer=worse, on_harm="warn")
        assert kept.verdict.startswith("harmed: after 12 training steps")
        assert "Next: train at a lower rate, or from the weights of before. At a third" in str(kept)
        model = network()
        before = values(model)
        with pytest.raises(initopt.HarmError, match="after 12 training steps at your learning rate 0.3"):
            run(model, optimizer=worse, on_harm="raise")
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class TestWeightsThatTrainBetter:
    @pytest.mark.heavy
    def test_are_kept_and_it_is_said(self) -> None:
        model = network()
        result = run(model, optimizer=partial(torch.optim.SGD, lr=0.03, momentum=0.9))
        assert result.trial is not None
        assert result.trial.outcome == "better"
        assert result.trial.slower is None
        assert result.verdict.startswith("improved: ")
        assert "; after 12 training steps at your learning rate 0.03, the loss is " in result.verdict
        assert "Next: train at your learning rate 0.03;" in str(result)
        assert all(torch.equal(value, result.weights[name]) for name, value in model.named_parameters())

    @pytest.mark.heavy
    def test_the_steps_and_weights_are_those_without_a_trial(self) -> None:
        """Nothing that NIO itself does depends on it, nor does anything of the model change."""
        model, other = network(), network()
        flags = [p.requires_grad for p in model.parameters()]
        model[0].weight.grad = torch.ones(32, 64)
        found = run(model, optimizer=partial(torch.optim.AdamW, lr=0.001))
        without = run(other, optimizer=None)
        assert found.scales == without.scales
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
        assert torch.equal(model[0].weight.grad, torch.ones(32, 64))
        assert [p.grad is None for p in model.parameters()] == [False] + [True] * (len(flags) - 1)

    @pytest.mark.heavy
    def test_a_run_is_what_a_plain_loop_does(self) -> None:
        """On the batches of the last steps, judged on those held back."""
        model, own = network(), network()
        optimizer = partial(torch.optim.AdamW, lr=0.002, weight_decay=0.1)
        result = run(model, optimizer=optimizer, trial_steps=7, clip_grad_norm=0.5)
        data = batches()
        made = optimizer(own.parameters())
        course = []
        for inputs, targets in [data[i % 25] for i in range(12)][-7:]:
            made.zero_grad()
            loss = nn.functional.cross_entropy(own(inputs), targets)
            loss.backward()
            nn.utils.clip_grad_norm_(own.parameters(), 0.5)
            made.step()
            course.append(float(loss.detach()))
        with torch.no_grad():
            losses = [float(nn.functional.cross_entropy(own(inputs), targets)) for inputs, targets in data[12:17]]
        assert result.trial is not None
        assert result.trial.old.course == pytest.approx(course, rel=1e-5)
        assert result.trial.old.losses == pytest.approx(losses, rel=1e-5)

    @pytest.mark.heavy
    def test_in_parts_as_the_steps(self) -> None:
        optimizer = partial(torch.optim.SGD, lr=0.03)
        whole, parts = (
            run(network(), optimizer=optimizer, steps=3),
            run(network(), optimizer=optimizer, steps=3, microbatch=20),
        )
        assert whole.trial is not None
        assert parts.trial is not None
        assert parts.trial.old.losses == pytest.approx(whole.trial.old.losses, rel=1e-4)

    @pytest.mark.heavy
    def test_of_batch_norms_nothing_is_left(self) -> None:
        model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        assert run(model, optimizer=partial(torch.optim.SGD, lr=0.03), on_harm="warn", lr=0.3, scale_invariant=True).trial
        assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
        assert model.training


@pytest.mark.heavy
def test_it_is_stored_with_the_result(tmp_path: Path) -> None:
    result = run(network(), optimizer=partial(torch.optim.SGD, lr=0.03, momentum=0.9))
    result.save(tmp_path / "result")
    stored = Result.load(tmp_path / "result")
    assert stored.trial == result.trial
    assert stored.options["optimizer"] == "torch.optim.sgd.SGD(lr=0.03, momentum=0.9)"
    assert str(stored) == str(result)


@pytest.mark.heavy
def test_a_resumed_run_has_the_same(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def kill(record: Any) -> None:
        if record.step == 9:
            raise KilledError

    options: dict[str, Any] = {"optimizer": partial(torch.optim.SGD, lr=0.03), "checkpoint": tmp_path / "at"}
    unbroken = run(network(), optimizer=options["optimizer"])
    model = network()
    with pytest.raises(KilledError):
        run(model, callbacks=kill, **options)
    resumed = run(model, **options)
    assert resumed.trial == unbroken.trial
    assert run(network(), **options).trial == unbroken.trial  # done, but for the trial
    with pytest.raises(initopt.MismatchError, match=r"optimizer was 'torch.optim.sgd.SGD\(lr=0.03\)' and is"):
        run(network(), **options | {"optimizer": partial(torch.optim.SGD, lr=0.1)})


def of(losses: list[float], begun: float = 2.3, lr: float = 0.1) -> TrialRun:
    return TrialRun(lr, losses, [begun + 0.01 * (-1) ** i for i in range(len(losses))], losses)


@pytest.mark.parametrize(
    ("old", "new", "outcome", "words"),
    [
        ([1.0, 1.1, 1.2], [0.8, 0.9, 1.0], "better", "the loss is 0.9, and with the old weights 1.1"),
        ([1.0, 1.1, 1.2], [1.2, 1.3, 1.4], "worse", "the loss is 1.3, and with the old weights 1.1"),
        ([1.0, 1.1, 1.2], [1.3, 1.0, 1.3], "alike", "cannot be told apart (loss 1.1 and 1.2)"),
        ([1.0, 1.1, 1.2], [1.01, 1.11, 1.21], "alike", "cannot be told apart"),  # clear, but of no weight
        ([1.0, 1.1, 1.2], [math.inf] * 3, "worse", "the loss is infinite, and with the old weights 1.1"),
        ([math.inf] * 3, [1.0, 1.1, 1.2], "better", "the loss is 1.1, and with the old weights infinite"),
        ([math.inf] * 3, [math.inf] * 3, "neither", "have learned anything (loss infinite and infinite)"),
        ([2.3, 2.31, 2.29], [9.0, 8.0, 9.0], "worse", "the loss is 8.67"),  # explodes, alone
        ([8.0, 8.1, 8.2], [9.0, 9.1, 9.2], "neither", "have learned anything"),
        ([2.3, 2.31, 2.29], [2.3, 2.31, 2.32], "neither", "have learned anything"),
        ([2.0], [1.0], "better", "the loss is 1,"),
    ],
)
def test_what_is_clear(old: list[float], new: list[float], outcome: str, words: str) -> None:
    trial = Trial(20, of(old), of(new))
    assert trial.outcome == outcome
    assert words in str(trial)
    assert trial.advice() is None


def test_old_weights_that_end_lower_and_learn_nothing_are_told_from_equal_ones() -> None:
    trial = Trial(20, of([0.7, 0.71, 0.69], begun=0.7), of([0.9, 0.91, 0.89], begun=1.2))
    assert trial.outcome == "alike"
    assert str(trial).endswith("the loss is 0.9 and falls, where that of the old weights stays at 0.7")


@pytest.mark.parametrize(
    ("slower", "bears", "words"),
    [
        ([0.8, 0.9, 1.0], True, "come to a loss of 0.9, better than the old ones at the whole of it: run this again"),
        ([1.2, 1.1, 1.0], False, "come to a loss of 1.1, which is not clearly better"),
        ([math.inf] * 3, False, "the new weights diverge, too"),
    ],
)
def test_what_is_said_of_a_third_of_the_rate(slower: list[float], bears: bool, words: str) -> None:
    trial = Trial(20, of([1.0, 1.1, 1.2]), of([3.0, 3.1, 3.2]), of(slower, lr=0.1 / 3))
    assert trial.bears_a_third == bears
    assert trial.advice() is not None
    assert "At a third of your rate, 0.0333" in str(trial.advice())
    assert words in str(trial.advice())


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"optimizer": "adamw"}, TypeError, r"optimizer must be a function .* got str; pass functools.partial"),
            ({"optimizer": torch.optim.LBFGS}, TypeError, "makes LBFGS, whose step evaluates the loss several times"),
            ({"optimizer": lambda parameters: None}, TypeError, "optimizer made NoneType, which is not a torch.optim"),
            ({"optimizer": lambda model, loss: None}, TypeError, "cannot be called with the parameters alone"),
            ({"optimizer": partial(torch.optim.SGD, lr=0.0)}, ValueError, "learning rate of optimizer is 0 .a schedule"),
            (
                {"optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)},
                ValueError,
                "none of the model's trainable parameters; was it made for another model",
            ),
            ({"trial_steps": -1}, ValueError, "trial_steps must be an integer of 0 or more; got -1"),
            ({"clip_grad_norm": 0}, ValueError, "clip_grad_norm must be a number above 0; got 0"),
            ({"clip_grad_norm": 1.0, "optimizer": None}, ValueError, "clip_grad_norm is about the training, and needs"),
        ],
    )
    def test_before_any_work(self, options: dict[str, Any], error: type[Exception], message: str) -> None:
        def refuse() -> Any:
            raise AssertionError("no batch is taken")
            yield

        with pytest.raises(error, match=message):
            initopt.nio(network(), refuse(), **({"optimizer": SGD} | options))

    @pytest.mark.heavy
    def test_no_trial_is_done_without_steps_or_batches(self) -> None:
        assert run(network(), trial_steps=0).trial is None
        assert run(network(), measure_batches=0).trial is None
        assert NIO().training is None

    @pytest.mark.heavy
    def test_a_trial_that_fails_costs_nothing_else(self) -> None:
        class Broken(torch.optim.SGD):
            def step(self, closure: Any = None) -> Any:
                raise RuntimeError("out of order")

        model = network()
        with pytest.warns(initopt.InitoptWarning, match=r"could not be tried by the optimizer .RuntimeError: out of order"):
            result = run(model, optimizer=partial(Broken, lr=0.1))
        assert result.trial is None
        assert result.verdict.startswith("improved")
        assert all(torch.equal(value, result.weights[name]) for name, value in model.named_parameters())
        assert all(p.grad is None for p in model.parameters())


def without_norm() -> nn.Sequential:
    """Batch norms would see the share of their rank."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))


FEW_STEPS: dict[str, Any] = {"steps": 6, "measure_batches": 3, "diagnose": False, "seed": 0, "overlap": 0.0}


def on_two_ranks() -> dict[str, Any]:
    class Broken(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            if rank == 1:
                raise RuntimeError("out of order")

    rank, group = dist.get_rank(), dist.group.WORLD
    halves = [share_of(batch, 4, rank, 2) for batch in make_batches(12)]
    options = FEW_STEPS | {"process_group": group}
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    tried = initopt.nio(without_norm(), halves, optimizer=optimizer, on_harm="warn", **options)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        broken = initopt.nio(without_norm(), halves, optimizer=partial(Broken, lr=0.1), on_harm="warn", **options)
    try:
        initopt.nio(without_norm(), halves, optimizer=optimizer, max_decrease=1.0, **options)
    except ValueError as error:
        refused = str(error)
    return {"trial": tried.trial, "broken": (broken.trial, [str(w.message) for w in told]), "refused": refused}


@pytest.mark.heavy
@pytest.mark.processes
def test_several_ranks_try_as_one_process_would() -> None:
    first, second = in_processes(on_two_ranks, 2)
    options = FEW_STEPS | {"on_harm": "warn"}
    alone = initopt.nio(
        without_norm(), make_batches(12), optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9), **options
    ).trial
    assert alone is not None
    assert first["trial"] == second["trial"]
    assert first["trial"].new.losses == pytest.approx(alone.new.losses, rel=1e-4)
    assert first["trial"].old.course == pytest.approx(alone.old.course, rel=1e-4)
    for found in (first, second):
        assert found["broken"][0] is None
        assert any("out of order" in message for message in found["broken"][1])
        assert "max_decrease is for a process alone, and there are 2" in found["refused"]
