"""Which batches a run sees, and in which order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from initopt._support.errors import LoaderError
from initopt.batches.stream import BatchStream, check_batches, length_of


class Endless:
    def __iter__(self) -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1


class Unsized:
    """Can be iterated over again, like a loader over a streaming dataset, and has no length."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(5))


@pytest.mark.parametrize("batches", [list(range(20)), Endless(), iter(range(20))], ids=["list", "endless", "generator"])
def test_the_steps_take_the_first_batches_and_the_next_are_held_back(batches: object) -> None:
    stream = BatchStream(batches, count=6, held_back=3)
    assert list(stream) == [0, 1, 2, 3, 4, 5]
    assert stream.held == [6, 7, 8]
    assert not stream.cycled


@pytest.mark.parametrize("batches", [list(range(5)), Unsized()], ids=["list", "unsized"])
def test_a_short_one_is_cycled_without_the_batches_held_back(batches: object) -> None:
    stream = BatchStream(batches, count=8, held_back=2)
    assert list(stream) == [0, 1, 2, 0, 1, 2, 0, 1]
    assert stream.held == [3, 4]
    assert stream.cycled


def test_all_batches_are_seen_when_none_is_held_back() -> None:
    assert list(BatchStream([0, 1, 2], count=7)) == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("skip", [0, 1, 4, 8])
def test_a_resumed_stream_goes_on_where_it_was(skip: int) -> None:
    whole = BatchStream([0, 1, 2, 3, 4], count=8, held_back=1)
    rest = BatchStream([0, 1, 2, 3, 4], count=8, held_back=1, skip=skip)
    assert list(rest) == list(whole)[skip:]
    assert rest.held == whole.held


def test_no_more_than_needed_is_read() -> None:
    read = []

    def generator() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield number

    list(BatchStream(generator(), count=4, held_back=2))
    assert read == [0, 1, 2, 3, 4, 5]


def test_a_generator_that_ends_early_says_how_many_it_gave() -> None:
    with pytest.raises(
        LoaderError, match=r"ended after 5 of the 9 that are needed \(7 for the steps and 2 to measure on\)"
    ):
        list(BatchStream(iter(range(5)), count=7, held_back=2))


def test_an_empty_one_is_refused() -> None:
    with pytest.raises(LoaderError, match="batches is empty: it has length 0"):
        check_batches([])
    with pytest.raises(LoaderError, match="gave no batch"):
        list(BatchStream(iter([]), count=1))


@pytest.mark.parametrize(
    ("found", "count", "handed_out", "held"),
    [
        (1, 3, [0, 0, 0], []),
        (2, 3, [0, 0, 0], [1]),
        (5, 7, [0, 1, 2, 0, 1, 2, 0], [3, 4]),
        (8, 2, [0, 1], [2, 3, 4, 5, 6, 7]),
        (10, 6, [0, 1, 2, 3, 4, 0], [5, 6, 7, 8, 9]),
    ],
)
def test_few_batches_are_shared_between_steps_and_measurement(
    found: int, count: int, handed_out: list[int], held: list[int]
) -> None:
    for skip in (0, 1):
        stream = BatchStream(list(range(found)), count, held_back=10, skip=skip)
        with pytest.warns(UserWarning, match=rf"{found} batch(es)?, too few to hold measure_batches=10 back"):
            assert list(stream) == handed_out[skip:]
        assert stream.held == held


def test_what_cannot_be_iterated_over_is_refused() -> None:
    with pytest.raises(TypeError, match="must be an iterable of batches"):
        check_batches(3)
    with pytest.raises(TypeError, match="Put a single batch into a list"):
        check_batches({"x": 1})
    with pytest.raises(
        TypeError, match=r"tuple of 2 tensors, which is one batch; put it into a list: \[\(inputs, targets\)\]"
    ):
        check_batches((torch.ones(4, 2), torch.ones(4)))
    with pytest.raises(TypeError, match=r"dataset of single samples \(TensorDataset\); wrap it in a .*DataLoader"):
        check_batches(TensorDataset(torch.ones(4, 2)))


class Once:
    """Looks as if it could be iterated over again, and cannot."""

    def __init__(self) -> None:
        self.iterator = iter(range(5))

    def __iter__(self) -> Iterator[int]:
        return self.iterator


def test_one_that_gives_nothing_again_is_refused() -> None:
    with pytest.raises(LoaderError, match=r"gave 5 batch\(es\) the first time and none when it was iterated over again"):
        list(BatchStream(Once(), count=8, held_back=2))
    assert list(BatchStream(Once(), count=3, held_back=2)) == [0, 1, 2]


class Streamed(IterableDataset):
    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.ones(6, 2))


def test_lengths() -> None:
    assert length_of([1, 2]) == 2
    assert length_of(DataLoader(TensorDataset(torch.ones(6, 2)), batch_size=4)) == 2
    assert length_of(iter([1])) is None
    assert length_of(DataLoader(Streamed(), batch_size=4)) is None
    check_batches(DataLoader(Streamed(), batch_size=4))


def test_the_first_batch_is_shown_before_any_is_handed_out() -> None:
    seen: list[int] = []
    stream = BatchStream([0, 1, 2], count=5, skip=4, on_first=seen.append)
    assert list(stream) == [1]
    assert seen == [0]


def test_a_data_set_of_the_datasets_library_is_to_be_wrapped():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"x": [[1.0, 2.0]] * 4, "y": [0, 1, 0, 1]})
    for given, name in ((rows, "Dataset"), (rows.to_iterable_dataset(), "IterableDataset")):
        message = rf"batches is a {name} of the datasets library.*DataLoader\(dataset.with_format"
        with pytest.raises(TypeError, match=message):
            check_batches(given)
