"""The examples for other libraries run as they are, in ``make test-integrations``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import with_the_tests

EXAMPLES = Path(__file__).parents[2] / "examples"

SCRIPTS = {
    "train_lightning.py": ("lightning.pytorch", "loss of the last batch 0."),
    "train_transformers.py": ("transformers", "improved: "),
    "train_accelerate.py": ("accelerate", "epoch 1: loss of the last batch 0."),
    "train_fabric.py": ("lightning.fabric", "epoch 1: loss of the last batch 0."),
    "train_skorch.py": ("skorch", "accuracy on the training set 0."),
    "compare_peft.py": ("peft", "peft-lora_ga   seed 1: test accuracy 0."),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_fits_on_a_screen(name):
    assert len((EXAMPLES / name).read_text("utf-8").splitlines()) <= 40


@pytest.mark.processes
@pytest.mark.parametrize("name", SCRIPTS)
def test_runs(name, tmp_path):
    library, ending = SCRIPTS[name]
    pytest.importorskip(library)
    environment = with_the_tests() | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / name)]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ending in ended.stdout, ended.stdout[-2000:]
