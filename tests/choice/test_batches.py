"""Which batches a race is run on."""

import itertools
import math

import pytest
import torch

from initopt import InitoptWarning, LoaderError, NonFiniteError
from initopt.choice import batches as module
from initopt.choice.batches import Batches, read_batches, refuse_broken


def numbered(count):
    return [(torch.full((2,), float(number)),) for number in range(count)]


def numbers(found):
    return [int(batch[0][0]) for batch in found]


def test_held_out_batches_are_spread_over_what_is_read():
    found = read_batches(numbered(100), steps=16, held_out=4)
    assert numbers(found.held_out) == [2, 7, 12, 17]
    assert len(found.training) == 16
    assert not set(numbers(found.held_out)) & set(numbers(found.training))


def test_they_are_a_quarter_at_most():
    found = read_batches(numbered(8), steps=100, held_out=10)
    assert (len(found.training), len(found.held_out)) == (6, 2)
    with pytest.raises(LoaderError, match="gave 3 batch"):
        read_batches(numbered(3), steps=100, held_out=10)
    with pytest.raises(LoaderError, match="held_out is empty"):
        read_batches(numbered(3), steps=100, held_out=[])


def test_a_batch_that_judges_alone_is_worth_a_warning():
    with pytest.warns(InitoptWarning, match="of 4 batches, one alone judges"):
        read_batches(numbered(4), steps=100, held_out=10)


def losses_of(*found):
    """A function that gives some batches these losses."""
    return lambda batches: list(found[: len(batches)])


def test_a_batch_without_a_finite_loss_is_refused_with_what_is_in_it():
    fine, ignored = (torch.ones(4, 3), torch.arange(4)), (torch.ones(4, 3), torch.full((4,), -100))
    broken = (torch.tensor([[1.0, math.nan], [math.inf, 0.0]]), torch.arange(2))
    refuse_broken(Batches([fine], [fine]), losses_of())
    refuse_broken(Batches([fine, broken], [ignored]), losses_of(1.0, 2.0))  # a network that bears both
    with pytest.raises(NonFiniteError, match=r"is nan before any training: batch\[0\] has values .* not finite \(2 of 4\)"):
        refuse_broken(Batches([fine], [broken]), losses_of(math.nan))
    with pytest.raises(NonFiniteError, match=r"all values of batch\[1\] are negative, as targets are that a loss ignores"):
        refuse_broken(Batches([fine, ignored], []), losses_of(math.nan))


def test_the_loader_is_iterated_over_once_and_no_further_than_needed():
    source = iter(numbered(100))
    read_batches(source, steps=10, held_out=5)
    assert numbers([next(source)]) == [15]


def test_orders_differ_by_pass_and_seed_and_are_the_same_each_time():
    found = read_batches(numbered(20), steps=15, held_out=5)
    one, again, other = (numbers(itertools.islice(found.order(seed), 30)) for seed in (0, 0, 1))
    assert one == again
    assert one[:15] != one[15:]
    assert one[:15] != other[:15]
    assert sorted(one[:15]) == sorted(one[15:]) == sorted(other[:15]) == numbers(found.training)


def test_what_does_not_fit_into_memory_is_said(monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 10 * 8)
    with pytest.warns(InitoptWarning, match="100 batches take more memory than .* only 10 are read, and gone through"):
        found = read_batches(numbered(200), steps=80, held_out=20)
    assert (len(found.training), len(found.held_out)) == (8, 2)
