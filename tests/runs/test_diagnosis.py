"""What a result says of the layers before and after."""

import functools
from pathlib import Path

import pytest
import torch
from torch import nn

import initopt
from initopt.diagnosis import Change, Checkup, Finding
from tests.diagnosis.sick import drawn, labelled, mlp
from tests.helpers import make_batches, make_model, values


def vanishing() -> nn.Module:
    torch.manual_seed(0)
    return drawn(mlp(12, activation=nn.Tanh), 0.3)


@pytest.fixture(scope="module")
def cured() -> initopt.Result:
    return initopt.lsuv(vanishing(), labelled(size=64), measure_batches=3, seed=0)


@pytest.mark.heavy
def test_a_cure_shows_in_the_layers(cured: initopt.Result) -> None:
    change = cured.diagnosis
    assert change is not None
    assert "A204" in change.before.codes
    assert "A204" in change.gone
    assert change.after.healthy
    assert change.new == change.left == ()
    assert "layers:       gone: A204 vanishing signal" in str(cured)
    assert len(change.before.rows) == len(change.after.rows) == 23
    signals = [[row.rms * row.spread for row in checkup.rows if row.kind == "Linear"] for checkup in
               (change.before, change.after)]  # fmt: skip
    assert signals[0][-1] < 1e-3 * signals[0][0]
    assert signals[1][-1] > 0.1 * signals[1][0]


@pytest.mark.heavy
def test_both_are_what_diagnose_finds_on_the_batches_held_back() -> None:
    model, batches = vanishing(), labelled(size=64, count=6)
    result = initopt.lsuv(model, batches, measure_batches=3, seed=0)  # takes the first one
    alone = initopt.diagnose(vanishing(), batches[1:4], tries=(), seed=0)
    assert result.diagnosis is not None
    assert result.diagnosis.before.findings == alone.findings
    after = initopt.diagnose(model, batches[1:4], tries=(), seed=0)
    assert result.diagnosis.after.findings == after.findings
    assert result.diagnosis.after.verdict == after.verdict


@pytest.mark.heavy
def test_it_is_stored_with_the_result(cured: initopt.Result, tmp_path: Path) -> None:
    cured.save(tmp_path / "result")
    assert str(initopt.Result.load(tmp_path / "result")) == str(cured)
    loaded = initopt.Result.load(tmp_path / "result").diagnosis
    assert loaded is not None
    assert cured.diagnosis is not None
    assert loaded.before.findings == cured.diagnosis.before.findings
    assert loaded.after.table() == cured.diagnosis.after.table()
    assert isinstance(loaded.after.rows[0].output, tuple)
    loaded.plot().savefig(tmp_path / "change.png")
    assert (tmp_path / "change.png").stat().st_size > 10_000


@pytest.mark.heavy
def test_without_batches_held_back_or_the_wish_there_is_none() -> None:
    for options in ({"measure_batches": 0}, {"diagnose": False}, {"microbatch": 4}):
        given = {"steps": 1, "measure_batches": 2} | options
        result = initopt.nio(mlp(), labelled(count=6), **given)
        assert result.diagnosis is None
        assert "layers:" not in str(result)
    with pytest.raises(ValueError, match="diagnose must be True or False; got .yes."):
        initopt.nio(make_model(), make_batches(), diagnose="yes")


def test_weights_that_were_given_up_are_those_that_were_tried() -> None:
    torch.manual_seed(0)
    model = mlp(3)
    before = values(model)
    result = initopt.nio(model, labelled(size=64, count=12), steps=3, lr=1e-9, measure_batches=3, seed=0)
    assert result.tried_scales is not None
    assert result.diagnosis is not None
    assert "layers:       nothing wrong, before and after (after: with the scales that were given up)" in str(result)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_failure_costs_the_diagnosis_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no layer is to be seen")

    monkeypatch.setattr("initopt.diagnosis.change.look_at", broken)
    model = make_model()
    with pytest.warns(initopt.InitoptWarning, match="no diagnosis .RuntimeError: no layer is to be seen.; diagnose=False"):
        result = initopt.nio(model, make_batches(), steps=2, measure_batches=2)
    assert result.diagnosis is None
    assert result.after is not None


def test_one_line_says_what_is_gone_new_and_left() -> None:
    def checkup(*codes: str) -> Checkup:
        return Checkup("", tuple(Finding(code, "warning", (), "", "") for code in codes), ())

    change = Change(checkup("A204", "G302", "W108"), checkup("W108", "A201"))
    assert str(change) == (
        "gone: A204 vanishing signal, G302 vanishing gradient; new: A201 dead ReLUs; left: W108 wrong scale for the fan"
    )
    assert str(Change(checkup(), checkup())) == "nothing wrong, before and after"


def test_the_model_sees_the_same_random_numbers_with_and_without() -> None:
    ends = []
    for diagnose in (True, False):
        torch.manual_seed(0)
        model = make_model(dropout=0.3)
        initopt.nio(model, make_batches(), steps=3, measure_batches=2, train_mode=True, diagnose=diagnose)
        ends.append((values(model), torch.rand(3)))
    assert all(torch.equal(ends[0][0][name], value) for name, value in ends[1][0].items())
    assert torch.equal(ends[0][1], ends[1][1])


def test_sizes_of_first_steps_are_not_asked_for(cured: initopt.Result) -> None:
    assert cured.diagnosis is not None
    assert not any(code.startswith("O") for code in cured.diagnosis.before.codes)
    factory = functools.partial(torch.optim.SGD, lr=0.1)
    assert initopt.diagnose(vanishing(), labelled(), optimizer=factory, tries=(), seed=0).rows[0].update > 0
