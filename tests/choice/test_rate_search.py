"""The search for learning rates, on courses that are known beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from initopt.choice.rate_runs import Plan, RateRuns, Runner, Sweep
from initopt.choice.rate_search import Search

Hopeless = Callable[[int, float], bool]


def plan(**changes: Any) -> Plan:
    given: dict[str, Any] = {
        "seeds": (0, 1, 2),
        "steps": 50,
        "sweep_steps": 100,
        "warmup_steps": 20,
        "min_lr": 1e-6,
        "max_lr": 10.0,
        "precision": 1.05,
        "budget": 4000,
        "own": None,
    }
    return Plan(**(given | changes))


def searched(course: Runner, **changes: Any) -> Search:
    search = Search(course, plan(**changes))
    search.run()
    return search


def quadratic(curvature: Callable[[int, int], float], offset: float = 0.0, noise: float = 0.0) -> Runner:
    """Gradient descent on a parabola, whose curvature depends on the seed and the step."""

    def course(seed: int, rates: Sequence[float], hopeless: Hopeless) -> list[float]:
        generator = np.random.default_rng(seed)
        weight, losses = 1.0, []
        for step, rate in enumerate(rates):
            bend = curvature(seed, step)
            losses.append(offset + bend * weight**2 / 2 + noise * generator.normal())
            if hopeless(step, losses[-1]):
                break
            weight -= rate * bend * weight
        return losses

    return course


def plateau(best: Callable[[int], float], depth: float = 1.0) -> Runner:
    """A loss that falls at once, and most at the best rate of its seed."""

    def course(seed: int, rates: Sequence[float], hopeless: Hopeless) -> list[float]:
        fall = [depth * math.exp(-(math.log(rate / best(seed)) ** 2) / 4) for rate in rates]
        return [2.0] + [2.0 - value for value in fall[1:]]

    return course


def test_the_largest_stable_rate_of_a_parabola_is_found_within_the_precision() -> None:
    search = searched(quadratic(lambda seed, step: 5.0), precision=1.02)
    assert search.largest_stable is not None
    assert search.unstable_at is not None
    assert search.largest_stable <= 2 / 5 * 1.001
    assert search.unstable_at >= 2 / 5 * 0.98
    assert search.unstable_at / search.largest_stable <= 1.02


def test_a_loss_that_is_negative_or_shifted_makes_no_difference() -> None:
    found = [searched(quadratic(lambda seed, step: 5.0, offset)).largest_stable for offset in (0.0, -5.0)]
    assert found[0] == pytest.approx(found[1], rel=0.1)


def test_one_seed_that_diverges_is_enough() -> None:
    search = searched(quadratic(lambda seed, step: 5.0 if seed < 2 else 20.0))
    assert search.largest_stable == pytest.approx(2 / 20, rel=0.06)


def test_a_rate_that_never_diverges_within_the_range_is_a_bound() -> None:
    search = searched(quadratic(lambda seed, step: 5.0), max_lr=0.1)
    assert search.unstable_at is None
    assert search.largest_stable == pytest.approx(0.1, rel=2.2)
    assert search.warmup is None


def test_a_loss_that_is_not_finite_beyond_a_rate_is_no_obstacle() -> None:
    def course(seed: int, rates: Sequence[float], hopeless: Hopeless) -> list[float]:
        losses: list[float] = []
        for step, rate in enumerate(rates):
            losses.append(math.nan if rate > 0.3 else 2.0 - min(1.0, 0.5 * step * rate))
            if math.isnan(losses[-1]):
                break
        return losses

    search = searched(course)
    assert search.largest_stable == pytest.approx(0.3, rel=0.06)
    assert search.suggestion()[0] is not None
    assert search.suggestion()[0] <= search.largest_stable


def test_what_cannot_even_train_at_the_lowest_rate_has_no_suggestion() -> None:
    def course(seed: int, rates: Sequence[float], hopeless: Hopeless) -> list[float]:
        return [1.0, 1.0, math.inf] if rates[-1] > 1e-20 else [1.0] * len(rates)

    search = searched(course)
    suggested, interval, why = search.suggestion()
    assert (suggested, interval) == (None, None)
    assert why.startswith("every rate that was run diverges within 50 steps, the lowest of them 1")
    assert why.endswith("e-06")
    assert search.largest_stable is None


@pytest.mark.parametrize("depth", [0.0, 0.005, -0.5])
def test_a_flat_curve_has_no_suggestion(depth: float) -> None:
    suggested, _, why = searched(plateau(lambda seed: 0.01, depth)).suggestion()
    assert suggested is None
    assert why.startswith("the loss hardly falls at any rate: from 2 by ")


def test_noise_larger_than_the_descent_has_no_suggestion() -> None:
    def course(seed: int, rates: Sequence[float], hopeless: Hopeless) -> list[float]:
        generator = np.random.default_rng((seed, int(1e6 * rates[-1])))
        return list(2 + 0.5 * generator.normal(size=len(rates)) - 0.02)

    suggested, _, why = searched(course).suggestion()
    assert suggested is None
    assert "where batches differ by 0." in why


def test_seeds_that_disagree_by_more_than_a_decade_have_no_suggestion() -> None:
    suggested, interval, why = searched(plateau(lambda seed: 10.0 ** (-5 + 2 * seed)), budget=20000).suggestion()
    assert suggested is None
    assert interval is not None
    assert why.startswith("the seeds disagree: their best rates lie between ")


def test_a_plateau_is_not_a_disagreement() -> None:
    def course(seed: int, rates: Sequence[float], hopeless: Hopeless) -> list[float]:
        flat = 1e-5 < rates[-1] < 1
        return [2.0] + [1.0 + 0.01 * math.sin(seed + 40 * math.log(rate)) if flat else 1.9 for rate in rates[1:]]

    suggested, interval, why = searched(course).suggestion()
    assert why == ""
    assert suggested is not None
    assert interval is not None


def test_a_best_rate_at_the_lower_end_of_the_range_is_no_suggestion() -> None:
    suggested, _, why = searched(plateau(lambda seed: 1e-7)).suggestion()
    assert suggested is None
    assert why.startswith("the lowest rate that was run, 1.")
    assert why.endswith("is the best; a better one may lie below")


def test_a_best_rate_at_the_upper_end_of_the_range_is_no_suggestion_either() -> None:
    suggested, _, why = searched(plateau(lambda seed: 100.0)).suggestion()
    assert suggested is None
    assert why.startswith("the highest rate that was run, ")


def test_the_best_rate_lies_between_those_that_were_run() -> None:
    search = searched(plateau(lambda seed: 0.0123))
    suggested, interval, why = search.suggestion()
    assert why == ""
    assert suggested == pytest.approx(0.0123, rel=0.1)
    assert interval == (pytest.approx(suggested), pytest.approx(suggested))


def test_the_interval_covers_the_best_rates_of_the_seeds() -> None:
    best = (0.01, 0.02, 0.03)
    _, interval, _ = searched(plateau(lambda seed: best[seed])).suggestion()
    assert interval is not None
    assert interval[0] < 0.013
    assert interval[1] > 0.025
    assert searched(plateau(lambda seed: best[seed]), seeds=(0,)).suggestion()[1] is None


def test_a_warm_up_helps_where_the_curvature_falls_first() -> None:
    def course(seed: int, rates: Sequence[float], hopeless: Hopeless) -> list[float]:
        losses, weight = [], 1.0
        for step, rate in enumerate(rates):
            bend = 10 / (1 + step / 2)
            losses.append(1 + weight**2 if rate * bend < 2 else math.inf)
            if losses[-1] == math.inf:
                break
            weight *= 1 - min(1.0, 0.01 * rate)
        return losses

    search = searched(course)
    assert search.largest_stable == pytest.approx(0.2, rel=0.06)
    assert search.warmup is not None
    assert (search.warmup.factor, search.warmup.without) == (8, 1)
    assert search.warmup.better
    assert [round(t.lr / search.largest_stable) for t in search.warmup.warm] == [1, 2, 4, 8]
    assert {t.warmup for t in search.warmup.warm} == {20}


def test_no_warm_up_is_tried_where_none_is_asked_for() -> None:
    assert searched(quadratic(lambda seed, step: 5.0), warmup_steps=0).warmup is None


def test_the_users_own_rate_is_run_too() -> None:
    search = searched(quadratic(lambda seed, step: 5.0), own=0.037)
    assert any(t.lr == 0.037 and t.whole for t in search.runs)


@pytest.mark.parametrize("budget", [1050, 1300, 1600, 2200])
def test_the_budget_is_kept_and_what_it_was_not_enough_for_is_said(budget: int) -> None:
    done = 0

    def course(seed: int, rates: Sequence[float], hopeless: Hopeless) -> list[float]:
        nonlocal done
        losses = quadratic(lambda seed, step: 5.0)(seed, rates, hopeless)
        done += len(losses)
        return losses

    search = searched(course, budget=budget, precision=1.02)
    assert search.spent == done <= budget
    assert search.undone
    assert search.known


def test_a_sweep_knows_where_it_is_steepest_and_where_it_diverges() -> None:
    rates = tuple(np.geomspace(1e-4, 1, 41))
    losses = [2 - 1 / (1 + (0.01 / rate) ** 2) if rate < 0.1 else 2 + 100 * rate for rate in rates]
    sweep = Sweep(0, rates, tuple(losses), (2.0,) * 41)
    assert 0.005 < sweep.steepest < 0.03
    assert 0.05 < sweep.lowest < 0.15
    diverged = sweep.diverged_at(noise=0.1)
    assert diverged is not None
    assert 0.1 <= diverged < 0.2
    assert Sweep(0, rates, (2.0,) * 41, (2.0,) * 41).diverged_at(0.1) is None


def test_a_spike_of_one_batch_does_not_move_the_curve() -> None:
    rates = tuple(np.geomspace(1e-4, 1, 41))
    spike = [100.0 if number == 3 else 0.0 for number in range(41)]
    losses = [2 - rate for rate in rates]
    start = [2.0] * 41
    plain = Sweep(0, rates, tuple(losses), tuple(start))
    spiked = Sweep(
        0, rates, tuple(map(sum, zip(losses, spike, strict=True))), tuple(map(sum, zip(start, spike, strict=True)))
    )
    assert spiked.curve == pytest.approx(plain.curve)


def test_trials_sum_up_over_the_seeds_that_were_run() -> None:
    trial = RateRuns(0.1, (1.0, 2.0, math.nan), (1.0, 0.5, math.nan))
    assert (trial.loss, trial.gain, trial.whole, trial.diverged) == (1.5, 0.75, False, 0)
    assert RateRuns(0.1, (1.0, math.inf), (1.0, -math.inf), stable=False).diverged == 1
