"""How a batch is split into sub-batches, and which samples make up each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from initopt._support.checks import check_choice, check_integer, check_number, with_plain_numbers
from initopt.gram import functional

__all__ = ["BATCH_NORMS", "SPLITS", "BatchNorm", "Split", "SubBatches", "Windows"]

Split = Literal["cyclic", "published"]
BatchNorm = Literal["subbatch", "batch"]
BATCH_NORMS = ("subbatch", "batch")


@dataclass(frozen=True)
class Windows:
    """The sub-batches of a batch, as sample indices.

    Attributes:
        indices: one int64 tensor of sample indices per sub-batch; sub-batches may overlap.
        batch_size: samples in the batch.
    """

    indices: tuple[Tensor, ...]
    batch_size: int

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def single(self) -> bool:
        """Whether some sub-batch is one sample, which has no mean of its own."""
        return min(map(len, self.indices)) < 2

    @property
    def small_batch(self) -> float:
        """Effective sub-batch size: 1 over the mean of 1/size, which is how the variance of a mean gradient goes."""
        return len(self) / sum(1 / len(window) for window in self.indices)

    @property
    def big_batch(self) -> float:
        """Effective number of independent samples in the mean of the sub-batch gradients.

        Where windows overlap, some samples weigh more than others: with weight c_i on sample i, the variance of the
        mean is that of 1 / sum(c_i^2) samples.
        """
        return float(1 / self.weights().mean(0).square().sum())

    def weights(self) -> Tensor:
        """The share of every sample in the mean over each sub-batch, float64, shape ``(D, B)``."""
        rows = torch.zeros(len(self), self.batch_size, dtype=torch.float64, device="cpu")
        for row, window in zip(rows, self.indices, strict=True):
            row[window] = 1 / len(window)
        return rows

    def expected_cosine(self, noise_scale: float = math.inf) -> float:
        r"""The GradCosine that these sub-batches have of samples whose gradients are a common one and independent noise.

        With :math:`s_{de}` samples that windows of :math:`n_d` and :math:`n_e` samples share, and the noise scale
        :math:`N = \operatorname{tr} \Sigma / \|G\|^2`, the mean over the pairs :math:`d \ne e` of

        .. math:: \frac{1 + N s_{de} / (n_d n_e)}{\sqrt{(1 + N / n_d) (1 + N / n_e)}},

        each factor in place of its expected value. For windows of b samples without overlap it is b / (b + N).

        Args:
            noise_scale: N in samples (:func:`initopt.functional.noise_scale`), 0 or more. Infinite by default: no common
                gradient at all, so that all agreement comes of shared samples.

        Raises:
            ValueError: if the noise scale is negative or not a number.

        >>> round(SubBatches(count=4).windows(64).expected_cosine(noise_scale=16), 4)
        0.5
        """
        if not noise_scale >= 0:
            raise ValueError(f"noise_scale must be a number of samples, 0 or more, or infinite; got {noise_scale}")
        weights = self.weights()
        noise = weights @ weights.T  # s_de / (n_d n_e), and 1 / n_d on the diagonal
        gram = noise if math.isinf(noise_scale) else 1 + noise_scale * noise
        return float(functional.grad_cosine(gram))


def _cyclic(batch_size: int, count: int, overlap: float) -> list[Tensor]:
    length = batch_size // count
    width = min(round((1 + overlap) * length), batch_size)
    return [(torch.arange(width, device="cpu") + d * length) % batch_size for d in range(count)]


def _published(batch_size: int, count: int, overlap: float) -> list[Tensor]:
    length = batch_size // count
    bounds = []
    for d in range(count):
        start = 0 if d == 0 else int((1 - overlap) * length * d)
        stop = batch_size if d == count - 1 else int((1 + overlap) * length * (d + 1))
        bounds.append((start, min(stop, batch_size)))
    return [torch.arange(start, stop, device="cpu") for start, stop in bounds]


SPLITS: dict[str, Callable[[int, int, float], list[Tensor]]] = {"cyclic": _cyclic, "published": _published}
"""The ways to split a batch, by name."""


@dataclass(frozen=True, kw_only=True)
class SubBatches:
    """How a batch is split into sub-batches and how these are run; checked when it is made.

    With B samples, D sub-batches and L = B // D:

    - ``split="cyclic"``: D windows of the same size, round((1 + overlap) L) samples from d * L on, around the end of the
      batch to its start. If D does not divide B, the last B - D L samples are reached by overlap only.
    - ``split="published"``: the index arithmetic of the published NIO code, whose windows have different sizes: from
      int((1 - overlap) L d) to int((1 + overlap) L (d + 1)), the first from 0, the last to B.

    Attributes:
        count: D, the number of sub-batches, from 2 to B. With D = B and no overlap, each is one sample.
        overlap: share by which a window is larger than L, in [0, 1).
        split: rule of splitting.
        batch_norm: whose statistics normalize, each sub-batch's own (``"subbatch"``) or the whole batch's (``"batch"``).
        microbatch: most samples of a sub-batch to run at a time; whole sub-batches by default.

    Raises:
        ValueError: for what cannot work; the message says what was given and what is allowed.

    >>> SubBatches(count=2, overlap=0.25).windows(8).indices[1].tolist()
    [4, 5, 6, 7, 0]
    """

    count: int = 4
    overlap: float = 0.0
    split: Split = "cyclic"
    batch_norm: BatchNorm = "subbatch"
    microbatch: int | None = None

    def __post_init__(self) -> None:
        with_plain_numbers(self)
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 2:
            raise ValueError(
                f"num_subbatches must be an integer of 2 or more, since GradCosine compares pairs; got {self.count!r}"
            )
        check_number("overlap", self.overlap)
        if not 0 <= self.overlap < 1:
            raise ValueError(
                f"overlap is the share by which sub-batches overlap and must be in [0, 1); got {self.overlap!r}"
            )
        check_choice("split", self.split, SPLITS)
        check_choice("batch_norm", self.batch_norm, BATCH_NORMS)
        if self.microbatch is not None:
            check_integer("microbatch", self.microbatch, 1)

    def windows(self, batch_size: int) -> Windows:
        """The sub-batches of a batch of ``batch_size`` samples.

        Raises:
            ValueError: if the batch has fewer samples than sub-batches.
        """
        if batch_size == 1:
            raise ValueError(
                f"a batch of 1 sample cannot be split into num_subbatches={self.count} sub-batches; use batches of at "
                f"least {self.count} samples. If the one sample is made of many that count (points, pixels, tokens), give "
                "these the first dimension: (points, targets) in place of (points[None], targets[None])"
            )
        if batch_size < self.count:
            raise ValueError(
                f"a batch of {batch_size} samples cannot be split into num_subbatches={self.count} sub-batches; "
                f"use batches of at least {self.count} samples or num_subbatches <= {batch_size} "
                "(a DataLoader with drop_last=True leaves out a short last batch)"
            )
        return Windows(tuple(SPLITS[self.split](batch_size, self.count, self.overlap)), batch_size)

    def noise_cosine(self, batch_size: int) -> float:
        """The noise floor of GradCosine: what shared samples alone give, without any common gradient; 0 without overlap.

        Raises:
            ValueError: if the batch has fewer samples than sub-batches.

        >>> round(SubBatches(count=4, overlap=0.2, split="published").noise_cosine(64), 4)
        0.2374
        """
        return _noise_cosine(self, batch_size)


@cache  # asked for in every step of a run, of a few batch sizes
def _noise_cosine(subbatches: SubBatches, batch_size: int) -> float:
    return subbatches.windows(batch_size).expected_cosine()
