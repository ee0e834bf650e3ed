"""The identities of docs/theory.md, by numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from initopt import functional


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3)).double()


@pytest.fixture
def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 6, generator=generator, dtype=torch.float64), torch.randint(3, (12,), generator=generator)


def losses(model: nn.Module, samples: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(samples[0]), samples[1], reduction="none")


def gradients(model: nn.Module, samples: tuple[Tensor, Tensor]) -> Tensor:
    """A row for each sample."""
    parameters = list(model.parameters())
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses(model, samples)]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def moved(model: nn.Module, by: Tensor) -> nn.Module:
    new = copy.deepcopy(model)
    with torch.no_grad():
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(new.parameters()) + by, new.parameters())
    return new


def test_variance_of_the_points_that_one_step_reaches(model, samples):
    rate, each = 0.3, gradients(model, samples)
    reached = -rate * each
    variance = (reached - reached.mean(0)).square().sum(1).mean()
    gram = each @ each.T
    mean_square = functional.grad_sqnorms(gram).mean()
    torch.testing.assert_close(variance, rate**2 * functional.grad_variance(gram))
    torch.testing.assert_close(variance, rate**2 * mean_square * (1 - functional.coherence(gram) / len(each)))


def test_with_equal_norms_the_price_of_sharing_is_one_less_grad_cosine(model, samples):
    each = nn.functional.normalize(gradients(model, samples), dim=1) * 1.7
    gram, count = each @ each.T, len(each)
    of_the_paper = (1 - 1 / count) * functional.grad_cosine(gram) + 1 / count
    torch.testing.assert_close(of_the_paper, functional.cosine_matrix(gram).mean())
    torch.testing.assert_close(functional.grad_variance(gram), 1.7**2 * (1 - of_the_paper))


def test_first_order_progress_of_steps_on_single_samples(model, samples):
    """Over all pairs of a sample that makes the step and one that looks on: by training, and by the Gram matrix."""
    each = gradients(model, samples)
    gram = each @ each.T
    rate = 1e-6
    with torch.no_grad():
        before = losses(model, samples)
        progress = torch.stack([before - losses(moved(model, -rate * own), samples) for own in each])
    torch.testing.assert_close(progress / rate, gram, rtol=1e-4, atol=1e-5)
    expected = rate * functional.grad_sqnorms(gram).mean() * functional.coherence(gram) / len(each)
    torch.testing.assert_close(progress.mean(), expected, rtol=1e-4, atol=0.0)


def test_with_equal_norms_progress_is_rate_times_squared_norm_times_grad_cosine():
    """Of linear losses, whose gradients can be chosen."""
    generator = torch.Generator().manual_seed(3)
    each = nn.functional.normalize(torch.randn(8, 5, generator=generator, dtype=torch.float64), dim=1) * 0.6
    rate = 0.1
    progress = torch.stack([each @ (rate * own) for own in each]).mean()  # of the losses <g_j, x>, exactly
    with_diagonal = functional.cosine_matrix(each @ each.T).mean()
    torch.testing.assert_close(progress, rate * 0.6**2 * with_diagonal)


def test_first_step_of_adam_is_worth_the_one_norm(model, samples):
    each = gradients(model, samples)
    mean = each.mean(0)
    stepped = copy.deepcopy(model)
    optimizer = torch.optim.Adam(stepped.parameters(), lr=1e-6, eps=1e-30)
    losses(stepped, samples).mean().backward()
    optimizer.step()
    with torch.no_grad():
        progress = losses(model, samples) - losses(stepped, samples)
    torch.testing.assert_close(progress / 1e-6, each @ mean.sign(), rtol=1e-3, atol=1e-4)
    assert float(progress.mean()) == pytest.approx(1e-6 * float(mean.abs().sum()), rel=1e-4)


def test_momentum_goes_as_far_as_gradients_keep_their_direction():
    """Of a linear loss: after many steps, 1 / (1 - beta) times the rate a step."""
    weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    slope = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    for _ in range(300):
        before = weight.detach().clone()
        weight.grad = slope.clone()
        optimizer.step()
    torch.testing.assert_close(before - weight.detach(), 0.1 / (1 - 0.9) * slope)
