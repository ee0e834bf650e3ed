"""Which start ``choose`` chooses, and what it leaves as it was."""

import copy
import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import initopt
from initopt.choice import choosing
from tests.choice.races import SGD, batches, dying, shallow

pytestmark = pytest.mark.training


class Counting(torch.optim.SGD):
    """Counts steps over all of its kind."""

    steps = 0

    def step(self, closure=None):
        Counting.steps += 1
        return super().step(closure)


TAKEN = shallow()
"""A network whose optimizer is there."""


@pytest.fixture(scope="module")
def choice():
    return initopt.choose(
        dying, batches(), SGD, starts=["kaiming_normal", "lsuv", "normal"], steps=60, seed=0, progress=False
    )


def test_a_start_that_trains_is_preferred_to_one_that_does_not(choice):
    assert choice.changes
    assert choice.best.start in ("kaiming_normal", "lsuv")
    assert choice.best.outcome == "better"
    assert choice.best.high < 0
    assert choice.best.lower == choice.best.seeds >= 3
    assert choice.own.loss > 0.6 > choice.best.loss
    assert choice.rows[0].start == "own"


def test_nothing_changes_where_starts_cannot_be_told_apart():
    found = initopt.choose(
        shallow, batches(), SGD, starts=["xavier_normal", "orthogonal"], steps=30, seed=0, progress=False
    )
    assert not found.changes
    assert found.best is found.own
    assert "keep yours at 0.1" in found.verdict
    model = shallow()
    before = copy.deepcopy(model.state_dict())
    found.apply(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_start_that_changes_nothing_does_not_run():
    def nothing(model, batches, loss_fn):
        pass

    starts = {"nothing": nothing}
    found = initopt.choose(dying(), batches(), SGD, starts=starts, steps=10, seed=0, progress=False)
    for row in found.rows[1:]:
        assert (row.outcome, row.why, row.seeds) == ("unchanged", "it changes nothing in this network", 0)
    assert found.best is found.own
    assert found.cost.training == 30
    assert "changes nothing" in str(found)


def test_a_rate_at_which_training_diverges_loses():
    optimizer = partial(torch.optim.SGD, lr=0.05)
    found = initopt.choose(
        shallow, batches(), optimizer, starts=["orthogonal"], lrs=[0.05, 1e6], steps=20, seed=0, progress=False
    )
    lost = [row for row in found.rows if row.lr == 1e6]
    assert {row.outcome for row in lost} <= {"diverged", "dropped", "worse"}
    assert any(row.outcome == "diverged" and row.why for row in lost)
    assert found.best.lr == 0.05


def test_a_start_is_preferred_where_the_users_own_diverges():
    def hot():
        model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
        with torch.no_grad():
            model[0].weight.mul_(1e30)
            model[2].weight.mul_(1e30)
        return model

    found = initopt.choose(hot, batches(), SGD, starts=["xavier_normal"], steps=20, seed=0, progress=False)
    assert found.own.diverged == 3
    assert found.best.start == "xavier_normal"
    assert "loss 0." in found.verdict
    assert found.verdict.endswith("after 20 steps, where yours diverges in all 3 seeds")


def test_the_users_rate_is_found_wherever_it_is():
    def in_the_function(parameters):
        return torch.optim.SGD(parameters, lr=0.25)

    options = {"starts": ["orthogonal"], "steps": 4, "seed": 0, "progress": False}
    assert initopt.choose(shallow, batches(), in_the_function, **options).own.lr == 0.25
    found = initopt.choose(shallow, batches(), in_the_function, lrs="around", **options)
    assert sorted({row.lr for row in found.rows}) == pytest.approx([0.25 / 3, 0.25, 0.75])
    needs_one = initopt.choose(shallow, batches(), lambda p, rate: torch.optim.SGD(p, rate), lrs=[0.1, 0.3], **options)
    assert needs_one.own.lr == 0.1
    model = shallow()
    own = torch.optim.Adam(model.parameters(), lr=0.02)
    assert initopt.choose(model, batches(), own, **options).own.lr == 0.02
    assert not own.state


def test_all_see_the_same_batches_and_the_judges_are_not_among_them():
    data = [(x, y, torch.full((len(y),), float(number))) for number, (x, y) in enumerate(batches(20))]
    trained: dict[nn.Module, list[float]] = {}
    judged: set[float] = set()

    def loss(model, batch):
        inputs, targets, number = batch
        if model.training and torch.is_grad_enabled():
            trained.setdefault(model, []).append(float(number[0]))
        elif not model.training:
            judged.add(float(number[0]))
        return nn.functional.cross_entropy(model(inputs), targets)

    initopt.choose(
        shallow,
        data,
        SGD,
        loss,
        starts=["normal", "trunc_normal"],
        steps=16,
        more_seeds=0,
        held_out=4,
        seed=3,
        progress=False,
    )
    orders = [tuple(numbers) for numbers in trained.values()]
    assert len(orders) == 9  # three starts, three seeds
    assert len(set(orders)) == 3
    assert all(orders.count(order) == 3 for order in set(orders))
    assert len(judged) == 4
    assert not judged & {number for order in orders for number in order}


def test_noise_is_the_same_for_all_starts():
    drawn: dict[nn.Module, list[float]] = {}

    class Noise(nn.Module):
        def forward(self, x):
            noise = torch.rand(())
            if self.training and torch.is_grad_enabled():
                drawn.setdefault(self, []).append(float(noise))
            return x + 0.01 * noise

    def make():
        return nn.Sequential(Noise(), nn.Linear(16, 2))

    initopt.choose(make, batches(12), SGD, starts=["normal"], steps=5, seeds=2, more_seeds=0, seed=0, progress=False)
    assert len(drawn) == 4
    assert len({tuple(noise) for noise in drawn.values()}) == 2


def test_a_budget_is_kept_and_the_cost_is_said():
    Counting.steps = 0
    options = {"starts": ["orthogonal", "xavier_normal", "kaiming_normal"], "seed": 0, "progress": False}
    optimizer = partial(Counting, lr=0.05)
    found = initopt.choose(shallow, batches(), optimizer, steps=100, budget=700, **options)
    assert Counting.steps == found.cost.training
    assert 500 < found.cost.training + found.cost.looks <= 700
    assert found.own.steps < 100
    assert f"{found.cost.training} of training" in str(found)
    with pytest.raises(ValueError, match=r"a budget of 20 training steps is too small: .* cost \d+ for runs of 10 steps"):
        initopt.choose(shallow, batches(), optimizer, budget=20, **options)


@pytest.mark.heavy
def test_a_step_of_the_users_own_takes_the_place_of_ours():
    calls = []

    def step(model, optimizer, batch):
        calls.append(type(optimizer))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss

    options = {"starts": ["kaiming_normal"], "steps": 15, "more_seeds": 0, "seed": 0, "progress": False}
    own = initopt.choose(dying, batches(), SGD, step=step, **options)
    assert calls == [torch.optim.SGD] * own.cost.training
    plain = initopt.choose(dying, batches(), SGD, **options)
    for one, other in zip(own.rows, plain.rows, strict=True):
        for mine, ours in zip(one.curves, other.curves, strict=True):
            assert mine.training[:10] == ours.training[:10]  # up to the first step after one with a lower rate
            assert mine.training[10:] != ours.training[10:]
            assert [number for number, _ in mine.held_out] == [12, 14, 15]
            assert [number for number, _ in ours.held_out] == [15]


def test_the_rate_is_constant_and_then_falls_to_zero_whatever_the_looks():
    rates: list[list[float]] = []

    class Noting(torch.optim.SGD):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            rates.append([])
            self.mine = rates[-1]

        def step(self, closure=None):
            self.mine.append(self.param_groups[0]["lr"])
            return super().step(closure)

    starts = ["normal", "trunc_normal", "orthogonal", "kaiming_normal", "xavier_normal", "xavier_uniform"]
    options = {"starts": starts, "seeds": 2, "more_seeds": 0, "seed": 0, "progress": False}
    initopt.choose(shallow, batches(), partial(Noting, lr=0.1), steps=20, **options)
    expected = [0.1] * 12 + [0.1 * (20 - step) / 8 for step in range(12, 20)]
    ended = [mine for mine in rates if len(mine) == 20]
    dropped = [mine for mine in rates if 0 < len(mine) < 20]
    assert len(ended) == 2 * 4
    assert dropped
    for mine in [*ended, *dropped]:
        assert mine == pytest.approx(expected[: len(mine)])


class TestMoreSeeds:
    """A start that is better by less than three seeds tell, and one that is as good as the network's own."""

    OPTIONS = {"steps": 15, "seed": 0, "progress": False}  # noqa: RUF012

    @staticmethod
    def better(model, batches, loss_fn):
        """A part of the way to a network that is trained, longer in some seeds than in others."""
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for inputs, targets in batches[: int(torch.randint(1, 9, ()))]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()

    @pytest.mark.heavy
    def test_they_are_added_where_a_start_is_lower_in_all_and_not_told_apart(self):
        starts = {"better": self.better, "worse": lambda model, batches, loss_fn: model[0].weight.data.mul_(-30)}
        few = initopt.choose(shallow, batches(), SGD, starts=starts, more_seeds=0, **self.OPTIONS)
        more = initopt.choose(shallow, batches(), SGD, starts=starts, more_seeds=5, **self.OPTIONS)
        by_name = {row.start: row for row in few.rows}
        assert (by_name["better"].outcome, by_name["better"].lower) == ("not told apart", 3)
        assert {row.start: row.seeds for row in more.rows} == {"own": 8, "better": 8, "worse": 3}
        now = {row.start: row for row in more.rows}
        assert (now["better"].low, now["better"].high) != (by_name["better"].low, by_name["better"].high)
        assert [curve.training for curve in now["better"].curves[:3]] == [c.training for c in by_name["better"].curves]
        assert now["worse"].difference == by_name["worse"].difference
        assert "3 seeds (8 where it was close)" in str(more)
        assert more.cost.training == few.cost.training + 5 * 2 * 15
        assert more.plot().axes

    @pytest.mark.heavy
    def test_as_many_are_added_as_a_budget_allows(self):
        options = self.OPTIONS | {"starts": {"better": self.better}}
        full = initopt.choose(shallow, batches(), SGD, **options)
        assert full.own.seeds == 9
        # 2 starts x 3 seeds x 15 steps, 3 starts to make, 6 looks at 6 batches; and as much again for three more seeds
        assert initopt.choose(shallow, batches(), SGD, budget=210, **options).own.seeds == 6
        assert initopt.choose(shallow, batches(), SGD, budget=209, **options).own.seeds == 5
        assert initopt.choose(shallow, batches(), SGD, budget=105, **options).own.seeds == 3

    def test_a_start_that_fails_with_one_of_them_has_failed(self):
        calls = []

        def fragile(model, batches, loss_fn):
            calls.append(1)
            if len(calls) > 3:
                raise RuntimeError("no further")
            self.better(model, batches, loss_fn)

        found = initopt.choose(shallow, batches(), SGD, starts={"fragile": fragile}, **self.OPTIONS)
        assert (found.rows[1].outcome, found.rows[1].why) == ("failed", "RuntimeError: no further")
        assert not found.changes


def test_everything_is_as_before_also_after_an_exception():
    class Failing(nn.Module):
        calls = 0

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 2)
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x):
            Failing.calls += 1
            if Failing.calls == Failing.fatal:
                raise RuntimeError("out of luck")
            return self.norm(self.layer(x)) + 0 * torch.rand(()) + 0 * random.random() + 0 * np.random.rand()

    teacher = nn.Linear(16, 2)
    generator = torch.Generator().manual_seed(1)
    dataset = torch.utils.data.TensorDataset(*map(torch.cat, zip(*batches(20), strict=True)))
    loader = torch.utils.data.DataLoader(dataset, 32, shuffle=True, generator=generator)

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]) + teacher(batch[0]), batch[1])

    model = Failing()
    model.layer.weight.grad = torch.ones(2, 16)
    before = copy.deepcopy(model.state_dict())
    states = generator.get_state(), torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    for fatal in (10**9, 20):
        Failing.calls, Failing.fatal = 0, fatal
        options = {"starts": ["orthogonal"], "steps": 8, "seed": 0, "progress": False}
        if fatal == 20:
            with pytest.raises(RuntimeError, match="out of luck"):
                initopt.choose(model, loader, SGD, loss, **options)
        else:
            initopt.choose(model, loader, SGD, loss, **options)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert torch.equal(model.layer.weight.grad, torch.ones(2, 16))
        assert teacher.weight.grad is None
        assert model.training
        now = generator.get_state(), torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        assert torch.equal(now[0], states[0])
        assert torch.equal(now[1], states[1])
        assert now[2:] == states[2:]


def test_a_model_that_is_given_is_the_own_start_of_each_seed():
    model = dying(2)
    found = initopt.choose(model, batches(), SGD, starts=["normal"], steps=4, seed=0, progress=False)
    firsts = {curve.training[0] for curve in found.own.curves}
    assert len(found.own.curves) == 3
    values = [nn.functional.cross_entropy(model(x), y).item() for x, y in batches()]
    assert all(any(first == pytest.approx(value) for value in values) for first in firsts)


def test_a_start_that_cannot_be_made_is_said_and_left_out():
    def broken(model, batches, loss_fn):
        raise RuntimeError("no such luck")

    found = initopt.choose(
        shallow, batches(), SGD, starts={"broken": broken, "normal": "normal"}, steps=8, seed=0, progress=False
    )
    row = next(row for row in found.rows if row.start == "broken")
    assert (row.outcome, row.why) == ("failed", "RuntimeError: no such luck")
    assert "failed" in str(found)


@pytest.mark.heavy
@pytest.mark.processes
@pytest.mark.usefixtures("workers_are_forked")
def test_other_processes_do_the_same_runs():
    options = {"starts": ["normal", "lsuv", "orthogonal", "xavier_normal", "kaiming_normal"], "steps": 12, "seeds": 2}
    options |= {"lrs": [0.1, 0.03], "seed": 0, "progress": False}
    one, other = (initopt.choose(shallow, batches(), SGD, workers=workers, **options) for workers in (1, 2))
    assert [row.curves for row in one.rows] == [row.curves for row in other.rows]
    assert one.verdict == other.verdict


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"make_model": lambda: shallow()}, "make_model cannot be sent to other processes"),
        ({"starts": {"mine": lambda model, batches, loss_fn: None}}, "start 'mine' cannot be sent to other processes"),
        (
            {"make_model": TAKEN, "optimizer": torch.optim.SGD(TAKEN.parameters(), 0.1)},
            "cannot be sent to other processes with",
        ),
        ({"workers": 0}, "workers must be an integer of 1 or more"),
    ],
)
def test_what_cannot_be_sent_to_other_processes_is_refused(changes, message):
    arguments = {"make_model": shallow, "loader": batches(8), "optimizer": SGD, "starts": ["normal"], "workers": 2}
    with pytest.raises(ValueError, match=message):
        initopt.choose(**(arguments | {"steps": 2, "progress": False} | changes))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_network_that_cannot_be_copied_is_refused_with_words():
    model = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(16, 2)))
    with pytest.raises(
        ValueError, match=r"the network cannot be copied \(copy.deepcopy\), which a race does for each start: "
    ):
        model(batches(1)[0][0])
        initopt.choose(model, batches(8), SGD, starts=["normal"], steps=2, progress=False)


def test_the_same_seed_gives_the_same_choice():
    options = {"starts": ["orthogonal"], "steps": 6, "seed": 5, "progress": False}
    one, other = (initopt.choose(shallow, batches(), SGD, **options) for _ in range(2))
    assert [row.curves for row in one.rows] == [row.curves for row in other.rows]


def test_held_out_batches_may_be_the_users_own():
    found = initopt.choose(
        shallow, batches(10), SGD, starts=["normal"], steps=6, held_out=batches(3), seed=0, progress=False
    )
    assert found.held_out == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"make_model": 3}, "make_model must be a function that makes the network, or the network; got int"),
        ({"make_model": lambda: 3}, "make_model gave int; it must give an nn.Module"),
        ({"optimizer": None}, "optimizer is missing"),
        ({"optimizer": 0.1}, "optimizer must be a function that makes one of parameters; got float"),
        ({"optimizer": lambda p, rate: torch.optim.SGD(p, rate)}, "cannot be called with the parameters alone"),
        ({"optimizer": lambda p, rate: torch.optim.SGD(p, rate), "lrs": "around"}, "has no learning rate of its own"),
        ({"optimizer": torch.optim.SGD(shallow().parameters(), 0.1)}, "make_model makes new ones"),
        ({"optimizer": torch.optim.LBFGS}, "LBFGS computes the loss several times in a step: give a step="),
        ({"starts": "nio"}, "starts must be a list of starts"),
        ({"starts": []}, "starts must have a start beside the network's own"),
        ({"starts": ["own"]}, "starts must have a start beside the network's own"),
        ({"starts": ["nioo"]}, "unknown initialization 'nioo'.*did you mean 'nio'"),
        ({"starts": ["nio", "nio"]}, "two starts are called 'nio'"),
        ({"starts": [{"method": "nio", "recipe": {"epochs": 2}}]}, "has a recipe or a batch_size"),
        ({"lrs": "near"}, "lrs must be a list of learning rates, 'around'"),
        ({"lrs": []}, "lrs is empty"),
        ({"lrs": [0.1, -1]}, "each of lrs must be a number above 0; got -1"),
        ({"seeds": 1}, "seeds must be an integer of 2 or more"),
        ({"steps": 0}, "steps must be an integer of 1 or more"),
        ({"budget": 0}, "budget must be an integer of 1 or more"),
        ({"held_out": 0}, "held_out must be an integer of 1 or more"),
        ({"loader": batches(3)}, "loader gave 3 batch.* a race needs 4 or more"),
        ({"step": 3}, "step must be a function"),
        ({"step": print, "clip_grad_norm": 1.0}, "clip in step= where that is your own"),
        ({"clip_grad_norm": -1.0}, "clip_grad_norm must be a number above 0"),
    ],
)
def test_what_cannot_work_is_refused_with_words(changes, message):
    arguments = {"make_model": shallow, "loader": batches(8), "optimizer": SGD, "starts": ["normal"], "progress": False}
    with pytest.raises((TypeError, ValueError), match=message):
        initopt.choose(**(arguments | {"steps": 2} | changes))


def test_a_loss_that_holds_another_model_is_refused():
    model = shallow()
    with pytest.raises(initopt.LossError, match="the loss of another model"):
        initopt.choose(
            model,
            batches(8),
            SGD,
            lambda given, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
            starts=["normal"],
            steps=2,
            progress=False,
        )


@pytest.mark.parametrize("place", [3, 20])
def test_a_batch_that_gives_no_finite_loss_is_refused(place):
    data = batches(24)
    data[place][0][0, 0] = float("nan")
    with pytest.raises(initopt.NonFiniteError, match=r"batch\[0\] has values that are not finite \(1 of 512\). Leave such"):
        initopt.choose(shallow, data, SGD, starts=["normal"], steps=20, progress=False)


def test_a_step_that_trains_another_network_is_worth_a_warning():
    other = shallow()
    optimizer = SGD(other.parameters())

    def step(model, given, batch):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(other(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss

    with pytest.warns(
        initopt.InitoptWarning, match="step= has changed no parameter of the network that it was given, in 5"
    ):
        initopt.choose(shallow, batches(24), SGD, step=step, starts=["normal"], steps=5, seeds=2, progress=False)


def test_a_rate_in_a_tensor_is_every_runs_own():
    rate = torch.tensor(0.1)
    made, plain = (
        initopt.choose(
            shallow,
            batches(24),
            lambda parameters, lr=lr: torch.optim.SGD(parameters, lr=lr),
            starts=["normal"],
            lrs="around",
            steps=20,
            seeds=2,
            seed=0,
            progress=False,
        )
        for lr in (rate, 0.1)
    )
    assert float(rate) == pytest.approx(0.1)
    assert [row.loss for row in made.rows] == pytest.approx([row.loss for row in plain.rows], rel=1e-4)


def test_a_race_beyond_the_memory_of_the_machine_is_refused(monkeypatch):
    monkeypatch.setattr(choosing.os, "sysconf", lambda name: 16)
    with pytest.raises(ValueError, match="6 runs side by side.*give fewer starts, rates or seeds"):
        initopt.choose(shallow, batches(8), SGD, starts=["normal"], steps=2, progress=False)
