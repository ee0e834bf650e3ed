"""Who runs how far."""

import pytest

from initopt.choice.race import plan_race
from initopt.choice.starts import as_starts


def test_half_are_dropped_after_a_quarter_and_half_of_the_others_after_half():
    starts = as_starts(["normal", "trunc_normal", "orthogonal", "xavier_normal", "xavier_uniform", "kaiming_normal"])
    plan = plan_race(starts, rates=3, steps=100, seeds=3, held_out=10, budget=None)
    assert plan.rungs == (25, 50, 100)
    assert plan.runners == (21, 11, 6)
    assert plan.training_steps == 3 * (21 * 25 + 11 * 25 + 6 * 50)
    assert plan.initialization_steps == 3 * 6
    assert plan.look_steps == 3 * (21 + 11 + 6) * 10 / 3
    own_step = plan_race(starts, 3, 100, 3, 10, None, own_step=True)
    assert own_step.look_steps == 3 * (21 + 11 + 3 * 6) * 10 / 3


def test_a_few_all_run_to_the_end():
    plan = plan_race(as_starts(["normal", "orthogonal"]), rates=1, steps=100, seeds=2, held_out=10, budget=None)
    assert (plan.rungs, plan.runners) == ((100,), (3,))


@pytest.mark.parametrize("budget", [700, 900, 2000])
def test_runs_are_as_long_as_a_budget_allows(budget):
    starts = as_starts(["nio", "lsuv", "orthogonal", "kaiming_normal"])
    plan = plan_race([*starts[:1], *starts[2:]], 1, 100, 3, 10, budget)
    assert plan.cost <= budget
    longer = plan_race([*starts[:1], *starts[2:]], 1, plan.rungs[-1] + 1, 3, 10, None)
    assert longer.cost > budget or plan.rungs[-1] == 100


def test_a_budget_that_is_too_small_is_refused_with_one_that_is_enough():
    starts = as_starts(["nio"])
    with pytest.raises(
        ValueError, match=r"2 starts at 1 rate\(s\) with 3 seeds cost 2480 for runs of 10 steps, 2400 of them"
    ):
        plan_race(starts, 1, 100, 3, 10, 1000)
    assert plan_race(starts, 1, 100, 3, 10, 2480).rungs == (10,)
