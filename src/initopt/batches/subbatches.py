"""Which samples of a batch make up each sub-batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from initopt.gram import functional

__all__ = ["SPLITS", "Windows", "split_windows"]


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
        weight = torch.zeros(self.batch_size, dtype=torch.float64, device="cpu")
        for window in self.indices:
            weight.index_add_(
                0, window, torch.full((len(window),), 1 / (len(window) * len(self)), dtype=torch.float64, device="cpu")
            )
        return float(1 / weight.square().sum())

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

        >>> round(split_windows(64, 4, 0.2, "published").expected_cosine(), 4)
        0.2374
        >>> round(split_windows(64, 4).expected_cosine(noise_scale=16), 4)
        0.5
        """
        if not noise_scale >= 0:
            raise ValueError(f"noise_scale must be a number of samples, 0 or more, or infinite; got {noise_scale}")
        members = torch.zeros(len(self), self.batch_size, dtype=torch.float64, device="cpu")
        for row, window in zip(members, self.indices, strict=True):
            row[window] = 1 / len(window)
        noise = members @ members.T  # s_de / (n_d n_e), and 1 / n_d on the diagonal
        gram = noise if math.isinf(noise_scale) else 1 + noise_scale * noise
        return float(functional.grad_cosine(gram))

    @property
    def noise_cosine(self) -> float:
        """The noise floor of GradCosine: what shared samples alone give, without any common gradient; 0 without overlap."""
        return self.expected_cosine()


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


def split_windows(batch_size: int, num_subbatches: int, overlap: float = 0.0, split: str = "cyclic") -> Windows:
    """Split ``batch_size`` samples into overlapping sub-batches.

    With L = B // D:

    - ``"cyclic"``: D windows of the same size, round((1 + overlap) L) samples from d * L on, around the end of the
      batch to its start. If D does not divide B, the last B - D L samples are reached by overlap only.
    - ``"published"``: the index arithmetic of the published NIO code, whose windows have different sizes: from
      int((1 - overlap) L d) to int((1 + overlap) L (d + 1)), the first from 0, the last to B.

    Args:
        batch_size: number of samples B.
        num_subbatches: number of sub-batches D, from 2 to B. With D = B and no overlap, each is one sample.
        overlap: share by which a window is larger than L, in [0, 1).
        split: ``"cyclic"`` or ``"published"``.

    Raises:
        ValueError: if the batch has fewer samples than sub-batches.

    >>> [window.tolist() for window in split_windows(8, 2, overlap=0.25).indices]
    [[0, 1, 2, 3, 4], [4, 5, 6, 7, 0]]
    """
    if batch_size == 1:
        raise ValueError(
            f"a batch of 1 sample cannot be split into num_subbatches={num_subbatches} sub-batches; use batches of at "
            f"least {num_subbatches} samples. If the one sample is made of many that count (points, pixels, tokens), give "
            "these the first dimension: (points, targets) in place of (points[None], targets[None])"
        )
    if batch_size < num_subbatches:
        raise ValueError(
            f"a batch of {batch_size} samples cannot be split into num_subbatches={num_subbatches} sub-batches; "
            f"use batches of at least {num_subbatches} samples or num_subbatches <= {batch_size} "
            "(a DataLoader with drop_last=True leaves out a short last batch)"
        )
    return Windows(tuple(SPLITS[split](batch_size, num_subbatches, overlap)), batch_size)
