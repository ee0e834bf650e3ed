"""Which batches a race is run on."""

import itertools

import pytest
import torch

from initopt import InitoptWarning, LoaderError
from initopt.choice import batches as module
from initopt.choice.batches import read_batches


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
