import itertools
import string

import pytest
import torch

import initopt
from initopt.data import text
from initopt.zoo import small_gpt


@pytest.fixture
def alphabet(tmp_path):
    """All letters are different, so that one says where it is from."""
    file = tmp_path / "text.txt"
    file.write_text("".join(map(chr, range(0x4E00, 0x4E00 + 1000))), encoding="utf-8")
    return file


def test_targets_are_the_next_characters(alphabet):
    splits = text(alphabet, length=10)
    assert len(splits.classes) == 1000
    for part in (splits.train, splits.validation, splits.test):
        for inputs, targets in part:
            assert (inputs.shape, inputs.dtype) == ((10,), torch.int64)
            assert torch.equal(targets, inputs + 1)


def test_parts_share_no_character_and_come_in_order(alphabet):
    splits = text(alphabet, length=10)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [79, 10, 10]
    seen = [torch.cat([torch.cat(sample) for sample in part]) for part in (splits.train, splits.validation, splits.test)]
    for earlier, later in itertools.pairwise(seen):
        assert earlier.max() < later.min()
    assert torch.cat([inputs for inputs, _ in splits.train]).tolist() == list(range(790))


def test_sizes(alphabet):
    splits = text(alphabet, length=7, train_samples=5, validation_samples=0, test_samples=3)
    assert splits.validation is None
    assert (len(splits.train), len(splits.test)) == (5, 3)
    assert torch.equal(splits.test[0][0], text(alphabet, length=7, validation_samples=0, test_samples=3).test[0][0])


def test_all_that_fits_is_used(alphabet):
    splits = text(alphabet, length=333, validation_samples=0, test_samples=1)
    assert len(splits.train) == 1  # 3 windows would need the targets of 2 parts, 1001 characters
    splits = text(alphabet, length=332, validation_samples=0, test_samples=1)
    assert len(splits.train) == 2


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"abc", {}, "has 3 characters, too few for 1 windows of 128"),
        (b"a" * 100, {"length": 10, "train_samples": 9}, "too few for 9 windows of 10 to train on, 1 of validation and 1"),
        ("Zürich".encode("latin-1"), {}, r"is not in UTF-8 \(byte 1 is 0xfc\); convert it, with iconv"),
        (b"", {}, "has 0 characters"),
        (b"abc", {"length": 0}, "length must be an integer of 1 or more; got 0"),
        (b"abc", {"test_samples": 0}, "test_samples must be an integer of 1 or more; got 0"),
    ],
)
def test_refuses(tmp_path, content, options, message):
    file = tmp_path / "text.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        text(file, **options)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        text(tmp_path)


def test_a_language_model_is_measured_on_it(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(string.printable * 50, encoding="utf-8")
    splits = text(file, length=16)
    model = small_gpt(len(splits.classes), 16, depth=1, width=16, heads=2)
    found = initopt.measure(model, splits.batches(8), num_batches=2, progress=False)
    assert -1 <= found.grad_cosine <= 1
