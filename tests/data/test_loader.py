"""Batches that other processes make: the same ones, in the same order."""

import multiprocessing
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import datasets
import pytest
import torch
from torch.utils.data import IterableDataset, TensorDataset

from initopt.comparison.running.batches import EpochOrder, all_batches, start_batches, training_batches
from initopt.data import Splits, imagenet
from initopt.data.images import Pixels
from tests.comparing import Noisy, blobs, noisy_blobs
from tests.image_files import write_split

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # on a machine with one core
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),  # from Python 3.12
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        write_split(folder, "train", 60, columns=("image", "label"), size=(50, 40))
        write_split(folder, "validation", 20, columns=("image", "label"), size=(40, 50))
        yield imagenet(folder, image_size=16)


def same(first, second):
    return all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True))


class OneByOne:
    """In memory, but nothing that says so."""

    def __init__(self, inner):
        self.inner = inner

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        return self.inner[index]


class Endless(IterableDataset):
    def __iter__(self):
        return iter(int, 1)


class Broken(OneByOne):
    def __getitem__(self, index):
        raise ValueError(f"image {index} is no image")


def made_elsewhere(batches):
    """Whether other processes are at work when the first batch is there."""
    iterator = iter(batches)
    next(iterator)
    return len(multiprocessing.active_children()) > 0


KILLED = """
import multiprocessing, sys, time
sys.path.insert(0, sys.argv[1])
from tests.comparing import noisy_blobs
batches = iter(noisy_blobs().batches(16, loaders=2))
next(batches)
print(*[process.pid for process in multiprocessing.active_children()], flush=True)
time.sleep(60)
"""


def is_alive(process):
    try:
        state = Path("/proc", process, "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # dead, and nobody has asked how it ended


@pytest.mark.processes
class TestTheSameBatches:
    @pytest.mark.heavy
    def test_of_a_part(self, pictures):
        here, elsewhere = (pictures.batches(8, seed=1, loaders=loaders) for loaders in (0, 2))
        assert len(here) == len(elsewhere) == 6
        assert same(here, elsewhere)
        assert same(here, elsewhere)  # in another pass, too
        assert made_elsewhere(elsewhere)

    @pytest.mark.heavy
    @pytest.mark.parametrize("loaders", [1, 2, 3])
    def test_of_an_epoch(self, pictures, loaders):
        order = EpochOrder(54, 8, seed=2)
        for order.epoch in (0, 1):
            assert same(training_batches(pictures.train, order), training_batches(pictures.train, order, loaders))

    @pytest.mark.heavy
    def test_from_the_middle_of_an_epoch(self, pictures):
        order = EpochOrder(54, 8, seed=2)
        begun = iter(training_batches(pictures.train, order, 2))
        assert same(islice(begun, 3), islice(training_batches(pictures.train, order), 3))
        del begun  # ended in the middle, as by a run that diverged
        assert same(
            islice(training_batches(pictures.train, order, 2), 3, None),
            islice(training_batches(pictures.train, order), 3, None),
        )
        assert multiprocessing.active_children() == []

    def test_that_measure_and_initialize(self, pictures):
        for a, b in zip(*(start_batches(pictures.train, 8, 2, 5, 4, loaders) for loaders in (0, 2)), strict=True):
            assert same(a, b)

    def test_that_are_looked_at(self, pictures):
        here, elsewhere = (all_batches(pictures.test, 8, 0, loaders) for loaders in (0, 2))
        assert [len(labels) for _, labels in here] == [8, 8, 4]
        assert same(here, elsewhere)

    def test_whatever_generator_a_data_set_draws_from(self):
        splits = noisy_blobs()
        assert same(*(splits.batches(16, seed=3, loaders=loaders) for loaders in (0, 2)))
        looks = [all_batches(splits.test, 16, 3, loaders) for loaders in (0, 2)]
        assert same(*looks)

    def test_without_a_draw_from_the_generators_of_others(self, pictures):
        torch.manual_seed(1)
        expected = torch.rand(2)
        torch.manual_seed(1)
        iterator = iter(pictures.batches(8, loaders=2))
        next(iterator)
        assert torch.equal(torch.rand(2), expected)

    def test_of_other_structure(self):
        dataset = [{"x": torch.ones(2) * number, "name": str(number)} for number in range(8)]
        here, elsewhere = (list(Splits(dataset, None, None).batches(4, loaders=loaders)) for loaders in (0, 2))
        for a, b in zip(here, elsewhere, strict=True):
            assert torch.equal(a["x"], b["x"])
            assert a["name"] == b["name"]


@pytest.mark.processes
class TestWhoMakesThem:
    @pytest.mark.parametrize("kind", ["tensors", "pixels"])
    def test_what_is_in_memory_stays_in_this_process(self, kind):
        images, labels = torch.zeros(20, 3, 4, 4, dtype=torch.uint8), torch.zeros(20, dtype=torch.long)
        tensors = TensorDataset(images, labels)
        dataset = {"tensors": tensors, "pixels": Pixels(images, labels, (0, 0, 0), (1, 1, 1))}[kind]
        assert not made_elsewhere(Splits(dataset, None, None).batches(4, loaders=2))
        assert not made_elsewhere(training_batches(dataset, EpochOrder(20, 4, 0), 2))
        assert made_elsewhere(Splits(OneByOne(dataset), None, None).batches(4, loaders=2))

    def test_none_is_left(self):
        assert len(list(Splits(Noisy(blobs().train), None, None).batches(16, loaders=2))) == 6
        assert multiprocessing.active_children() == []

    @pytest.mark.heavy
    @pytest.mark.skipif(not Path("/proc").exists(), reason="there is no /proc to look into")
    def test_none_outlives_a_kill(self):
        command = [sys.executable, "-c", KILLED, str(Path(__file__).parents[2])]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            loaders = process.stdout.readline().split()
            assert len(loaders) == 2
            assert all(map(is_alive, loaders))
            process.kill()
        patience = time.monotonic() + 2.5  # torch by itself lets them live for five
        while any(map(is_alive, loaders)) and time.monotonic() < patience:
            time.sleep(0.01)
        assert not any(map(is_alive, loaders))

    def test_an_exception_arrives(self):
        with pytest.raises(ValueError, match="image 0 is no image"):
            list(all_batches(Broken(blobs().train), 8, 0, 2))


class TestRefuses:
    def test_a_stream(self):
        splits = Splits(Endless(), None, None)
        with pytest.raises(ValueError, match="loaders=2 is not for a stream, .*; take loaders=0, or give train_samples"):
            splits.batches(4, loaders=2)

    def test_a_negative_number(self, pictures):
        with pytest.raises(ValueError, match="loaders must be an integer of 0 or more; got -1"):
            pictures.batches(4, loaders=-1)
