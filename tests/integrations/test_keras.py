"""Keras on torch, in ``make test-integrations``: its models are refused, and torch modules inside of them are not."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

import initopt
from tests.helpers import values
from tests.integrations._small import loader, net

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")

pytestmark = pytest.mark.filterwarnings("default")


def dense() -> nn.Module:
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(3)])


@pytest.mark.parametrize(
    "function",
    [
        initopt.check,
        lambda model: initopt.diagnose(model, loader()),
        lambda model: initopt.measure(model, loader()),
        lambda model: initopt.nio(model, loader()),
        lambda model: initopt.schemes.apply_(nn.Sequential(model), "orthogonal"),
    ],
    ids=["check", "diagnose", "measure", "nio", "apply_"],
)
def test_a_model_of_keras_is_refused(function):
    with pytest.raises(TypeError, match=r"is of Keras, .* give them to Keras in a keras.layers.TorchModuleWrapper"):
        function(dense())


def test_a_torch_module_that_keras_trains():
    inner = net().cpu()
    result = initopt.nio(inner, loader(), steps=3, measure_batches=2, on_harm="warn", progress=False)
    begun = values(inner)
    model = keras.Sequential([keras.Input((8,)), keras.layers.TorchModuleWrapper(inner)])
    assert any(scale != 1 for scale in result.scales.values())
    assert all(torch.equal(begun[name], value) for name, value in inner.state_dict().items())
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    inputs, targets = (tensor.numpy() for tensor in loader().dataset.tensors)
    losses = model.fit(inputs, targets, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert not torch.equal(begun["0.weight"], inner[0].weight)
