import dataclasses
import math

import numpy as np
import pytest

from initopt.comparison.analysis.outcome import TRAIN_LOSS, Outcome, outcome_curve
from initopt.comparison.storage.record import CurvePoint
from tests.synthetic_comparison import STEPS_PER_EPOCH, diverged, failed, run, without_accuracy


def record(*accuracies, status="done", first_epoch=0, subset="test"):
    """A run with these accuracies, an epoch apart."""
    points = [
        CurvePoint(10 * epoch, float(epoch), subset, 1 - (accuracy or 0), accuracy)
        for epoch, accuracy in enumerate(accuracies, first_epoch)
    ]
    return dataclasses.replace(run(), curve=tuple(points), status=status)


class TestOutcome:
    def test_untrained_is_the_median_before_the_first_step(self):
        runs = [record(0.1, 0.8), record(0.2, 0.9), record(0.12, 0.9)]
        assert Outcome.of(runs) == Outcome("test", "accuracy", 0.12)

    def test_untrained_is_the_worst_where_nobody_looked_before_the_first_step(self):
        runs = [record(0.4, 0.3, 0.8, first_epoch=1), record(0.5, 0.9, first_epoch=1)]
        assert Outcome.of(runs).untrained == 0.3
        assert Outcome.of([without_accuracy(found) for found in runs]) == Outcome("test", "loss", pytest.approx(0.7))

    def test_loss_where_there_is_no_accuracy(self):
        outcome = Outcome.of([without_accuracy(record(0.1, 0.8))])
        assert outcome.measure == "loss"
        assert not outcome.higher_is_better

    def test_nothing_to_look_at(self):
        outcome = Outcome.of([failed(run())])
        assert math.isnan(outcome.untrained)
        assert math.isnan(outcome.final(failed(run())))

    def test_final_value(self):
        outcome = Outcome("test", "accuracy", 0.1)
        assert outcome.final(record(0.1, 0.7, 0.9)) == 0.9
        assert outcome.final(record(0.1, 0.7, 0.9, status="diverged")) == 0.1
        assert math.isnan(outcome.final(record(0.1, 0.7, status="failed")))
        assert math.isnan(outcome.final(record(0.1, 0.7, subset="validation")))

    def test_a_value_that_is_not_finite_counts_as_untrained(self):
        found = without_accuracy(record(0.1, 0.9))
        found = dataclasses.replace(found, curve=(*found.curve, CurvePoint(20, 2.0, "test", math.inf, None)))
        assert Outcome.of([found]).final(found) == pytest.approx(0.9)  # the loss before the first step

    def test_first_epoch(self):
        outcome = Outcome("test", "accuracy", 0.1)
        assert outcome.first_epoch([record(0.1, 0.7, 0.9)]) == 1.0
        assert outcome.first_epoch([record(0.1, 0.7)]) is None  # that is the end

    def test_value_after_the_first_epoch(self):
        outcome = Outcome("test", "accuracy", 0.1)
        assert outcome.at_epoch(record(0.1, 0.7, 0.9), 1.0) == 0.7
        assert outcome.at_epoch(record(0.1, 0.7, status="diverged"), 1.0) == 0.7  # it had not diverged yet
        assert outcome.at_epoch(record(0.3, status="diverged"), 1.0) == 0.1
        assert math.isnan(outcome.at_epoch(record(0.1, 0.7, status="failed"), 1.0))

    def test_steps_to_a_target(self):
        outcome = Outcome("test", "accuracy", 0.1)
        assert outcome.steps_to(record(0.1, 0.7, 0.6, 0.9), 0.65) == 10
        assert outcome.steps_to(record(0.1, 0.7, 0.6, 0.9), 0.9) == 30
        assert outcome.steps_to(record(0.1, 0.7), 0.95) == math.inf
        assert Outcome("test", "loss", 1.0).steps_to(without_accuracy(record(0.1, 0.7, 0.9)), 0.35) == 10


class TestMeanCurve:
    def test_of_whole_runs(self):
        outcome = Outcome("test", "accuracy", 0.1)
        curve = outcome_curve([record(0.1, 0.7, 0.9), record(0.1, 0.5, 0.8)], outcome, [0.0, 1.0, 2.0])
        assert curve.mean == pytest.approx([0.1, 0.6, 0.85])
        assert curve.low == pytest.approx([0.1, 0.5, 0.8])
        assert curve.count == 2
        assert curve.ends == ()

    def test_a_diverged_run_counts_as_untrained_from_there(self):
        runs = [record(0.1, 0.7, 0.9), record(0.1, 0.5, status="diverged")]
        curve = outcome_curve(runs, Outcome("test", "accuracy", 0.1), [0.0, 1.0, 2.0])
        assert curve.mean == pytest.approx([0.1, 0.6, 0.5])
        assert curve.ends == ((1.0, 0.5),)

    def test_a_diverged_run_has_no_loss_from_there(self):
        runs = [run(seed=0), diverged(run(seed=1), epoch=4, peak=50.0)]
        curve = outcome_curve(runs, TRAIN_LOSS, [1.0, 4.5, 10.0])
        alone = outcome_curve(runs[:1], TRAIN_LOSS, [1.0, 4.5, 10.0])
        assert curve.mean[2] == alone.mean[2]
        assert curve.mean[1] == pytest.approx((alone.mean[1] + 50.0) / 2)
        assert curve.ends == ((4.5, 50.0),)
        assert math.isnan(curve.low[2])

    def test_failed_runs_are_left_out(self):
        curve = outcome_curve([record(0.1, 0.7), failed(run(seed=1))], Outcome("test", "accuracy", 0.1), [0.0, 1.0])
        assert curve.count == 1
        assert curve.mean == pytest.approx([0.1, 0.7])

    def test_runs_looked_at_at_other_epochs_are_interpolated(self):
        early = dataclasses.replace(record(0.1, 0.9), curve=tuple(p for p in record(0.1, 0.5, 0.9).curve if p.step != 10))
        curve = outcome_curve([early, record(0.1, 0.7, 0.9)], Outcome("test", "accuracy", 0.1), [0.0, 1.0, 2.0])
        assert curve.mean == pytest.approx([0.1, (0.5 + 0.7) / 2, 0.9])

    def test_nothing_finite(self):
        nothing = dataclasses.replace(run(), curve=(CurvePoint(STEPS_PER_EPOCH, 1.0, "train", math.nan, None),))
        assert np.isnan(outcome_curve([nothing], TRAIN_LOSS, [1.0]).mean).all()
