"""What others put around a model is taken off."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import initopt
from initopt.model.wrappers import bare, bare_names, replicated
from tests.helpers import make_batches, make_model


class _FabricModule(nn.Module):
    """As Lightning Fabric has it, as far as it matters."""

    def __init__(self, forward_module: nn.Module) -> None:
        super().__init__()
        self._forward_module = forward_module
        self._original_module = forward_module


def test_wrappers_are_taken_off() -> None:
    model = make_model()
    assert bare(model) is model
    compiled = torch.compile(model, backend="eager")
    assert bare(compiled) is model
    assert bare(nn.DataParallel(_FabricModule(compiled))) is model
    assert replicated(nn.DataParallel(model)) is None


def test_a_model_that_only_looks_like_a_wrapper_stays() -> None:
    holder = nn.Module()
    holder.module = nn.Linear(2, 3)
    assert bare(holder) is holder


class FullyShardedDataParallel(nn.Module):
    """One by its name: the real one needs a group of processes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 3)


class DeepSpeedEngine(FullyShardedDataParallel):
    """The same."""


@pytest.mark.parametrize(("model", "message"), [
    (FullyShardedDataParallel(), "'the model' is a FullyShardedDataParallel.* use its successor, .*fully_shard"),
    (nn.Sequential(FullyShardedDataParallel()), "'0' is a FullyShardedDataParallel"),
    (DeepSpeedEngine(), "engine of DeepSpeed.* run initopt on the model before that"),
])  # fmt: skip
def test_what_holds_no_whole_parameters_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        initopt.measure(model, make_batches(1))


def test_partitioned_parameters_are_refused() -> None:
    model = nn.Linear(6, 3)
    model.weight.ds_id = 0
    with pytest.raises(TypeError, match="'weight' is partitioned over processes by DeepSpeed"):
        initopt.measure(model, make_batches(1))


def test_names_and_results_are_those_of_the_model_inside() -> None:
    model, other = make_model(), make_model()
    wrapped = nn.DataParallel(model)
    result = initopt.nio(wrapped, make_batches(8), steps=3, measure_batches=2, seed=0)
    alone = initopt.nio(other, make_batches(8), steps=3, measure_batches=2, seed=0)
    assert result.scales == alone.scales
    result.apply(_FabricModule(make_model()))
    assert bare_names({"_forward_module.module.a": 1}) == {"a": 1}
    assert initopt.schemes.apply_(nn.DataParallel(nn.Linear(2, 2)), "orthogonal").set == ("weight", "bias")
