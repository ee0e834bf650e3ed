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


def test_a_loss_that_differentiates_is_given_a_graph():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)

    def loss(model, batch):
        inputs = batch[0].requires_grad_()
        (slope,) = torch.autograd.grad(model(inputs).sum(), inputs, create_graph=True)
        return slope.square().sum(1).mean()

    found = losses_on(model, [(torch.randn(6, 4),)], as_loss(loss), 0)
    assert found == pytest.approx([model.weight.detach().square().sum().item()])
    assert model.weight.grad is None


def test_what_a_model_raises_is_raised():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        losses_on(nn.Linear(4, 1), [(torch.randn(6, 5), torch.randn(6, 1))], as_loss(nn.MSELoss()), 0)
