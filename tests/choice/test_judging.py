"""Whether a start is preferred by chance, and whether one is that is better."""

import numpy as np
import pytest
from scipy import stats

from initopt.choice.judging import compared


def losses(rng, starts, seeds=3, batches=10, spread=0.0, heavy=False):
    """Losses of equal starts: noise by seed and batch, which all share, and of their own, of unequal size."""
    shared = 0.1 * rng.standard_normal((seeds, 1)) + 0.1 * rng.standard_normal(batches)
    drawn = rng.standard_t(3, (starts, seeds, 1)) / 3**0.5 if heavy else rng.standard_normal((starts, seeds, 1))
    own = 0.05 * np.exp(spread * rng.standard_normal((starts, 1, 1))) * drawn
    return np.exp(0.5 + shared + own + 0.03 * rng.standard_normal((starts, seeds, batches)))


@pytest.mark.parametrize(("spread", "heavy"), [(0.0, False), (0.8, False), (0.5, True)])
def test_of_equal_starts_one_is_preferred_in_one_race_of_twenty_at_most(spread, heavy):
    rng = np.random.default_rng(0)
    races = 600
    wrong = 0
    for _ in range(races):
        found = losses(rng, 7, spread=spread, heavy=heavy)
        best = np.argsort(found[1:].mean((1, 2)))[:3] + 1  # those that were not dropped, by the same losses
        wrong += any(difference.high < 0 for difference in compared([found[i] for i in best], found[0], 6))
    # The chance of more under 5 % is below 1 in 1000.
    assert wrong <= stats.binom.ppf(0.999, races, 0.05)


@pytest.mark.heavy
@pytest.mark.parametrize("heavy", [False, True])
def test_nor_in_more_where_seeds_are_added_to_those_that_are_close(heavy):
    rng = np.random.default_rng(3)
    races, wrong, added = 600, 0, 0
    for _ in range(races):
        found = losses(rng, 7, seeds=9, spread=0.5, heavy=heavy)
        own, few = found[0], found[:, :3]
        best = np.argsort(few[1:].mean((1, 2)))[:3] + 1
        first = compared([few[i] for i in best], few[0], 6, level=0.975)
        if any(difference.high < 0 for difference in first):
            wrong += 1
            continue
        close = [i for i in best if (few[i].mean(1) < few[0].mean(1)).all()][:2]
        added += bool(close)
        wrong += any(difference.high < 0 for difference in compared([found[i] for i in close], own, 6, level=0.975))
    assert added > races / 5
    assert wrong <= stats.binom.ppf(0.999, races, 0.05)


def test_a_start_that_is_much_better_is_preferred_as_a_rule():
    rng = np.random.default_rng(1)
    right = 0
    for _ in range(200):
        found = losses(rng, 4, spread=0.3)
        found[1] *= 0.7
        right += compared(list(found[1:]), found[0], 3)[0].high < 0
    assert right > 150


def test_one_start_alone_has_the_interval_of_students_t():
    rng = np.random.default_rng(2)
    own = np.exp(rng.standard_normal((3, 1)))
    other = own * np.exp(-1 + 0.1 * rng.standard_normal((3, 1)))
    (found,) = compared([other], own, 1)
    expected = stats.t.interval(0.95, 2, *(f(np.log(other / own).ravel()) for f in (np.mean, stats.sem)))
    assert [np.log1p(found.low), np.log1p(found.high)] == pytest.approx(list(expected))


def test_losses_that_may_be_negative_are_compared_as_they_are():
    own = np.array([[-1.0, 0.5], [-1.1, 0.4], [-0.9, 0.6]])
    (found,) = compared([own - 1.0 + 0.01 * np.arange(6).reshape(3, 2)], own, 1, relative=False)
    assert found.mean == pytest.approx(-0.975)


def test_differences_without_spread_have_no_width():
    own = np.array([[1.0, 2.0], [1.5, 2.5]])
    (found,) = compared([own / 2], own, 5)
    assert (found.mean, found.low, found.high) == pytest.approx((-0.5, -0.5, -0.5))
