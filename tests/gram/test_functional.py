"""The estimators of the noise scale on synthetic gradients, whose noise and signal are known."""

import math

import pytest
import torch
from torch import Tensor

from initopt import functional
from initopt.batches.subbatches import Windows
from initopt.gram.measurement import Measurement
from tests.helpers import split_windows

SIGNAL = torch.tensor([0.3, -0.2, 0.5, 0.0, 0.1], dtype=torch.float64)
SPREAD = torch.tensor([1.0, 0.5, 2.0, 0.1, 0.7], dtype=torch.float64)
SIGNAL_SQNORM = float(SIGNAL.square().sum())
NOISE_TRACE = float(SPREAD.square().sum())
DRAWS = 20_000


def synthetic_grams(windows: Windows) -> Tensor:
    """Gram matrices of the mean gradients of windows of samples with mean SIGNAL and variances SPREAD^2."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(DRAWS, windows.batch_size, len(SIGNAL), generator=generator, dtype=torch.float64)
    samples = SIGNAL + SPREAD * noise
    means = torch.stack([samples[:, window].mean(1) for window in windows.indices], 1)
    return means @ means.mT


def assert_mean(values: Tensor, expected: float) -> None:
    standard_error = float(values.std()) / math.sqrt(len(values))
    assert standard_error < 0.02 * max(NOISE_TRACE, SIGNAL_SQNORM), "too few draws to say anything"
    assert abs(float(values.mean()) - expected) < 4 * standard_error


@pytest.mark.parametrize(
    ("batch_size", "count", "overlap", "split"),
    [
        (16, 4, 0.0, "cyclic"),
        (12, 12, 0.0, "cyclic"),
        (16, 4, 0.5, "cyclic"),
        (18, 4, 0.25, "cyclic"),
        (15, 3, 0.9, "cyclic"),
        (16, 4, 0.2, "published"),
        (17, 4, 0.0, "published"),
    ],
)
def test_both_estimators_are_unbiased(batch_size: int, count: int, overlap: float, split: str) -> None:
    windows = split_windows(batch_size, count, overlap, split)
    gram = synthetic_grams(windows)
    assert_mean(functional.noise_trace(gram, windows.small_batch, windows.big_batch), NOISE_TRACE)
    assert_mean(functional.signal_sqnorm(gram, windows.small_batch, windows.big_batch), SIGNAL_SQNORM)


def test_noise_scale_of_many_draws_is_their_ratio() -> None:
    gram = synthetic_grams(split_windows(16, 4))
    assert float(functional.noise_scale(gram, 4)) == pytest.approx(NOISE_TRACE / SIGNAL_SQNORM, rel=0.03)


def test_overlap_must_be_told() -> None:
    """Windows that share samples taken for ones that do not: the estimate is far off, so the sizes matter."""
    windows = split_windows(15, 3, 0.9)
    naive = functional.noise_trace(synthetic_grams(windows), windows.small_batch)
    assert abs(float(naive.mean()) - NOISE_TRACE) > 0.2 * NOISE_TRACE


def test_a_measurement_passes_the_effective_sizes_on() -> None:
    windows = split_windows(16, 4, 0.5)
    gram = synthetic_grams(windows)[:2000]
    sizes = [windows.small_batch] * len(gram), [windows.big_batch] * len(gram)
    found = Measurement.from_grams(list(gram), *sizes, engine="any")
    assert found.noise_scale == pytest.approx(float(functional.noise_scale(gram, windows.small_batch, windows.big_batch)))
    assert abs(found.noise_scale - NOISE_TRACE / SIGNAL_SQNORM) < 4 * found.sem["noise_scale"]
    assert 0 < found.sem["noise_scale"] < 0.2 * found.noise_scale


def test_no_signal_gives_an_infinite_noise_scale() -> None:
    gram = torch.eye(4, dtype=torch.float64)
    assert float(functional.signal_sqnorm(gram, 8)) == 0
    assert float(functional.noise_scale(gram, 8)) == math.inf


def test_equal_gradients_have_no_noise() -> None:
    gram = torch.full((3, 3), 4.0)
    assert float(functional.noise_scale(gram, 8)) == 0
    assert float(functional.signal_sqnorm(gram, 8)) == 4


@pytest.mark.parametrize(("small", "big"), [(0, 8), (8, 8), (8, 4), (-1, 3)])
def test_impossible_sizes(small: float, big: float) -> None:
    with pytest.raises(ValueError, match="small_batch < big_batch"):
        functional.noise_scale(torch.eye(2), small, big)


class TestCoherence:
    def test_same_orthogonal_and_cancelling_gradients(self) -> None:
        gradients = torch.eye(4, 6, dtype=torch.float64)
        assert float(functional.coherence(gradients @ gradients.T)) == pytest.approx(1.0)
        assert float(functional.coherence(torch.full((4, 4), 3.0))) == pytest.approx(4.0)
        assert float(functional.coherence(torch.tensor([[2.0, -2.0], [-2.0, 2.0]]))) == 0.0

    def test_it_is_what_the_definition_says(self) -> None:
        generator = torch.Generator().manual_seed(1)
        gradients = torch.randn(3, 7, 5, generator=generator, dtype=torch.float64)
        mean = gradients.mean(1).square().sum(-1)
        expected = 7 * mean / gradients.square().sum(-1).mean(1)
        torch.testing.assert_close(functional.coherence(gradients @ gradients.mT), expected)

    def test_of_equal_norms_it_is_grad_cosine(self) -> None:
        generator = torch.Generator().manual_seed(2)
        gradients = torch.nn.functional.normalize(torch.randn(6, 4, generator=generator, dtype=torch.float64), dim=1)
        gram = gradients @ gradients.T
        assert float(functional.coherence(gram)) == pytest.approx(float(1 + 5 * functional.grad_cosine(gram)))

    def test_without_gradients_it_is_zero_and_passes_no_derivative_on(self) -> None:
        gram = torch.zeros(3, 3, requires_grad=True)
        value = functional.coherence(gram)
        value.backward()
        assert float(value.detach()) == 0.0
        assert gram.grad is not None
        assert not gram.grad.any()


def test_signal_to_noise_of_many_draws_is_that_of_a_batch() -> None:
    gram = synthetic_grams(split_windows(16, 4))
    assert float(functional.signal_to_noise(gram, 4)) == pytest.approx(SIGNAL_SQNORM / (NOISE_TRACE / 16), rel=0.03)
    assert float(functional.signal_to_noise(gram, 4) * functional.noise_scale(gram, 4)) == pytest.approx(16)


def test_signal_to_noise_at_its_ends() -> None:
    assert float(functional.signal_to_noise(torch.eye(4), 8)) == 0
    assert float(functional.signal_to_noise(torch.ones(4, 4), 8)) == math.inf
    assert math.isnan(float(functional.signal_to_noise(torch.zeros(4, 4), 8)))


def test_sign_agreement_counts_signs() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(5, 3, 4, generator=generator)
    gradients[:, 0, 0] = 0.0
    total = 0.0
    for entry in gradients.reshape(5, -1).T.tolist():
        total += abs(sum(value > 0 for value in entry) - sum(value < 0 for value in entry)) / 5
    assert float(functional.sign_agreement(gradients)) == pytest.approx(total / 12)
    assert float(functional.sign_agreement(gradients.abs() + 1)) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 16])
def test_the_floor_of_sign_agreement_is_that_of_all_tosses_of_a_coin(count: int) -> None:
    tosses = [[1 - 2 * (number >> d & 1) for d in range(count)] for number in range(2**count)]
    assert functional.sign_floor(count) == pytest.approx(sum(abs(sum(signs)) for signs in tosses) / count / 2**count)


@pytest.mark.parametrize(
    ("gradients", "message"),
    [
        (torch.ones(1, 3), r"two gradients or more, shape \(D, ...\); got \(1, 3\)"),
        (torch.tensor(1.0), r"two gradients or more"),
        (torch.ones(2, 3, dtype=torch.complex64), r"complex gradients have no signs; give torch.view_as_real"),
    ],
)
def test_what_has_no_signs_is_refused(gradients: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        functional.sign_agreement(gradients)
