import pytest
import torch

from initopt import data
from initopt.data import Splits, digits, digits_tensors
from initopt.data.digits import SUBSETS


def images(loader):
    return torch.cat([batch for batch, _ in loader])


def test_subsets_are_disjoint_and_complete():
    rows = torch.cat([digits_tensors(subset)[0] for subset in SUBSETS]).flatten(1)
    assert rows.shape == (1797, 64)
    assert len(rows.unique(dim=0)) == 1797


@pytest.mark.parametrize("subset", SUBSETS)
def test_split_is_stratified(subset):
    pixels, labels = digits_tensors(subset)
    assert pixels.dtype == torch.float32
    assert pixels.shape == (len(labels), 1, 8, 8)
    assert labels.dtype == torch.int64
    shares = labels.bincount(minlength=10) / len(labels)
    assert (shares - 0.1).abs().max() < 0.01


def test_normalized_with_training_statistics():
    train, test = digits_tensors("train")[0], digits_tensors("test")[0]
    assert train.mean().abs() < 1e-5
    assert abs(train.std() - 1) < 1e-3
    assert test.mean().abs() > 1e-5
    assert torch.equal(train.min(), test.min())  # white and black are in both
    assert torch.equal(train.max(), test.max())


def test_as_the_other_data_sets():
    splits = digits()
    assert isinstance(splits, Splits)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [1071, 362, 364]
    with pytest.warns(UserWarning, match=r"take digits\(\)\.batches\(batch_size"):
        assert len(next(iter(digits(32)))[1]) == 32


@pytest.mark.filterwarnings("ignore:initopt.data.digits")
def test_same_seed_same_epochs_whatever_else_is_drawn():
    first, second = digits(seed=3), digits(seed=3)
    for _ in range(2):
        torch.rand(1)
        assert torch.equal(images(first), images(second))


@pytest.mark.filterwarnings("ignore:initopt.data.digits")
def test_epochs_and_seeds_differ():
    loader = digits(seed=3)
    assert not torch.equal(images(loader), images(loader))
    assert not torch.equal(images(digits(seed=3)), images(digits(seed=4)))


@pytest.mark.filterwarnings("ignore:initopt.data.digits")
def test_without_shuffling_every_image_comes_once_in_order():
    assert torch.equal(images(digits(500, shuffle=False)), digits_tensors("train")[0])


@pytest.mark.filterwarnings("ignore:initopt.data.digits")
def test_shuffled_batches_are_all_whole():
    assert {len(labels) for _, labels in digits(100)} == {100}


@pytest.mark.filterwarnings("ignore:initopt.data.digits")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"subset": "training"}, r"subset must be one of 'test', 'validation', 'train'; got 'training'"),
        ({"batch_size": 0}, "batch_size must be an integer of 1 or more; got 0"),
        ({"batch_size": 365, "subset": "test"}, "batch_size must be at most 364, the images in 'test'; got 365"),
        ({"seed": -1}, "seed must be an integer of 0 or more; got -1"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        digits(**arguments)


def test_every_data_set_that_has_a_name_is_public():
    assert {source.__name__ for source in data.SOURCES.values()} <= set(data.__all__)
