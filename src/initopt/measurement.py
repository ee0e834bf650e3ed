"""What was measured of a model on some batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from initopt import functional

__all__ = ["STATISTICS", "Measurement"]

STATISTICS = ("grad_cosine", "grad_norm", "grad_variance", "noise_scale")
"""The figures of a measurement, in the order in which they are shown."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """Gradient statistics of a model, as means over batches.

    Attributes:
        grad_cosine: GradCosine, in [-1, 1].
        grad_norm: mean norm of a sub-batch gradient.
        grad_variance: population variance of the sub-batch gradients, summed over parameters.
        noise_scale: gradient noise scale in samples (:func:`initopt.functional.noise_scale`, the estimator of arXiv
            1812.06162, appendix A.1, with numerator and denominator averaged over batches first); ``inf`` where the data
            show no signal above the noise, ``nan`` where each sub-batch is the whole batch.
        sem: standard error of the mean of each figure over the batches; that of the noise scale by the jackknife (``inf``
            if it is infinite without one of them). ``nan`` for a single batch.
        num_batches: how many batches were measured.
        gram: the Gram matrices, float64, shape ``(num_batches, D, D)``.
        small_batch: effective samples of a sub-batch, a value per batch.
        big_batch: effective samples of the mean of the sub-batch gradients, a value per batch.
        engine: name of the engine that computed the Gram matrices.
    """

    grad_cosine: float
    grad_norm: float
    grad_variance: float
    noise_scale: float
    sem: dict[str, float] = field(repr=False)
    num_batches: int
    gram: Tensor = field(repr=False)
    small_batch: tuple[float, ...] = field(repr=False)
    big_batch: tuple[float, ...] = field(repr=False)
    engine: str

    @classmethod
    def from_grams(cls, grams: list[Tensor], small: list[float], big: list[float], engine: str) -> Measurement:
        """Reduce Gram matrices, one per batch, to means and standard errors."""
        gram = torch.stack(grams)
        samples = {
            "grad_cosine": functional.grad_cosine(gram),
            "grad_norm": functional.grad_norm(gram),
            "grad_variance": functional.grad_variance(gram),
        }
        noise = _estimates(functional.noise_trace, gram, small, big)
        signal = _estimates(functional.signal_sqnorm, gram, small, big)
        sem = {name: _sem(values) for name, values in samples.items()}
        sem["noise_scale"] = _ratio_jackknife(noise, signal)
        return cls(
            **{name: float(values.mean()) for name, values in samples.items()},
            noise_scale=float(functional.noise_to_signal(noise.mean(), signal.mean())),
            sem=sem,
            num_batches=len(grams),
            gram=gram,
            small_batch=tuple(small),
            big_batch=tuple(big),
            engine=engine,
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the Gram matrices, as plain values."""
        figures = {name: getattr(self, name) for name in STATISTICS}
        return figures | {
            "sem": self.sem,
            "num_batches": self.num_batches,
            "small_batch": list(self.small_batch),
            "big_batch": list(self.big_batch),
            "engine": self.engine,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], gram: Tensor) -> Measurement:
        """The inverse of :meth:`to_dict`."""
        return cls(
            **{name: float(values[name]) for name in STATISTICS},
            sem={name: float(value) for name, value in values["sem"].items()},
            num_batches=values["num_batches"],
            gram=gram,
            small_batch=tuple(values["small_batch"]),
            big_batch=tuple(values["big_batch"]),
            engine=values["engine"],
        )

    def __str__(self) -> str:
        def line(name: str) -> str:
            return f"{name:13} {getattr(self, name):10.4g} +- {self.sem[name]:.2g}"

        return "\n".join([*map(line, STATISTICS), f"means and standard errors over {self.num_batches} batches"])


def _sem(values: Tensor) -> float:
    return math.nan if len(values) < 2 else float(values.std(correction=1)) / math.sqrt(len(values))


def _estimates(
    estimator: Callable[[Tensor, float, float], Tensor], gram: Tensor, small: list[float], big: list[float]
) -> Tensor:
    """One estimate per batch; nan where the sub-batches are the whole batch, which tell no noise from signal."""
    nan = torch.full((), math.nan, dtype=gram.dtype, device="cpu")
    return torch.stack(
        [estimator(k, b, c) if b < c * (1 - 1e-9) else nan for k, b, c in zip(gram, small, big, strict=True)]
    )


def _ratio_jackknife(noise: Tensor, signal: Tensor) -> float:
    """Standard error of a ratio of means, from leaving one batch out at a time."""
    count = len(noise)
    if count < 2:
        return math.nan
    left_out = functional.noise_to_signal((noise.sum() - noise) / (count - 1), (signal.sum() - signal) / (count - 1))
    if torch.isinf(left_out).any():
        return math.inf
    return float(((count - 1) / count * (left_out - left_out.mean()).square().sum()).sqrt())
