"""Ends of residual branches, found by running models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initopt
from initopt import schemes, zoo
from initopt.schemes.branches import BranchTrace
from tests.helpers import make_batches, make_model, values
from tests.schemes._layouts import LAYOUTS, Block, Classifier, sequences


def ends(model: nn.Module, *inputs: Tensor) -> list[list[str]]:
    """The names of the ends, a list for each branch."""
    names = {id(p): name for name, p in model.named_parameters()}
    with BranchTrace(model) as trace:
        model(*inputs)
    return [[names[id(end.weight)] for end in branch.ends] for branch in trace.branches().found]


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_residual_networks(norm: Any) -> None:
    """Shortcuts that are identities, padded or projections; a norm at the end, or none."""
    images = torch.randn(2, 3, 16, 16)
    last = "second_norm" if norm == "batch" else "second"
    assert ends(zoo.cifar_resnet(8, norm=norm), images) == [[f"{i}.{last}.weight"] for i in (3, 4, 5)]
    assert ends(zoo.wide_resnet(10, 1, norm=norm), images) == [[f"{i}.second.weight"] for i in (1, 2, 3)]


def test_networks_without_branches() -> None:
    images = torch.randn(2, 3, 16, 16)
    assert ends(zoo.vgg(7, width=4), images) == []
    assert ends(zoo.densenet(10), images) == []


@pytest.mark.parametrize("first", [True, False])
def test_layers_of_torch(first: bool) -> None:
    layers = nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 16, norm_first=first, batch_first=True) for _ in range(2)))
    expected = [[f"{i}.{part}.weight"] for i in (0, 1) for part in ("self_attn.out_proj", "linear2")]
    assert ends(layers, torch.randn(2, 3, 8)) == expected


OUTPUTS = {"torch": "out_proj", "timm": "proj", "GPT-2": "c_proj", "Llama": "o_proj", "plain": "attention_output"}


@pytest.mark.parametrize("layout", OUTPUTS)
def test_transformers(layout: str) -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = LAYOUTS["torch"]()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x, x, x)[0]

    attention = First() if layout == "torch" else LAYOUTS[layout]()
    model = Classifier(Block(attention), Block(nn.Linear(16, 16)))
    inner = "inner." if layout == "torch" else ""
    assert ends(model, sequences()[0]) == [
        [f"blocks.0.attention.{inner}{OUTPUTS[layout]}.weight"],
        ["blocks.0.down.weight"],
        ["blocks.1.attention.weight"],
        ["blocks.1.down.weight"],
    ]


def test_positions_are_not_a_branch_and_the_sum_and_norm_may_be_in_the_output_module() -> None:
    model = Classifier(LAYOUTS["BERT"]())
    assert ends(model, sequences()[0]) == [["blocks.0.output.dense.weight"]]
    gpt = zoo.small_gpt(11, 8, depth=1, width=16, heads=2)
    assert ends(gpt, torch.randint(11, (2, 8))) == [["blocks.0.attention_output.weight"], ["blocks.0.perceptron.2.weight"]]


class Own(nn.Module):
    """A block that a function makes out of its layers."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm, self.bare = nn.LayerNorm(4), nn.LayerNorm(4, elementwise_affine=False)
        self.gamma = nn.Parameter(torch.ones(4))
        self.shift = nn.Parameter(torch.zeros(4))
        self.matrix = nn.Parameter(torch.randn(4, 4))
        self.lstm = nn.LSTM(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def squeeze_and_excite(m: Any, x: Tensor) -> Tensor:
    out = m.norm(m.a(x))
    return x + out * torch.sigmoid(m.b(F.relu(m.c(out.mean(0, keepdim=True)))))


def in_place(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.c(x))
    out = m.b(F.relu(m.a(x), inplace=True))
    out += x
    return out


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (in_place, [["b.weight"]]),
        (lambda m, x: m.a(x) + x, [["a.weight"]]),
        (lambda m, x: torch.add(x, F.dropout(m.a(x), 0.1)), [["a.weight"]]),
        (lambda m, x: x + 0.5 * m.a(x), [["a.weight"]]),
        (lambda m, x: x + F.silu(m.a(x)), [["a.weight"]]),
        (squeeze_and_excite, [["norm.weight"]]),
        (lambda m, x: x + m.norm(m.a(x)), [["norm.weight"]]),
        (lambda m, x: x + m.gamma * m.a(x), [["gamma"]]),
        (lambda m, x: x + (m.a(x) * m.gamma + m.shift), [["gamma"]]),
        (lambda m, x: x + m.a(x) + m.b(x), [["a.weight"], ["b.weight"]]),
        (lambda m, x: x + (m.a(x) + m.b(x)), [["a.weight"], ["b.weight"]]),  # attention and perceptron side by side
        (lambda m, x: x - m.a(x), [["a.weight"]]),
        (lambda m, x: x + m.a(x) - m.b(x), [["a.weight"], ["b.weight"]]),
        (lambda m, x: x.sub_(m.a(x)), [["a.weight"]]),
        (lambda m, x: x + torch.cat([m.a(x)[..., :2], m.b(x)[..., :2]], -1), [["a.weight", "b.weight"]]),
        (lambda m, x: x + F.relu(m.a(x)) @ m.matrix, [["matrix"]]),
        (lambda m, x: x + x @ m.matrix.T, [["matrix"]]),
        (lambda m, x: m.c(x) + m.b(F.relu(m.a(x))), [["b.weight"]]),  # a shortcut with a projection
        (lambda m, x: x + m.a(x).transpose(0, 1).contiguous().transpose(0, 1), [["a.weight"]]),
        (lambda m, x: x + m.shift, []),
        (lambda m, x: m.a(x) + m.b(x), []),  # neither is a shortcut
        (lambda m, x: m.a(x) - x, []),  # the stream would turn around
        (lambda m, x: x - m.a(x) + x.mean(), [["a.weight"]]),
        (lambda m, x: m.c(x) - m.b(F.relu(m.a(x))), []),  # two outputs that are compared
        (lambda m, x: 0.5 * x + 0.5 * m.a(x), []),  # an average, and the next ones: not sums with x itself
        (lambda m, x: torch.lerp(x, m.a(x), 0.5), []),
        (lambda m, x: torch.stack([x, m.a(x)]).sum(0), []),
        (lambda m, x: x * 0.5 + x.roll(1, 0), []),
        (lambda m, x: m.a(x) * torch.sigmoid(m.b(x)), []),
    ],
)
def test_sums_of_all_kinds(function: Any, expected: list[list[str]]) -> None:
    assert ends(Own(function), torch.randn(3, 4)) == expected


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m, x: x + m.a(x) * torch.sigmoid(m.b(x)), "it ends in 'mul' of two layers"),
        (lambda m, x: x + torch.sigmoid(m.a(x)), "it ends in 'sigmoid'"),
        (lambda m, x: x + F.relu(m.a(x)), "it ends in 'relu'"),
        (lambda m, x: x + m.bare(m.a(x)), "it ends in 'layer_norm' with no weight"),
        (lambda m, x: x + F.linear(x, m.matrix * 2), "it ends in 'linear' with a weight that is computed from parameters"),
        (lambda m, x: x + m.lstm(x)[0], "it ends in 'lstm' with a weight that is computed from parameters"),
        (lambda m, x: x + (x.cumsum(1) + m.a(x)), "it ends in 'cumsum'"),
        (lambda m, x: x + torch.cat([m.a(x)[..., :2], x[..., :2]], -1), "it has a part that goes around all its layers"),
    ],
)
def test_ends_that_are_not_found_are_said(function: Any, reason: str) -> None:
    """Refused where there are no other branches, and left alone with a warning beside others."""

    def two(m: Any, x: Tensor) -> Tensor:
        x = x + m.c(x)
        return function(m, x)

    batch = torch.randn(3, 4), torch.randint(4, (3,))
    model = Own(two)
    with pytest.warns(
        initopt.InitoptWarning, match=f"zero_branches: left alone, beside .* whose end was not found: .*{reason}"
    ):
        applied = schemes.apply_(model, "zero_branches", batch)
    assert set(applied.set) - {"a.weight", "a.bias"} == {"c.weight", "c.bias"}
    model = Own(function)
    if "cumsum" in reason:
        return
    before = values(model)
    with pytest.raises(ValueError, match=f"found no residual branch in Own: .*the branch is none: {reason}"):
        schemes.apply_(model, "zero_branches", batch)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def signal(model: nn.Module, x: Tensor) -> Tensor:
    return model.eval()(x).detach()


def test_zero_branches_leave_the_shortcuts() -> None:
    """Each block becomes the identity."""
    torch.manual_seed(0)
    model = Classifier(*(Block(LAYOUTS["timm"]()) for _ in range(3)))
    nn.init.normal_(model.blocks[0].down.bias)
    x, y = sequences()
    applied = schemes.apply_(model, "zero_branches", (x, y))
    assert torch.equal(signal(model.blocks, x), x)
    assert len(applied.set) == 12
    assert set(applied.roles.values()) == {"end of a branch"}


def test_zero_branches_of_a_network_with_batch_norm() -> None:
    model = zoo.cifar_resnet(8)
    batch = torch.randn(4, 3, 16, 16), torch.randint(10, (4,))
    state = torch.get_rng_state()
    before = values(model)
    schemes.apply_(model, "zero_branches", batch)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{i}.second_norm.weight" for i in (3, 4, 5)}
    assert torch.equal(torch.get_rng_state(), state) is False  # a seed of its own was drawn
    assert model.training


def test_scaled_branches() -> None:
    """1 / sqrt(2 L) in L layers, in double precision, and of the bias too."""
    model = Classifier(*(Block(LAYOUTS["GPT-2"]()) for _ in range(4))).double()
    before = values(model)
    batch = sequences()[0].double(), sequences()[1]
    applied = schemes.apply_(model, "scaled_branches", batch)
    ends = ("attention.c_proj.weight", "attention.c_proj.bias", "down.weight", "down.bias")
    assert set(applied.set) == {f"blocks.{i}.{end}" for i in range(4) for end in ends}
    for name, value in model.state_dict().items():
        factor = 8**-0.5 if name in applied.set else 1.0
        torch.testing.assert_close(value, factor * before[name], rtol=1e-15, atol=0)
    schemes.apply_(model, schemes.ScaledBranches(scale=8**0.5), batch)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name])
    with pytest.raises(ValueError, match="scale must be a number above 0; got 0"):
        schemes.ScaledBranches(scale=0)


def test_a_sum_that_grows_with_depth_does_not_with_scaled_branches() -> None:
    """Linear branches of variance 1: the stream has variance 1 + N without, and about e with them, for any N."""
    torch.manual_seed(0)

    class Stream(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(256, 256, bias=False) for _ in range(depth))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + layer(x)
            return x

    for depth in (4, 16, 64):
        model = Stream(depth)
        schemes.apply_(model, "kaiming_normal", nonlinearity="linear", seed=0)
        x = torch.randn(64, 256)
        schemes.apply_(model, "scaled_branches", (x, torch.randint(3, (64,))))
        expected = (1 + 1 / depth) ** depth
        assert float(model(x).detach().var()) == pytest.approx(expected, rel=0.15)


def test_what_may_stand_behind_an_end() -> None:
    """Behind ReLU, a layer that is 0 would have no gradient; behind tanh, a scale is not one of the branch."""
    batch = torch.randn(3, 4), torch.randint(4, (3,))

    def function(m: Any, x: Tensor) -> Tensor:
        x = x + F.relu(m.a(x))
        return x + torch.tanh(m.b(x))

    for scheme, expected in (("zero_branches", "b.weight"), ("scaled_branches", "a.weight")):
        model = Own(function)
        with pytest.warns(initopt.InitoptWarning, match="beside 1 residual branches?, 1 whose end was not found"):
            assert list(schemes.apply_(model, scheme, batch).roles) == [expected]


def test_refusals() -> None:
    model = make_model()
    before = values(model)
    with pytest.raises(
        ValueError, match="scheme 'zero_branches' found no residual branch in Sequential: it looks for sums"
    ):
        schemes.apply_(model, "zero_branches", make_batches(1)[0])
    frozen = Classifier(Block(nn.Linear(16, 16)))
    frozen.blocks.requires_grad_(False)
    with pytest.raises(ValueError, match="found residual branches, but the weights at their ends are frozen or left out"):
        schemes.apply_(frozen, "scaled_branches", sequences())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_frozen_ends_are_left() -> None:
    model = Classifier(Block(nn.Linear(16, 16)), Block(nn.Linear(16, 16)))
    model.blocks[0].requires_grad_(False)
    applied = schemes.apply_(model, "zero_branches", sequences())
    assert set(applied.roles) == {"blocks.1.attention.weight", "blocks.1.down.weight"}
