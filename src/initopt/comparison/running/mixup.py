"""Mixup: training on mixtures of two samples, and of their labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from initopt.model.randomness import Stream, seed_sequence

__all__ = ["MixedBatches", "MixupLoss", "mixed"]


def mixed(batch: Any, alpha: float, seed: int, *key: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Mix each sample of a batch with another one of it (Zhang et al., *mixup: Beyond Empirical Risk Minimization*, 2018).

    The share of the sample itself is lambda or 1 - lambda, whichever is larger, where lambda is drawn from
    Beta(alpha, alpha) once for the batch: the mixtures are those of the paper, and the first label has the larger part.

    Args:
        batch: inputs of a floating dtype, shape ``(B, ...)``, and labels, integers of shape ``(B,)``.
        alpha: how evenly samples are mixed.
        seed: of the run.
        key: which batch this is, in numbers.

    Returns:
        The mixed inputs; and the labels of the samples, the labels of their partners, and the share of the former, shape
        ``(B,)``.

    Raises:
        ValueError: if the batch is of another form.
    """
    if not _can_be_mixed(batch):
        raise ValueError("mixup needs batches of inputs of a floating dtype and integer labels, one a sample; use mixup=0")
    inputs, labels = batch
    generator = np.random.default_rng(seed_sequence(seed, Stream.MIXTURES, *key))
    drawn = generator.beta(alpha, alpha)
    share = max(drawn, 1 - drawn)
    partners = torch.from_numpy(generator.permutation(len(labels))).to(labels.device)
    both = share * inputs + (1 - share) * inputs[partners]
    return both, (labels, labels[partners], torch.full(labels.shape, share, dtype=inputs.dtype, device=labels.device))


def _can_be_mixed(batch: Any) -> bool:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(item, Tensor) for item in batch):
        return False
    inputs, labels = batch
    return inputs.is_floating_point() and labels.ndim == 1 and not labels.is_floating_point() and not labels.is_complex()


class MixedBatches:
    """Batches, mixed, the same way in each pass.

    Args:
        batches: an iterable that can be iterated over again.
        alpha: how evenly samples are mixed.
        seed: of the run.
        key: which batches these are, in numbers.
    """

    def __init__(self, batches: Iterable[Any], alpha: float, seed: int, *key: int) -> None:
        self._batches, self._alpha, self._key = batches, alpha, (seed, *key)

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self._batches):
            yield mixed(batch, self._alpha, *self._key, number)


class MixupLoss:
    """The cross-entropy of mixed batches, one loss a sample.

    Args:
        label_smoothing: of each of the two labels.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self._label_smoothing = label_smoothing

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        inputs, (labels, partners, share) = batch
        output = model(inputs)
        logits = getattr(output, "logits", output)
        own, other = (
            F.cross_entropy(logits, target.long(), reduction="none", label_smoothing=self._label_smoothing)
            for target in (labels, partners)
        )
        loss: Tensor = share * own + (1 - share) * other
        return loss
