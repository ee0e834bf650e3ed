"""A measurement of a model on some batches."""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from initopt.gram import functional

__all__ = ["DEAF", "OUTPUT_STATISTICS", "STATISTICS", "TITLES", "Measurement"]

STATISTICS = ("grad_cosine", "grad_norm", "grad_variance", "noise_scale")
"""The figures of the gradients, in the order in which they are shown."""

OUTPUT_STATISTICS = ("centred_grad_cosine", "centred_grad_norm", "loss", "output_spread")
"""The figures of the outputs, and of what in the gradients depends on them."""

TITLES = {
    "grad_cosine": "GradCosine",
    "centred_grad_cosine": "GradCosine, centred",
    "grad_norm": "gradient norm",
    "centred_grad_norm": "gradient norm, centred",
    "grad_variance": "gradient variance",
    "noise_scale": "noise scale (samples)",
    "loss": "loss",
    "output_spread": "output spread",
}
"""The figures in words, in the order of tables."""


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
        centred_grad_cosine: GradCosine of the centred gradients, which leave out what an output bias would take care of
            (:mod:`initopt.model.centring`); nan if it was not asked for, or where it means nothing.
        centred_grad_norm: mean norm of a centred gradient; the same holds.
        loss: mean loss.
        output_spread: how much the outputs depend on the inputs: their root mean square deviation from their mean over
            samples and positions, relative to their root mean square. 0 in a network that ignores its input.
        unreached: which parameters get no gradient on the first sub-batch, and why, in words; ``None`` if all do, or if it
            was not looked at (before and after the steps of a method).
        uncentred: why there are no centred gradients; ``None`` if there are.
        centred_gram: the Gram matrices of the centred gradients, as ``gram``.
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
    centred_grad_cosine: float = math.nan
    centred_grad_norm: float = math.nan
    loss: float = math.nan
    output_spread: float = math.nan
    unreached: str | None = field(default=None, repr=False)
    uncentred: str | None = field(default=None, repr=False)
    centred_gram: Tensor | None = field(default=None, repr=False)

    @classmethod
    def from_grams(
        cls,
        grams: list[Tensor],
        small: list[float],
        big: list[float],
        engine: str,
        *,
        centred: list[Tensor] | None = None,
        losses: list[float] | None = None,
        spreads: list[float] | None = None,
        uncentred: str | None = None,
        unreached: str | None = None,
    ) -> Measurement:
        """Reduce what was found on each batch to means and standard errors.

        Args:
            grams: Gram matrices.
            small: effective samples of a sub-batch.
            big: effective samples of the mean of the sub-batch gradients.
            engine: name of the engine.
            centred: Gram matrices of centred gradients.
            losses: mean losses.
            spreads: of the outputs.
            uncentred: why there are no centred gradients.
            unreached: which parameters get no gradient.
        """
        gram = torch.stack(grams)
        samples = {
            "grad_cosine": functional.grad_cosine(gram),
            "grad_norm": functional.grad_norm(gram),
            "grad_variance": functional.grad_variance(gram),
        }
        if centred:
            samples["centred_grad_cosine"] = functional.grad_cosine(torch.stack(centred))
            samples["centred_grad_norm"] = functional.grad_norm(torch.stack(centred))
        for name, values in (("loss", losses), ("output_spread", spreads)):
            if values:
                samples[name] = torch.tensor(values, dtype=torch.float64, device="cpu")
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
            uncentred=uncentred,
            unreached=unreached,
            centred_gram=torch.stack(centred) if centred else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the Gram matrices, as plain values."""
        figures = {name: getattr(self, name) for name in (*STATISTICS, *OUTPUT_STATISTICS)}
        return figures | {
            "sem": self.sem,
            "num_batches": self.num_batches,
            "small_batch": list(self.small_batch),
            "big_batch": list(self.big_batch),
            "engine": self.engine,
            "unreached": self.unreached,
            "uncentred": self.uncentred,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], gram: Tensor, centred_gram: Tensor | None = None) -> Measurement:
        """The inverse of :meth:`to_dict`."""
        return cls(
            **{name: float(values[name]) for name in STATISTICS},
            **{name: float(values.get(name, math.nan)) for name in OUTPUT_STATISTICS},  # earlier versions had none
            sem={name: float(value) for name, value in values["sem"].items()},
            num_batches=values["num_batches"],
            gram=gram,
            small_batch=tuple(values["small_batch"]),
            big_batch=tuple(values["big_batch"]),
            engine=values["engine"],
            unreached=values.get("unreached"),
            uncentred=values.get("uncentred"),
            centred_gram=centred_gram,
        )

    def __str__(self) -> str:
        lines = [f"{TITLES[name]:22} {getattr(self, name):10.4g} +- {self.sem[name]:.2g}" for name in self.measured()]
        lines.append(f"means and standard errors over {self.num_batches} batches")
        if self.unreached is not None:
            lines.append(f"no gradient: {self.unreached}")
        if self.uncentred is not None and self.uncentred != NOT_ASKED_FOR:
            lines.append(f"gradients are not centred: {self.uncentred}")
        return "\n".join([*lines, "", self.advice()])

    def measured(self) -> list[str]:
        """The names of the figures that there are, in the order of tables."""
        return [name for name in TITLES if name in self.sem]

    @property
    def is_deaf(self) -> bool:
        """Whether neither the outputs nor the gradients depend on the inputs."""
        share = self.centred_grad_norm / self.grad_norm if self.grad_norm > 0 else math.nan
        return self.output_spread < DEAF and (math.isnan(share) or share < LISTENING)

    def advice(self) -> str:
        """One sentence that says what the figures mean and what to do next."""
        if self.is_deaf:
            return (
                f"The outputs hardly depend on the inputs (spread {self.output_spread:.1g}), so no training will see the "
                "data: try initopt.nio(model, batches), initopt.lsuv, or a scheme that fits the nonlinearity."
            )
        share = self.centred_grad_norm / self.grad_norm if self.grad_norm > 0 else math.nan
        if self.grad_cosine > 0.5 and self.centred_grad_cosine < self.grad_cosine - 0.25:
            return (
                f"Much of the agreement (GradCosine {self.grad_cosine:.2f}) is what a bias of the outputs would take care "
                f"of: without it, GradCosine is {self.centred_grad_cosine:.2f}. Look at that one; initopt.nio does."
            )
        if share < 0.1:
            return (
                f"Only {100 * share:.2g} % of the gradient depends on the inputs; initopt.nio(model, batches) raises that."
            )
        if not self.noise_scale < 1e6:
            return "The gradients show no signal above their noise: measure more or larger batches, or try initopt.nio."
        seen = (
            "Whether the outputs depend on the inputs could not be seen"
            if math.isnan(self.output_spread)
            else "The network listens to its inputs"
        )
        return (
            f"{seen}. Compare these figures before and after a change of its start, on the same batches; "
            "initopt.nio(model, batches) does both."
        )

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


NOT_ASKED_FOR = "it was not asked for"
"""Why there are no centred gradients, if they were not wanted."""

LISTENING = 0.01
"""Share of the centred gradient in the whole one below which a network ignores its input, if its outputs say so, too."""

DEAF = 1e-3
"""Spread of the outputs below which a network ignores its input.

Plain networks of 10 to 40 layers that cannot be trained have 1e-8 to 1e-3, and those that can 0.1 to 0.5.
"""


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
