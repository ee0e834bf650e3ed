"""Bad input is refused at once, with a message that says what was given, what is allowed, and what to try."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import initopt
from initopt.methods import NIO
from tests.forks import python
from tests.helpers import make_batches, make_model, values

Run = Callable[..., Any]


def nio(model: nn.Module, batches: Any, loss_fn: Any = None, **options: Any) -> Any:
    return initopt.nio(model, batches, loss_fn, **{"steps": 3, "measure_batches": 0, **options})


both = pytest.mark.parametrize("run", [nio, initopt.measure], ids=["nio", "measure"])


@both
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_subbatches": 1}, "num_subbatches must be an integer of 2 or more, since GradCosine compares pairs; got 1"),
        ({"num_subbatches": 2.5}, "got 2.5"),
        ({"num_subbatches": 17}, "16 samples cannot be split into num_subbatches=17.*num_subbatches <= 16"),
        ({"overlap": 1.0}, r"overlap .* must be in \[0, 1\); got 1.0"),
        ({"overlap": -0.1}, r"got -0.1"),
        ({"overlap": "0.2"}, "overlap must be a number; got '0.2'"),
        ({"overlap": None}, "overlap must be a number; got None"),
        ({"split": "random"}, "unknown split 'random'; known are 'cyclic', 'published'"),
        ({"batch_norm": "none"}, "unknown batch_norm 'none'; known are 'subbatch', 'batch'"),
        (
            {"engine": "warp"},
            "unknown engine 'warp'; known are 'auto', 'exact', 'graph', 'recompute', 'groups', 'coupled', 'plain', 'diff",
        ),
        ({"engine": "coupled"}, "engine 'coupled' cannot be used here: .*engine=\"auto\""),
        ({"engine": "recompute", "batch_norm": "batch"}, 'batch_norm="batch" couples them'),
        ({"grad_params": lambda *_: False}, r"grad_params matches none of the 8 trainable parameters \(0.weight, "),
    ],
)
def test_bad_options(run: Run, options: dict[str, Any], message: str) -> None:
    model = make_model()
    before = values(model)
    with pytest.raises(ValueError, match=message):
        run(model, make_batches(), **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be an integer of 1 or more; got 0"),
        ({"steps": -3}, "got -3"),
        ({"steps": 1.5}, "got 1.5"),
        ({"lr": float("inf")}, "lr must be a finite number above 0; got inf"),
        ({"eps": float("inf")}, "eps must be a finite number above 0; got inf"),
        ({"norm_weight": float("inf")}, "norm_weight must be a finite number 0 or more; got inf"),
        ({"min_scale": 1.5}, "min_scale must be a number 0 or more and 1 or less; got 1.5"),
        ({"min_bias_scale": 2}, "min_bias_scale must be a number 0 or more and 1 or less; got 2"),
        ({"lr": 0}, "lr must be a number above 0; got 0"),
        ({"lr": -1.0}, "lr must be a number above 0; got -1.0"),
        ({"lr": float("nan")}, "got nan"),
        ({"lr": "fast"}, "got 'fast'"),
        ({"max_grad_norm": 0}, "max_grad_norm must be a number above 0; got 0"),
        ({"max_grad_norm": -5.0}, "max_grad_norm must be a number above 0"),
        ({"norm_weight": -1}, "norm_weight must be a number 0 or more; got -1"),
        ({"betas": (0.9,)}, "betas must be a pair"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] must be a number 0 or more and below 1; got 1.0"),
        ({"eps": 0}, "eps must be a number above 0"),
        ({"scale_grad_clip": 0}, "scale_grad_clip must be a number above 0"),
        ({"min_scale": -1}, "min_scale must be a number 0 or more"),
        ({"min_bias_scale": -1}, "min_bias_scale must be a number 0 or more"),
        ({"objective": "entropy"}, "unknown objective 'entropy'; known are 'cosine', 'cosine.norm', "),
        ({"measure_batches": -1}, "measure_batches must be an integer of 0 or more; got -1"),
        ({"checkpoint_every": 0}, "checkpoint_every must be an integer of 1 or more"),
        ({"seed": -1}, "seed must be an integer of 0 or more"),
        ({"scale_params": lambda *_: False}, "scale_params matches none"),
    ],
)
def test_bad_options_of_nio(options: dict[str, Any], message: str) -> None:
    def never(model: nn.Module, batch: Any) -> Any:
        pytest.fail("work was done before the check")

    with pytest.raises(ValueError, match=message):
        nio(make_model(), make_batches(), never, **options)


@pytest.mark.parametrize("number", [0, -3, 1.5])
def test_a_bad_number_of_batches_to_measure(number: Any) -> None:
    with pytest.raises(ValueError, match=f"num_batches must be an integer of 1 or more; got {number}"):
        initopt.measure(make_model(), make_batches(), num_batches=number)


def test_unknown_method_option_and_preset() -> None:
    model, batches = make_model(), make_batches()
    with pytest.raises(ValueError, match="unknown method 'magic'; known are 'nio'"):
        initopt.optimize(model, batches, method="magic")
    with pytest.raises(TypeError, match="method 'nio' has no option 'learning_rate'; it has .*lr, betas"):
        initopt.optimize(model, batches, method="nio", learning_rate=0.1)
    with pytest.raises(TypeError, match="give the options to NIO"):
        initopt.optimize(model, batches, method=NIO(), lr=0.1)
    with pytest.raises(TypeError, match=r"method is the class NIO; pass an instance, NIO\(\), or its name"):
        initopt.optimize(model, batches, method=NIO)
    with pytest.raises(TypeError, match="must be the name of a method or a Method; got int"):
        initopt.optimize(model, batches, method=3)
    with pytest.raises(ValueError, match="unknown preset 'best'; known are 'published'"):
        initopt.presets.get("best")


@pytest.mark.parametrize(("run", "name"), [(nio, "grad_params"), (nio, "scale_params"), (initopt.measure, "grad_params")])
def test_a_filter_that_is_no_function(run: Run, name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a function of .name, parameter, module., or names .*; got int"):
        run(make_model(), make_batches(), **{name: 3})
    with pytest.raises(ValueError, match=f"unknown {name} 'weight'; known are 'biases', "):
        run(make_model(), make_batches(), **{name: "weight"})


@both
@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], initopt.LoaderError, "batches is empty"),
        (iter([]), initopt.LoaderError, "batches is empty"),
        (3, TypeError, "must be an iterable of batches"),
        (torch.ones(4, 4), TypeError, r"Put a single batch into a list: \[batch\]"),
        ([(torch.ones(8, 6), torch.ones(7).long())], ValueError, r"batch\[0\] has 8, batch\[1\] has 7"),
        ([{"x": torch.ones(8, 6), "y": torch.ones(())}], ValueError, r"batch\['y'\] is a tensor without dimensions"),
        ([("text", 3)], ValueError, "got tuple without any tensor"),
        ([(torch.ones(8, 6),)], initopt.LossError, r"batches of the form \(inputs, targets\); got a tuple of 1"),
        ([(torch.ones(8, 6), torch.ones(8))], initopt.LossError, "no integer class labels .* but torch.float32.*MSELoss"),
        ([torch.ones(2, 6)], ValueError, "2 samples cannot be split into num_subbatches=4.*drop_last=True"),
    ],
)
def test_bad_batches(run: Run, batches: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(make_model(), batches)


def test_a_generator_that_ends_early() -> None:
    with pytest.raises(initopt.LoaderError, match="ended after 2 of the 3 that are needed"):
        nio(make_model(), iter(make_batches(2)))
    with pytest.raises(initopt.LoaderError, match="ended after 2 of the 5 that are needed"):
        initopt.measure(make_model(), iter(make_batches(2)), num_batches=5)


def test_fewer_batches_than_steps_to_measure_are_cycled_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="fewer than num_batches=5 different batches"):
        assert initopt.measure(make_model(), make_batches(2), num_batches=5).num_batches == 5


@both
@pytest.mark.parametrize(
    ("loss_fn", "error", "message"),
    [
        (lambda model, batch: model(batch[0]), initopt.LossError, r"shape \(\d+, 3\) for \d+ samples.*shape \(\d+,\)"),
        (lambda model, batch: 1.0, initopt.LossError, "returned float; it must return a tensor"),
        (lambda model, batch: model(batch[0]).mean().detach(), initopt.LossError, "does not depend on any trainable"),
        (lambda model, batch: model(batch[0]).argmax(), initopt.LossError, "dtype torch.int64"),
        (nn.functional.cross_entropy, TypeError, r"cross_entropy takes \(output, target\)"),
        (nn.CrossEntropyLoss, TypeError, r"pass an instance of it: CrossEntropyLoss\(\)"),
        ("mse", TypeError, "got str"),
    ],
)
def test_bad_losses(run: Run, loss_fn: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(make_model(), make_batches(), loss_fn)


@both
def test_whole_batch_norm_needs_the_loss_of_every_sample(run: Run) -> None:
    with pytest.raises(initopt.LossError, match='batch_norm="batch" needs the loss of every sample.*batch_norm="subbatch"'):
        run(make_model(), make_batches(), lambda model, batch: model(batch[0]).mean(), batch_norm="batch")


@both
def test_no_trainable_parameters(run: Run) -> None:
    with pytest.raises(ValueError, match="Sequential has no trainable parameter: none of its 8 requires a gradient"):
        run(make_model().requires_grad_(False), make_batches())
    with pytest.raises(ValueError, match="Flatten has no trainable parameter"):
        run(nn.Flatten(), make_batches())
    with pytest.raises(TypeError, match="model must be a torch.nn.Module; got function"):
        run(lambda x: x, make_batches())


@both
def test_meta_and_lazy_parameters(run: Run) -> None:
    with pytest.raises(ValueError, match="parameter '0.weight' is on the meta device"):
        run(make_model().to("meta"), make_batches())
    with pytest.raises(ValueError, match="parameter '0.weight' has no values yet"):
        run(nn.Sequential(nn.LazyLinear(3)), make_batches())


@both
def test_a_loss_or_gradient_that_is_not_finite(run: Run) -> None:
    place = "step 0" if run is nio else "batch 0 of the measurement"
    infinite = nn.CrossEntropyLoss(weight=torch.tensor([torch.inf, 1.0, 1.0]))
    with pytest.raises(initopt.NonFiniteError, match=f"in {place}: the loss of sub-batch 0 is (inf|nan)"):
        run(make_model(), make_batches(), infinite)

    def root(model: nn.Module, batch: Any) -> Any:
        return (model(batch[0]) * 0).abs().sqrt().mean()

    with pytest.raises(
        initopt.NonFiniteError, match=re.escape(f"in {place}: the gradient of sub-batch 0 is not finite for")
    ):
        run(make_model(), make_batches(), root)


def test_a_second_derivative_that_is_not_finite() -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        return model(batch[0]).sum(1).mean() + (model[4].bias * 0).abs().pow(1.5).sum()

    with pytest.raises(initopt.NonFiniteError, match=r"in step 0: .*scale of '4\.bias' is not finite"):
        nio(make_model(), make_batches(), loss, centre=None)


@both
def test_gradients_that_are_all_zero(run: Run) -> None:
    with pytest.raises(initopt.ZeroGradientError, match="gradients of all sub-batches are exactly zero"):
        run(make_model(), make_batches(), lambda model, batch: (model(batch[0]) * 0).mean())


@both
def test_single_samples_through_batch_norm_say_what_to_do(run: Run) -> None:
    with pytest.raises(ValueError, match="Expected more than 1 value per channel") as caught:
        run(make_model(), make_batches(), num_subbatches=16)
    assert any('batch_norm="batch"' in note for note in caught.value.__notes__)


def test_callbacks_are_functions() -> None:
    with pytest.raises(TypeError, match="a callback is a function of a step record; got str"):
        nio(make_model(), make_batches(), callbacks=["print"])


def test_a_single_callback_will_do() -> None:
    steps = []
    nio(make_model(), make_batches(), callbacks=lambda record: steps.append(record.step))
    assert steps == [0, 1, 2]


def test_numbers_of_numpy_are_options_like_any() -> None:
    options = {"steps": 2, "num_subbatches": 2, "lr": 0.5, "betas": (0.5, 0.75), "measure_batches": 1, "seed": 3}
    theirs = {"steps": np.int64(2), "num_subbatches": np.int8(2), "lr": np.float32(0.5)}
    theirs |= {"betas": (np.float64(0.5), np.float32(0.75)), "measure_batches": np.int64(1), "seed": np.uint32(3)}
    mine, result = nio(make_model(), make_batches(), **options), nio(make_model(), make_batches(), **theirs)
    assert result.scales == mine.scales
    assert result.options == mine.options
    assert {name: type(value) for name, value in result.options.items()} == {n: type(v) for n, v in mine.options.items()}


@pytest.mark.parametrize(
    ("objective", "found"),
    [
        (lambda gram: 1.0, "float"),
        (lambda gram: None, "NoneType"),
        (lambda gram: gram.diagonal(), r"a tensor of shape \(4,\)"),
        (lambda gram: gram.detach().sum(), "a tensor without a graph"),
    ],
)
def test_an_objective_that_is_none(objective: Any, found: str) -> None:
    with pytest.raises(TypeError, match=f"the objective must return a scalar tensor.*; it returned {found}"):
        nio(make_model(), make_batches(), objective=objective)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_objective_that_is_not_finite(value: float) -> None:
    def objective(gram: torch.Tensor) -> torch.Tensor:
        return gram.sum() * value

    with pytest.raises(initopt.NonFiniteError, match="in step 0: the objective to be minimized is -?(nan|inf)"):
        nio(make_model(), make_batches(), objective=objective)
    constrained = nio(make_model(), make_batches(), objective=objective, max_grad_norm=1e-6, centre=None)
    assert not math.isfinite(constrained.history[0].objective)


def test_a_batch_that_becomes_too_small_names_the_step() -> None:
    batches = [*make_batches(2), *make_batches(1, size=3)]
    with pytest.raises(ValueError, match="3 samples cannot be split into num_subbatches=4") as caught:
        nio(make_model(), batches)
    assert "(in step 2)" in caught.value.__notes__


class TestMisspelt:
    @pytest.mark.parametrize(
        ("function", "given", "meant"),
        [
            (initopt.nio, "step", "steps"),
            (initopt.nio, "num_subbatch", "num_subbatches"),
            (initopt.gradinit, "max_grad_nrm", "max_grad_norm"),
            (initopt.metainit, "input", "inputs"),
            (initopt.lsuv, "checkpint", "checkpoint"),
            (initopt.measure, "overlapp", "overlap"),
            (initopt.compare, "initialisations", "initializations"),
        ],
    )
    def test_a_keyword_argument(self, function, given, meant):
        with pytest.raises(
            TypeError, match=rf"{function.__name__}\(\) got an unexpected .*{given!r}; did you mean {meant!r}"
        ):
            function(**{given: 1})

    def test_an_option_of_a_method(self):
        with pytest.raises(TypeError, match="method 'nio' has no option 'num_subbatch'; did you mean 'num_subbatches'"):
            initopt.optimize(make_model(), make_batches(), num_subbatch=3)

    @pytest.mark.processes
    def test_parts_of_the_package(self):
        """Are there after ``import initopt``, and take no time before they are asked for."""
        code = (
            "import sys, initopt; before = 'initopt.zoo' in sys.modules; "
            "print(before, initopt.zoo.plain_mlp.__name__, initopt.data.digits.__name__, 'zoo' in dir(initopt))"
        )
        ended = python(code)
        assert ended.stdout == "False plain_mlp digits True\n"
        with pytest.raises(AttributeError, match="module 'initopt' has no attribute 'zo'"):
            initopt.zo  # noqa: B018
