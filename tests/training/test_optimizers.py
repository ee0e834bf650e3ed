"""What makes an optimizer, and its rates."""

from functools import partial

import pytest
import torch
from torch import nn

from initopt import InitoptWarning
from initopt.training.optimizers import Rates, check_optimizer, make_optimizer, takes_rate


def by_second_argument(parameters, rate):
    return torch.optim.SGD(parameters, lr=rate)


def of_parameters(parameters):
    return torch.optim.SGD([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.4}], lr=0.1)


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        (torch.optim.SGD, True),
        (partial(torch.optim.AdamW, lr=3e-4), True),
        (by_second_argument, True),
        (of_parameters, False),
        (lambda parameters, fused=False: torch.optim.SGD(parameters, 0.1), False),
    ],
)
def test_whether_a_factory_takes_a_rate(factory, expected):
    assert takes_rate(factory) is expected


def test_a_rate_reaches_the_optimizer_however_its_factory_takes_it():
    layer = nn.Linear(2, 2)
    for factory in (torch.optim.SGD, partial(torch.optim.AdamW, lr=3e-4), by_second_argument):
        made = make_optimizer(factory, list(layer.parameters()), lr=0.25)
        assert [group["lr"] for group in made.param_groups] == [0.25]
    made = make_optimizer(of_parameters, list(layer.parameters()), lr=0.05)
    assert [group["lr"] for group in made.param_groups] == [0.05, 0.2]


def test_an_optimizer_is_made_anew_for_other_parameters_with_its_groups_and_settings():
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    own = torch.optim.SGD([{"params": [one.weight]}, {"params": [one.bias], "weight_decay": 0.0}], lr=0.3, weight_decay=0.1)
    places = {id(p): number for number, p in enumerate(one.parameters())}
    made = make_optimizer(own, list(other.parameters()), places, lr=0.6)
    assert [group["params"] for group in made.param_groups] == [[other.weight], [other.bias]]
    assert [(group["weight_decay"], group["lr"]) for group in made.param_groups] == [(0.1, 0.6), (0.0, 0.6)]
    with pytest.raises(ValueError, match="has none of the model's trainable parameters"):
        make_optimizer(torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1), list(other.parameters()), places)


def test_a_rate_in_a_tensor_is_not_shared():
    layer, rate = nn.Linear(2, 2), torch.tensor(0.1)
    given = torch.optim.SGD(layer.parameters(), lr=rate)
    for factory in (given, lambda parameters: torch.optim.SGD(parameters, lr=rate)):
        made = make_optimizer(factory, list(layer.parameters()))
        Rates(made).scale(0.5)
        assert float(made.param_groups[0]["lr"]) == pytest.approx(0.05)
    assert float(rate) == float(given.param_groups[0]["lr"]) == pytest.approx(0.1)


def test_one_of_other_parameters_is_refused():
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="has none of the parameters that it is given; make it of its first argument"):
        make_optimizer(lambda parameters: torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1), list(layer.parameters()))


def test_a_schedule_that_has_begun_is_worth_a_warning():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    check_optimizer(optimizer)
    torch.optim.lr_scheduler.LinearLR(optimizer, 0.001)
    with pytest.warns(InitoptWarning, match=r"at 0\.0001 now, and 0\.1 is its base; 0\.0001 is taken as yours"):
        check_optimizer(optimizer)


def test_what_makes_no_optimizer_is_refused():
    with pytest.raises(TypeError, match=r"got float; pass functools\.partial"):
        check_optimizer(0.1)
    with pytest.raises(TypeError, match="cannot be called with the parameters alone"):
        check_optimizer(by_second_argument)
    check_optimizer(by_second_argument, with_rate=True)
    with pytest.raises(TypeError, match="made list, which is not"):
        make_optimizer(lambda parameters: [], [torch.zeros(1)])


def test_rates_that_are_tensors_stay_the_same_tensors():
    rate = torch.tensor(0.1)
    optimizer = torch.optim.Adam([torch.zeros(1)], lr=rate)
    Rates(optimizer).scale(3.0)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.3)
