from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from initopt import functional
from initopt.batches.subbatches import SPLITS, SubBatches
from tests.helpers import split_windows


@st.composite
def splittings(draw: st.DrawFn) -> tuple[int, int, float]:
    batch_size = draw(st.integers(2, 200))
    return batch_size, draw(st.integers(2, batch_size)), draw(st.floats(0, 1, exclude_max=True))


@pytest.mark.parametrize("split", SPLITS)
@given(splitting=splittings())
def test_windows_are_samples_of_the_batch(split: str, splitting: tuple[int, int, float]) -> None:
    batch_size, count, overlap = splitting
    windows = split_windows(batch_size, count, overlap, split)
    assert len(windows) == len(windows.indices) == count
    assert windows.batch_size == batch_size
    for window in windows.indices:
        assert window.dtype == torch.int64
        assert 1 <= len(window) <= batch_size
        assert len(set(window.tolist())) == len(window)
        assert all(0 <= i < batch_size for i in window.tolist())


@given(splitting=splittings())
def test_cyclic_windows_have_one_size_and_start_at_multiples_of_the_length(splitting: tuple[int, int, float]) -> None:
    batch_size, count, overlap = splitting
    length = batch_size // count
    for d, window in enumerate(split_windows(batch_size, count, overlap).indices):
        assert window.tolist() == [(d * length + i) % batch_size for i in range(round((1 + overlap) * length))]


@given(st.integers(2, 20), st.integers(1, 10), st.floats(0, 1, exclude_max=True))
def test_cyclic_windows_use_every_sample_about_equally_often(count: int, length: int, overlap: float) -> None:
    windows = split_windows(count * length, count, overlap)
    uses = torch.cat(windows.indices).bincount(minlength=count * length)
    assert uses.sum() == count * round((1 + overlap) * length)
    assert uses.min() >= 1
    assert uses.max() <= 2


@given(splitting=splittings())
def test_without_overlap_cyclic_windows_share_nothing(splitting: tuple[int, int, float]) -> None:
    batch_size, count, _ = splitting
    used = torch.cat(split_windows(batch_size, count).indices)
    assert used.tolist() == list(range(count * (batch_size // count)))


@given(splitting=splittings())
def test_published_windows(splitting: tuple[int, int, float]) -> None:
    """The published arithmetic as ``slice`` would apply it, which cuts a stop beyond the end."""
    batch_size, count, overlap = splitting
    samples = list(range(batch_size))
    length = batch_size // count
    expected = [samples[: int((1 + overlap) * length)]]
    expected += [
        samples[int((1 - overlap) * length * d) : int((1 + overlap) * length * (d + 1))] for d in range(1, count - 1)
    ]
    expected += [samples[int((1 - overlap) * length * (count - 1)) :]]
    found = split_windows(batch_size, count, overlap, "published").indices
    assert [window.tolist() for window in found] == expected


def test_published_windows_of_the_published_run() -> None:
    found = split_windows(128, 2, 0.2, "published").indices
    assert [(int(w[0]), int(w[-1]), len(w)) for w in found] == [(0, 75, 76), (51, 127, 77)]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("count", [2, 7, 64])
def test_one_sample_each(split: str, count: int) -> None:
    assert [w.tolist() for w in split_windows(count, count, 0.0, split).indices] == [[i] for i in range(count)]


@pytest.mark.parametrize("split", SPLITS)
def test_two_halves(split: str) -> None:
    assert [w.tolist() for w in split_windows(6, 2, 0.0, split).indices] == [[0, 1, 2], [3, 4, 5]]


def test_the_last_cyclic_window_wraps_around() -> None:
    assert split_windows(10, 2, 0.4).indices[1].tolist() == [5, 6, 7, 8, 9, 0, 1]


@pytest.mark.parametrize("split", SPLITS)
def test_too_few_samples(split: str) -> None:
    with pytest.raises(ValueError, match=r"batch of 3 samples .* num_subbatches=4"):
        split_windows(3, 4, 0.0, split)


@given(splitting=splittings())
def test_effective_sizes_without_overlap_are_the_sizes(splitting: tuple[int, int, float]) -> None:
    batch_size, count, _ = splitting
    windows = split_windows(batch_size, count)
    assert windows.small_batch == pytest.approx(batch_size // count)
    assert windows.big_batch == pytest.approx(count * (batch_size // count))


@pytest.mark.parametrize("split", SPLITS)
@given(splitting=splittings())
def test_effective_sizes_are_bounded(split: str, splitting: tuple[int, int, float]) -> None:
    batch_size, count, overlap = splitting
    windows = split_windows(batch_size, count, overlap, split)
    sizes = [len(window) for window in windows.indices]
    assert min(sizes) - 1e-9 <= windows.small_batch <= max(sizes) + 1e-9
    assert windows.small_batch - 1e-9 <= windows.big_batch <= batch_size + 1e-9


class TestSubBatches:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"count": 1}, "num_subbatches must be an integer of 2 or more, since GradCosine compares pairs; got 1"),
            ({"count": True}, "got True"),
            ({"overlap": 1.0}, r"must be in \[0, 1\); got 1.0"),
            ({"overlap": "0.2"}, "overlap must be a number; got '0.2'"),
            ({"split": "random"}, "unknown split 'random'; known are 'cyclic', 'published'"),
            ({"batch_norm": None}, "unknown batch_norm None; known are 'subbatch', 'batch'"),
            ({"microbatch": 0}, "microbatch must be an integer of 1 or more; got 0"),
        ],
    )
    def test_it_checks_itself(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            SubBatches(**options)

    def test_numbers_of_numpy_are_numbers(self) -> None:
        found = SubBatches(count=np.int64(3), overlap=np.float32(0.25))
        assert (type(found.count), type(found.overlap)) == (int, float)


class TestExpectedCosine:
    def test_the_floor_of_the_published_windows(self) -> None:
        """Of the published ImageNet run, whose log has 0.2368 before its 100 steps and 0.2345 after."""
        floor = SubBatches(count=4, overlap=0.2, split="published").noise_cosine(64)
        assert floor == pytest.approx(0.2374, abs=5e-5)

    @pytest.mark.parametrize(("batch_size", "count", "expected"), [(64, 4, 0.105), (16, 4, 0.133), (64, 8, 0.057)])
    def test_the_floor_of_cyclic_windows(self, batch_size: int, count: int, expected: float) -> None:
        assert SubBatches(count=count, overlap=0.2).noise_cosine(batch_size) == pytest.approx(expected, abs=5e-4)

    def test_there_is_no_floor_without_overlap(self) -> None:
        assert SubBatches(count=8).noise_cosine(64) == 0.0

    @pytest.mark.parametrize("split", SPLITS)
    @pytest.mark.parametrize("noise_scale", [0.5, 20.0, float("inf")])
    def test_gradients_of_such_samples_have_it(self, split: str, noise_scale: float) -> None:
        """In many dimensions, where norms and products are close to their expected values."""
        windows = split_windows(24, 3, 0.4, split)
        generator = torch.Generator().manual_seed(0)
        samples = torch.randn(24, 200_000, generator=generator)
        if noise_scale < float("inf"):
            samples += noise_scale**-0.5  # the common gradient: variance 1 an entry over it is the noise scale
        means = torch.stack([samples[window].mean(0) for window in windows.indices]).double()
        found = float(functional.grad_cosine(means @ means.T))
        assert found == pytest.approx(windows.expected_cosine(noise_scale), abs=0.01)

    @pytest.mark.parametrize("wrong", [-1.0, float("nan")])
    def test_what_is_not_a_noise_scale(self, wrong: float) -> None:
        with pytest.raises(ValueError, match="number of samples, 0 or more"):
            split_windows(8, 2).expected_cosine(wrong)
