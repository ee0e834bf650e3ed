"""The published implementation's own runs, reproduced."""

from __future__ import annotations

import dataclasses
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import initopt
from initopt import presets
from initopt.methods import NIO

FOLDER = Path(__file__).parents[1] / "reference"
ALL = sorted(path.stem for path in FOLDER.glob("*.json"))
RIVALS = [case for case in ALL if case.startswith(("gradinit", "metainit"))]
CASES = [case for case in ALL if case not in RIVALS]
OBJECTIVES = {"gc": "cosine", "gc_gn": "cosine+sqnorm", "gc_gn_sqrt": "cosine+norm", "gv_gn": "variance+sqnorm"}
OPTIONS = (
    "num_subbatches",
    "overlap",
    "objective",
    "max_grad_norm",
    "norm_weight",
    "lr",
    "eps",
    "scale_grad_clip",
    "steps",
)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


def convolutional(norms: bool) -> nn.Module:
    layers: list[nn.Module] = []
    for channels, width, options in ((3, 6, {"padding": 1}), (6, 8, {"stride": 2})):
        layers.append(nn.Conv2d(channels, width, 3, bias=not norms, **options))
        layers += [nn.BatchNorm2d(width)] if norms else []
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4))


MODELS = {
    "mlp": lambda: nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 5)),
    "conv": lambda: convolutional(norms=False),
    "convbn": lambda: convolutional(norms=True),
    "resln": lambda: nn.Sequential(nn.Linear(10, 16), Residual(), Residual(), nn.LayerNorm(16), nn.Linear(16, 6)),
}


def load(case: str) -> tuple[dict[str, Any], nn.Module, list[tuple[Tensor, Tensor]]]:
    record = json.loads((FOLDER / f"{case}.json").read_text(encoding="utf-8"))
    tensors = load_file(FOLDER / f"{case}.safetensors")
    model = MODELS[record["config"]["model"]]().double()
    parameters = dict(model.named_parameters())
    assert {f"param.{name}" for name in parameters} == {name for name in tensors if name.startswith("param.")}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"param.{name}"])
    return record, model, list(zip(tensors["inputs"], tensors["targets"], strict=True))


def options_of(config: dict[str, Any]) -> dict[str, Any]:
    """The preset that is nearest to the configuration of a run, and what that run was told beside it."""
    config = config | {"objective": OBJECTIVES[config["objective"]], "betas": tuple(config["betas"])}
    config |= {"min_scale": config["min_scale_weight"], "min_bias_scale": config["min_scale_bias"]}
    given = {name: config[name] for name in (*OPTIONS, "betas", "min_scale", "min_bias_scale")}
    defaults = {field.name: field.default for field in dataclasses.fields(NIO)}
    preset = presets.published_class_defaults if config["objective"] == "cosine" else presets.published
    told = {name: value for name, value in given.items() if {**defaults, **preset}[name] != value}
    assert set(told) <= {"steps", "num_subbatches", "overlap", "objective", "norm_weight", "lr", "max_grad_norm"}
    return preset | told


def test_all_cases_are_there() -> None:
    assert len(CASES) == 6
    assert len(RIVALS) == 3


@pytest.mark.parametrize("case", CASES)
def test_nio_reproduces_the_published_code(case: str) -> None:
    record, model, batches = load(case)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    result = initopt.nio(model, batches, measure_batches=0, **options_of(record["config"]))

    assert len(result.history) == len(record["history"])
    for found, expected in zip(result.history, record["history"], strict=True):
        assert found.constrained == expected["constrained"]
        for name in ("grad_norm", "grad_cosine", "grad_variance"):
            assert getattr(found, name) == pytest.approx(expected[name], rel=1e-8), (found.step, name)
    assert {name: result.scales[name] for name in record["scales"]} == pytest.approx(record["scales"], rel=1e-8)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), start[name] * record["scales"].get(name, 1.0), rtol=1e-8, atol=0)


def rival_options_of(config: dict[str, Any]) -> dict[str, Any]:
    own = ("eta", "optimizer", "normalize_grad", "fresh_second_batch", "max_grad_norm")
    shared = ("lr", "eps", "scale_grad_clip", "steps")
    names = (*shared, *own) if config["method"] == "gradinit" else shared
    minima = {"min_scale": config["min_scale_weight"], "min_bias_scale": config["min_scale_bias"]}
    norms = {"norms": "fused"} if config["method"] == "metainit" else {}
    return {name: config[name] for name in names} | minima | norms | {"betas": tuple(config["betas"])}


@pytest.mark.parametrize("case", RIVALS)
def test_gradinit_and_metainit_reproduce_the_published_code(case: str) -> None:
    record, model, batches = load(case)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    method = getattr(initopt, record["config"]["method"])
    result = method(model, batches, measure_batches=0, **rival_options_of(record["config"]))
    assert {name: result.scales[name] for name in record["scales"]} == pytest.approx(record["scales"], rel=1e-11)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), start[name] * record["scales"][name], rtol=1e-11, atol=0)


def published_gradinit(model: nn.Module, batches: list[Any], config: dict[str, Any]) -> dict[str, float]:
    """The published code's steps, a tensor at a time, for what the stored cases do not have."""
    parameters = dict(model.named_parameters())
    adam, eta = config["optimizer"] == "adam", config["eta"]
    state = {name: {"alpha": 1.0, "objective": 0.0, "constraint": 0.0, "square": 0.0} for name in parameters}
    counts = {"objective": 0, "constraint": 0}
    stream = iter(batches)

    def join(*parts: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([x for x, _ in parts]), torch.cat([t for _, t in parts])

    for _ in range(config["steps"]):
        first, other = next(stream), next(stream)
        inputs, targets = join(first, other)
        gradients = torch.autograd.grad(
            F.cross_entropy(model(inputs), targets), list(parameters.values()), create_graph=True
        )
        norm = sum(g.abs().sum() for g in gradients) if adam else sum(g.square().sum() for g in gradients).sqrt()
        kind = "constraint" if norm > config["max_grad_norm"] else "objective"
        if kind == "constraint":
            slopes = torch.autograd.grad(norm, list(parameters.values()))
        else:
            third = next(stream)
            inputs, targets = join(next(stream) if config["fresh_second_batch"] else first, third)
            moved = {}
            for (name, p), g in zip(parameters.items(), gradients, strict=True):
                u = g.sign() if adam else g / norm if config["normalize_grad"] else g
                moved[name] = p - eta * u.detach()
            loss = F.cross_entropy(torch.func.functional_call(model, moved, (inputs,)), targets)
            slopes = torch.autograd.grad(loss / eta, list(parameters.values()))
        counts[kind] += 1
        for (name, p), slope in zip(parameters.items(), slopes, strict=True):
            if not p.detach().any():
                continue
            own = state[name]
            s = float((slope * p.detach()).sum()) / own["alpha"]
            s = max(-config["scale_grad_clip"], min(config["scale_grad_clip"], s))
            own[kind] = 0.9 * own[kind] + 0.1 * s
            own["square"] = 0.999 * own["square"] + 0.001 * s**2
            moment = own[kind] / (1 - 0.9 ** counts[kind])
            square = own["square"] / (1 - 0.999 ** sum(counts.values()))
            alpha = own["alpha"] - config["lr"] * moment / (square**0.5 + config["eps"])
            least = config["min_scale_bias" if "bias" in name else "min_scale_weight"]
            alpha = max(alpha, least)
            with torch.no_grad():
                p.mul_(alpha / own["alpha"])
            own["alpha"] = alpha
    return {name: own["alpha"] for name, own in state.items()}


OTHER_OPTIONS = [("sgd", False, True), ("adam", True, False)]
"""Optimizer, ``normalize`` and fresh batches, so that each value of one occurs; all eight are slow."""


@pytest.mark.parametrize(
    ("optimizer", "normalize", "fresh"),
    [
        pytest.param(*options, marks=() if options in OTHER_OPTIONS else pytest.mark.heavy)
        for options in product(("sgd", "adam"), (False, True), (False, True))
    ],
)
@pytest.mark.parametrize("name", MODELS)
def test_gradinit_with_other_options(name: str, optimizer: str, normalize: bool, fresh: bool) -> None:
    """Models, options and mixtures of steps that the stored cases do not have."""
    shape = {"mlp": (12,), "resln": (10,)}.get(name, (3, 8, 8))
    generator = torch.Generator().manual_seed(4)
    batches = [
        (torch.randn(6, *shape, generator=generator).double(), torch.randint(4, (6,), generator=generator))
        for _ in range(48)
    ]
    config = load("gradinit_sgd_mlp")[0]["config"] | {
        "optimizer": optimizer, "normalize_grad": normalize, "fresh_second_batch": fresh, "steps": 12, "max_grad_norm": 1e9,
    }  # fmt: skip
    norms = []
    for bound in (1e9, None):  # the second time, a bound that some steps exceed and some do not
        torch.manual_seed(3)
        model, other = MODELS[name]().double(), MODELS[name]().double()
        other.load_state_dict(model.state_dict())
        config["max_grad_norm"] = bound or sorted(norms)[len(norms) // 2]
        result = initopt.gradinit(model, batches, measure_batches=0, **rival_options_of(config))
        assert result.scales == pytest.approx(published_gradinit(other, batches, config), rel=1e-10)
        norms = [step.grad_norm for step in result.history]
    assert len({step.constrained for step in result.history}) == 2


def published_metainit(model: nn.Module, batches: list[Any], config: dict[str, Any]) -> dict[str, float]:
    parameters = dict(model.named_parameters())
    state = {name: [1.0, 0.0, 0.0] for name in parameters}
    for step, (inputs, targets) in enumerate(batches[: config["steps"]]):
        values = list(parameters.values())
        gradients = torch.autograd.grad(F.cross_entropy(model(inputs), targets), values, create_graph=True)
        products = torch.autograd.grad(sum(g.square().sum() / 2 for g in gradients), values, create_graph=True)
        terms = []
        for g, p in zip(gradients, products, strict=True):
            sign = 2 * (g >= 0).float() - 1  # and so its product with the epsilon is in single precision, too
            terms.append(((g - p) / (g + 1e-5 * sign) - 1).abs().sum())
        quotient = sum(terms) / sum(p.numel() for p in values)
        for (name, p), slope in zip(parameters.items(), torch.autograd.grad(quotient, values), strict=True):
            alpha, moment, square = state[name]
            s = max(-1.0, min(1.0, float((slope * p.detach()).sum()) / alpha))
            moment, square = 0.9 * moment + 0.1 * s, 0.999 * square + 0.001 * s**2
            change = moment / (1 - 0.9 ** (step + 1)) / ((square / (1 - 0.999 ** (step + 1))) ** 0.5 + config["eps"])
            new = max(alpha - config["lr"] * change, 0.0 if "bias" in name else 0.01)
            with torch.no_grad():
                p.mul_(new / alpha)
            state[name] = [new, moment, square]
    return {name: values[0] for name, values in state.items()}


@pytest.mark.parametrize("name", MODELS)
def test_metainit_on_other_models(name: str) -> None:
    shape = {"mlp": (12,), "resln": (10,)}.get(name, (3, 8, 8))
    generator = torch.Generator().manual_seed(4)
    batches = [
        (torch.randn(12, *shape, generator=generator).double(), torch.randint(4, (12,), generator=generator))
        for _ in range(12)
    ]
    torch.manual_seed(3)
    model, other = MODELS[name]().double(), MODELS[name]().double()
    other.load_state_dict(model.state_dict())
    config = load("metainit_mlp")[0]["config"]
    result = initopt.metainit(model, batches, measure_batches=0, **rival_options_of(config))
    assert result.scales == pytest.approx(published_metainit(other, batches, config), rel=1e-9)


def test_the_cases_tell_their_options_apart() -> None:
    """Constrained and free steps, batch norm, one sample each, and each objective used is among them."""
    configs = {case: load(case)[0] for case in CASES}
    assert {record["config"]["objective"] for record in configs.values()} == {"gc", "gc_gn", "gc_gn_sqrt", "gv_gn"}
    constrained = [step["constrained"] for step in configs["mlp_gc_gn_sqrt_constrained"]["history"]]
    assert any(constrained)
    assert not all(constrained)
    assert any(r["config"]["num_subbatches"] == r["config"]["batch_size"] for r in configs.values())


class TestPresets:
    def test_published_is_the_configuration_of_the_imagenet_run(self) -> None:
        """What `configs/mmcls/resnet_gradcos_init/resnet50_gc_gn.py` of the published code has, with nothing to add."""
        found = NIO(**presets.published)
        assert (found.lr, found.max_grad_norm, found.num_subbatches, found.overlap) == (0.003, 10.0, 4, 0.2)
        assert (found.steps, found.objective, found.norm_weight, found.centre) == (100, "cosine+norm", 1.0, None)

    def test_defaults_of_the_published_class(self) -> None:
        found = NIO(**presets.published_class_defaults)
        assert (found.lr, found.max_grad_norm, found.num_subbatches, found.overlap) == (0.05, 5.0, 2, 0.0)
        assert (found.steps, found.objective) == (100, "cosine")

    def test_both_split_normalize_and_choose_tensors_alike(self) -> None:
        shared = presets.published.keys() - {"lr", "max_grad_norm", "num_subbatches", "overlap", "objective"}
        assert all(presets.published[name] == presets.published_class_defaults[name] for name in shared)
