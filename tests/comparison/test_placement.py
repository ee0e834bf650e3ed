"""A comparison puts its data into the memory of the device that it runs on."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

import initopt
from initopt.data import Splits, digits_splits
from initopt.zoo import plain_mlp


def test_data_go_to_the_device_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    to = Splits.to
    monkeypatch.setattr(Splits, "to", lambda self, device: asked.append(device) or to(self, device))
    models = {"MLP": partial(plain_mlp, depth=2)}
    recipe = {"epochs": 1, "batch_size": 256, "measure_batches": 1}
    initopt.compare(
        models, digits_splits, ["default"], recipe=recipe, seeds=1, accelerator="cpu", out=tmp_path / "out", report=False
    )
    assert asked == [torch.device("cpu")]
