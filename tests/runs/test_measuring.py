"""What is particular to measuring."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import initopt
from tests.helpers import make_batches, make_model


class Streamed(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        inputs, targets = make_batches(1, size=48)[0]
        return iter(zip(inputs, targets, strict=True))


def test_a_loader_without_a_length_is_measured_to_its_end() -> None:
    assert initopt.measure(make_model(), DataLoader(Streamed(), batch_size=16)).num_batches == 3


def test_the_seed_decides_what_the_model_draws() -> None:
    def gram(seed: int | None) -> torch.Tensor:
        torch.manual_seed(torch.seed())
        return initopt.measure(make_model(dropout=0.5).train(), make_batches(2), train_mode=True, seed=seed).gram

    def gram_elsewhere(seed: int | None) -> torch.Tensor:
        model = make_model(dropout=0.5)
        torch.rand(3)
        return initopt.measure(model, make_batches(2), train_mode=True, seed=seed).gram

    assert torch.equal(gram(3), gram_elsewhere(3))
    assert not torch.equal(gram(3), gram(4))
    assert not torch.equal(gram(None), gram_elsewhere(None))
    with pytest.raises(ValueError, match="seed must be an integer of 0 or more; got -1"):
        gram(-1)


def test_sub_batches_that_are_the_whole_batch_have_no_noise_scale() -> None:
    found = initopt.measure(make_model(), make_batches(3), num_subbatches=2, overlap=0.99)
    assert math.isnan(found.noise_scale)
    assert math.isnan(found.sem["noise_scale"])
    assert found.grad_cosine == pytest.approx(1)


def test_numbers_of_numpy() -> None:
    one = initopt.measure(
        make_model(), make_batches(), num_batches=np.int64(2), num_subbatches=np.int32(2), overlap=np.float64(0.25)
    )
    assert torch.equal(
        one.gram, initopt.measure(make_model(), make_batches(), num_batches=2, num_subbatches=2, overlap=0.25).gram
    )


def test_without_a_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert initopt.measure(make_model(), make_batches(1)).num_batches == 1
