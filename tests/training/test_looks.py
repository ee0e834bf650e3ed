"""Losses on batches that a model is not trained on."""

import pytest
import torch
from torch import nn

from initopt.model.losses import as_loss
from initopt.training.looks import losses_on


def test_losses_are_those_of_evaluation_mode_and_nothing_changes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    model[1].eval()  # frozen
    batches = [(torch.randn(6, 4), torch.randint(3, (6,))) for _ in range(3)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = losses_on(model, batches, as_loss(None), 0)
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    expected = [nn.functional.cross_entropy(model(inputs), targets).item() for inputs, targets in batches]
    assert found == pytest.approx(expected)
