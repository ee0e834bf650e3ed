"""Small networks that are sick, each with one sickness or two, and the rules that have to name them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SICK: dict[str, Case] = {}


@dataclass
class Sick:
    """A network, what it is fed, and how it is to be trained."""

    model: nn.Module
    batches: list[Any]
    loss_fn: Any = None
    optimizer: Any = None


@dataclass(frozen=True)
class Case:
    """A sick network and the codes of the rules that have to name it, some of which may be notes."""

    make: Callable[[], Sick]
    named: frozenset[str]


def sick(*codes: str) -> Callable[[Callable[[], Sick]], Callable[[], Sick]]:
    def decorate(make: Callable[[], Sick]) -> Callable[[], Sick]:
        SICK[make.__name__] = Case(make, frozenset(codes))
        return make

    return decorate


def labelled(inputs: int = 16, classes: int = 4, size: int = 32, count: int = 4) -> list[Any]:
    """Batches whose labels can be learned."""
    generator = torch.Generator().manual_seed(1)
    true = torch.randn(inputs, classes, generator=generator)
    xs = [torch.randn(size, inputs, generator=generator) for _ in range(count)]
    return [(x, (x @ true).argmax(1)) for x in xs]


def mlp(depth: int = 4, width: int = 32, inputs: int = 16, classes: int = 4, activation: Any = nn.ReLU) -> nn.Sequential:
    sizes = [inputs, *[width] * (depth - 1)]
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


def linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def drawn(model: nn.Module, gain: float) -> nn.Module:
    """Weights of a gain, and no biases."""
    for layer in linears(model):
        nn.init.normal_(layer.weight, std=gain / layer.in_features**0.5)
        nn.init.zeros_(layer.bias)
    return model


def tokens(vocabulary: int = 20, length: int = 12, size: int = 16) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    return [(lambda t: (t[:, :-1], t[:, 1:]))(torch.randint(vocabulary, (size, length + 1), generator=generator))
            for _ in range(4)]  # fmt: skip


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# Memory, copies, scales


@sick("W101")
def a_weight_that_is_nan() -> Sick:
    model = mlp()
    model[2].weight.data[0, 0] = torch.nan
    return Sick(model, labelled())


@sick("W101")
def a_buffer_that_is_infinite() -> Sick:
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    model[1].running_var.fill_(torch.inf)
    return Sick(model, labelled())


@sick("W102")
def a_head_of_denormals() -> Sick:
    model = mlp()
    model[6].weight.data.copy_(torch.randn(4, 32) * 1e-39)
    return Sick(model, labelled())


@sick("W102")
def a_head_beyond_all_bounds() -> Sick:
    model = mlp()
    model[6].weight.data[1, 3:6] = 4e18
    return Sick(model, labelled())


@sick("W102")
def a_layer_of_old_memory() -> Sick:
    model = mlp()
    bits = torch.randint(-(2**31), 2**31 - 1, (32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.int64)
    model[2].weight.data.copy_(torch.nan_to_num(bits.to(torch.int32).view(torch.float32), 0.0, 1e38, -1e38))
    return Sick(model, labelled())


@sick("W103")
def encoder_layers_that_are_copies() -> Sick:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    model = nn.Sequential(nn.Embedding(20, 16), encoder, nn.Linear(16, 20))
    return Sick(model, tokens())


@sick("W103")
def blocks_that_are_copies() -> Sick:
    block = nn.Sequential(nn.Linear(32, 32), nn.ReLU())
    return Sick(nn.Sequential(nn.Linear(16, 32), *(copy.deepcopy(block) for _ in range(3)), nn.Linear(32, 4)), labelled())


@sick("W103")
def experts_that_are_copies() -> Sick:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            expert = nn.Linear(16, 8)
            self.experts = nn.ModuleList(copy.deepcopy(expert) for _ in range(4))
            self.router = nn.Linear(16, 4)
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            shares = self.router(x).softmax(-1)
            return self.head(sum(shares[:, i : i + 1] * expert(x).relu() for i, expert in enumerate(self.experts)))

    return Sick(Experts(), labelled())


@sick("W104")
def stacked_experts_that_are_copies() -> Sick:
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.Parameter(torch.randn(1, 16, 8).div(4).repeat(4, 1, 1))
            self.router = nn.Linear(16, 4)
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            mixed = torch.einsum("bi,eio,be->bo", x, self.experts, self.router(x).softmax(-1))
            return self.head(mixed.relu())

    return Sick(Stacked(), labelled())


@sick("W104")
def heads_that_are_copies() -> Sick:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    model[0].weight.data.copy_(torch.randn(8, 16).div(4).repeat(4, 1))
    return Sick(model, labelled())


@sick("W105")
def new_tokens_that_are_equal() -> Sick:
    embedding = nn.Embedding(24, 16)
    nn.init.normal_(embedding.weight, std=0.3)
    embedding.weight.data[20:] = embedding.weight.data[:20].mean(0)
    return Sick(nn.Sequential(embedding, nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 24)), tokens())


@sick("W105")
def rows_that_are_all_equal() -> Sick:
    model = mlp()
    model[2].weight.data.copy_(torch.randn(1, 32).div(5).expand(32, 32))
    return Sick(model, labelled())


@sick("W106")
def weights_of_one_number() -> Sick:
    model = mlp()
    nn.init.constant_(model[2].weight, 0.1)
    return Sick(model, labelled())


class LowRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(16, 16)
        self.lora_A = nn.Linear(16, 2, bias=False)
        self.lora_B = nn.Linear(2, 16, bias=False)
        nn.init.zeros_(self.lora_A.weight)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora_B(self.lora_A(x))


@sick("W107")
def a_low_rank_pair_of_zeros() -> Sick:
    return Sick(nn.Sequential(LowRank(), nn.ReLU(), nn.Linear(16, 4)), labelled())


@sick("G305")
def two_zeros_in_a_row() -> Sick:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(16, 16, bias=False)
            self.other = nn.Linear(16, 16, bias=False)
            nn.init.zeros_(self.one.weight)
            nn.init.zeros_(self.other.weight)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.other(self.one(x).relu())

    return Sick(nn.Sequential(Branch(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), labelled())


@sick("W108")
def weights_of_unit_variance() -> Sick:
    model = mlp(width=256)
    for layer in linears(model)[1:-1]:
        nn.init.normal_(layer.weight)
    return Sick(model, labelled())


@sick("W108")
def weights_far_too_small() -> Sick:
    model = mlp()
    for layer in linears(model)[:-1]:
        nn.init.normal_(layer.weight, std=1e-4)
    return Sick(model, labelled())


@sick("W109")
def a_tied_embedding_of_unit_variance() -> Sick:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(20, 64)
            self.norm = nn.LayerNorm(64)
            self.head = nn.Linear(64, 20, bias=False)
            self.head.weight = self.tokens.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.tokens(x)))

    return Sick(Tied(), tokens())


class Language(nn.Module):
    """With the methods that transformers has."""

    config = SimpleNamespace(tie_word_embeddings=True)

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 16)
        self.head = nn.Linear(16, 20, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def get_input_embeddings(self) -> nn.Module:
        return self.tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tokens(x))


@sick("W110")
def a_head_that_should_be_tied() -> Sick:
    return Sick(Language(), tokens())


@sick("W110")
def a_tie_that_a_copy_undid() -> Sick:
    model = Language()
    model.config = SimpleNamespace(tie_word_embeddings=False)
    model.head.weight = nn.Parameter(model.tokens.weight.detach().clone())
    return Sick(model, tokens())


@sick("W111")
def a_head_too_large_for_its_backbone() -> Sick:
    model = drawn(mlp(6), 0.4)
    nn.init.normal_(linears(model)[-1].weight, std=0.85)
    return Sick(model, labelled())


@sick("W114")
def norms_that_were_drawn_at_random() -> Sick:
    model = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 32), nn.LayerNorm(32), nn.ReLU(),
                          nn.Linear(32, 4))  # fmt: skip
    for module in model:
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, std=0.3)
    return Sick(model, labelled())


@sick("W115")
def a_norm_of_one_channel() -> Sick:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.squeeze, self.norm, self.excite = nn.Linear(16, 1), nn.LayerNorm(1), nn.Linear(1, 16)
            self.rest = mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(x * self.excite(self.norm(self.squeeze(x))).sigmoid())

    return Sick(Gated(), labelled())


# Signals


@sick("A201")
def relus_that_are_dead() -> Sick:
    model = mlp()
    model[2].bias.data[:28] = -10.0
    return Sick(model, labelled())


@sick("A201")
def functional_relus_that_are_dead() -> Sick:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 16, 3)
            self.second = nn.Linear(16, 4)
            self.first.bias.data[:12] = -10.0

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.relu(self.first(x)).mean((2, 3)))

    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(16, 3, 8, 8, generator=generator), torch.arange(16).remainder(4)[torch.randperm(16)]) for _ in range(4)
    ]
    return Sick(Net(), batches)


@sick("A202")
def tanhs_that_are_saturated() -> Sick:
    model = drawn(mlp(3, activation=nn.Tanh), 4.5)
    linears(model)[-1].reset_parameters()
    return Sick(model, labelled())


@sick("A202")
def sigmoids_that_are_saturated() -> Sick:
    model = mlp(3, activation=nn.Sigmoid)
    model[0].bias.data.fill_(8.0)
    return Sick(model, labelled())


@sick("A203", "G301")
def a_signal_that_explodes() -> Sick:
    return Sick(drawn(mlp(14), 3.0), labelled())


@sick("A204")
def a_signal_that_vanishes() -> Sick:
    return Sick(mlp(24, activation=nn.Tanh), labelled())


@sick("A205")
def a_head_that_is_all_bias() -> Sick:
    model = mlp()
    model[6].weight.data.mul_(1e-6)
    return Sick(model, labelled())


class Attention(nn.Module):
    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16, bias=False) for _ in range(3))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return x + F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2)


@sick("A206", "G305")
def attention_that_is_uniform() -> Sick:
    attention = Attention()
    nn.init.zeros_(attention.q.weight)
    nn.init.zeros_(attention.k.weight)
    return Sick(nn.Sequential(nn.Embedding(20, 16), attention, nn.Linear(16, 20)), tokens())


@sick("A207")
def attention_to_one_position() -> Sick:
    return Sick(nn.Sequential(nn.Embedding(500, 16), Attention(scale=60.0), nn.Linear(16, 500)), tokens(500))


@sick("A208")
def logits_that_are_too_sure() -> Sick:
    return Sick(nn.Sequential(mlp(3), Apply(lambda x: 40 * x)), labelled())


@sick("A210")
def a_logarithm_of_a_negative_number() -> Sick:
    return Sick(nn.Sequential(nn.Linear(16, 32), Apply(torch.log), nn.Linear(32, 4)), labelled())


@sick("A211")
def half_precision_near_its_end() -> Sick:
    model = nn.Sequential(nn.Linear(16, 32), Apply(lambda x: 2e4 * x), Apply(lambda x: x / 2e4), nn.Linear(32, 4)).half()
    return Sick(model, [(x.half(), y) for x, y in labelled()])


@sick("A212")
def a_rank_that_collapsed() -> Sick:
    class Averaging(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(1, keepdim=True).expand_as(x) * 5

    model = nn.Sequential(nn.Linear(16, 32), Averaging(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))
    return Sick(model, labelled())


# Gradients


def backward_factor(factor: float) -> nn.Module:
    return Apply(lambda x: factor * x + (1 - factor) * x.detach())


@sick("G301")
def a_gradient_that_explodes() -> Sick:
    model = drawn(mlp(8), 1.4)
    return Sick(nn.Sequential(*(m for layer in model for m in (layer, backward_factor(2.5)))), labelled())


@sick("G302")
def a_gradient_that_vanishes() -> Sick:
    model = drawn(mlp(8), 1.4)
    return Sick(nn.Sequential(*(m for layer in model for m in (layer, backward_factor(0.3)))), labelled())


@sick("G303")
def a_layer_that_nothing_uses() -> Sick:
    class Forgotten(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.pooler, self.head = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.used(x).relu())

    return Sick(Forgotten(), labelled())


class Routed(nn.Module):
    """Experts of which a router chooses, by shares that may be lost on the way."""

    def __init__(self, shares: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.router = nn.Linear(16, 2, bias=False)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.head = nn.Linear(16, 4)
        self.shares = shares

    def forward(self, x: Tensor) -> Tensor:
        shares = self.shares(self.router(x))
        return self.head(sum(shares[:, i : i + 1] * expert(x).relu() for i, expert in enumerate(self.experts)))


@sick("G304")
def a_router_by_argmax() -> Sick:
    return Sick(Routed(lambda logits: F.one_hot(logits.argmax(-1), 2).float()), labelled())


@sick("G304")
def a_backbone_that_is_detached() -> Sick:
    return Sick(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), Apply(Tensor.detach), nn.Linear(32, 4)), labelled())


@sick("G307")
def a_router_that_hardly_gets_a_gradient() -> Sick:
    return Sick(Routed(lambda logits: 0.5 + 1e-8 * logits.tanh()), labelled())


class Gain(nn.Module):
    """A residual branch behind a gain that starts small."""

    def __init__(self, inner: nn.Module, size: int = 16, gain: float = 1e-5) -> None:
        super().__init__()
        self.inner, self.gain = inner, nn.Parameter(torch.full((size,), gain))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.inner(x)


@sick("G307")
def a_router_that_hardly_gets_a_gradient_among_small_gains() -> Sick:
    routed = Routed(lambda logits: 0.5 + 1e-8 * logits.tanh())
    return Sick(nn.Sequential(*(Gain(nn.Linear(16, 16)) for _ in range(2)), routed), labelled())


@sick("G302")
def a_gradient_that_vanishes_among_small_gains() -> Sick:
    model = drawn(mlp(8), 1.4)
    layers = [m for layer in model for m in (layer, backward_factor(0.3))]
    layers.insert(4, Gain(drawn(nn.Sequential(nn.Linear(32, 32)), 1.4), 32))
    return Sick(nn.Sequential(*layers), labelled())


@sick("G308")
def one_tensor_with_all_the_gradient() -> Sick:
    class Loud(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loud = nn.Linear(16, 16, bias=False)
            self.loud.weight.data.mul_(0.1)
            self.rest = mlp(4, inputs=16)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.loud.weight
            return self.rest(x + F.linear(x, 100 * weight - 99.5 * weight.detach()))

    return Sick(Loud(), labelled())


@sick("G309")
def a_gradient_of_class_frequencies() -> Sick:
    generator = torch.Generator().manual_seed(1)
    shares = torch.tensor([0.47, 0.3, 0.1, 0.13])
    batches = [
        (torch.randn(64, 16, generator=generator), torch.multinomial(shares, 64, True, generator=generator))
        for _ in range(4)
    ]
    return Sick(nn.Sequential(mlp(3, classes=32), nn.LayerNorm(32), Apply(lambda x: 0.01 * x), nn.Linear(32, 4)), batches)


@sick("G311")
def half_precision_that_underflows() -> Sick:
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4)).half()
    return Sick(model, [(x.half(), y) for x, y in labelled(size=64)], lambda m, b: 1e-3 * F.cross_entropy(m(b[0]), b[1]))


@sick("G312")
def a_root_of_zero() -> Sick:
    return Sick(
        nn.Sequential(nn.Linear(16, 32), nn.ReLU(), Apply(lambda x: x + (0 * x).sqrt()), nn.Linear(32, 4)), labelled()
    )


# Data


@sick("D401")
def bytes_as_inputs() -> Sick:
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randint(256, (32, 16), generator=generator).float(), y) for _, y in labelled()]
    return Sick(mlp(), batches)


@sick("D401")
def features_of_different_size() -> Sick:
    scales = torch.logspace(-3, 3, 16)
    return Sick(mlp(), [(x * scales, y) for x, y in labelled()])


@sick("D402")
def labels_that_count_from_one() -> Sick:
    return Sick(mlp(), [(x, y + 1) for x, y in labelled()])


@sick("D402")
def binary_targets_of_255() -> Sick:
    batches = [(x, 255.0 * (y[:, None] > 1).float()) for x, y in labelled()]
    return Sick(mlp(classes=1), batches, nn.BCEWithLogitsLoss())


@sick("D403")
def labels_that_are_all_the_same() -> Sick:
    return Sick(mlp(), [(x, torch.zeros_like(y)) for x, y in labelled()])


@sick("D404")
def targets_with_a_large_mean() -> Sick:
    batches = [(x, 1000 + x[:, :1]) for x, _ in labelled()]
    return Sick(mlp(classes=1), batches, nn.MSELoss())


@sick("D405")
def workers_that_draw_alike() -> Sick:
    return Sick(mlp(), [labelled()[0]] * 4)


@sick("D406")
def samples_in_the_order_of_classes() -> Sick:
    batches = [(x[y.argsort()], y.sort().values) for x, y in labelled()]
    return Sick(mlp(), batches)


@sick("D407")
def a_softmax_before_cross_entropy() -> Sick:
    return Sick(nn.Sequential(mlp(), nn.Softmax(1)), labelled())


@sick("D407")
def logits_before_nll() -> Sick:
    return Sick(mlp(), labelled(), nn.NLLLoss())


@sick("D408")
def classes_that_are_imbalanced() -> Sick:
    generator = torch.Generator().manual_seed(1)
    batches = [(x, (torch.rand(len(x), generator=generator) > 0.9).long()) for x, _ in labelled()]
    return Sick(mlp(classes=2), batches)


@sick("D408")
def binary_targets_that_are_rare() -> Sick:
    generator = torch.Generator().manual_seed(1)
    batches = [(x, (torch.rand(len(x), 1, generator=generator) > 0.95).float()) for x, _ in labelled()]
    return Sick(mlp(classes=1), batches, nn.BCEWithLogitsLoss())


@sick("D409")
def an_input_that_is_missing() -> Sick:
    batches = labelled()
    batches[0][0][3, 2] = torch.nan
    return Sick(mlp(), batches)


@sick("D410")
def inputs_that_are_all_the_same() -> Sick:
    return Sick(mlp(), [(torch.ones_like(x), y) for x, y in labelled()])


# Optimizer and state


@sick("O501")
def a_learning_rate_far_too_large() -> Sick:
    return Sick(mlp(), labelled(), optimizer=functools.partial(torch.optim.Adam, lr=1.0))


@sick("O502")
def steps_that_rounding_eats() -> Sick:
    batches = [(x.bfloat16(), y) for x, y in labelled()]
    return Sick(mlp().bfloat16(), batches, optimizer=functools.partial(torch.optim.SGD, lr=1e-6))


@sick("O503")
def an_optimizer_without_the_new_head() -> Sick:
    model = mlp()
    optimizer = torch.optim.AdamW(model[:6].parameters(), lr=1e-3)
    return Sick(model, labelled(), optimizer=optimizer)


@sick("S605")
def a_batch_norm_frozen_with_nothing() -> Sick:
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    model[1].eval()
    return Sick(model, labelled())
