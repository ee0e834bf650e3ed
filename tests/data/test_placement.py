"""Data sets in the memory of a device. ``meta`` stands in for an accelerator: it has shapes and no values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

import initopt
from initopt.comparison.running.batches import EpochOrder, start_batches, training_batches
from initopt.data import Splits, digits_splits
from initopt.data import splits as splits_module
from initopt.data.augmentation import AUGMENTATIONS, augmentation
from initopt.data.images import Pixels
from initopt.model.randomness import seeded

META = torch.device("meta")
SIDE = 12


def pictures(count: int = 20, augment: tuple[str, ...] = AUGMENTATIONS) -> Pixels:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    colours = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
    return Pixels(pixels, torch.arange(count) % 3, *colours, augmentation(augment, SIDE))


def splits() -> Splits:
    return Splits(pictures(), pictures(6, ()), pictures(8, ()), ("a", "b", "c"))


def free(monkeypatch: pytest.MonkeyPatch, size: float | None) -> None:
    monkeypatch.setattr(splits_module, "free_memory", lambda device: size)


@pytest.mark.heavy
def test_what_is_made_of_tensors_goes_to_the_device() -> None:
    moved = splits().to("meta")
    assert moved.classes == ("a", "b", "c")
    for part in (moved.train, moved.validation, moved.test):
        assert isinstance(part, Pixels)
        assert part.pixels.device == part.labels.device == META
    images, labels = next(iter(moved.batches(4)))
    assert (images.device, images.shape, images.dtype) == (META, (4, 3, SIDE, SIDE), torch.float32)
    assert (labels.device, labels.shape) == (META, (4,))
    images, labels = next(iter(digits_splits().to("meta").batches(4)))
    assert images.device == labels.device == META


def test_what_does_not_fit_stays_and_gives_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever takes up the memory of the device must not change a result."""
    ours = splits()
    train: Any = ours.train
    size = train.pixels.nbytes + train.labels.nbytes
    free(monkeypatch, 2 * size - 1)
    moved = ours.to("meta")
    assert moved.train is ours.train
    assert isinstance(moved.test, Pixels)
    assert moved.test.pixels.device == META
    assert all(torch.equal(a, b) for a, b in zip(_images(moved), _images(ours), strict=True))
    free(monkeypatch, 2 * size)
    assert ours.to("meta").train is not ours.train


def _images(of: Splits) -> list[Tensor]:
    return [images for images, _ in of.batches(4, seed=2)]


def test_what_is_there_already_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 0.0)
    ours = digits_splits()
    assert ours.to("cpu").train is ours.train


def test_a_missing_part_stays_missing() -> None:
    assert Splits(pictures(), None, None).to("meta").validation is None


def test_a_data_set_of_ones_own_is_left_alone() -> None:
    class Odd(TensorDataset):
        def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
            return tuple(-tensor for tensor in super().__getitem__(index))

    class Squares(Dataset[int]):
        def __getitem__(self, index: int) -> int:
            return index**2

    for dataset in (Odd(torch.ones(4)), Squares()):
        assert splits_module._placed(dataset, META) is dataset


@pytest.mark.parametrize("names", [("crop",), ("flip",), ("cutout",), AUGMENTATIONS])
def test_as_much_is_drawn_on_every_device_and_on_the_cpu(names: tuple[str, ...]) -> None:
    """So that what is drawn later is the same, too."""
    change = augmentation(names, SIDE)
    assert change is not None
    states = []
    for device in ("cpu", "meta"):
        with seeded(1):
            before = torch.get_rng_state()
            change(torch.zeros(5, 3, SIDE, SIDE, device=device))
            states.append(torch.get_rng_state())
        assert not torch.equal(before, states[-1])
    assert torch.equal(*states)


def test_batches_are_the_same_again_while_another_run_draws() -> None:
    ours = splits()
    alone = list(training_batches(ours.train, EpochOrder(20, 4, seed=3)))
    beside = iter(ours.batches(4, seed=7))
    between = []
    for batch in training_batches(ours.train, EpochOrder(20, 4, seed=3)):
        between.append(batch)
        torch.rand(3)
        next(beside)
    for (images, labels), (again, same) in zip(alone, between, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, same)


def test_a_whole_batch_is_what_its_samples_are() -> None:
    plain = pictures(augment=())
    images, labels = plain[[3, 0, 3]]
    assert torch.equal(images, torch.stack([plain[index][0] for index in (3, 0, 3)]))
    assert labels.tolist() == [int(plain[index][1]) for index in (3, 0, 3)] == [0, 0, 0]
    (first, label), _ = plain.__getitems__([3, 1])
    assert torch.equal(first, plain[3][0])
    assert label == plain[3][1]


@pytest.mark.parametrize("size", [5, 6])
def test_what_is_drawn_is_uniform_and_each_image_has_its_own(size: int) -> None:
    """On images whose pixels tell where they are from."""
    count = 4000
    marked = torch.arange(1.0, size * size + 1).view(1, 1, size, size).expand(count, 2, -1, -1)
    torch.manual_seed(0)
    crop, flip, cutout = (augmentation([name], size) for name in AUGMENTATIONS)
    assert crop is not None
    assert flip is not None
    assert cutout is not None
    shifted = crop(marked)
    assert torch.equal(shifted[:, 0], shifted[:, 1])
    offsets = torch.zeros(9, 9)
    padded = torch.nn.functional.pad(marked[0, 0], (4, 4, 4, 4))
    for y in range(9):
        for x in range(9):
            offsets[y, x] = (shifted[:, 0] == padded[y : y + size, x : x + size]).all((1, 2)).sum()
    assert offsets.sum() == count
    assert (offsets / count - 1 / 81).abs().max() < 0.01
    mirrored = flip(marked)[:, 0]
    turned = (mirrored == marked[:, 0].flip(-1)).all((1, 2))
    assert torch.equal(mirrored[~turned], marked[~turned, 0])
    assert abs(float(turned.float().mean()) - 0.5) < 0.03
    holes = (cutout(marked)[:, 0] == 0).flatten(1)
    hole, places = size // 2, (size - size // 2 + 1) ** 2
    assert holes.sum(1).unique().tolist() == [hole * hole]
    kinds, times = holes.unique(dim=0, return_counts=True)
    assert len(kinds) == places
    assert (times / count - 1 / places).abs().max() < 0.03


def test_nio_and_start_batches_on_placed_data() -> None:
    """The same result as without: on a CPU, ``to`` changes nothing."""
    torch.manual_seed(0)
    ours = splits()
    held, others = start_batches(ours.to("cpu").train, 4, 2, seed=1)
    expected, _ = start_batches(ours.train, 4, 2, seed=1)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(held, expected, strict=True))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIDE * SIDE, 3))
    result = initopt.nio(model, others, steps=2, measure_batches=0, progress=False)
    assert len(result.history) == 2
