r"""Whether a start is better than the network's own, from a few seeds and the batches held out.

The differences :math:`d_{ib}` of the logarithms of the losses, start minus own, for seed i and batch b, vary by seed (other
orders and draws) and by batch. (Logarithms, since a loss that is falling varies in proportion to itself: where a network's
own start trains in one seed and hardly in another, plain differences vary with it. Of losses that may be zero or below,
plain differences are taken.) Both are samples of what could have been, so that the variance of their mean is

.. math:: \frac{s_{\text{seeds}}^2}{S} + \frac{s_{\text{batches}}^2}{B},

the variances of the means over batches and over seeds, which errs on the safe side (each has a part of what is left). Three
seeds hardly tell :math:`s_{\text{seeds}}^2`. It is therefore moderated by those of the other starts, as far as these are
alike (Smyth, *Linear Models and Empirical Bayes Methods for Assessing Differential Expression in Microarray Experiments*,
2004), with no more degrees of freedom than all of them together have. The interval is Student's with the degrees of freedom
of Satterthwaite, and holds for all starts of the race at once (Bonferroni), including those that were dropped on the way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEVEL", "Difference", "compared"]

LEVEL = 0.95
"""The level at which all intervals hold together."""


@dataclass(frozen=True)
class Difference:
    """The difference of the loss of a start to that of the network's own: as a share of that, or absolute.

    Attributes:
        mean: over seeds and batches; of logarithms, the share that it stands for: -0.4 for a loss that is 40 % lower.
        low: lower end of the interval.
        high: its upper end.
    """

    mean: float
    low: float
    high: float


def compared(
    losses: Sequence[NDArray[np.float64]],
    own: NDArray[np.float64],
    comparisons: int,
    *,
    relative: bool = True,
    level: float = LEVEL,
) -> list[Difference]:
    """Compare starts with the network's own.

    Args:
        losses: of each start, shape (seeds, batches), all finite.
        own: of the network's own start.
        comparisons: number of starts that could have been preferred, including those without losses to the end.
        relative: whether to compare logarithms, whose differences are shares; for losses above zero.
        level: at which all intervals hold together.

    >>> own = np.array([[1.0, 1.2], [1.1, 1.3], [1.0, 1.3]])
    >>> found = compared([own * [[0.5, 0.52], [0.51, 0.5], [0.49, 0.5]]], own, comparisons=1)[0]
    >>> round(found.mean, 2), found.high < 0
    (-0.5, True)
    """
    from scipy import stats

    if not losses:
        return []
    differences = [np.log(values / own) if relative else values - own for values in losses]
    seeds, batches = own.shape
    by_seed = np.array([values.mean(1).var(ddof=1) for values in differences])
    moderated, degrees = _moderated(by_seed, seeds - 1)
    found = []
    for values, variance in zip(differences, moderated, strict=True):
        mean = float(values.mean())
        of_seeds = float(variance) / seeds
        of_batches = float(values.mean(0).var(ddof=1)) / batches if batches > 1 else 0.0
        squared = of_seeds + of_batches
        if squared <= (1e-12 * max(1.0, float(np.abs(own).max()))) ** 2:  # rounding alone
            found.append(_difference(mean, 0.0, relative))
            continue
        freedom = squared**2 / (of_seeds**2 / degrees + (of_batches**2 / (batches - 1) if batches > 1 else 0.0))
        half = float(stats.t.ppf(1 - (1 - level) / (2 * comparisons), freedom)) * math.sqrt(squared)
        found.append(_difference(mean, half, relative))
    return found


def _difference(mean: float, half: float, relative: bool) -> Difference:
    ends = (mean, mean - half, mean + half)
    return Difference(*(math.expm1(min(end, 700.0)) if relative else end for end in ends))


def _moderated(variances: NDArray[np.float64], freedom: int) -> tuple[NDArray[np.float64], float]:
    """Variances drawn towards a common one, and the degrees of freedom that they have then."""
    positive = variances > 1e-9 * variances.max(initial=0.0)
    if positive.sum() < 2:
        return variances, freedom
    from scipy.special import digamma, polygamma

    logs = np.log(variances[positive]) - digamma(freedom / 2) + math.log(freedom / 2)
    excess = float(logs.var(ddof=1) - polygamma(1, freedom / 2))
    most = freedom * int(positive.sum())
    prior = 2 * _inverse_trigamma(excess) if excess > 0 else math.inf
    if math.isinf(prior):
        common = math.exp(float(logs.mean()))
        return np.full_like(variances, common), most
    common = math.exp(float(logs.mean() + digamma(prior / 2)) - math.log(prior / 2))
    return (prior * common + freedom * variances) / (prior + freedom), min(prior + freedom, most)


def _inverse_trigamma(value: float) -> float:
    """Where the trigamma function has a value, by Newton's method on its reciprocal, which is nearly straight."""
    from scipy.special import polygamma

    place = 0.5 + 1 / value
    for _ in range(50):
        slope = float(polygamma(1, place))
        moved = slope * (1 - slope / value) / float(polygamma(2, place))
        place += moved
        if abs(moved) < 1e-10 * place:
            break
    return place
