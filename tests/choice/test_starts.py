"""Which starts fit a network, and how each is made."""

from __future__ import annotations

import torch
from torch import nn

from initopt import schemes, zoo
from initopt.choice.starts import as_starts, default_starts, make_start
from tests.helpers import make_batches, make_model, values

EVERYWHERE = ["own", "kaiming_normal", "orthogonal", "lsuv", "nio", "lsuv + nio"]


def test_schemes_for_parts_are_starts_where_there_are_such_parts() -> None:
    images = torch.randn(8, 3, 16, 16), torch.randint(10, (8,))
    expected = {
        zoo.vgg(7, width=4): [],
        zoo.cifar_resnet(8): ["zero_branches", "scaled_branches"],
        zoo.small_vit(16, 4, depth=1, width=16, heads=2): ["mimetic", "zero_branches", "scaled_branches"],
    }
    for model, names in expected.items():
        batch = (torch.randn(2, 3, 32, 32), torch.randint(10, (2,))) if not names else images
        before = values(model)
        assert [start.name for start in default_starts(model, batch, None, 0)] == [*EVERYWHERE, *names]
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_scheme_with_options_is_made_as_apply_makes_it() -> None:
    _, start, part = as_starts(
        [schemes.Normal(std=0.5), {"name": "part", "scheme": "normal", "scheme_options": {"params": ["biases"]}}]
    )
    model = make_model()
    before = values(model)
    make_start(model, start, make_batches(2), None, 3)
    assert abs(float(model[0].weight.detach().std()) - 0.5) < 0.15
    other = make_model()
    make_start(other, part, make_batches(2), None, 3)
    changed = {name for name, value in other.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.bias", "4.bias", "6.bias"}
    assert isinstance(other, nn.Module)
