"""The forms in which a choice is shown and kept."""

import json
import math
from functools import partial
from statistics import fmean

import pytest
import torch
from torch import nn

import initopt
from initopt.choice.choice import Choice
from initopt.choice.rows import Cost, Curve, Row
from initopt.choice.starts import as_starts, make_start
from initopt.comparison.spec.initialization import Initialization
from tests.choice.races import SGD, batches, dying


@pytest.fixture(scope="module")
def choice():
    return initopt.choose(
        dying, batches(), SGD, starts=["kaiming_normal", "normal"], lrs=[0.1, 0.05], steps=60, seed=0, progress=False
    )


@pytest.mark.heavy
def test_it_fits_a_screen_and_ends_in_advice_and_cost(choice):
    lines = str(choice).splitlines()
    assert len(lines) < 24
    assert max(map(len, lines)) <= 110
    text = " ".join(lines)
    assert "Verdict: kaiming_normal at" in text
    assert 'call initopt.schemes.apply_(model, "kaiming_normal", batch), or .apply(model) of this choice' in text
    assert lines[-1].startswith("This cost ") or lines[-2].startswith("This cost ")


def test_a_model_gets_the_best_start(choice):
    torch.manual_seed(0)
    model, other = dying(), dying()
    before = model[0].weight.detach().clone()
    choice.apply(model, seed=4)
    choice.apply(other, batches=batches(), seed=4)
    assert not torch.equal(model[0].weight, before)
    assert torch.equal(model[0].weight, other[0].weight)
    assert model[0].weight.std().item() == pytest.approx((2 / 16) ** 0.5, rel=0.2)


def test_a_start_that_fails_half_way_leaves_the_model_alone(choice):
    def half(model, batches, loss_fn):
        nn.init.zeros_(model[0].weight)
        raise RuntimeError("no further")

    model = dying()
    before = model[0].weight.detach().clone()
    with pytest.raises(RuntimeError, match="no further"):
        make_start(model, as_starts({"half": half})[1], batches(), None, 0)
    assert torch.equal(model[0].weight, before)


@pytest.mark.heavy
def test_it_is_saved_with_a_page_a_picture_and_its_figures(choice, tmp_path):
    page = choice.save(tmp_path / "choice")
    assert {path.name for path in page.parent.iterdir()} == {"choice.html", "choice.json", "choice.png", "rows.csv"}
    stored = json.loads((page.parent / "choice.json").read_text())
    assert stored["format"] == "initopt choice 1"
    assert (stored["start"], stored["lr"], stored["changes"]) == (choice.best.start, choice.best.lr, True)
    assert len(stored["rows"]) == len(choice.rows) == 6
    assert "kaiming_normal" in page.read_text()
    choice.save(tmp_path / "choice")
    (tmp_path / "choice" / "mine.txt").write_text("")
    with pytest.raises(FileExistsError, match=r"mine\.txt"):
        choice.save(tmp_path / "choice")


def test_rows_and_curves(choice):
    frame = choice.to_dataframe()
    assert frame["start"].iloc[0] == "own"
    assert len(frame) == 6
    curves = choice.curves["own", 0.1]
    assert [len(curve.training) for curve in curves] == [60, 60, 60]
    assert curves[0].held_out[-1][0] == 60
    assert choice.plot().axes
    assert "Losses over the steps" in choice._repr_html_()


def rows_of(*figures):
    """A choice of rows of (start, rate, outcome, loss), the first of which is the network's own."""
    rows = tuple(
        Row(start, lr, outcome, 100, loss, loss / figures[0][3] - 1, -0.5, -0.1, loss, 3, 3, 3 * math.isinf(loss), 1.0)
        for start, lr, outcome, loss in figures
    )
    better = [row for row in rows if row.outcome == "better"]
    best = min(better, key=lambda row: row.loss, default=rows[0])
    starts = {row.start: Initialization(scheme="orthogonal", name=row.start) for row in rows}
    return Choice(rows, best, Cost(900, 300.0, 30.0, 12.0), 3, 10, 0, True, starts, None, [])


def test_a_verdict_names_start_and_rate_and_what_would_be_best_at_another_one():
    found = rows_of(
        ("own", 0.1, "yours", 1.93),
        ("lsuv", 0.1, "better", 1.52),
        ("nio", 0.03, "better", 1.6),
        ("own", 0.03, "worse", 2.0),
    )
    assert found.verdict == (
        "lsuv at your rate 0.1: loss 1.52 against 1.93 after 100 steps, lower in all 3 seeds; with 0.03 it would be nio"
    )


def test_a_verdict_for_the_own_start_at_another_rate():
    found = rows_of(("own", 0.1, "yours", 1.93), ("own", 0.3, "better", 1.5), ("nio", 0.1, "not told apart", 1.9))
    assert found.verdict.startswith("your own start at the rate 0.3: loss 1.50 against 1.93")
    assert found.advice == (
        "Leave the weights as they are, and train at a learning rate of 0.3 (3 times yours), "
        "the highest that was tried: initopt.find_lr looks further."
    )


def test_a_verdict_that_keeps_the_own_start():
    near = rows_of(("own", 0.1, "yours", 1.93), ("nio", 0.1, "not told apart", 1.9))
    assert near.verdict == (
        "cannot be told apart: keep yours at 0.1 (loss 1.93 after 100 steps; nio at your rate 0.1 with 1.90, -2 % with an "
        "interval from -50 % to -10 %, lower in all 3 seeds)"
    )
    worse = rows_of(("own", 0.1, "yours", 1.93), ("nio", 0.1, "worse", 2.1))
    assert worse.verdict == ("keep yours at 0.1: no other start is better (loss 1.93 after 100 steps; 1 clearly worse)")


def test_a_verdict_where_the_own_start_diverges():
    hopeless = rows_of(("own", 0.1, "yours", math.inf), ("nio", 0.1, "diverged", math.inf))
    assert hopeless.verdict == "your own start diverges at 0.1 in all 3 seeds, and no other start trains"
    assert hopeless.advice.startswith("Lower the learning rate first")
    assert not hopeless.trains
    unclear = rows_of(("own", 0.1, "yours", math.inf), ("nio", 0.1, "not told apart", 1.5))
    assert unclear.verdict == "your own start diverges at 0.1 in all 3 seeds, and no other start is clearly better"
    found = rows_of(("own", 0.1, "yours", math.inf), ("nio", 0.1, "better", 1.5))
    assert found.verdict == "nio at your rate 0.1: loss 1.50 after 100 steps, where yours diverges in all 3 seeds"


def test_a_start_that_could_not_be_made_is_shown_with_the_reason():
    def broken(model, batches, loss_fn):
        raise RuntimeError("no such weights")

    found = initopt.choose(dying, batches(), SGD, starts=[broken, "kaiming_normal"], steps=20, seeds=2, seed=0)
    assert "broken could not be made: RuntimeError: no such weights" in str(found)


def test_the_call_that_is_advised_has_the_loss():
    def loss_fn(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    found = initopt.choose(dying, batches(), SGD, loss_fn, starts=["kaiming_normal"], steps=40, seed=0, progress=False)
    assert 'call initopt.schemes.apply_(model, "kaiming_normal", batch, loss_fn), or .apply(model)' in found.advice


def test_a_choice_of_a_loader_that_is_used_up_can_be_applied():
    found = initopt.choose(
        dying, (batch for batch in batches()), SGD, starts=["kaiming_normal"], steps=40, seed=0, progress=False
    )
    model = dying()
    before = model[0].weight.detach().clone()
    found.apply(model)
    assert found.changes
    assert not torch.equal(model[0].weight, before)
    with pytest.raises(TypeError, match="batches"):
        found.apply(model, batches=torch.zeros(2))


def test_a_start_that_learns_nothing_is_not_praised():
    found = initopt.choose(dying, batches(), SGD, starts=["normal"], steps=40, more_seeds=0, seed=0, progress=False)
    assert not found.changes
    assert not found.own.learns
    assert found.verdict == (
        f"your own start learns nothing at 0.1 (loss {found.own.loss:.3f} after 40 steps, "
        f"{found.own.start_loss:.3f} before the first), and nothing else that was tried is clearly better"
    )
    assert found.advice.startswith(
        "Do not train like this yet, unless the network is trained already: a race at other rates"
    )
    assert found.to_dict()["own_learns"] is False


def test_a_start_that_trains_learns(choice):
    assert not choice.own.learns
    assert all(row.learns for row in choice.rows if row.outcome == "better")
    slow = Curve(tuple(2.3 - 0.002 * step for step in range(50)), ())
    noisy = Curve(tuple(2.3 - 0.002 * step + 0.1 * (-1) ** step for step in range(50)), ())
    row = partial(Row, "own", 0.1, "yours", 50, 2.2, 0.0, 0.0, 0.0, fmean(slow.training[-10:]), 1, 0, 0, 1.0, "")
    assert row((slow,)).learns
    assert not row((noisy,)).learns
