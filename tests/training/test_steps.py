"""One step of training, and the losses that many of them leave."""

import math

import pytest
import torch
from torch import nn

import initopt
from initopt.model.losses import as_loss
from initopt.training.steps import Course, Trainer, check_step, clipping, only_own_gradients, train_steps


def problem(dropout=0.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(dropout), nn.Tanh(), nn.Linear(8, 3))
    batches = [(torch.randn(6, 4), torch.randint(3, (6,))) for _ in range(5)]
    return model, batches, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def same(one, other):
    return torch.equal(nn.utils.parameters_to_vector(one.parameters()), nn.utils.parameters_to_vector(other.parameters()))


def test_the_loss_of_another_model_is_refused():
    model, batches, optimizer = problem()
    other, _, _ = problem()
    trainer = Trainer(
        model, optimizer, as_loss(lambda model, batch: nn.functional.cross_entropy(other(batch[0]), batch[1]))
    )
    with pytest.raises(initopt.LossError, match="the loss of another model .* the first argument of loss_fn"):
        train_steps(trainer, batches, 0)


def test_steps_are_those_of_a_plain_loop():
    model, batches, optimizer = problem()
    course = train_steps(Trainer(model, optimizer, as_loss(None), clip=clipping(optimizer, 0.5)), batches, 0)
    other, _, plain = problem()
    losses = []
    for inputs, targets in batches:
        plain.zero_grad()
        loss = nn.functional.cross_entropy(other(inputs), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        plain.step()
        losses.append(loss.item())
    assert (course.losses, course.steps, course.diverged) == (losses, 5, None)
    assert same(model, other)


def test_a_run_that_goes_on_is_as_one_that_was_not_broken_off():
    model, batches, optimizer = problem(dropout=0.5)
    state = torch.get_rng_state()
    whole = train_steps(Trainer(model, optimizer, as_loss(None)), batches, 7)
    assert torch.equal(torch.get_rng_state(), state)
    other, _, again = problem(dropout=0.5)
    trainer = Trainer(other, again, as_loss(None))
    course = train_steps(trainer, batches[:2], 7)
    torch.rand(3)
    assert train_steps(trainer, batches[2:], 7, course).losses == whole.losses
    assert same(model, other)


def test_a_step_of_the_users_own_is_called_in_the_place_of_ours():
    model, batches, optimizer = problem()
    seen = []

    def step(given, its_optimizer, batch):
        seen.append((given is model, its_optimizer is optimizer))
        its_optimizer.zero_grad()
        loss = given(batch[0]).square().mean()
        loss.backward()
        its_optimizer.step()
        return loss.item()

    course = train_steps(Trainer(model, optimizer, as_loss(None), own=step), batches, 0)
    assert seen == [(True, True)] * 5
    assert course.losses[-1] < course.losses[0]
    with pytest.raises(initopt.LossError, match="step must return the training loss.*got NoneType"):
        Trainer(model, optimizer, as_loss(None), own=lambda *_: None).step(batches[0])
    with pytest.raises(TypeError, match="step must be a function"):
        check_step(3)


def test_rates_can_change_before_each_step():
    model, batches, optimizer = problem()
    numbers = []
    course = train_steps(Trainer(model, optimizer, as_loss(None)), batches[:2], 0, before=numbers.append)
    train_steps(Trainer(model, optimizer, as_loss(None)), batches[2:], 0, course, before=numbers.append)
    assert numbers == [0, 1, 2, 3, 4]


def test_gradients_of_what_the_loss_holds_stay_as_they_are():
    model, batches, optimizer = problem()
    teacher = nn.Linear(4, 3)

    def loss(student, batch):
        return (student(batch[0]) - teacher(batch[0])).square().mean()

    train_steps(Trainer(model, optimizer, as_loss(loss), backward=only_own_gradients(optimizer)), batches, 0)
    assert teacher.weight.grad is None


def test_training_ends_with_a_loss_that_is_not_finite():
    model, batches, optimizer = problem()
    inputs, targets = batches[2]
    batches[2] = inputs * math.nan, targets
    course = train_steps(Trainer(model, optimizer, as_loss(None)), batches, 0)
    assert course.steps == 3
    assert course.diverged == "the training loss of step 3 is nan"


def ended(*losses):
    course = Course(list(losses))
    course.end()
    return course.diverged


def test_a_run_that_ends_far_above_its_first_losses_has_diverged():
    begun = [1.0] * 8
    assert ended(*begun, 3.0, 3.0) is None
    assert ended(*begun, 3.1, 3.1) == "the training loss is 3.1 in the end, and was 1 in the first steps"
    assert ended(2.3, 2.5, 40.0, 300.0, 900.0, 700.0, 800.0, 900.0, 800.0, 900.0) is not None
    assert ended(1.0, 5e3, 7e3, 4e3, 6e3, 5e3, 7e3, 4e3, 6e3, 5e3).endswith("and was 1 before the first step")
    assert ended() is None


def test_batches_that_differ_are_not_taken_for_a_run_that_diverged():
    assert ended(0.05, 0.9, 1.3, 0.4, 2.0, 1.1, 0.2, 0.8, 0.5, 1.4) is None  # of one sample each, and nothing to learn
    assert ended(*[1.0] * 45, 0.1, 0.1, 0.1, 0.1, 20.0) is None  # one spike at the end
    assert ended(0.0, -0.1, 0.1, 0.0, 0.1, -0.1, 0.0, 0.1, 0.0, 0.2) is None  # a loss around zero
    assert ended(0.0, -0.1, 0.1, 0.0, 0.1, -0.1, 0.0, 0.1, 5.0, 5.2) is not None


def test_runs_on_single_samples_with_nothing_to_learn_seldom_diverge():
    generator = torch.Generator().manual_seed(0)
    for steps in (20, 100):
        squares = torch.randn(500, steps, generator=generator).square().tolist()
        assert sum(ended(*losses) is not None for losses in squares) < 0.06 * 500  # of three times one batch, 40 %


def test_a_course_counts_losses_up_to_one_that_is_not_finite():
    course = Course()
    assert course.note([1.0, 2.0]) == [1.0, 2.0]
    cut = Course()
    assert cut.note([1.0, math.inf, 2.0]) == [1.0, math.inf]
    assert cut.steps == 2
