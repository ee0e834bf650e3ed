import pytest
import torch
from torch import nn
from torch.nn import functional as F

from initopt.comparison import Recipe
from initopt.comparison.running.mixup import MixupLoss, mixed
from initopt.comparison.spec.hardware import Hardware
from initopt.comparison.spec.plan import Plan


def batch(size=16):
    return torch.randn(size, 3, generator=torch.Generator().manual_seed(0)), torch.arange(size) % 4


def test_inputs_and_labels_are_mixed_alike():
    inputs, labels = batch()
    both, (own, partners, share) = mixed((inputs, labels), 0.4, 1)
    assert torch.equal(own, labels)
    assert share.unique().numel() == 1
    assert 0.5 <= share[0] <= 1
    for row in range(16):
        rest = (both[row] - share[0] * inputs[row]) / (1 - share[0])
        found = (inputs - rest).abs().sum(1).argmin()
        assert torch.allclose(inputs[found], rest, atol=1e-4)
        assert labels[found] == partners[row]


def test_loss_is_the_cross_entropy_of_the_mixed_probabilities():
    model, mixture = nn.Linear(3, 4), mixed(batch(), 1.0, 7)
    inputs, (own, partners, share) = mixture
    probabilities = share[:, None] * F.one_hot(own, 4) + (1 - share[:, None]) * F.one_hot(partners, 4)
    for smoothing in (0.0, 0.1):
        expected = F.cross_entropy(model(inputs), probabilities, label_smoothing=smoothing)
        assert torch.allclose(MixupLoss(smoothing)(model, mixture).mean(), expected)


def test_draws_follow_from_the_seed():
    keys = ((3, 0), (3, 0), (3, 1), (4, 0))
    first, again, second, other = (mixed(batch(), 0.4, *key)[0] for key in keys)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("wrong", [{"x": 1}, (torch.ones(2, 3), torch.ones(2)), (torch.arange(2), torch.arange(2))])
def test_refuses_other_batches(wrong):
    with pytest.raises(ValueError, match="mixup needs batches of inputs of a floating dtype and integer labels"):
        mixed(wrong, 0.2, 0)


def plan(**options):
    given = {"loss_fn": None, "recipe": {"mixup": 0.2}, "seeds": 1, "selection_seeds": 1, "hardware": Hardware()}
    return Plan.create({"net": lambda: nn.Linear(3, 4)}, "digits", ["default"], **(given | options))


def test_needs_the_built_in_loss():
    with pytest.raises(ValueError, match="mixup is of the built-in cross-entropy"):
        plan(loss_fn=nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match="mixup must be a finite number of 0 or more|mixup must be a number 0 or more"):
        Recipe(mixup=-1)


def test_comparisons_from_before_there_was_mixup_are_the_same_comparisons():
    splits = plan().load_data()
    assert plan().specification(splits, "cpu")["recipe"]["mixup"] == 0.2
    assert "mixup" not in plan(recipe={}).specification(splits, "cpu")["recipe"]
