import pytest
import torch
from torch import nn

from initopt.zoo import plain_mlp


def linear_layers(model):
    return [module for module in model if isinstance(module, nn.Linear)]


def test_depth_and_width():
    model = plain_mlp(5, 3, depth=4, width=7)
    assert [(layer.in_features, layer.out_features) for layer in linear_layers(model)] == [(5, 7), (7, 7), (7, 7), (7, 3)]
    assert model(torch.zeros(2, 5)).shape == (2, 3)


def test_one_layer_has_no_activation():
    assert [type(module) for module in plain_mlp(depth=1)] == [nn.Flatten, nn.Linear]


def test_activation():
    assert sum(isinstance(module, nn.ReLU) for module in plain_mlp(depth=4, activation=nn.ReLU)) == 3


def test_output_hardly_depends_on_the_input_of_a_deep_one():
    torch.manual_seed(0)
    inputs = torch.randn(100, 64)
    shallow, deep = (plain_mlp(depth=depth)(inputs).std(0).mean().item() for depth in (2, 10))
    assert deep < shallow / 20


@pytest.mark.parametrize("name", ["inputs", "classes", "depth", "width"])
def test_refuses(name):
    with pytest.raises(ValueError, match=f"{name} must be an integer of 1 or more; got 0"):
        plain_mlp(**{name: 0})
