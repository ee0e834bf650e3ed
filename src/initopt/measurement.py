"""What was measured of a model on some batches."""

from __future__ import annotations

import math
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
            show no signal above the noise.
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
        noise = torch.stack([functional.noise_trace(k, b, c) for k, b, c in zip(grams, small, big, strict=True)])
        signal = torch.stack([functional.signal_sqnorm(k, b, c) for k, b, c in zip(grams, small, big, strict=True)])
        sem = {name: _sem(values) for name, values in samples.items()}
        sem["noise_scale"] = _ratio_jackknife(noise, signal)
        return cls(
            **{name: float(values.mean()) for name, values in samples.items()},
            noise_scale=_ratio(float(noise.mean()), float(signal.mean())),
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


def _ratio(noise: float, signal: float) -> float:
    return max(noise, 0.0) / signal if signal > 0 else math.inf


def _ratio_jackknife(noise: Tensor, signal: Tensor) -> float:
    """Standard error of a ratio of means, from leaving one batch out at a time."""
    count = len(noise)
    if count < 2:
        return math.nan
    rest_noise, rest_signal = (noise.sum() - noise) / (count - 1), (signal.sum() - signal) / (count - 1)
    left_out = torch.tensor(
        [_ratio(*pair) for pair in zip(rest_noise.tolist(), rest_signal.tolist(), strict=True)], device="cpu"
    )
    if torch.isinf(left_out).any():
        return math.inf
    return float(((count - 1) / count * (left_out - left_out.mean()).square().sum()).sqrt())
