"""A network that a method would kill is given back alive, and the user is told."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initopt
from initopt.gram.measurement import Measurement
from initopt.runs.verdict import judge
from tests.helpers import values


def digits_like(count: int = 16, size: int = 64, classes: int = 10, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Noisy prototypes, one for each class."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.randn(classes, 64, generator=generator)
    batches = []
    for _ in range(count):
        targets = torch.randint(classes, (size,), generator=generator)
        batches.append((prototypes[targets] + 0.5 * torch.randn(size, 64, generator=generator), targets))
    return batches


def mlp(depth: int, width: int = 32, activation: Callable[[], nn.Module] = nn.ReLU, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(width if i else 64, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def quiet(function: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        return function(*args, **options), [str(warning.message) for warning in told]


class TestNioOnDeepPlainNetworks:
    @pytest.mark.heavy
    @pytest.mark.parametrize(
        ("depth", "activation"), [(10, nn.GELU), (20, nn.ReLU), pytest.param(20, nn.Tanh, marks=pytest.mark.heavy)]
    )
    def test_the_outputs_listen_to_the_inputs_afterwards(self, depth: int, activation: Callable[[], nn.Module]) -> None:
        model = mlp(depth, activation=activation)
        result, told = quiet(initopt.nio, model, digits_like(), steps=60, measure_batches=4, seed=0)
        assert result.verdict.startswith("improved")
        assert not told
        assert "the outputs depend on the inputs now" in result.verdict or depth == 10
        assert result.after.output_spread > 0.05
        assert result.after.centred_grad_norm > 0.05 * result.after.grad_norm

    @pytest.mark.heavy
    def test_a_gradient_below_rounding_is_lifted_first(self) -> None:
        model = mlp(30)
        before = initopt.measure(model, digits_like(4), seed=0)
        assert before.output_spread < 1e-6
        result, _ = quiet(initopt.nio, model, digits_like(), steps=1, measure_batches=4, seed=0)
        scales = [scale for name, scale in result.scales.items() if name.endswith("weight")]
        assert all(1.5 < scale < 4 for scale in scales)
        assert max(scales) < 1.1 * min(scales), "one number for all, and one step"

    def test_a_healthy_network_is_not_lifted(self) -> None:
        model = mlp(2)
        result, _ = quiet(initopt.nio, model, digits_like(), steps=1, measure_batches=4, seed=0)
        assert all(0.9 < scale < 1.1 for scale in result.scales.values())


def fill(layer: int, bias: float = 0.0, weight: float = 1.0) -> Callable[[nn.Sequential], None]:
    """Multiply the weight of a layer, and set its bias."""

    def kill(layers: nn.Sequential) -> None:
        layers[layer].weight.mul_(weight)
        layers[layer].bias.fill_(bias)

    return kill


WAYS_TO_BE_DEAD: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Sequential], None]]] = {
    "a layer of dead ReLUs": (nn.ReLU, fill(2, bias=-1e7)),
    "the last hidden layer dead": (nn.ReLU, fill(4, bias=-1e7)),
    "a saturated tanh": (nn.Tanh, fill(2, bias=1e4)),
    "a saturated sigmoid": (nn.Sigmoid, fill(0, bias=1e4)),
    "a first weight of zero": (nn.ReLU, fill(0, bias=1.0, weight=0.0)),
    "a middle weight of zero": (nn.ReLU, fill(2, bias=1.0, weight=0.0)),
    "a faint first weight under a bias": (nn.ReLU, fill(0, bias=1.0, weight=1e-9)),
    "a faint middle weight": (nn.ReLU, fill(2, weight=1e-6)),
    "biases that drown the signal": (nn.ReLU, fill(2, bias=1e6)),
    "an exploding layer": (nn.ReLU, fill(2, weight=1e4)),
    "a last weight of zero": (nn.ReLU, fill(6, weight=0.0)),
    "a hard threshold": (lambda: nn.Threshold(1e6, 1.0), fill(2)),
}


def is_deaf(found: Measurement) -> bool:
    return found.output_spread < 1e-3 and found.centred_grad_norm < 0.01 * found.grad_norm


@pytest.mark.heavy
@pytest.mark.parametrize("way", WAYS_TO_BE_DEAD)
def test_nobody_is_left_with_a_deaf_network_without_a_word(way: str) -> None:
    activation, kill = WAYS_TO_BE_DEAD[way]
    model = mlp(3, activation=activation)
    with torch.no_grad():
        kill(model)
    before = values(model)
    result, told = None, []
    with contextlib.suppress(initopt.ZeroGradientError):  # which says it, too
        result, told = quiet(initopt.nio, model, digits_like(), steps=30, measure_batches=4, seed=0)
    if result is None or result.verdict.startswith(("restored", "left alone")):
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    if result is not None and result.verdict.startswith("restored"):
        assert any("initopt.lsuv" in message for message in told)
        assert all(scale == 1 for scale in result.scales.values())
        assert all(torch.equal(value, before[name]) for name, value in result.weights.items())
        assert "Next: look for a layer that is dead" in str(result)
    if result is not None and result.verdict.startswith("improved"):
        assert not is_deaf(result.after)


class TestWhatUncentredStepsDo:
    """The published objective can be had by ignoring the input; then the weights are put back."""

    OPTIONS: ClassVar[dict[str, Any]] = {
        "centre": None,
        "max_grad_norm": 5.0,
        "steps": 100,
        "measure_batches": 4,
        "seed": 0,
    }

    def run(self, **options: Any) -> tuple[nn.Module, dict[str, Tensor], Any, list[str]]:
        model = mlp(20, seed=1)
        before = values(model)
        result, told = quiet(initopt.nio, model, digits_like(), **(self.OPTIONS | options))
        return model, before, result, told

    @pytest.mark.heavy
    def test_the_weights_are_put_back(self) -> None:
        model, before, result, told = self.run()
        assert result.verdict.startswith("restored: the outputs ")
        assert len(told) == 1
        assert "so the weights are as before" in told[0]
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert result.tried_scales is not None
        assert any(scale != 1 for scale in result.tried_scales.values())

    @pytest.mark.heavy
    def test_or_kept_if_wanted(self) -> None:
        model, before, result, told = self.run(on_harm="warn")
        assert result.verdict.startswith("harmed: ")
        assert "kept" in told[0]
        assert not all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert result.tried_scales is None

    @pytest.mark.heavy
    def test_or_an_exception_is_raised(self) -> None:
        model = mlp(20, seed=1)
        before = values(model)
        with pytest.raises(initopt.HarmError, match="the weights are as before"):
            initopt.nio(model, digits_like(), **(self.OPTIONS | {"on_harm": "raise"}))
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.heavy
def test_huge_targets_do_not_bring_all_scales_down() -> None:
    batches = [(x, 200_000 + 1000 * torch.randn(len(x), 1)) for x, _ in digits_like()]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    before = values(model)
    result, told = quiet(initopt.nio, model, batches, nn.MSELoss(), steps=100, measure_batches=4, seed=0)
    assert result.verdict.startswith("restored: ")
    assert told
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def figures(**changes: Any) -> Measurement:
    gram = torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
    found = Measurement.from_grams(
        list(gram), [8.0] * 3, [16.0] * 3, "graph", centred=list(gram), losses=[2.3] * 3, spreads=[0.2] * 3
    )
    return replace(found, **changes)


ALIVE = figures()
GAIN = torch.tensor([1.0, 1.1, 0.9])


class TestJudge:
    def test_a_gain_beyond_noise_is_an_improvement(self) -> None:
        assert judge(ALIVE, ALIVE, None, GAIN, True).word == "improved"

    def test_a_gain_within_noise_leaves_the_network_alone(self) -> None:
        found = judge(ALIVE, ALIVE, None, torch.tensor([1.0, -1.1, 0.3]), True)
        assert (found.word, "nothing to gain" in found.why) == ("left alone", True)

    def test_a_loss_on_the_only_batch_leaves_the_network_alone(self) -> None:
        assert judge(ALIVE, ALIVE, None, torch.tensor([-0.1]), True).word == "left alone"
        assert judge(ALIVE, ALIVE, None, torch.tensor([0.1]), True).word == "improved"

    def test_nothing_to_scale(self) -> None:
        assert judge(ALIVE, ALIVE, None, GAIN, False).why == "no scale has moved"

    def test_a_method_that_minimizes_nothing_is_applied(self) -> None:
        assert judge(ALIVE, ALIVE, None, None, True).word == "applied"

    def test_harm_by_the_methods_own_standard(self) -> None:
        assert judge(ALIVE, ALIVE, "3 of 4 scales stand at their minimum", GAIN, True).word == "harmed"

    @pytest.mark.parametrize("before", [2.3, 0.7])
    def test_a_loss_that_doubles(self, before: float) -> None:
        worse = figures(loss=2.1 * before)
        assert "by more than a factor of 2" in judge(figures(loss=before), worse, None, GAIN, True).why

    def test_a_negative_loss_has_no_factor(self) -> None:
        assert judge(figures(loss=-2.0), figures(loss=-1.0), None, GAIN, True).word == "improved"

    def test_outputs_that_stop_to_listen(self) -> None:
        deaf = figures(output_spread=1e-5, centred_grad_norm=1e-4)
        assert judge(ALIVE, deaf, None, GAIN, True).why.startswith("the outputs no longer depend on the inputs")

    def test_a_large_common_offset_of_the_outputs_is_not_deafness(self) -> None:
        assert judge(ALIVE, figures(output_spread=1e-5), None, GAIN, True).word == "improved"

    def test_deafness_shows_in_the_outputs_where_nothing_was_centred(self) -> None:
        deaf = figures(output_spread=1e-5, centred_grad_norm=math.nan)
        assert judge(ALIVE, deaf, None, GAIN, True).word == "harmed"


class TestTrainedModels:
    def trained(self) -> tuple[nn.Sequential, list[tuple[Tensor, Tensor]]]:
        model, batches = mlp(2), digits_like()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(4):
            for x, y in batches:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        return model, batches

    @pytest.mark.parametrize("method", ["nio", "lsuv", "gradinit"])
    def test_are_refused_before_any_work(self, method: str) -> None:
        model, batches = self.trained()
        before = values(model)
        with pytest.raises(initopt.TrainedModelError, match="looks trained: its loss is .*allow_trained=True"):
            initopt.optimize(model, batches, method=method, steps=1, measure_batches=2)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_are_worked_on_if_that_is_wanted(self) -> None:
        model, batches = self.trained()
        result, _ = quiet(initopt.nio, model, batches, steps=2, measure_batches=2, allow_trained=True)
        assert len(result.history) == 2

    def test_language_models_too(self) -> None:
        class Copy(nn.Module):
            def __init__(self, sure: float) -> None:
                super().__init__()
                self.weight = nn.Parameter(sure * torch.eye(7))

            def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
                logits = self.weight[input_ids]
                return {"logits": logits, "loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten())}

        ids = torch.randint(7, (16, 5))
        batches = [{"input_ids": ids, "labels": ids}] * 3
        with pytest.raises(initopt.TrainedModelError):
            initopt.nio(Copy(8.0), batches, steps=1, measure_batches=1)
        quiet(initopt.nio, Copy(0.1), batches, steps=1, measure_batches=1)


@pytest.mark.heavy
@pytest.mark.parametrize("least", [0.0, 1.0])
def test_scales_that_may_not_fall_or_may_vanish_are_judged_alike(least: float) -> None:
    """At min_scale=1 every scale begins at its minimum, and at 0 one that vanishes is at it."""
    result, _ = quiet(initopt.nio, mlp(3), digits_like(), steps=20, measure_batches=4, seed=0, min_scale=least)
    assert "scales stand at their minimum" not in result.verdict


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown on_harm 'ignore'; known are 'restore', 'warn', 'raise'"):
        initopt.nio(mlp(1), digits_like(), on_harm="ignore")  # type: ignore[arg-type]


def test_without_held_back_batches_nothing_is_judged() -> None:
    result, _ = quiet(initopt.nio, mlp(1), digits_like(), steps=1, measure_batches=0)
    assert result.verdict.startswith("not judged")
    assert "measure_batches=10" in str(result)


class TestSummary:
    def test_tells_the_verdict_the_figures_and_the_next_step_on_a_screen(self) -> None:
        result, _ = quiet(initopt.nio, mlp(6), digits_like(), steps=30, measure_batches=4, seed=0)
        text = str(result)
        assert text.startswith("nio: improved: centred GradCosine ")
        for words in ("before", "after", "moved most:", "left alone:", "a bias", "training steps", "Next: train, but ask"):
            assert words in text
        lines = text.splitlines()
        assert len(lines) <= 24
        assert "initopt.find_lr(model, loader, optimizer)" in text
        assert text.endswith("worth.")

    def test_of_weights_that_were_put_back(self) -> None:
        options = {"centre": None, "steps": 60, "measure_batches": 2, "lr": 0.1, "max_grad_norm": 1e-3}
        result, _ = quiet(initopt.nio, mlp(3), digits_like(), seed=0, **options)
        assert result.verdict.startswith("restored")
        assert "tried, and given up" in str(result)
        assert "find_lr" not in str(result)
        assert "Next: look for a layer that is dead" in str(result)

    @pytest.mark.heavy
    def test_has_a_picture_in_notebooks(self) -> None:
        result, _ = quiet(initopt.nio, mlp(2), digits_like(), steps=2, measure_batches=2, seed=0)
        assert "data:image/png;base64," in result._repr_html_()
        assert result.before._repr_html_().startswith("<pre>")

    def test_survives_storage(self, tmp_path: Any) -> None:
        result, _ = quiet(initopt.nio, mlp(4), digits_like(), steps=5, measure_batches=2, seed=0)
        result.save(tmp_path / "r")
        again = initopt.Result.load(tmp_path / "r")
        assert str(again) == str(result)
        assert torch.equal(again.before.centred_gram, result.before.centred_gram)
