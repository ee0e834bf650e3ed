"""Image data sets from files in the layouts of the real ones, without a network."""

import functools
import importlib.util
import itertools
import os
import shutil
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import initopt
from initopt.comparison.running.batches import EpochOrder, training_batches
from initopt.data import cifar10, cifar100, image_folder, imagenet
from initopt.data.augmentation import View, augmentation
from initopt.data.splits import Sizes, select, stratified_order
from tests.image_files import CLASSES, picture, work_offline, write_folders, write_split

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@pytest.fixture(autouse=True)
def no_network_and_a_cache_of_its_own(monkeypatch, tmp_path_factory):
    work_offline(monkeypatch, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar10")
    write_split(folder, "train", 60)
    write_split(folder, "test", 20)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet")
    write_split(folder, "train", 60, columns=("image", "label"), size=(50, 40))
    write_split(folder, "validation", 20, columns=("image", "label"), size=(40, 50))
    return folder


def rows(dataset):
    return torch.stack([dataset[index][0] for index in range(len(dataset))]).flatten(1)


def same(first, second):
    return all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True))


class TestCifar:
    def test_parts(self, cifar):
        splits = cifar10(cifar, augment=False)
        assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [54, 6, 20]
        assert splits.classes == CLASSES
        images = torch.cat([rows(splits.train), rows(splits.validation), rows(splits.test)])
        assert len(images.unique(dim=0)) == 80

    def test_pixels_are_those_of_the_file_normalized(self, cifar):
        image, label = cifar10(cifar).test[3]
        pixels = np.asarray(picture(1, 40_003)) / 255
        expected = torch.from_numpy((pixels - MEAN) / STD).permute(2, 0, 1).float()
        assert label == 1
        assert torch.allclose(image, expected, atol=1e-5)

    def test_fine_labels_of_cifar100(self, tmp_path):
        write_split(tmp_path, "train", 20, columns=("img", "fine_label"))
        write_split(tmp_path, "test", 4, columns=("img", "fine_label"))
        assert cifar100(tmp_path).test[1][1] == 1

    def test_smaller_parts_are_stratified_and_nested(self, cifar):
        few, more = (cifar10(cifar, train_samples=n, test_samples=10, augment=False) for n in (10, 30))
        assert few.train.labels.bincount().tolist() == few.test.labels.bincount().tolist() == [5, 5]
        inside = {tuple(row) for row in rows(more.train).tolist()}
        assert all(tuple(row) in inside for row in rows(few.train).tolist())
        assert torch.equal(rows(few.validation), rows(more.validation))

    def test_no_validation_part(self, cifar):
        assert cifar10(cifar, validation_samples=0).validation is None

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"train_samples": 55}, "has 60 samples, of which 6 go to validation and test: that leaves 54, fewer than"),
            ({"validation_samples": 60}, "leaves 0, and nothing to train on"),
            ({"test_samples": 21}, "test_samples must be at most 20, which is what .* has; got 21"),
            ({"train_samples": 0}, "train_samples must be an integer of 1 or more; got 0"),
            ({"augment": ["crop", "rotate"]}, "augment must be True, False or a list of 'crop', .*; got 'rotate'"),
        ],
    )
    def test_refuses(self, cifar, arguments, message):
        with pytest.raises(ValueError, match=message):
            cifar10(cifar, **arguments)


class TestAugmentation:
    def test_only_training_images_are_changed(self, cifar):
        plain, augmented = cifar10(cifar, augment=False), cifar10(cifar)
        assert torch.equal(rows(plain.test), rows(augmented.test))
        assert torch.equal(rows(plain.validation), rows(augmented.validation))
        assert not torch.equal(rows(plain.train), rows(augmented.train))

    def test_every_image_is_a_shifted_or_mirrored_one(self, cifar):
        plain, augmented = cifar10(cifar, augment=False), cifar10(cifar, augment=["crop", "flip"])
        torch.manual_seed(0)
        changed = augmented.train.__getitems__(list(range(20)))
        for (image, label), (original, same_label) in zip(changed, plain.train, strict=False):
            assert label == same_label
            padded = torch.nn.functional.pad(original, (4, 4, 4, 4))
            shifted = [padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
            assert any(torch.equal(image, view) or torch.equal(image.flip(2), view) for view in shifted)
        assert sum(torch.equal(image, plain.train[index][0]) for index, (image, _) in enumerate(changed)) < 3

    def test_cutout_blanks_a_quarter(self):
        torch.manual_seed(0)
        images = augmentation(["cutout"], 32)(torch.ones(8, 3, 32, 32))
        assert (images == 0).float().mean((1, 2, 3)).tolist() == [0.25] * 8
        assert len({tuple(image[0].sum(0).tolist()) for image in images}) > 1

    def test_batches_are_the_same_again_whatever_else_is_drawn(self, cifar):
        splits = cifar10(cifar)
        batches = splits.batches(16, seed=3)
        first = list(batches)
        torch.rand(3)
        assert len(first) == len(batches) == 3
        assert same(first, batches)
        assert same(first, cifar10(cifar).batches(16, seed=3))
        assert not same(first, splits.batches(16, seed=4))

    def test_does_not_disturb_the_generators_of_others(self, cifar):
        batches = cifar10(cifar).batches(16)
        torch.manual_seed(1)
        expected = torch.rand(2)
        torch.manual_seed(1)
        iterator = iter(batches)
        next(iterator)
        assert torch.equal(torch.rand(2), expected)

    def test_epochs_of_a_comparison_differ_and_follow_from_seed_and_epoch(self, cifar):
        train = cifar10(cifar).train
        order = EpochOrder(len(train), 16, seed=2)
        zeroth = list(training_batches(train, order))
        order.epoch = 1
        first = list(training_batches(train, order))
        again = EpochOrder(len(train), 16, seed=2)
        again.epoch = 1
        assert same(first, training_batches(train, again))
        assert not same(zeroth, first)

    def test_a_loader_of_torch_gets_whole_batches(self, cifar):
        images, labels = next(iter(DataLoader(cifar10(cifar).train, batch_size=8)))
        assert images.shape == (8, 3, 32, 32)
        assert labels.dtype == torch.int64

    def test_an_index_beyond_the_end(self, cifar):
        with pytest.raises(IndexError, match="there are 54 images; got index 54"):
            cifar10(cifar).train[54]


class TestImagenet:
    def test_the_validation_split_is_what_is_tested_on(self, pictures):
        splits = imagenet(pictures, image_size=16)
        assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [54, 6, 20]
        image, label = splits.train[0]
        assert (image.shape, image.dtype) == ((3, 16, 16), torch.float32)
        assert label in (0, 1)

    def test_an_unlabelled_test_split_is_left_alone(self, pictures, tmp_path):
        for file in pictures.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        write_split(tmp_path, "test", 6, columns=("image", "label"))
        assert len(imagenet(tmp_path).test) == 20

    def test_without_another_split_parts_are_split_off(self, tmp_path):
        write_split(tmp_path, "train", 40, columns=("image", "label"))
        splits = imagenet(tmp_path, image_size=8, test_samples=10, augment=False)
        assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [26, 4, 10]
        assert len(torch.cat([rows(splits.train), rows(splits.validation), rows(splits.test)]).unique(dim=0)) == 40

    @pytest.mark.heavy
    def test_streamed_batches_are_the_same_again(self, pictures):
        splits = imagenet(pictures, image_size=16, streaming=True)
        assert splits.validation is None
        batches = splits.batches(8, seed=1)
        first = list(batches)
        assert len(first) == 7
        assert same(first, batches)
        assert not same(first, splits.batches(8, seed=2))

    def test_sized_parts_of_a_stream_are_in_memory_and_disjoint(self, pictures):
        splits = imagenet(pictures, image_size=8, streaming=True, augment=False, train_samples=30, validation_samples=20)
        assert (len(splits.train), len(splits.validation)) == (30, 20)
        assert len(torch.cat([rows(splits.train), rows(splits.validation)]).unique(dim=0)) == 50

    def test_the_stream_leaves_out_what_is_in_other_parts(self, pictures):
        splits = imagenet(pictures, image_size=8, streaming=True, augment=False, validation_samples=20)
        streamed = torch.stack([image for image, _ in splits.train]).flatten(1)
        shuffled = torch.cat([images for images, _ in splits.batches(1, seed=5)]).flatten(1)
        assert len(torch.cat([streamed, rows(splits.validation)]).unique(dim=0)) == 60
        assert len(torch.cat([shuffled, rows(splits.validation)]).unique(dim=0)) == 60

    def test_a_stream_that_is_too_short(self, pictures):
        with pytest.raises(ValueError, match=r"has 60 images, of which 20 are in other parts; 41 more were asked for"):
            imagenet(pictures, streaming=True, train_samples=41, validation_samples=20)

    def test_a_stream_is_not_compared_on(self, pictures, tmp_path):
        source = functools.partial(imagenet, str(pictures), streaming=True)
        with pytest.raises(
            TypeError, match=r"data.train must be a data set of .*; give train_samples, which reads that many"
        ):
            initopt.compare({"net": small_net}, source, ["default"], out=tmp_path / "out")

    def test_nio_on_a_stream(self, pictures):
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        splits = imagenet(pictures, image_size=8, streaming=True)
        result = initopt.nio(model, splits.batches(8), steps=3, measure_batches=2, progress=False)
        assert len(result.history) == 3


class TestViews:
    def test_the_middle(self):
        pixels = np.zeros((64, 128, 3), dtype=np.uint8)
        pixels[2:62, 34:94] = 255  # 56 x 56, which is 64 * 224 / 256, and what the scaling takes in around it
        white = (1 - torch.tensor((0.485, 0.456, 0.406))) / torch.tensor((0.229, 0.224, 0.225))
        shown = View(28)(Image.fromarray(pixels))
        assert torch.allclose(shown, white.view(3, 1, 1).expand(3, 28, 28), atol=1e-5)
        pixels[:8] = 0
        shown = View(28)(Image.fromarray(pixels))
        assert (shown[:, 0] < 0).all()
        assert torch.allclose(shown[:, 3:], white.view(3, 1, 1).expand(3, 25, 28), atol=1e-5)

    def test_random_parts_lie_within_and_are_of_all_sizes(self):
        picture = Image.fromarray(np.zeros((30, 50, 3), dtype=np.uint8))
        view = View(8, ["crop"])
        torch.manual_seed(0)
        boxes = [view._part(picture) for _ in range(200)]
        shares = [(right - left) * (bottom - top) / 1500 for left, top, right, bottom in boxes]
        assert all(0 <= left < right <= 50 and 0 <= top < bottom <= 30 for left, top, right, bottom in boxes)
        assert min(shares) < 0.2
        assert max(shares) > 0.7  # 40 x 30, at most

    def test_flip(self):
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
        plain = View(16)(picture)
        torch.manual_seed(0)
        shown = [View(16, ["flip"])(picture) for _ in range(20)]
        mirrored = [torch.equal(image, plain.flip(2)) for image in shown]
        assert all(torch.equal(image, plain) or flipped for image, flipped in zip(shown, mirrored, strict=True))
        assert 0 < sum(mirrored) < 20


class TestImageFolder:
    def test_one_folder_is_split(self, tmp_path):
        write_folders(tmp_path, 10)
        splits = image_folder(tmp_path, image_size=8, augment=False)
        assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [16, 2, 2]
        assert splits.classes == CLASSES
        assert len(torch.cat([rows(splits.train), rows(splits.validation), rows(splits.test)]).unique(dim=0)) == 20

    @pytest.mark.parametrize(("of_a_class", "sizes"), [(4, (7, 0, 1)), (1, (1, 0, 1))])
    def test_fewer_than_ten_images_leave_one_to_test_on(self, tmp_path, of_a_class, sizes):
        write_folders(tmp_path, of_a_class)
        splits = image_folder(tmp_path, image_size=8, augment=False)
        assert (len(splits.train), len(splits.validation or ()), len(splits.test)) == sizes

    def test_folders_of_parts(self, tmp_path):
        for part, count in (("train", 8), ("val", 3), ("test", 2)):
            write_folders(tmp_path / part, count)
        splits = image_folder(tmp_path, image_size=8)
        assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [16, 6, 4]

    def test_stream(self, tmp_path):
        write_folders(tmp_path, 10)
        splits = image_folder(tmp_path, image_size=8, streaming=True, test_samples=4)
        assert sum(len(labels) for _, labels in splits.batches(4)) == 16


class TestMessages:
    def test_no_package(self, monkeypatch, cifar):
        find = importlib.util.find_spec
        monkeypatch.setattr("initopt._support.checks.find_spec", lambda name: None if name == "datasets" else find(name))
        with pytest.raises(ImportError, match=r"needs datasets: pip install 'initopt\[data\]'"):
            cifar10(cifar)

    def test_no_network(self):
        with pytest.raises(ConnectionError, match=r"HF_HUB_OFFLINE is set.*hf download uoft-cs/cifar10 --repo-type"):
            cifar10()

    def test_no_network_though_downloads_are_not_forbidden(self, monkeypatch):
        def unreachable(*arguments, **options):
            raise OSError("no route to host")

        monkeypatch.setattr(datasets, "load_dataset", unreachable)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # what a variable of "0" comes to
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        with pytest.raises(ConnectionError, match=r"from the Hugging Face hub: no route to host\. Download it"):
            cifar10()

    def test_closed_to_the_public(self, monkeypatch):
        def gated(*arguments, **options):
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'ILSVRC/imagenet-1k' is a gated dataset on the Hub.")

        monkeypatch.setattr(datasets, "load_dataset", gated)
        with pytest.raises(PermissionError, match=r"accept them on https://huggingface.co/datasets/ILSVRC.*hf auth login"):
            imagenet()

    def test_no_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
            cifar10(tmp_path / "nowhere")

    def test_a_file(self, tmp_path):
        Path(tmp_path, "file").touch()
        with pytest.raises(NotADirectoryError, match="is no folder"):
            cifar10(tmp_path / "file")

    def test_an_empty_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="has no data: neither parquet files"):
            cifar10(tmp_path)

    def test_a_broken_parquet_file(self, tmp_path):
        Path(tmp_path, "train-00000-of-00001.parquet").write_bytes(b"PAR1 and nothing else")
        with pytest.raises(ValueError, match=f"{tmp_path} cannot be read"):
            cifar10(tmp_path)

    def test_other_columns(self, tmp_path):
        write_split(tmp_path, "train", 4, columns=("photo", "label"))
        with pytest.raises(ValueError, match=r"has the columns photo \(Image\), label \(ClassLabel\); expected are images"):
            cifar10(tmp_path)

    def test_no_training_split(self, tmp_path):
        write_split(tmp_path, "test", 4)
        with pytest.raises(ValueError, match="has no split 'train', but 'test'"):
            cifar10(tmp_path)

    def test_a_broken_image(self, tmp_path):
        write_split(tmp_path, "train", 20, broken=7)
        with pytest.raises(ValueError, match=r"split 'train': image 7 \(7.png\) is no image that can be decoded"):
            cifar10(tmp_path)

    def test_a_broken_image_that_is_decoded_later(self, tmp_path):
        write_split(tmp_path, "train", 20, columns=("image", "label"), broken=7)
        splits = imagenet(tmp_path, image_size=8)
        with pytest.raises(ValueError, match=r"split 'train': image 7 \(7.png\) is no image that can be decoded"):
            for part in (splits.train, splits.validation, splits.test):
                rows(part)

    def test_images_of_another_size(self, tmp_path):
        write_split(tmp_path, "train", 20, size=(28, 28))
        with pytest.raises(ValueError, match="has 28 x 28 pixels; expected are 32 x 32"):
            cifar10(tmp_path)

    def test_a_part_that_is_not_there(self, pictures):
        with pytest.raises(ValueError, match="these data have no 'validation'; ask for more than 0 validation_samples"):
            imagenet(pictures, streaming=True).batches(4, subset="validation")

    def test_batches_that_are_too_large(self, cifar):
        with pytest.raises(ValueError, match="batch_size must be at most 20, the samples in 'test'; got 21"):
            cifar10(cifar).batches(21, subset="test")


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train": 1}, "has 1 samples, of which 1 go to validation and test: that leaves 0, .*, or give more samples"),
        ({"train": 20, "test": 0}, "the split 'test' of some is for testing, and has no samples; fill or remove it"),
    ],
)
def test_too_few_samples_for_a_part(counts, message):
    with pytest.raises(ValueError, match=message):
        select({split: np.zeros(count) for split, count in counts.items()}, Sizes(None, None, None), "some")


def test_beginnings_of_the_order_are_stratified():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    order = stratified_order(labels)
    assert sorted(order) == list(range(100))
    for count in (10, 20, 50):
        assert np.abs(np.bincount(labels[order[:count]]) - np.array([0.6, 0.3, 0.1]) * count).max() <= 1


@pytest.mark.skipif("INITOPT_CIFAR10" not in os.environ, reason="INITOPT_CIFAR10 names no folder with CIFAR-10")
def test_the_real_cifar10():
    splits = cifar10(os.environ["INITOPT_CIFAR10"], train_samples=20_000, augment=False)
    images = torch.cat([batch for batch, _ in itertools.islice(splits.batches(1000), 20)])
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (20_000, 5000, 10_000)
    assert splits.train.labels.bincount().tolist() == [2000] * 10
    assert images.mean((0, 2, 3)).abs().max() < 0.02
    assert (images.std((0, 2, 3)) - 1).abs().max() < 0.03


def small_net():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))


@pytest.mark.heavy
def test_a_comparison_on_augmented_and_mixed_images(cifar, tmp_path):
    def run(out, **changes):
        recipe = {"epochs": 2, "batch_size": 8, "measure_batches": 2, "mixup": 0.4, "lr": 0.01} | changes
        found = initopt.compare(
            {"net": small_net},
            functools.partial(cifar10, str(cifar)),
            ["default", {"method": "nio", "options": {"steps": 2}}],
            recipe=recipe,
            seeds=1,
            out=tmp_path / out,
            accelerator="cpu",
            report=False,
        )
        assert [record.error for record in found.runs] == [None, None]
        return [(record.curve, record.before, record.scales) for record in found.runs]

    first = run("first")
    assert first == run("again")
    assert first != run("other", mixup=0.0)
    shutil.rmtree(tmp_path / "first" / "runs" / "net" / "nio")  # as if it had been killed before this run was stored
    assert first == run("first")
    assert all(0 <= point.accuracy <= 1 for point in first[0][0])
