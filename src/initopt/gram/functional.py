r"""Pure, differentiable functions of a gradient Gram matrix.

A batch is split into :math:`D` sub-batches, and :math:`g_d` is the gradient of the mean loss of sub-batch :math:`d`. All
that this package looks at is a function of :math:`K_{de} = \langle g_d, g_e \rangle`, a symmetric matrix of shape
``(D, D)``. Every function here takes one such matrix, or a stack of them of shape ``(..., D, D)``, and returns one
number per matrix, of shape ``(...)``.

:func:`sign_agreement` alone is not a function of K, and takes the gradients themselves.

A sub-batch whose gradient is exactly zero has no direction: its cosines count as zero, and neither its norm nor its
cosines pass a derivative on (the subgradient 0 is chosen).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from initopt._support.checks import check_integer

__all__ = [
    "coherence",
    "cosine_matrix",
    "grad_cosine",
    "grad_norm",
    "grad_norms",
    "grad_sqnorms",
    "grad_variance",
    "noise_scale",
    "noise_to_signal",
    "noise_trace",
    "sign_agreement",
    "sign_floor",
    "signal_sqnorm",
    "signal_to_noise",
]


def _check(gram: Tensor) -> int:
    if gram.ndim < 2 or gram.shape[-1] != gram.shape[-2]:
        raise ValueError(f"a Gram matrix has shape (..., D, D); got {tuple(gram.shape)}")
    if gram.shape[-1] < 2:
        raise ValueError("a Gram matrix of one gradient has no pair to compare: D must be 2 or more")
    return gram.shape[-1]


def grad_sqnorms(gram: Tensor) -> Tensor:
    r"""Squared norms :math:`\|g_d\|^2`, the diagonal of the Gram matrix.

    Args:
        gram: Gram matrices, shape ``(..., D, D)``.

    Returns:
        Shape ``(..., D)``.

    >>> grad_sqnorms(torch.tensor([[4.0, 1.0], [1.0, 9.0]]))
    tensor([4., 9.])
    """
    _check(gram)
    return gram.diagonal(dim1=-2, dim2=-1)


def grad_norms(gram: Tensor) -> Tensor:
    r"""Norms :math:`\|g_d\|` of the sub-batch gradients.

    Args:
        gram: Gram matrices, shape ``(..., D, D)``.

    Returns:
        Shape ``(..., D)``.

    >>> grad_norms(torch.tensor([[4.0, 1.0], [1.0, 9.0]]))
    tensor([2., 3.])
    """
    squares = grad_sqnorms(gram)
    positive = squares > 0
    # The inner `where` keeps sqrt away from zero, where its derivative is infinite and would turn into inf * 0 = nan.
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)


def grad_norm(gram: Tensor) -> Tensor:
    r"""Mean gradient norm, :math:`\frac1D \sum_d \sqrt{K_{dd}}`.

    This is what NIO bounds by :math:`\gamma` (arXiv 2210.05956, section 3.3).

    >>> grad_norm(torch.tensor([[4.0, 1.0], [1.0, 9.0]]))
    tensor(2.5000)
    """
    return grad_norms(gram).mean(-1)


def cosine_matrix(gram: Tensor) -> Tensor:
    r"""All cosine similarities :math:`K_{de} / \sqrt{K_{dd} K_{ee}}`.

    Args:
        gram: Gram matrices, shape ``(..., D, D)``.

    Returns:
        Shape ``(..., D, D)``; rows and columns of a zero gradient are zero.

    >>> cosine_matrix(torch.tensor([[4.0, 3.0], [3.0, 9.0]]))
    tensor([[1.0000, 0.5000],
            [0.5000, 1.0000]])
    """
    norms = grad_norms(gram)
    products = norms.unsqueeze(-1) * norms.unsqueeze(-2)
    positive = products > 0
    return torch.where(positive, gram / torch.where(positive, products, 1.0), 0.0)


def grad_cosine(gram: Tensor) -> Tensor:
    r"""GradCosine, the mean cosine similarity over the pairs :math:`d \ne e`.

    .. math:: \frac{1}{D (D - 1)} \sum_{d \ne e} \frac{K_{de}}{\sqrt{K_{dd} K_{ee}}}

    In :math:`[-1/(D-1), 1]` for a true Gram matrix. With one sample per sub-batch it is the sample-wise GradCosine of
    arXiv 2210.05956, equation (6) up to the pairs of a sample with itself, which are always 1 and are left out.

    >>> grad_cosine(torch.tensor([[4.0, 3.0], [3.0, 9.0]]))
    tensor(0.5000)
    """
    count = _check(gram)
    cosines = cosine_matrix(gram)
    total = cosines.sum((-2, -1)) - cosines.diagonal(dim1=-2, dim2=-1).sum(-1)
    return total / (count * (count - 1))


def coherence(gram: Tensor) -> Tensor:
    r"""m-coherence, :math:`\sum_{de} K_{de} / \operatorname{tr} K`: how many sub-batches the step of an average one helps.

    D if all gradients are the same, 1 if they are orthogonal, 0 if they cancel. By D it is :math:`\|\bar g\|^2` over the
    mean of :math:`\|g_d\|^2`; with gradients of equal norms :math:`1 + (D - 1)` GradCosine.

    Args:
        gram: Gram matrices, shape ``(..., D, D)``.

    Returns:
        Shape ``(...)``; 0 where all gradients are zero.

    Source: Chatterjee and Zielinski, "Making Coherence Out of Nothing At All", arXiv 2008.01217, for single samples.

    >>> coherence(torch.tensor([[4.0, 3.0], [3.0, 4.0]]))
    tensor(1.7500)
    """
    total = grad_sqnorms(gram).sum(-1)
    positive = total > 0
    return torch.where(positive, gram.sum((-2, -1)) / torch.where(positive, total, 1.0), 0.0)


def grad_variance(gram: Tensor) -> Tensor:
    r"""Population variance of the sub-batch gradients, summed over parameters.

    .. math:: \frac1D \operatorname{tr} K - \frac1{D^2} \sum_{de} K_{de} = \frac1D \sum_d \|g_d - \bar g\|^2

    >>> grad_variance(torch.tensor([[4.0, 0.0], [0.0, 4.0]]))
    tensor(2.)
    """
    count = _check(gram)
    return grad_sqnorms(gram).sum(-1) / count - gram.sum((-2, -1)) / count**2


def _sizes(gram: Tensor, small_batch: float, big_batch: float | None) -> tuple[float, float]:
    big = gram.shape[-1] * small_batch if big_batch is None else big_batch
    if not 0 < small_batch < big:
        raise ValueError(f"the noise scale needs 0 < small_batch < big_batch; got {small_batch} and {big}")
    return small_batch, big


def noise_trace(gram: Tensor, small_batch: float, big_batch: float | None = None) -> Tensor:
    r"""Unbiased estimate of :math:`\operatorname{tr} \Sigma`, the variance of one sample's gradient.

    .. math:: \frac{\frac1D \sum_d \|g_d\|^2 - \|\bar g\|^2}{1 / b - 1 / B}

    Args:
        gram: Gram matrices, shape ``(..., D, D)``.
        small_batch: samples :math:`b` in a sub-batch.
        big_batch: samples :math:`B` in the mean gradient; ``D * small_batch`` if not given, which is right when
            sub-batches share no sample.

    Source: McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162, equation (A.2).

    >>> noise_trace(torch.tensor([[4.0, 0.0], [0.0, 4.0]]), small_batch=8)
    tensor(32.)
    """
    _check(gram)
    small, big = _sizes(gram, small_batch, big_batch)
    return (grad_sqnorms(gram).mean(-1) - gram.mean((-2, -1))) / (1 / small - 1 / big)


def signal_sqnorm(gram: Tensor, small_batch: float, big_batch: float | None = None) -> Tensor:
    r"""Unbiased estimate of :math:`\|G\|^2`, the squared norm of the expected gradient.

    .. math:: \frac{B \|\bar g\|^2 - b \frac1D \sum_d \|g_d\|^2}{B - b}

    It is a difference of two noisy numbers and can be negative. Arguments and source as for :func:`noise_trace`.

    >>> signal_sqnorm(torch.tensor([[4.0, 4.0], [4.0, 4.0]]), small_batch=8)
    tensor(4.)
    """
    _check(gram)
    small, big = _sizes(gram, small_batch, big_batch)
    return (big * gram.mean((-2, -1)) - small * grad_sqnorms(gram).mean(-1)) / (big - small)


def noise_scale(gram: Tensor, small_batch: float, big_batch: float | None = None) -> Tensor:
    r"""Gradient noise scale :math:`B_\text{simple} = \operatorname{tr} \Sigma / \|G\|^2`, in samples.

    The batch size at which noise and signal are equal. A stack of Gram matrices gives *one* number: numerator and
    denominator are averaged first, since each is unbiased and their ratio is not (arXiv 1812.06162, appendix A.1).
    Infinite when the estimate of :math:`\|G\|^2` is not positive: the data show no signal above the noise.

    Args:
        gram: Gram matrices, shape ``(..., D, D)``.
        small_batch: samples in a sub-batch.
        big_batch: samples in the mean gradient; ``D * small_batch`` if not given.

    >>> noise_scale(torch.tensor([[4.0, 2.0], [2.0, 4.0]]), small_batch=8)
    tensor(8.)
    """
    noise = noise_trace(gram, small_batch, big_batch).mean()
    return noise_to_signal(noise, signal_sqnorm(gram, small_batch, big_batch).mean())


def noise_to_signal(noise: Tensor, signal: Tensor) -> Tensor:
    """The ratio of two estimates: none below zero, infinite without a signal, and nan where one of them is.

    >>> noise_to_signal(torch.tensor([6.0, -6.0, 6.0]), torch.tensor([2.0, 2.0, -2.0]))
    tensor([3., 0., inf])
    """
    ratio = noise.clamp_min(0.0) / signal.clamp_min(torch.finfo(signal.dtype).tiny)
    return torch.where(signal <= 0, torch.inf, ratio)


def signal_to_noise(gram: Tensor, small_batch: float, big_batch: float | None = None) -> Tensor:
    r"""Signal-to-noise ratio of the mean gradient of a batch, :math:`\|G\|^2 / (\operatorname{tr} \Sigma / B)`.

    B over the noise scale: 1 where the expected gradient and the noise of a batch are equally long. Of the Gram matrix of
    one tensor's gradients, it is that of this tensor. A stack of Gram matrices gives *one* number, as in
    :func:`noise_scale`, and for the same reason. 0 where the data show no signal, infinite where they show no noise, and
    nan where there is no gradient.

    Args:
        gram: Gram matrices, shape ``(..., D, D)``.
        small_batch: samples in a sub-batch.
        big_batch: samples :math:`B` in the mean gradient; ``D * small_batch`` if not given.

    >>> signal_to_noise(torch.tensor([[4.0, 2.0], [2.0, 4.0]]), small_batch=8)
    tensor(2.)
    """
    _, big = _sizes(gram, small_batch, big_batch)
    noise = noise_trace(gram, small_batch, big_batch).mean() / big
    signal = signal_sqnorm(gram, small_batch, big_batch).mean()
    found = noise_to_signal(signal, noise)
    return torch.where((gram == 0).all(), torch.nan, found)


def sign_agreement(gradients: Tensor) -> Tensor:
    r"""Sign agreement, :math:`\frac1n \sum_k | \frac1D \sum_d \operatorname{sign} g_{dk} |`: how far entries have one sign.

    1 if each entry of the gradient has the same sign in all sub-batches. Independent signs do not give 0, but
    :func:`sign_floor`; entries that are zero count as disagreement, so that units that nothing goes through lower it. It is
    what matters to optimizers that divide gradients by their size, such as Adam, and GradSign's score, divided by D and n,
    where every sub-batch is a single sample. It is not a function of a Gram matrix, and not differentiable.

    :func:`initopt.diagnosis.trace` takes it of every tensor of a model, and of all.

    Args:
        gradients: of D sub-batches, shape ``(D, n)`` or ``(D, ...)``; real.

    Returns:
        One number, in [0, 1]; nan of a tensor without entries.

    Raises:
        ValueError: of a single gradient, which has nothing to agree with, or complex ones, which have no signs.

    Source: Zhang and Jia, "GradSign: Model Performance Inference with Theoretical Insights", arXiv 2110.08616.

    >>> sign_agreement(torch.tensor([[0.1, -2.0, 3.0], [5.0, 0.1, -0.1]]))
    tensor(0.3333)
    """
    if gradients.ndim < 1 or len(gradients) < 2:
        raise ValueError(f"sign agreement is that of two gradients or more, shape (D, ...); got {tuple(gradients.shape)}")
    if gradients.is_complex():
        raise ValueError("complex gradients have no signs; give torch.view_as_real of them")
    signs = gradients.detach().sign()
    return signs.to(torch.promote_types(gradients.dtype, torch.float32)).mean(0).abs().mean()


def sign_floor(count: int) -> float:
    """The sign agreement of gradients whose entries are positive or negative by chance, each for itself.

    0.375 for 4 sub-batches and 0.099 for 64: compare values at the same D, beside this.

    Args:
        count: D, the number of gradients.

    Raises:
        ValueError: for fewer than 1.

    >>> sign_floor(4)
    0.375
    """
    check_integer("count", count, 1)
    tosses = count - count % 2
    return math.comb(tosses, tosses // 2) / float(2**tosses)
