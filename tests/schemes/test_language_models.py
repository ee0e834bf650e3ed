"""Deviations of the starts of language models against their formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from initopt import schemes, zoo
from initopt.schemes import GPT2, LlamaDepth, SmallInit
from initopt.schemes.branches import BranchTrace
from tests.schemes._layouts import Block, Classifier, GPT2Attention, sequences

WIDTH, DEPTH, WORDS = 96, 3, 500


def next_word(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


def language_model(tied: bool = True) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = zoo.small_gpt(WORDS, 64, depth=DEPTH, width=WIDTH, heads=4).double()
    if not tied:
        model.head.weight = nn.Parameter(model.tokens.weight.detach().clone())
    return model, (torch.randint(WORDS, (2, 8)), torch.randint(WORDS, (2, 8)))


def deviations(model: nn.Module) -> dict[str, float]:
    return {name: float(p.detach().std(correction=0)) for name, p in model.named_parameters() if p.ndim > 1}


def check(model: nn.Module, expected: dict[str, float]) -> None:
    found = deviations(model)
    assert set(found) == set(expected)
    for name, deviation in expected.items():
        count = dict(model.named_parameters())[name].numel()
        assert found[name] == pytest.approx(deviation, rel=5 / math.sqrt(2 * count)), name


def expectation(matrix: float, ends: list[float], tokens: float, positions: float) -> dict[str, float]:
    expected = {"tokens.weight": tokens, "positions.weight": positions}
    for layer in range(DEPTH):
        name = f"blocks.{layer}"
        expected |= {f"{name}.queries_keys_values.weight": matrix, f"{name}.perceptron.0.weight": matrix}
        expected |= {f"{name}.attention_output.weight": ends[layer], f"{name}.perceptron.2.weight": ends[layer]}
    return expected


def test_gpt2() -> None:
    model, batch = language_model()
    applied = schemes.apply_(model, "gpt2", batch, next_word, seed=0)
    end = 0.02 / math.sqrt(2 * DEPTH)
    check(model, expectation(0.02, DEPTH * [end], 0.02, 0.01))
    assert not any(p.detach().any() for name, p in model.named_parameters() if name.endswith("bias"))
    assert applied.roles["tokens.weight"] == "embedding"
    assert {name for name in applied.left if "norm" not in name} == set()
    schemes.apply_(model, GPT2(std=0.1, position_std=0.02), batch, next_word, seed=0)
    check(model, expectation(0.1, DEPTH * [5 * end], 0.1, 0.02))


CUT = math.sqrt(1 - 6 * math.exp(-4.5) / math.sqrt(2 * math.pi) / math.erf(3 / math.sqrt(2)))
"""Deviation of a normal distribution of deviation 1 that is cut off at 3."""


def test_llama_depth() -> None:
    model, batch = language_model(tied=False)
    schemes.apply_(model, "llama_depth", batch, next_word, seed=0)
    ends = [CUT * 0.02 / math.sqrt(2 * (layer + 1)) for layer in range(DEPTH)]
    check(model, expectation(CUT * 0.02, ends, 1.0, 1.0) | {"head.weight": CUT * WIDTH**-0.5})
    for name, p in model.named_parameters():
        if name.endswith("queries_keys_values.weight"):
            assert 0.05 < float(p.detach().abs().max()) <= 0.06
    tied, batch = language_model()
    schemes.apply_(tied, "llama_depth", batch, next_word, seed=0)
    assert deviations(tied)["tokens.weight"] == pytest.approx(WIDTH**-0.5, rel=0.02)
    schemes.apply_(model, LlamaDepth(embedding_std=0.5), batch, next_word, seed=0)
    assert deviations(model)["tokens.weight"] == pytest.approx(0.5, rel=0.02)


def test_small_init() -> None:
    model, batch = language_model()
    schemes.apply_(model, "small_init", batch, next_word, seed=0)
    small, wang = math.sqrt(2 / (5 * WIDTH)), 2 / (DEPTH * math.sqrt(WIDTH))
    check(model, expectation(small, DEPTH * [wang], small, small))


def test_the_width_of_a_transposed_layer_and_a_padding_row() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(50, 16, padding_idx=3)
            self.body = Classifier(Block(GPT2Attention()))

        def forward(self, words: Tensor) -> Tensor:
            return self.body(self.words(words))

    model = Words()
    batch = torch.randint(50, (4, 5)), torch.randint(3, (4,))
    schemes.apply_(model, SmallInit(), batch, seed=0)
    found = deviations(model)
    assert found["body.blocks.0.attention.c_attn.weight"] == pytest.approx(math.sqrt(2 / 80), rel=0.15)
    assert found["body.blocks.0.attention.c_proj.weight"] == pytest.approx(2 / 4, rel=0.2)
    assert not model.words.weight.detach()[3].any()


class Gated(nn.Module):
    """The perceptron of Llama, or one whose gate and up are one layer."""

    def __init__(self, fused: bool = False, activation: Any = F.silu) -> None:
        super().__init__()
        self.fused, self.activation = fused, activation
        self.w1, self.w2, self.w3 = nn.Linear(64, 128 + 128 * fused), nn.Linear(128, 64), nn.Linear(64, 128)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w1(x).chunk(2, -1) if self.fused else (self.w1(x), self.w3(x))
        return self.w2(F.dropout(self.activation(gate) * up, 0.1))


def of_width_64(*layers: nn.Module) -> tuple[nn.Module, Any]:
    """A residual network of vectors, and a batch for it."""
    return Classifier(*(Residual(layer) for layer in layers), width=64), sequences(width=64)


class Residual(nn.Module):
    """A layer in a branch."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


@pytest.mark.parametrize("activation", [F.silu, F.gelu, torch.sigmoid, F.relu])
def test_llama_depth_makes_the_matrix_beside_a_gate_as_small_as_the_end(activation: Any) -> None:
    """As ``w3`` in OLMo-core and torchtitan; the gate ``w1`` is an ordinary matrix."""
    model, batch = of_width_64(*(layer for _ in range(2) for layer in (nn.Linear(64, 64), Gated(activation=activation))))
    applied = schemes.apply_(model, "llama_depth", batch, seed=0)
    found = deviations(model)
    for layer in range(2):
        end = CUT * 0.02 / math.sqrt(2 * (layer + 1))
        for name, expected in (("w1", CUT * 0.02), ("w2", end), ("w3", end)):
            assert found[f"blocks.{2 * layer + 1}.layer.{name}.weight"] == pytest.approx(expected, rel=0.04), name
    assert applied.roles["blocks.1.layer.w3.weight"] == "beside a gate"
    schemes.apply_(model, "gpt2", batch, seed=0)
    assert deviations(model)["blocks.1.layer.w3.weight"] == pytest.approx(0.02, rel=0.04)


def test_llama_depth_leaves_what_is_not_beside_a_gate() -> None:
    """One layer for both, which would have two deviations, and a product without a nonlinearity."""
    for layer in (Gated(fused=True), Gated(activation=lambda x: x)):
        model, batch = of_width_64(layer)
        applied = schemes.apply_(model, "llama_depth", batch, seed=0)
        assert "beside a gate" not in applied.roles.values()
        assert deviations(model)["blocks.0.layer.w1.weight"] == pytest.approx(CUT * 0.02, rel=0.04)


class Scaled(nn.Module):
    """A perceptron with a learned scale of any shape, or ending in a parameter of shape (in, out)."""

    def __init__(self, shape: tuple[int, ...] | None) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)
        self.alpha = None if shape is None else nn.Parameter(torch.ones(shape))
        self.matrix = nn.Parameter(torch.randn(256, 64))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.up(x))
        return hidden @ self.matrix if self.alpha is None else self.alpha * self.down(hidden)


@pytest.mark.parametrize("shape", [(), (1,), (64,), (1, 1, 64), (1, 5, 1), None])
def test_the_width_is_that_of_the_stream_whatever_ends_a_branch(shape: tuple[int, ...] | None) -> None:
    model, batch = of_width_64(Scaled(shape))
    schemes.apply_(model, "small_init", batch, seed=0)
    assert deviations(model)["blocks.0.layer.up.weight"] == pytest.approx(math.sqrt(2 / (5 * 64)), rel=0.04)
    schemes.apply_(model, "llama_depth", batch, seed=0)
    assert deviations(model)["head.weight"] == pytest.approx(CUT * 64**-0.5, rel=0.15)


def permuted(x: Tensor, layer: nn.Module) -> Tensor:
    return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("layer", "function", "shape"),
    [
        (nn.Conv2d(8, 8, 3, padding=1), lambda x, layer: layer(x), (2, 8, 5, 6)),
        (nn.Conv1d(8, 8, 3, padding=1), lambda x, layer: layer(x), (2, 8, 5)),
        (nn.ConvTranspose2d(8, 8, 3, padding=1), lambda x, layer: layer(x), (2, 8, 5, 6)),
        (nn.Linear(8, 8), lambda x, layer: layer(x), (2, 5, 6, 8)),
        (nn.Linear(8, 8), permuted, (2, 8, 5, 6)),  # ConvNeXt
        (nn.Linear(8, 4), lambda x, layer: torch.cat([layer(x), layer(x)], -1), (2, 5, 8)),
        (nn.Conv2d(2, 2, 1), lambda x, layer: layer(x.view(3, 2, 2, 2)).flatten(1), (3, 8)),
        (nn.Conv2d(8, 4, 1), lambda x, layer: torch.cat([layer(x), layer(x)], 1), (2, 8, 5, 6)),
    ],
)
def test_the_width_of_images_sequences_and_vectors(layer: nn.Module, function: Any, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    with BranchTrace(layer) as trace:
        x + function(x, layer)
    assert [branch.width for branch in trace.branches().found] == [8]


def test_norms_and_learned_scales_at_the_end_of_a_branch_are_left() -> None:
    model = zoo.cifar_resnet(8)
    batch = torch.randn(2, 3, 16, 16), torch.randint(10, (2,))
    applied = schemes.apply_(model, "gpt2", batch, seed=0)
    assert "3.second_norm.weight" in applied.left
    assert "end of a branch" not in applied.roles.values()


@pytest.mark.parametrize("name", ["gpt2", "llama_depth", "small_init"])
def test_seeds(name: str) -> None:
    model = Classifier(Block(nn.Linear(16, 16)))
    schemes.apply_(model, name, sequences(), seed=1)
    first = [p.detach().clone() for p in model.parameters()]
    schemes.apply_(model, name, sequences(), seed=1)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), first, strict=True))
    schemes.apply_(model, name, sequences(), seed=2)
    assert not torch.equal(model.head.weight, first[-2])


def test_bad_options() -> None:
    for make, message in (
        (lambda: GPT2(std=0), "std must be a number above 0; got 0"),
        (lambda: GPT2(position_std=-1), "position_std must be a number above 0; got -1"),
        (lambda: LlamaDepth(embedding_std=math.inf), "embedding_std must be a finite number above 0; got inf"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
