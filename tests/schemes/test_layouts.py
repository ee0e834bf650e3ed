"""Orders of the outputs of one layer for queries, keys and values, told apart by running it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import initopt
from initopt import schemes
from tests.helpers import values
from tests.schemes._layouts import Block, Classifier, Fused, GPT2Attention, attend, sequences

ORDERS: dict[str, Any] = {
    "q k v": lambda x: x.chunk(3, -1),
    "k q v": lambda x: [x.chunk(3, -1)[i] for i in (1, 0, 2)],  # the same start: all is drawn alike
    "by heads": lambda x: x.unflatten(-1, (4, 3, 4)).transpose(-3, -2).flatten(-2).unbind(-2),
    "by two heads": lambda x: x.unflatten(-1, (2, 3, 8)).transpose(-3, -2).flatten(-2).unbind(-2),
    "heads last": lambda x: x.unflatten(-1, (3, 4, 4)).transpose(-2, -1).flatten(-2).unbind(-2),
    "by features": lambda x: x.unflatten(-1, (16, 3)).unbind(-1),
    "q v k": lambda x: [x.chunk(3, -1)[i] for i in (0, 2, 1)],
    "v q k": lambda x: [x.chunk(3, -1)[i] for i in (1, 2, 0)],
    "CodeGen": lambda x: [x.unflatten(-1, (4, 3, 4)).transpose(-3, -2).flatten(-2).unbind(-2)[i] for i in (0, 2, 1)],
}


class Ordered(nn.Module):
    """Fused attention whose outputs have an order of their own."""

    def __init__(self, order: str = "q k v", heads: int = 4) -> None:
        super().__init__()
        self.order, self.num_heads = order, heads
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(attend(*ORDERS[self.order](self.qkv(x)), self.num_heads))


class Grouped(nn.Module):
    """Four heads of queries and two of keys, each for two neighbours, or for every second one."""

    def __init__(self, tiled: bool = False) -> None:
        super().__init__()
        self.tiled, self.num_heads, self.num_kv_heads = tiled, 4, 2
        self.qkv, self.proj = nn.Linear(16, 32), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split([16, 8, 8], -1)
        k, v = (each.repeat(1, 1, 2) if self.tiled else each for each in (k, v))
        return self.proj(attend(q, k, v, 4))


class Talking(nn.Module):
    """Heads that mix scores, and norms over all of them, which change where one head does."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.q_ln, self.k_ln = nn.LayerNorm(16), nn.RMSNorm(16)
        self.before, self.after = nn.Linear(4, 4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k, v = (each.unflatten(-1, (4, 4)).transpose(1, 2) for each in (self.q_ln(q), self.k_ln(k), v))
        scores = self.before((q @ k.transpose(-1, -2)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.proj((self.after(scores.softmax(-1)) @ v).transpose(1, 2).flatten(2))


class Rich(nn.Module):
    """The usual order with all that heads may have beside; it returns its scores and its keys, too."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.q_norm, self.k_norm = nn.LayerNorm(4), nn.LayerNorm(4)
        self.rel_pos, self.relative_position_bias = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(4, 5, 5))
        self.dropout = nn.Dropout(0.5)
        for parameter in (self.qkv.bias, self.q_norm.bias, self.k_norm.bias):
            nn.init.normal_(parameter)

    def forward(self, x: Tensor, cache: list[Tensor]) -> Any:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        q, k = self._turned(self.q_norm(q)), self._turned(self.k_norm(k))
        cache.append(k)
        k, v = torch.cat(cache, -2), v.repeat(1, 1, len(cache), 1)
        scores = q @ k.transpose(-1, -2) + (q @ self.rel_pos.T) + self.relative_position_bias
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        weights = self.dropout(scores.softmax(-1))
        return {"scores": scores.exp(), "context": self.proj((weights @ v).transpose(1, 2).flatten(2)), "keys": k}

    @staticmethod
    def _turned(x: Tensor) -> Tensor:
        angle = torch.arange(5.0)[:, None]
        a, b = x.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


class Called(nn.Module):
    """A module whose attention a function calls."""

    def __init__(self, inner: nn.Module, function: Any) -> None:
        super().__init__()
        self.inner, self.function = inner, function
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.inner, x).mean(1))


RIGHT: dict[str, Any] = {
    "plain": lambda: Classifier(Block(Ordered())),
    "keys first": lambda: Classifier(Block(Ordered("k q v"))),
    "one head": lambda: Classifier(Block(Ordered(heads=1))),
    "half": lambda: Classifier(Block(Ordered())).bfloat16(),
    "GPT-2": lambda: Classifier(Block(GPT2Attention())),
    "all in the block": lambda: Classifier(Fused()),
    "grouped": lambda: Classifier(Block(Grouped())),
    "talking": lambda: Classifier(Block(Talking())),
    "rich": lambda: Called(Rich(), lambda inner, x: inner(x, cache=[])["context"]),
    "no residual": lambda: Called(Ordered(), lambda inner, x: inner(x)),
    "torch": lambda: Called(nn.MultiheadAttention(16, 4, batch_first=True), lambda inner, x: inner(x, x, x)[0]),
}


def zero_ends(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        if "proj" in name:
            nn.init.zeros_(parameter)
    return model


@pytest.mark.parametrize("name", RIGHT)
def test_the_usual_order_is_set_as_without_a_batch(name: str) -> None:
    """Whatever heads have beside it, and from weights that are 0; with the same draws."""
    model = zero_ends(RIGHT[name]())
    x, y = sequences()
    batch = x.to(next(model.parameters()).dtype), y
    before, state = values(model), model.training
    applied = schemes.apply_(model, "mimetic", batch, seed=0)
    assert len(applied.roles) == 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if name not in applied.set)
    with_batch = values(model)
    schemes.apply_(model, "mimetic", seed=0)
    assert all(torch.equal(value, with_batch[name]) for name, value in model.state_dict().items())
    assert model.training == state


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Ordered("by heads"), "queries matter where the keys are 0"),
        (lambda: Ordered("by two heads", heads=2), "scores of head 0 matter for the values of others"),
        (lambda: Ordered("by features"), "queries matter where the keys are 0"),
        (lambda: Ordered("heads last"), "scores of head 0 matter for the values of others"),
        (lambda: Ordered("q v k"), "where the keys are 0, values do not matter, as in attention without softmax"),
        (lambda: Ordered("v q k"), "where the keys are 0, values do not matter"),
        (lambda: Ordered("CodeGen"), "queries matter where the keys are 0"),
        (lambda: Grouped(tiled=True), "queries of others belong to the keys of head 0"),
    ],
)
def test_other_orders_are_left_alone(make: Any, reason: str) -> None:
    model = Classifier(Block(make()), Block(Ordered()))
    before = values(model)
    message = f"'blocks.0.attention': its fused projection is not ordered as queries, keys, values: as it runs, {reason}"
    with pytest.warns(initopt.InitoptWarning, match=message):
        applied = schemes.apply_(model, "mimetic", sequences(), seed=0)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert (
        changed == set(applied.set) == {f"blocks.1.attention.{x}.{y}" for x in ("qkv", "proj") for y in ("weight", "bias")}
    )
    alone = Classifier(Block(make()))
    with pytest.raises(ValueError, match=f"found no self-attention in Classifier. .*{message}"):
        schemes.apply_(alone, "mimetic", sequences(), seed=0)


class Linear(Ordered):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        return self.proj((q @ (k.transpose(-1, -2) @ v)).transpose(1, 2).flatten(2))


class Stubborn(Ordered):
    """Does not run on copies of its inputs, or twice."""

    seen = False

    def forward(self, x: Tensor) -> Tensor:
        if self.seen:
            raise RuntimeError("once is enough")
        self.seen = True
        return super().forward(x)


def unseen(inner: Any, x: Tensor) -> Tensor:
    return inner.proj(attend(*inner.qkv(x).chunk(3, -1), 4))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Called(Linear(), lambda inner, x: inner(x)), "values do not matter, as in attention without softmax"),
        (
            Called(Ordered(), lambda inner, x: inner(x[:, :1])),
            "does not depend on what should be queries, as with one token",
        ),
        (
            Called(Ordered(), unseen),
            "its forward method does not run on the batch, so that the order of its fused projection",
        ),
        (Called(Stubborn(), lambda inner, x: inner(x)), "could not be tried: RuntimeError: once is enough"),
        (
            Called(Ordered(), lambda inner, x: x @ x),
            "could not be tried on the batch: RuntimeError: Expected size for first",
        ),
    ],
)
def test_what_cannot_be_tried_is_left_alone(model: nn.Module, reason: str) -> None:
    before = values(model)
    with pytest.raises(ValueError, match=f"found no self-attention in Called. .*{reason}"):
        schemes.apply_(model, "mimetic", sequences(), seed=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_few_samples_are_tried_or_all_where_a_model_needs_them() -> None:
    sizes: list[int] = []

    def of_one_size(inner: Any, x: Tensor) -> Tensor:
        sizes.append(len(x))
        return inner(x.view(20, 5, 16))

    batch = sequences(20)
    assert "inner.qkv.weight" in schemes.apply_(Called(Ordered(), of_one_size), "mimetic", batch, seed=0).set
    assert sizes == [8, 20]
    sizes.clear()
    seen = Called(Ordered(), lambda inner, x: [sizes.append(len(x)), inner(x)][1])
    assert "inner.qkv.weight" in schemes.apply_(seen, "mimetic", batch, seed=0).set
    assert sizes == [8]


def test_fewer_heads_of_keys_have_to_be_stated() -> None:
    """Values that are larger than keys, as in EfficientFormer, look like fewer heads of keys."""
    layer = Fused()
    layer.qkv, layer.proj = nn.Linear(16, 32), nn.Linear(16, 16)
    with pytest.raises(
        ValueError, match="4 heads of 4 do not make its 32 queries, keys and values, and it states no other"
    ):
        schemes.apply_(layer, "mimetic", seed=0)
    layer.num_kv_heads = 2
    assert "qkv.weight" in schemes.apply_(layer, "mimetic", seed=0).set
    layer.qkv = nn.Linear(16, 24)
    del layer.num_kv_heads
    layer.multi_query = True
    assert "qkv.weight" in schemes.apply_(layer, "mimetic", seed=0).set


@pytest.mark.parametrize(
    ("sign", "reason"),
    [
        ({"mp_num": 4}, "CodeGen has queries, values and keys in several blocks"),
        ({"multi_query": False}, "without multi_query, GPTBigCode has the three of each head together"),
        ({"slope_rate": 0.5}, "lightning attention has the three of each head together"),
        ({"pos_att_type": []}, "DeBERTa has the three of each head together"),
    ],
)
def test_orders_of_transformers_are_known_without_a_batch(sign: dict[str, Any], reason: str) -> None:
    layer = Fused()
    vars(layer).update(sign)
    with pytest.raises(ValueError, match=f"its fused projection is not ordered as queries, keys, values: {reason}"):
        schemes.apply_(layer, "mimetic", seed=0)
