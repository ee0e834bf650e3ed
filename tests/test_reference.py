"""The published implementation's own runs, reproduced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import initopt

FOLDER = Path(__file__).parent / "reference"
CASES = sorted(path.stem for path in FOLDER.glob("*.json"))
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
    minima = {"min_scale": config["min_scale_weight"], "min_bias_scale": config["min_scale_bias"]}
    return {name: config[name] for name in OPTIONS} | minima | {"betas": tuple(config["betas"])}


def test_all_cases_are_there() -> None:
    assert len(CASES) == 6


@pytest.mark.parametrize("case", CASES)
def test_nio_reproduces_the_published_code(case: str) -> None:
    record, model, batches = load(case)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    options = {**initopt.presets.published, **options_of(record["config"])}
    result = initopt.nio(model, batches, measure_steps=0, **options)

    assert len(result.history) == len(record["history"])
    for found, expected in zip(result.history, record["history"], strict=True):
        assert found.constrained == expected["constrained"]
        for name in ("grad_norm", "grad_cosine", "grad_variance"):
            assert getattr(found, name) == pytest.approx(expected[name], rel=1e-8), (found.step, name)
    assert {name: result.scales[name] for name in record["scales"]} == pytest.approx(record["scales"], rel=1e-8)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), start[name] * record["scales"].get(name, 1.0), rtol=1e-8, atol=0)


def test_the_cases_tell_their_options_apart() -> None:
    """Constrained and free steps, batch norm, one sample each, and each objective used is among them."""
    configs = {case: load(case)[0] for case in CASES}
    assert {record["config"]["objective"] for record in configs.values()} == {"gc", "gc_gn", "gc_gn_sqrt", "gv_gn"}
    constrained = [step["constrained"] for step in configs["mlp_gc_gn_sqrt_constrained"]["history"]]
    assert any(constrained)
    assert not all(constrained)
    assert any(r["config"]["num_subbatches"] == r["config"]["batch_size"] for r in configs.values())
