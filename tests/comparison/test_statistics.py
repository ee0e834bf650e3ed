import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from initopt.comparison.analysis.statistics import estimate, holm, intervals, paired_difference


def by_all_resamples(values):
    """The interval from every resample there is, each once, with the quantiles of Hesterberg (2015)."""
    count = len(values)
    means = np.sort([np.mean(draw) for draw in itertools.product(values, repeat=count)])
    tail = stats.norm.cdf(-math.sqrt(count / (count - 1)) * stats.t.ppf(0.975, count - 1))
    return np.quantile(means, tail), np.quantile(means, 1 - tail)


class TestIntervals:
    @pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
    def test_as_from_all_resamples(self, count):
        values = np.random.default_rng(count).normal(size=count)
        found = estimate(list(values))
        low, high = by_all_resamples(values)
        width = high - low
        assert found.low == pytest.approx(low, abs=0.05 * width)
        assert found.high == pytest.approx(high, abs=0.05 * width)

    # What docs/report.md and the report itself say about them; 2000 trials have a standard error of half a point.
    @pytest.mark.heavy
    @pytest.mark.parametrize(
        ("count", "least", "most"), [(2, 0.47, 0.53), (3, 0.73, 0.78), (5, 0.91, 0.945), (20, 0.93, 0.96)]
    )
    def test_coverage_of_normal_values(self, count, least, most):
        low, high = intervals(np.random.default_rng(0).normal(loc=3.0, size=(count, 2000)))
        assert least < np.mean((low <= 3.0) & (high >= 3.0)) < most

    @pytest.mark.heavy
    def test_better_than_the_plain_percentile_interval(self):
        values = np.random.default_rng(1).normal(size=(5, 1000))
        low, high = intervals(values)
        plain = stats.bootstrap((values,), np.mean, axis=0, method="percentile", rng=np.random.default_rng(0), batch=500)
        covered = np.mean((plain.confidence_interval.low <= 0) & (plain.confidence_interval.high >= 0))
        assert covered < 0.87 < np.mean((low <= 0) & (high >= 0))

    def test_few_values_give_their_range(self):
        found = estimate([3.0, 1.0, 2.0])
        assert (found.low, found.high) == pytest.approx((1.0, 3.0))

    def test_equal_values_give_an_interval_without_width(self):
        found = estimate([0.1] * 5)
        assert (found.low, found.high) == (0.1, 0.1)

    def test_one_value_has_none(self):
        found = estimate([0.5])
        assert math.isnan(found.low)
        assert math.isnan(found.std)

    def test_no_value(self):
        assert estimate([]).count == 0
        assert math.isnan(estimate([]).mean)

    def test_the_same_each_time(self):
        values = list(np.random.default_rng(2).normal(size=7))
        assert estimate(values) == estimate(values)

    def test_points_with_missing_seeds(self):
        values = np.random.default_rng(3).normal(size=(5, 4))
        holes = values.copy()
        holes[2, 1] = math.nan
        holes[1:, 3] = math.nan
        low, high = intervals(holes)
        assert low[0] == intervals(values)[0][0]
        assert (low[1], high[1]) == (
            estimate(list(np.delete(values[:, 1], 2))).low,
            estimate(list(np.delete(values[:, 1], 2))).high,
        )
        assert math.isnan(low[3])

    @pytest.mark.heavy
    @given(st.lists(st.floats(-1e12, 1e12), min_size=2, max_size=8))
    def test_never_leaves_the_values(self, values):
        found = estimate(values)
        assert min(values) <= found.low <= found.high <= max(values)


class TestPairedDifference:
    def test_against_the_textbook(self):
        ours, reference = [0.95, 0.97, 0.93, 0.96, 0.99], [0.94, 0.92, 0.93, 0.9, 0.95]
        found = paired_difference(dict(enumerate(ours)), dict(enumerate(reference)))
        differences = np.subtract(ours, reference)
        t = differences.mean() / (differences.std(ddof=1) / math.sqrt(5))
        # The tail of Student's t with 4 degrees of freedom, integrated.
        grid = np.linspace(t, 5000, 4_000_001)
        density = 0.375 * (1 + grid**2 / 4) ** -2.5
        assert found.p == pytest.approx(2 * np.trapezoid(density, grid), rel=1e-4)
        assert found.estimate.mean == pytest.approx(differences.mean())

    def test_only_seeds_that_both_have(self):
        found = paired_difference({0: 1.0, 1: 2.0, 3: 5.0}, {1: 1.0, 2: 9.0, 3: 3.0})
        assert found.differences == {1: 1.0, 3: 2.0}

    def test_nothing_shared(self):
        found = paired_difference({0: 1.0}, {1: 1.0})
        assert found.differences == {}
        assert found.p is None

    def test_one_pair_has_no_test(self):
        assert paired_difference({0: 1.0}, {0: 2.0}).p is None

    def test_ties_are_no_difference(self):
        values = {seed: 0.1 * seed for seed in range(5)}
        assert paired_difference(values, dict(values)).p == 1.0

    def test_differences_without_spread_have_no_test(self):
        # 0.3 - 0.2 and 0.2 - 0.1 are not the same floating point number.
        found = paired_difference({0: 0.2, 1: 0.3, 2: 0.4}, {0: 0.1, 1: 0.2, 2: 0.3})
        assert found.p is None
        assert found.estimate.mean == pytest.approx(0.1)

    @pytest.mark.heavy
    def test_false_findings_are_as_frequent_as_the_level_says(self):
        rng = np.random.default_rng(5)
        draws = rng.normal(size=(1000, 2, 5))
        below = [paired_difference(dict(enumerate(a)), dict(enumerate(b))).p < 0.05 for a, b in draws[:300]]
        assert 0.02 < np.mean(below) < 0.09


def by_closed_testing(p_values, index):
    """Holm's p-value by what it is for: the largest Bonferroni p-value of all sets of hypotheses with this one in it."""
    others = [i for i in range(len(p_values)) if i != index]
    sets = (subset for size in range(len(p_values)) for subset in itertools.combinations(others, size))
    return max(min(1.0, (len(subset) + 1) * min(p_values[i] for i in (*subset, index))) for subset in sets)


class TestHolm:
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
    def test_against_closed_testing(self, p_values):
        expected = [by_closed_testing(p_values, index) for index in range(len(p_values))]
        assert holm(p_values) == pytest.approx(expected)

    def test_by_hand(self):
        # 0.001 * 5; 0.01 * 4; 0.015 * 3; then 0.04 * 2 = 0.08; then 0.5.
        assert holm([0.01, 0.5, 0.001, 0.04, 0.015]) == pytest.approx([0.04, 0.5, 0.005, 0.08, 0.045])

    def test_ties(self):
        assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])

    def test_a_comparison_without_a_test_counts(self):
        assert holm([0.01, None]) == [0.02, None]

    def test_none(self):
        assert holm([]) == []
