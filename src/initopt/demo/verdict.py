"""What came out, in a sentence that is computed from the numbers."""

from __future__ import annotations

from initopt.demo.experiment import Experiment

__all__ = ["counted", "verdict"]


def verdict(experiment: Experiment) -> str:
    """Say whether NIO helped, and how much.

    It counts as helpful, or harmful, only if the 95 % confidence interval of the difference in accuracy, seed by seed,
    leaves zero out.

    Args:
        experiment: what came out.

    Returns:
        One sentence.
    """
    last = experiment.epochs
    gain = experiment.gain(last)
    default, nio = (f"{experiment.accuracy(start, last).mean:.1%}" for start in ("default", "nio"))
    reads = (
        f"After {counted(last, 'epoch')} the network reads {default} of the test digits rightly from the default "
        f"start and {nio} from NIO's"
    )
    if gain.count == 1:
        return f"{reads}, which is one seed and so no evidence yet: try more seeds."
    low, high = _points(gain.mean - gain.margin), _points(gain.mean + gain.margin)
    interval = f"{_points(gain.mean)} points, 95% interval {low} to {high} over {gain.count} seeds"
    if abs(gain.mean) <= gain.margin:
        return f"{reads} ({interval}), so at the end this run shows no clear difference{_head_start(experiment)}."
    if gain.mean < 0:
        return f"{reads} ({interval}), so NIO did harm here."
    return f"{reads} ({interval}), so NIO helped{_head_start(experiment)}."


def counted(number: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "seed"), counted(2, "seed")
    ('1 seed', '2 seeds')
    """
    return f"{number} {noun}{'s' * (number != 1)}"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def _head_start(experiment: Experiment) -> str:
    """How much sooner NIO's start reached, on average, what the default start had in the end, if sooner."""
    last = experiment.epochs
    goal = experiment.accuracy("default", last).mean
    reached = next((e for e in range(1, last + 1) if experiment.accuracy("nio", e).mean >= goal), last)
    if reached == last:
        return ""
    return f"; what the default start reached after {counted(last, 'epoch')}, NIO's reached after {reached}"
