"""What others put around a model is taken off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.export import Dim, export

import initopt
from initopt.model.wrappers import bare, bare_names, hides_layers, replicated
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


class Layer(nn.Module):
    """One of Keras by its name, as the real one is in ``make test-integrations``."""

    __module__ = "keras.src.layers.layer"


@pytest.mark.parametrize(("model", "message"), [
    (FullyShardedDataParallel(), "'the model' is a FullyShardedDataParallel.* use its successor, .*fully_shard"),
    (nn.Sequential(FullyShardedDataParallel()), "'0' is a FullyShardedDataParallel"),
    (nn.Sequential(Layer()), "'0' is of Keras, .*give them to Keras in a keras.layers.TorchModuleWrapper"),
    (DeepSpeedEngine(), "engine of DeepSpeed.* run initopt on the model before that"),
])  # fmt: skip
def test_what_holds_its_parameters_otherwise_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        initopt.measure(model, make_batches(1))


def test_partitioned_parameters_are_refused() -> None:
    model = nn.Linear(6, 3)
    model.weight.ds_id = 0
    with pytest.raises(TypeError, match="'weight' is partitioned over processes by DeepSpeed"):
        initopt.measure(model, make_batches(1))


@pytest.mark.heavy
def test_names_and_results_are_those_of_the_model_inside() -> None:
    model, other = make_model(), make_model()
    wrapped = nn.DataParallel(model)
    result = initopt.nio(wrapped, make_batches(8), steps=3, measure_batches=2, seed=0)
    alone = initopt.nio(other, make_batches(8), steps=3, measure_batches=2, seed=0)
    assert result.scales == alone.scales
    result.apply(_FabricModule(make_model()))
    assert bare_names({"_forward_module.module.a": 1}) == {"a": 1}
    assert initopt.schemes.apply_(nn.DataParallel(nn.Linear(2, 2)), "orthogonal").set == ("weight", "bias")


SAMPLES = Dim("samples")


def exported(model: nn.Module, first: Dim | None = SAMPLES) -> nn.Module:
    # Up to PyTorch 2.5, export itself makes programs that are not for training.
    trainable = torch.export.export_for_training if torch.__version__.startswith("2.5.") else export
    return trainable(model, (make_batches(1)[0][0],), dynamic_shapes=({0: first},)).module()


class TestExported:
    """What ``torch.export`` makes of a model."""

    def test_a_program_is_refused_for_the_module_that_it_holds(self) -> None:
        program = export(make_model(), (make_batches(1)[0][0],))
        with pytest.raises(TypeError, match=r"is an ExportedProgram of torch.export; pass .* program.module\(\)"):
            initopt.measure(program, make_batches(1))

    @pytest.mark.heavy
    @pytest.mark.parametrize("dropout", [0.0, 0.5])
    def test_as_the_model_in_the_mode_that_it_was_exported_in(self, dropout: float) -> None:
        model, other = make_model(dropout=dropout), exported(make_model(dropout=dropout))
        options = {"train_mode": True, "seed": 0, "progress": False}
        expected = initopt.measure(model, make_batches(3), num_batches=2, **options)
        assert torch.equal(initopt.measure(other, make_batches(3), num_batches=2, **options).gram, expected.gram)
        options |= {"steps": 2, "measure_batches": 1, "on_harm": "warn"}
        result = initopt.nio(other, make_batches(4), **options)
        assert result.scales == pytest.approx(initopt.nio(model, make_batches(4), **options).scales, rel=1e-6)
        assert len(set(result.scales.values())) > 2
        assert result.diagnosis is None

    def test_a_size_of_its_own(self) -> None:
        fixed = exported(make_model(), None)
        with pytest.raises((AssertionError, RuntimeError)) as caught:  # by the version of PyTorch
            initopt.measure(fixed, make_batches(1))
        assert "exported for another number of samples than 4" in caught.value.__notes__[0]

    @pytest.mark.parametrize("look", [initopt.check, lambda model: initopt.diagnose(model, make_batches(1))])
    def test_no_rule_speaks_of_layers_that_are_not_there(self, look: Any) -> None:
        with pytest.raises(TypeError, match="a GraphModule that calls operations and no layers, as torch.export makes it"):
            look(exported(make_model()))

    def test_a_graph_that_calls_layers_has_them(self) -> None:
        traced = fx.symbolic_trace(make_model())
        assert not hides_layers(traced)
        assert initopt.check(traced) == initopt.check(make_model())
