"""What is visibly wrong with a first batch is said before any work, with what to do; and nothing without a reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import initopt
from tests.helpers import make_batches, make_model

Run = Callable[..., Any]


def nio(model: nn.Module, batches: Any, loss_fn: Any = None, **options: Any) -> Any:
    return initopt.nio(model, batches, loss_fn, steps=2, measure_batches=1, **options)


@pytest.mark.parametrize("method", [initopt.gradinit, initopt.metainit, initopt.lsuv])
def test_every_method_looks(method: Run) -> None:
    with pytest.raises(initopt.LossError, match="they seem to count from 1: subtract 1"):
        method(make_model(), relabelled(lambda y: y + 1), steps=2, measure_batches=1)


both = pytest.mark.parametrize("run", [nio, initopt.measure], ids=["nio", "measure"])
criteria = pytest.mark.parametrize("criterion", [None, nn.CrossEntropyLoss()], ids=["default", "criterion"])


def relabelled(change: Callable[[Tensor], Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(x, change(y)) for x, y in make_batches(count=4, size=32)]


@both
@criteria
@pytest.mark.parametrize("batch_norm", ["subbatch", "batch"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y + 1, "3 outputs, for the classes 0 to 2, .* go from 1 to 3; they seem to count from 1: subtract 1"),
        (lambda y: y.where(torch.arange(32) < 31, 7), "go from 0 to 7; does the last layer fit the data"),
        (lambda y: -y, "go from -2 to 0"),
    ],
)
def test_labels_that_there_are_no_classes_for(
    run: Run, criterion: nn.Module | None, batch_norm: str, change: Callable[[Tensor], Tensor], message: str
) -> None:
    """Wherever in the batch the label is, also beyond the first sub-batch."""
    with pytest.raises(initopt.LossError, match=message):
        run(make_model(), relabelled(change), criterion, batch_norm=batch_norm)


@both
@criteria
def test_a_softmax_before_cross_entropy(run: Run, criterion: nn.Module | None) -> None:
    model = nn.Sequential(*make_model(), nn.Softmax(1))
    with pytest.warns(UserWarning, match="outputs are probabilities .* Leave out the softmax at the end of the model"):
        run(model, make_batches(), criterion)


def test_nll_loss() -> None:
    batches, model = make_batches(), make_model()
    with pytest.warns(UserWarning, match=r"are probabilities, and nn\.NLLLoss takes their logarithms"):
        initopt.measure(nn.Sequential(*model, nn.Softmax(1)), batches, nn.NLLLoss())
    with pytest.warns(UserWarning, match=r"the model's outputs are none: use log_softmax"):
        initopt.measure(model, batches, nn.NLLLoss())


@both
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y * 0 + 2, "the labels of the first batch are all 2"),
        (lambda y: y.sort().values, "are in order: 3 classes, one after the other"),
        (lambda y: y.sort(descending=True).values, "are in order"),
    ],
)
def test_a_loader_that_does_not_shuffle(run: Run, change: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.warns(UserWarning, match=f"{message}.* have the loader shuffle"):
        run(make_model(), relabelled(change))


@pytest.mark.heavy
def test_no_word_without_a_reason() -> None:
    quiet = [
        (make_model(), relabelled(lambda y: y), None),
        (make_model(), relabelled(lambda y: y.where(torch.arange(32) % 5 > 0, -100)), None),
        (make_model(), relabelled(lambda y: y.where(torch.arange(32) % 5 > 0, 9)), nn.CrossEntropyLoss(ignore_index=9)),
        (nn.Sequential(*make_model(), nn.LogSoftmax(1)), relabelled(lambda y: y), nn.NLLLoss()),
        (nn.Sequential(*make_model(), nn.LogSoftmax(1)), relabelled(lambda y: y), None),
        (make_model(), [(x[:8], y[:8].sort().values) for x, y in make_batches()], None),
        (nn.Sequential(nn.Linear(6, 32)), [(x, torch.arange(32)) for x, _ in relabelled(lambda y: y)], None),
        (nn.Sequential(nn.Linear(6, 3), nn.Sigmoid()), relabelled(lambda y: y), None),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model, batches, criterion in quiet:
            initopt.measure(model, batches, criterion)


def test_it_is_said_once() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        nio(nn.Sequential(*make_model(), nn.Softmax(1)), make_batches())
    assert len(said) == 1


@both
@pytest.mark.parametrize("batch_norm", ["subbatch", "batch"])
@pytest.mark.parametrize(
    ("model_dtype", "input_dtype", "message"),
    [
        (torch.float64, torch.float32, r"model is in float64 and the inputs are in float32: give batches in float64"),
        (torch.float32, torch.float64, r"or bring the model to the dtype of the batches \(model\.to\(torch\.float64\)\)"),
        (torch.bfloat16, torch.float32, "model is in bfloat16 and the inputs are in float32"),
        (torch.float32, torch.uint8, r"convert them \(inputs\.to\(torch\.float32\), and scale images"),
    ],
)
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_dtypes(
    run: Run, batch_norm: str, model_dtype: torch.dtype, input_dtype: torch.dtype, message: str, kind: str
) -> None:
    first = (
        nn.Linear(6, 3) if kind == "linear" else nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 3, 6), nn.Flatten())
    )
    batches = [(x.to(input_dtype), y) for x, y in make_batches()]
    with pytest.raises(TypeError, match=message):
        run(first.to(model_dtype), batches, batch_norm=batch_norm)


class Casting(nn.Module):
    """Brings its inputs to its own dtype, as it may."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.to(self.inner.weight.dtype))


def test_a_model_that_casts_its_inputs_is_right() -> None:
    assert initopt.measure(Casting(), make_batches()).num_batches == 12


def test_an_error_of_the_model_about_dtypes_that_fit_stays_as_it_is() -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) @ torch.ones(3, 3, dtype=torch.float64)

    with pytest.raises(RuntimeError, match="same dtype"):
        initopt.measure(Wrong(), make_batches())
