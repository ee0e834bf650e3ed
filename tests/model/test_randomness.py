"""Random numbers for each purpose from a stream of their own."""

import itertools
import random

import numpy as np
import pytest
import torch

from initopt.comparison.running.batches import EpochOrder
from initopt.model.randomness import GENERATORS, OwnGenerator, Stream, mixed_seed, seeded


def test_keys_of_any_length_and_stream_have_states_of_their_own():
    numbers = range(4)
    keys = [(), *itertools.product(numbers), *itertools.product(numbers, numbers), *itertools.product(*[numbers] * 3)]
    keys += [(stream, *key) for stream in Stream for key in keys]
    found = {mixed_seed(seed, *key) for seed in (0, 1, 2**32 - 1) for key in keys}
    assert len(found) == 3 * len(keys)


def test_what_draws_for_a_seed_differs_by_purpose():
    """As in (s, 0) and (s, 0, 0), which were one state: the weights of a seed, and the order of its first epoch."""

    def drawn(*key):
        with seeded(5, *key):
            return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    purposes = [drawn(), drawn(0), drawn(0, 0), *(drawn(stream) for stream in Stream), drawn(Stream.ORDER, 0)]
    assert all(a != b for first, second in itertools.combinations(purposes, 2) for a, b in zip(first, second, strict=True))
    assert drawn(Stream.WEIGHTS) == drawn(Stream.WEIGHTS)


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = []
    for seed in (0, 1):
        order = EpochOrder(50, 5, seed)
        for order.epoch in (0, 1, 2):
            orders.append(list(order))
    assert len({str(order) for order in orders}) == 6


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_generator_of_the_users_own(kind):
    generator = np.random.default_rng(0) if kind is np.random.Generator else kind()
    own = OwnGenerator(generator)
    states = []
    for key in ((), (0,), (0, 0), (0,)):
        own.seed(3, *key)
        states.append(str(own._get()))
    assert states[1] == states[3]
    assert len(set(states)) == 3
