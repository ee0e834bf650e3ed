"""``find_lr`` on models: against the theory of quadratics, on what users bring, and that nothing of theirs is lost."""

from __future__ import annotations

import functools
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initopt
from initopt._support.errors import LoaderError, NonFiniteError
from initopt.testing import ENTRIES
from tests.helpers import make_batches, make_model, values

pytestmark = pytest.mark.training

SHORT: dict[str, Any] = {"seeds": 2, "steps": 20, "sweep_steps": 40, "warmup_steps": 8, "precision": 1.3, "seed": 0}
SGD = functools.partial(torch.optim.SGD, lr=0.1)


class Bowl(nn.Module):
    """Half a quadratic form of its weight, plus a constant."""

    def __init__(self, curvatures: tuple[float, ...]) -> None:
        super().__init__()
        self.curvatures = torch.tensor(curvatures)
        self.weight = nn.Parameter(torch.ones(len(curvatures)))

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.curvatures * self.weight**2).sum() / 2 + 0 * inputs.sum()


def of_output(model: nn.Module, batch: Tensor) -> Tensor:
    loss: Tensor = model(batch)
    return loss


def learnable(count: int = 12, size: int = 32, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Three classes that a small network can tell apart."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(3, 6, generator=generator)
    batches = []
    for _ in range(count):
        targets = torch.randint(3, (size,), generator=generator)
        batches.append((centres[targets] + torch.randn(size, 6, generator=generator), targets))
    return batches


class TestTheLargestStableRateOfAQuadratic:
    @pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
    @pytest.mark.parametrize("curvatures", [(8.0, 2.0, 0.5), (0.01, 0.002)])
    def test_is_that_of_the_theory_within_three_percent(self, momentum: float, curvatures: tuple[float, ...]) -> None:
        optimizer = functools.partial(torch.optim.SGD, momentum=momentum)
        found = initopt.find_lr(
            Bowl(curvatures),
            [torch.ones(1)],
            optimizer,
            of_output,
            seeds=1,
            precision=1.02,
            max_lr=1e4,
            warmup_steps=0,
            seed=0,
        )
        theory = 2 * (1 + momentum) / max(curvatures)
        assert found.largest_stable == pytest.approx(theory, rel=0.03)
        assert found.unstable_at == pytest.approx(theory, rel=0.03)

    def test_is_a_bound_where_the_range_ends_before(self) -> None:
        found = initopt.find_lr(Bowl((0.05, 0.04)), [torch.ones(1)], torch.optim.SGD, of_output, **SHORT | {"max_lr": 30.0})
        assert found.unstable_at is None
        assert found.largest_stable is not None
        assert 10 < found.largest_stable < 31
        assert "at least, where the range ends" in " ".join(str(found).split())


class TestNothingIsLost:
    @pytest.mark.heavy
    @pytest.mark.parametrize("fails", [False, True])
    def test_neither_the_model_nor_the_generators(self, fails: bool) -> None:
        model, generator = make_model(dropout=0.3), torch.Generator().manual_seed(3)
        model[4].weight.requires_grad_(False)
        model[0].weight.grad = torch.full_like(model[0].weight, 7.0)
        model.eval()
        model[1].train()
        data = torch.utils.data.TensorDataset(torch.randn(96, 6), torch.randint(3, (96,)))
        loader = torch.utils.data.DataLoader(data, 16, shuffle=True, generator=generator)
        before, modes = values(model), [module.training for module in model.modules()]
        states = (torch.get_rng_state(), generator.get_state(), random.getstate(), np.random.get_state()[1].tolist())
        calls = 0

        def loss(model: nn.Module, batch: Any) -> Tensor:
            nonlocal calls
            calls += 1
            if fails and calls == 200:
                raise KeyError("on the way")
            return nn.functional.cross_entropy(model(batch[0]), batch[1])

        if fails:
            with pytest.raises(KeyError, match="on the way"):
                initopt.find_lr(model, loader, SGD, loss, **SHORT)
        else:
            initopt.find_lr(model, loader, SGD, loss, **SHORT)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert [module.training for module in model.modules()] == modes
        assert model[0].weight.grad is not None
        assert bool((model[0].weight.grad == 7).all())
        assert all(p.grad is None for name, p in model.named_parameters() if name != "0.weight")
        assert not model[4].weight.requires_grad
        now = (torch.get_rng_state(), generator.get_state(), random.getstate(), np.random.get_state()[1].tolist())
        assert torch.equal(now[0], states[0])
        assert torch.equal(now[1], states[1])
        assert now[2:] == states[2:]

    @pytest.mark.heavy
    def test_nor_an_optimizer_that_is_given_as_such(self) -> None:
        model = make_model()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        before = values(model)
        found = initopt.find_lr(model, learnable(), optimizer, **SHORT)
        assert found.own == 0.01
        assert not optimizer.state
        assert optimizer.param_groups[0]["lr"] == 0.01
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    @pytest.mark.heavy
    def test_nor_what_a_step_of_the_users_own_keeps(self) -> None:
        model, shadow = make_model(), make_model()
        kept = values(shadow)

        def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for mean, value in zip(shadow.parameters(), model.parameters(), strict=True):
                    mean.lerp_(value, 0.1)
            return loss

        initopt.find_lr(model, learnable(), SGD, step=step, **SHORT)
        assert all(torch.equal(value, kept[name]) for name, value in shadow.state_dict().items())


class TestWhatIsFound:
    def test_a_network_that_learns_has_a_rate_and_every_seed_its_own_order(self) -> None:
        seen: dict[int, list[float]] = {}
        found = initopt.find_lr(make_model(), learnable(), SGD, **SHORT | {"seeds": 3})
        assert found.suggested is not None
        assert found.why == ""
        assert found.interval is not None
        assert found.interval[0] <= found.suggested * 1.01
        assert found.interval[1] >= found.suggested * 0.99
        assert found.suggested <= (found.unstable_at or math.inf)
        assert found.own == 0.1
        assert found.at(0.1) is not None
        assert found.steps_spent <= found.budget
        seen = {sweep.seed: list(sweep.start) for sweep in found.sweeps}
        assert len({tuple(start) for start in seen.values()}) == 3

    @pytest.mark.heavy
    def test_it_is_the_same_again_with_the_same_seed(self) -> None:
        first, second = (initopt.find_lr(make_model(dropout=0.2), learnable(), SGD, **SHORT) for _ in range(2))
        assert first.to_dict() | {"seconds": 0} == second.to_dict() | {"seconds": 0}

    @pytest.mark.heavy
    def test_a_trained_model_has_none(self) -> None:
        model, batches = make_model(), learnable()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(30):
            for inputs, targets in batches:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
        found = initopt.find_lr(model, batches, SGD, **SHORT)
        assert found.suggested is None
        assert "hardly falls at any rate" in found.why
        assert "initopt.diagnose(model, loader)" in found.advice
        assert "No suggestion" in str(found)

    @pytest.mark.heavy
    def test_labels_that_say_nothing_have_none(self) -> None:
        found = initopt.find_lr(make_model(), make_batches(40, 64), SGD, **SHORT | {"sweep_steps": 40, "num_batches": 40})
        assert found.suggested is None

    @pytest.mark.heavy
    def test_a_batch_that_spikes_moves_neither_rate_by_much(self) -> None:
        plain = learnable(60)  # one batch of so many in a run is an accident, and one of twenty is the data
        spiked = [(inputs, targets) for inputs, targets in plain]
        spiked[3] = (spiked[3][0], (spiked[3][1] + 1) % 3)  # all of its labels are wrong
        found = [initopt.find_lr(make_model(), batches, SGD, **SHORT | {"seeds": 3}) for batches in (plain, spiked)]
        rates = [one.suggested for one in found]
        assert rates[0] is not None
        assert rates[1] is not None
        assert 1 / 4 < rates[0] / rates[1] < 4

    @pytest.mark.heavy
    def test_a_loss_that_is_nan_at_high_rates_is_no_obstacle(self) -> None:
        def loss(model: nn.Module, batch: Any) -> Tensor:
            value = nn.functional.cross_entropy(model(batch[0]), batch[1])
            return torch.log(2.0 - value) * -1 + 1  # nan from 2 on

        found = initopt.find_lr(nn.Linear(6, 3), learnable(), SGD, loss, **SHORT)
        assert found.largest_stable is not None
        assert found.unstable_at is not None
        assert found.suggested is None or found.suggested < found.unstable_at

    def test_a_start_that_is_not_finite_is_an_error(self) -> None:
        model = make_model()
        with torch.no_grad():
            model[6].bias.fill_(math.nan)
        with pytest.raises(NonFiniteError, match="the loss of the start is nan.*initopt.diagnose"):
            initopt.find_lr(model, learnable(), SGD, **SHORT)


class TestOptimizers:
    @pytest.mark.heavy
    @pytest.mark.parametrize(
        ("optimizer", "own"),
        [
            (torch.optim.SGD, None),
            (functools.partial(torch.optim.SGD, momentum=0.9), None),
            (functools.partial(torch.optim.SGD, lr=0.05), 0.05),
            (functools.partial(functools.partial(torch.optim.SGD, lr=0.05), momentum=0.9), 0.05),
            (lambda parameters, lr: torch.optim.SGD(parameters, lr), None),
            (lambda parameters, rate: torch.optim.SGD(parameters, rate), None),
            (lambda parameters, lr=0.2: torch.optim.SGD(parameters, lr), 0.2),
            (lambda parameters: torch.optim.SGD(parameters, 0.3), 0.3),
            (lambda parameters, lr: torch.optim.SGD(parameters, 0.3), None),
        ],
    )
    def test_anything_that_makes_one_of_a_rate_will_do(self, optimizer: Any, own: float | None) -> None:
        found = initopt.find_lr(nn.Linear(6, 3), learnable(), optimizer, **SHORT)
        assert found.own == own
        assert found.optimizer == "SGD"
        assert (found.at(own) is not None) if own else True

    @pytest.mark.heavy
    def test_parameter_groups_keep_the_ratio_of_their_rates(self) -> None:
        model = make_model()
        ratios = set()

        def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> Tensor:
            first, second = (group["lr"] for group in optimizer.param_groups)
            ratios.add(round(second / first, 6))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            return loss

        groups = [{"params": model[0].parameters()}, {"params": model[6].parameters(), "lr": 0.5}]
        found = initopt.find_lr(model, learnable(), torch.optim.SGD(groups, lr=0.1), step=step, **SHORT)
        assert ratios == {5.0}
        assert found.own == 0.1

    @pytest.mark.heavy
    def test_the_range_is_wide_around_the_users_rate(self) -> None:
        found = initopt.find_lr(nn.Linear(6, 3), learnable(), functools.partial(torch.optim.SGD, lr=3.0), **SHORT)
        assert found.sweeps[0].rates[0] == pytest.approx(1e-6)
        assert found.sweeps[0].rates[-1] == pytest.approx(300)


@pytest.mark.parametrize(
    ("optimizer", "options", "error", "message"),
    [
        (None, {}, TypeError, "find_lr needs the optimizer: pass functools.partial"),
        (0.1, {}, TypeError, "optimizer must be a function that makes one of parameters; got float"),
        (lambda p: torch.optim.SGD(p, 0.0), {}, ValueError, "learning rate of 0, which no factor.*without the scheduler"),
        (SGD, {"seeds": 0}, ValueError, "seeds must be an integer of 1 or more; got 0"),
        (SGD, {"steps": 4}, ValueError, "steps must be an integer of 5 or more; got 4"),
        (SGD, {"warmup_steps": 50}, ValueError, "warmup_steps must be fewer than steps=50.*Try steps=150"),
        (SGD, {"min_lr": 0.0}, ValueError, "min_lr must be a number above 0"),
        (SGD, {"max_lr": math.inf}, ValueError, "max_lr must be a finite number"),
        (SGD, {"min_lr": 0.1, "max_lr": 0.5}, ValueError, "max_lr must be ten times min_lr or more.*got min_lr=0.1 and"),
        (SGD, {"precision": 1.0}, ValueError, "precision must be a number above 1.01"),
        (SGD, {"budget": 900}, ValueError, "budget must be 1050 training steps or more for seeds=3.*got 900"),
        (SGD, {"step": 3}, TypeError, "step must be a function"),
        (torch.optim.LBFGS, {}, ValueError, "LBFGS computes the loss several times in a step: give a step="),
        (
            lambda p: torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1),
            {},
            ValueError,
            "optimizer makes one that has none of the parameters that it is given; make it of its first argument",
        ),
        (SGD, {"stepps": 3}, TypeError, "did you mean 'steps'"),
    ],
)
def test_what_cannot_work_is_refused_at_once(optimizer: Any, options: dict[str, Any], error: type, message: str) -> None:
    def untouched(model: nn.Module, batch: Any) -> Tensor:
        pytest.fail("work was begun")

    with pytest.raises(error, match=message):
        initopt.find_lr(make_model(), learnable(), optimizer, untouched, **options)


def test_a_batch_that_gives_no_finite_loss_is_named() -> None:
    data = learnable()
    data[3][0][0, 0] = math.nan
    with pytest.raises(NonFiniteError, match="the loss of a batch is nan before any training: batch"):
        initopt.find_lr(make_model(), data, SGD, **SHORT)


def test_a_rate_in_a_tensor_stays_the_users() -> None:
    model = make_model()
    own = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1))
    rate = own.param_groups[0]["lr"]
    initopt.find_lr(model, learnable(), own, **SHORT)
    assert own.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.1)


def test_an_empty_loader_is_an_error() -> None:
    with pytest.raises(LoaderError, match="loader is empty"):
        initopt.find_lr(make_model(), iter([]), SGD)


@pytest.mark.heavy
def test_a_generator_of_few_batches_will_do() -> None:
    found = initopt.find_lr(make_model(), (batch for batch in learnable(5)), SGD, **SHORT)
    assert found.suggested is not None


@functools.cache
def one() -> initopt.LearningRates:
    return initopt.find_lr(make_model(), learnable(), SGD, **SHORT)


class TestForms:
    @pytest.mark.heavy
    def test_its_words_fit_a_screen_and_end_in_advice(self) -> None:
        found = one()
        lines = str(found).splitlines()
        assert len(lines) <= 30
        assert max(map(len, lines)) <= 100
        assert str(found).replace("\n", " ").endswith(found.advice)
        assert any("yours" in line for line in lines)
        assert sum(line.endswith("largest stable") for line in lines) == 1

    @pytest.mark.heavy
    def test_json_and_tables(self, tmp_path: Path) -> None:
        found = one()
        plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert plain["format"] == "initopt learning rates 1"
        assert plain["suggested"] == found.suggested
        assert len(plain["runs"]) == len(found.runs)
        frame = found.to_dataframe()
        assert {"lr", "warmup", "seed", "loss", "gain", "stable"} == set(frame.columns)
        assert set(frame["seed"]) == set(found.seeds)
        folder = found.save(tmp_path / "rates")
        assert {path.name for path in folder.iterdir()} == {"learning-rates.json", "plot.png"}
        found.save(folder)
        (folder / "mine.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="mine.txt"):
            found.save(folder)

    @pytest.mark.heavy
    def test_pictures(self) -> None:
        found = one()
        assert isinstance(found.plot(), matplotlib.figure.Figure)
        figure = found.plot({"again": found}, name="first")
        labels = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
        assert "first" in labels
        assert "again" in labels
        assert 'src="data:image/png;base64,' in found._repr_html_()

    def test_words_for_what_was_found(self) -> None:
        found = one()
        assert found.suggested is not None
        own = replace(found, own=found.runs[0].lr)
        assert own.advice.startswith(f"Train at {found.suggested:.2g} (your {found.runs[0].lr:.2g} is ")
        assert "times too low for this start" in own.advice
        assert found.best is not None
        assert replace(found, own=found.best.lr).advice.startswith(f"Keep your rate of {found.best.lr:.2g}, which")
        assert replace(found, own=None).advice.startswith(f"Train at {found.suggested:.2g}; 20 steps do not see")
        undone = replace(found, undone=("the warm-up", "rates between those"))
        assert "The budget was not enough for the warm-up and rates between those." in str(undone)
        assert found.warmup is not None
        better = replace(found.warmup, factor=4, without=1, better=True, warm=(replace(found.best, warmup=8, lr=0.77),))
        warm = replace(found, warmup=better)
        assert "With a warm-up of 8 of the 20 steps, the peak can be 4 times the largest stable rate; above" in flat(warm)
        assert "above that rate, the loss ends lower than at the best rate without. " in flat(warm)
        none = replace(found, warmup=replace(better, factor=1, better=False))
        assert "A warm-up of 8 of the 20 steps allows no higher rate than the largest stable one, and" in flat(none)
        both = replace(found, warmup=replace(better, without=4))
        assert "Both with a warm-up of 8 of the 20 steps and without it, 4 times the largest stable rate goes" in flat(both)
        assert ", or with a warm-up of 8 steps at 0.77" in flat(warm)
        for why, advice in {
            "the seeds disagree: ": "Ask again with more seeds",
            "every rate that ": "Ask again with a lower range (min_lr=",
            "the highest rate that ": "Ask again with a higher range (max_lr=",
            "the loss hardly ": "Ask initopt.diagnose(model, loader)",
        }.items():
            without = replace(found, suggested=None, interval=None, why=why)
            assert without.advice.startswith(advice)
            assert f"No suggestion: {why.strip()}" in flat(without)
        assert "stable up to at least" not in flat(found)
        assert "at least, where the range ends" in flat(replace(found, unstable_at=None))
        assert "no rate of the range is stable" in flat(replace(found, largest_stable=None))


def flat(found: initopt.LearningRates) -> str:
    return " ".join(str(found).split())


def attributes(model: nn.Module) -> list[dict[str, int]]:
    """The identities of what modules have beside what is PyTorch's own."""
    own = [{key: value for key, value in vars(module).items() if not key.startswith("_")} for module in model.modules()]
    return [{key: id(value) for key, value in named.items()} for named in own]


@pytest.mark.gallery
@pytest.mark.parametrize("name", ENTRIES)
def test_odd_models_are_trained_and_given_back(name: str) -> None:
    entry = ENTRIES[name]
    model, batches, loss = entry.model(), [entry.batch(1), entry.batch(2)], entry.loss_fn()
    before, modes = values(model), [module.training for module in model.modules()]
    parts = attributes(model)
    options: dict[str, Any] = {"seeds": 1, "steps": 5, "sweep_steps": 20, "warmup_steps": 2, "precision": 2.0}
    found = initopt.find_lr(model, batches, torch.optim.SGD, loss, seed=0, **options)
    assert found.steps_spent >= 25
    after = model.state_dict()
    assert list(after) == list(before)
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=0, equal_nan=True)
    assert [module.training for module in model.modules()] == modes
    assert attributes(model) == parts
    assert all(parameter.grad is None for parameter in model.parameters())
