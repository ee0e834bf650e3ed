"""Mimetic initialization against the formulas of the paper, and the projections that it finds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import initopt
from initopt import schemes, zoo
from initopt.schemes import Mimetic
from initopt.schemes.attention import find_attention
from tests.helpers import values
from tests.schemes._layouts import LAYOUTS, BertAttention, Block, Classifier, Fused, LlamaAttention, sequences


def projections(attention: nn.Module) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W_q, W_k, W_v and W_o of a module, each from inputs (rows) to outputs (columns), as its library has them."""
    named = {name: p.detach().double() for name, p in attention.named_parameters()}
    if "in_proj_weight" in named:
        return (*(w.T for w in named["in_proj_weight"].chunk(3)), named["out_proj.weight"].T)
    if "c_attn.weight" in named:
        return (*named["c_attn.weight"].chunk(3, 1), named["c_proj.weight"])
    if "self.query.weight" in named:
        inner = (named[f"self.{x}.weight"].T for x in ("query", "key", "value"))
        return (*inner, named["output.dense.weight"].T)
    if "q_proj.weight" in named:
        return tuple(named[f"{x}_proj.weight"].T for x in "qkvo")
    fused = next(w for name, w in named.items() if name in ("qkv.weight", "queries_keys_values.weight"))
    output = next(w for name, w in named.items() if name in ("proj.weight", "attention_output.weight"))
    return (*(w.T for w in fused.chunk(3)), output.T)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_noise_the_products_are_identities_of_the_rank_of_a_head(layout: str) -> None:
    """alpha = 0: W_q W_k^T is beta I on as many directions as a head has features, and W_v W_o is beta I whole."""
    attention = LAYOUTS[layout]().double()
    schemes.apply_(attention, Mimetic(query_key=(0, 0.7), value_output=(0, -0.4)), seed=0)
    q, k, v, o = projections(attention)
    together = q.shape[1] // k.shape[1]
    for head in range(4):
        product = q[:, 4 * head :][:, :4] @ k[:, head // together * 4 :][:, :4].T
        torch.testing.assert_close(product @ product, 0.7 * product, atol=1e-12, rtol=0)
        assert torch.linalg.matrix_rank(product) == 4
    if together == 1:
        torch.testing.assert_close(v @ o, -0.4 * torch.eye(16).double(), atol=1e-12, rtol=0)
    biases = [p for name, p in attention.named_parameters() if "bias" in name and "Norm" not in name]
    assert not any(bias.detach().any() for bias in biases)


def test_one_head_has_the_whole_product_with_its_noise() -> None:
    """With as many features in a head as the stream is wide, the products are alpha Z + beta I exactly."""
    width = 256
    attention = nn.MultiheadAttention(width, 1, dtype=torch.float64)
    schemes.apply_(attention, "mimetic", seed=3)
    q, k, v, o = projections(attention)
    for product, alpha, beta in ((q @ k.T, 0.7, 0.7), (v @ o, 0.4, -0.4)):
        noise = (product - beta * torch.eye(width).double()) / alpha * width**0.5
        assert float(noise.std()) == pytest.approx(1, rel=0.02)
        assert abs(float(noise.mean())) < 5 / width
        assert float(product.diagonal().mean()) == pytest.approx(beta, abs=5 * alpha / width)
    # The factors share the singular values.
    for left, right in ((q, k.T), (v, o)):
        torch.testing.assert_close(left.T @ left, right @ right.T, atol=1e-10, rtol=0)


def test_a_head_has_the_nearest_product_of_its_rank() -> None:
    """The leading singular values of alpha Z + beta I, as the product is drawn first of all from the seed."""
    attention = Fused(width=32, heads=4).double()
    schemes.apply_(attention, "mimetic", seed=5)
    q, k, _, _ = projections(attention)
    noise = torch.randn(32, 32, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    product = 0.7 * noise / 32**0.5 + 0.7 * torch.eye(32).double()
    u, s, vt = torch.linalg.svd(product)
    torch.testing.assert_close(q[:, :8] @ k[:, :8].T, (u[:, :8] * s[:8]) @ vt[:8], atol=1e-10, rtol=0)


def test_heads_that_share_a_key_have_queries_of_their_own() -> None:
    attention = LlamaAttention(width=16, heads=4, key_heads=2, size=4).double()
    schemes.apply_(attention, "mimetic", seed=0)
    q, k, v, o = projections(attention)
    assert (q.shape, k.shape) == ((16, 16), (16, 8))
    first, second = (q[:, 4 * h :][:, :4] @ k[:, :4].T for h in (0, 1))
    assert float((first - second).norm()) > 0.3 * float(first.norm())
    for product in (first, second):  # each the best for its key: what is left is beyond the key's directions
        assert float(product.trace()) > 0.5 * 0.7 * 4
    whole = v.unflatten(1, (2, 4)).repeat_interleave(2, 1).flatten(1) @ o
    assert torch.linalg.matrix_rank(whole) == 8
    assert float(whole.trace()) < -0.25 * 8


def test_more_features_in_the_heads_than_the_stream_is_wide() -> None:
    attention = LlamaAttention(width=16, heads=4, key_heads=4, size=8).double()
    schemes.apply_(attention, Mimetic(value_output=(0, 0.4)), seed=0)
    _, _, v, o = projections(attention)
    torch.testing.assert_close(v @ o, 0.4 * torch.eye(16).double(), atol=1e-12, rtol=0)


def test_what_else_is_left_and_the_seed_decides() -> None:
    model = zoo.small_vit(16, 4, depth=2, width=32, heads=2)
    before = values(model)
    applied = schemes.apply_(model, "mimetic", seed=1)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    parts = ("queries_keys_values", "attention_output")
    assert changed == {f"blocks.{i}.{part}.{kind}" for i in (0, 1) for part in parts for kind in ("weight", "bias")}
    assert set(applied.set) == changed
    assert applied.roles["blocks.1.attention_output.weight"] == "output of attention"
    once = values(model)
    schemes.apply_(model, "mimetic", seed=1)
    assert all(torch.equal(value, once[name]) for name, value in model.state_dict().items())
    schemes.apply_(model, "mimetic", seed=2)
    name = "blocks.0.queries_keys_values.weight"
    assert not torch.equal(model.state_dict()[name], once[name])


def test_positions() -> None:
    model = zoo.small_vit(16, 4, depth=1, width=32, heads=2)  # a grid of 4 x 4 after a class token
    schemes.apply_(model, Mimetic(positions="sinusoidal_2d"), seed=0)
    table = model.positions.detach()[0]
    assert not table[0].any()
    gram = table[1:] @ table[1:].T
    torch.testing.assert_close(gram.diagonal(), torch.full((16,), 16.0))  # sin^2 + cos^2 for each of 16 pairs
    corner, right, below, far = gram[0, 0], gram[0, 1], gram[0, 4], gram[0, 15]
    assert corner > right > far
    torch.testing.assert_close(right, below)
    schemes.apply_(model, "mimetic", positions="sinusoidal", seed=0)
    table = model.positions.detach()[0].double()
    torch.testing.assert_close(table[3, 0], torch.tensor(3.0).double().sin(), atol=1e-6, rtol=0)
    torch.testing.assert_close(table[3, 5], (3 / torch.tensor(10000.0).double() ** (4 / 32)).cos(), atol=1e-6, rtol=0)
    gpt = zoo.small_gpt(11, 8, depth=1, width=16, heads=2)
    assert "positions.weight" in schemes.apply_(gpt, Mimetic(positions="sinusoidal")).set
    with pytest.raises(ValueError, match="needs a square grid.*'positions.weight' has 8 positions of width 16"):
        schemes.apply_(gpt, Mimetic(positions="sinusoidal_2d"))
    with pytest.raises(ValueError, match="MultiheadAttention has none that trains and is named like one"):
        schemes.apply_(nn.MultiheadAttention(8, 2), Mimetic(positions="sinusoidal"))


def test_attention_between_two_sequences_is_left() -> None:
    layer = nn.TransformerDecoderLayer(16, 4)
    applied = schemes.apply_(layer, "mimetic", seed=0)
    assert "self_attn.in_proj_weight" in applied.set
    assert not any(name.startswith("multihead_attn") for name in applied.set)


def test_layers_of_torch_and_layers_that_are_wrapped() -> None:
    layer = nn.TransformerEncoderLayer(16, 4)
    assert [a.name for a in find_attention(layer)[0]] == ["self_attn"]
    wrapped = Fused(qkv="to_qkv", proj="to_out", attribute="heads")
    wrapped.to_out = nn.Sequential(nn.Linear(16, 16), nn.Dropout())
    (found,), refused = find_attention(wrapped)
    assert (found.heads, found.output.weight is wrapped.to_out[0].weight, refused) == (4, True, {})


def heads_first() -> nn.Module:
    return Fused(qkv="query_key_value", proj="dense")


def convolutional() -> nn.Module:
    module = Fused()
    module.qkv = nn.Conv2d(16, 48, 1)
    return module


def without_output() -> nn.Module:
    module = Fused()
    del module.proj
    return module


def by_its_account() -> nn.Module:
    module = LlamaAttention()
    module.config = SimpleNamespace(num_attention_heads=4, num_key_value_heads=1)
    return module


def unequal() -> nn.Module:
    module = LlamaAttention()
    module.v_proj = nn.Linear(16, 12)
    module.k_proj = nn.Linear(16, 4)
    return module


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(3, 3), "found no self-attention in Linear. It knows nn.MultiheadAttention, and modules"),
        (heads_first, "query_key_value has the three of each head together in most libraries"),
        (convolutional, "'qkv' is no linear layer, but of the type Conv2d"),
        (without_output, "it has no linear layer named like an output"),
        (lambda: Fused(attribute=""), "it does not say how many heads it has"),
        (lambda: Fused(width=18, heads=4), "4 heads of 4 do not make the 18 inputs of its output layer"),
        (by_its_account, "it has 1 heads of keys by its own account, and 2 by its shapes"),
        (unequal, "query, key and value have 16, 4 and 12 outputs"),
        (lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=6), "its keys and values have widths 4 and 6, its queries 8"),
    ],
)
def test_what_cannot_be_made_out_is_refused_with_words(make: Any, message: str) -> None:
    model = make()
    before = values(model)
    with pytest.raises(ValueError, match=message):
        schemes.apply_(model, "mimetic", seed=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_frozen_attention_is_left_with_a_warning_beside_others() -> None:
    model = Classifier(Block(Fused()), Block(BertAttention()))
    model.blocks[0].requires_grad_(False)
    with pytest.warns(initopt.InitoptWarning, match="left attention alone.*'blocks.0.attention': some of its weights are"):
        applied = schemes.apply_(model, "mimetic", seed=0)
    assert "blocks.1.attention.self.query.weight" in applied.set
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    with pytest.raises(ValueError, match="some of its weights are frozen, parametrized or left out by params"):
        schemes.apply_(model, "mimetic", sequences(), seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query_key": 0.7}, r"query_key must be a pair of alpha and beta, such as \(0.7, 0.7\); got 0.7"),
        ({"query_key": (-1, 0.7)}, "alpha of query_key must be a number 0 or more; got -1"),
        ({"value_output": (0.4, "x")}, "beta of value_output must be a number; got 'x'"),
        ({"positions": "2d"}, "unknown positions '2d'; known are 'keep', 'sinusoidal', 'sinusoidal_2d'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mimetic(**options)
