"""An engine chosen by itself goes over to another one where it must, and says so; one chosen by name does not."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import initopt
from initopt._support._torch_messages import missing_derivative
from initopt._support.devices import free_memory
from initopt.engines.auto import Need
from initopt.engines.per_subbatch import GraphEngine
from tests.engines import _memory
from tests.engines._tanh import TanhOnce
from tests.helpers import make_batches, make_model


class Bag(nn.Module):
    """A network over an embedding bag, which has no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(11, 6, mode="mean")
        self.head = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.bag(tokens))


def bag() -> nn.Module:
    torch.manual_seed(0)
    return Bag().double()


def bag_batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randint(11, (16, 5)), torch.randint(3, (16,))) for _ in range(6)]


def quick(model: nn.Module, batches: Any, **options: Any) -> initopt.Result:
    return initopt.nio(model, batches, **{"steps": 4, "measure_batches": 0, "lr": 0.05, **options})


def test_auto_goes_over_to_differences_and_names_the_operator() -> None:
    with pytest.warns(UserWarning, match="_embedding_bag_backward has no second derivative") as caught:
        result = quick(bag(), bag_batches())
    assert len(caught) == 1
    assert result.engine == "differences"
    assert result.engine_reason == "_embedding_bag_backward has no second derivative"
    assert result.scales == quick(bag(), bag_batches(), engine="differences").scales


def test_exact_stays_exact_and_says_what_to_try() -> None:
    model = bag()
    before = model.bag.weight.clone()
    with pytest.raises(NotImplementedError, match="_embedding_bag_backward") as caught:
        quick(model, bag_batches(), engine="exact")
    assert any('engine="auto" or "differences" does without' in note for note in caught.value.__notes__)
    assert torch.equal(model.bag.weight, before)


def test_differences_agree_with_the_exact_engine_over_a_run() -> None:
    exact = quick(make_model().double(), _double(make_batches()))
    near = quick(make_model().double(), _double(make_batches()), engine="differences")
    assert exact.engine == "graph"
    assert _that_matter(near.scales) == pytest.approx(_that_matter(exact.scales), rel=1e-6)


def _that_matter(scales: dict[str, float]) -> dict[str, float]:
    """All but that of a bias before a batch norm: its derivative is rounding error, of which Adam makes whole steps."""
    return {name.removeprefix("_orig_mod."): scale for name, scale in scales.items() if not name.endswith("0.bias")}


def _double(batches: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return [(inputs.double(), targets) for inputs, targets in batches]


@pytest.mark.heavy
def test_a_run_out_of_memory_goes_over_to_recompute(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = quick(make_model(), make_batches(), engine="recompute")

    def out_of_memory(self: GraphEngine, batch: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate too much")

    monkeypatch.setattr(GraphEngine, "_evaluation", out_of_memory)
    with pytest.warns(UserWarning, match="did not fit into memory, so they are recomputed"):
        result = quick(make_model(), make_batches())
    assert result.engine == "recompute"
    assert result.scales == expected.scales
    with pytest.raises(torch.OutOfMemoryError):
        quick(make_model(), make_batches(), engine="graph")


def test_many_sub_batches_are_run_together() -> None:
    together = quick(make_model().double(), _double(make_batches()), num_subbatches=8)
    apart = quick(make_model().double(), _double(make_batches()), num_subbatches=8, engine="plain")
    assert together.engine == "groups"
    assert _that_matter(together.scales) == pytest.approx(_that_matter(apart.scales), rel=1e-9)


def test_many_sub_batches_of_a_model_beyond_that_are_run_apart() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.PReLU(), nn.Bilinear(8, 8, 3)).double()
    model.forward = lambda x: model[2](model[1](model[0](x)), model[0](x))  # type: ignore[method-assign]
    message = r"the 8 sub-batches are run one by one .*'2\.weight' is used in bilinear.*Use fewer sub-batches, or engine="
    with pytest.warns(UserWarning, match=message) as caught:
        result = quick(model, _double(make_batches()), num_subbatches=8, measure_batches=0)
    assert len(caught) == 1
    assert result.engine == "graph"
    assert "'2.weight' is used in bilinear" in result.engine_reason
    few = quick(model, _double(make_batches()), num_subbatches=4)  # which costs the same one by one
    assert few.engine == "graph"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick(model, _double(make_batches()), num_subbatches=8, engine="graph")


class FailsOnAll(nn.Module):
    """Has an error of its own where all sub-batches are run at once."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 2:
            raise AssertionError
        return x


def test_an_error_without_words_is_told_by_its_type() -> None:
    with pytest.warns(UserWarning, match="they cannot be run at once: AssertionError"):
        initopt.measure(nn.Sequential(FailsOnAll(), nn.Linear(6, 3)), make_batches(), num_subbatches=8, centre=None)


def test_the_device_gives_memory_back_before_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[str] = []
    for place in (initopt.engines.auto, initopt.engines.microbatches):
        monkeypatch.setattr(place, "free_cached_memory", lambda device, p=place.__name__: freed.append(p.split(".")[-1]))
    quick(make_model(), make_batches())
    assert freed == []
    evaluation = GraphEngine._evaluation
    failing = [1, 1]

    def out_of_memory(engine: GraphEngine, batch: Any) -> Any:
        if failing.pop():
            raise RuntimeError("MPS backend out of memory (MPS allocated: 17.88 GB)")
        return evaluation(engine, batch)

    monkeypatch.setattr(GraphEngine, "_evaluation", out_of_memory)
    with pytest.warns(UserWarning, match="did not fit into memory, so they are recomputed"):
        quick(make_model(), make_batches())
    assert freed == ["auto"]


def test_without_batch_norm_few_sub_batches_are_run_together_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    result = quick(model, make_batches())
    assert (result.engine, result.engine_reason) == (
        "groups",
        "exact, and the cheapest for 4 sub-batches without batch norm",
    )


def test_positions_of_a_sequence_as_long_as_the_batch() -> None:
    torch.manual_seed(0)

    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions = nn.Embedding(7, 8), nn.Embedding(16, 8)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.tokens(x) + self.positions(torch.arange(x.shape[1]))).tanh().mean(1))

    batches = [(torch.randint(7, (16, 16)), torch.randint(3, (16,))) for _ in range(3)]
    model = Sequence().double()
    together = quick(copy.deepcopy(model), batches, overlap=0.0, engine="groups")
    apart = quick(model, batches, overlap=0.0, engine="plain")
    assert list(together.scales.values()) == pytest.approx(list(apart.scales.values()), rel=1e-9)


def test_a_fault_of_the_model_is_not_hidden_by_going_over() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        raise KeyError("the user's own mistake")

    with pytest.raises(KeyError, match="own mistake"):
        initopt.measure(make_model(), make_batches(), loss, num_subbatches=8)


@pytest.mark.parametrize(
    ("message", "operator"),
    [
        ("derivative for aten::_scaled_dot_product_flash_attention_for_cpu_backward is not implemented",
         "aten::_scaled_dot_product_flash_attention_for_cpu_backward"),
        ("double backwards on roi_align not supported", "roi_align"),
        ("double backwards on deform_conv2d not supported", "deform_conv2d"),
        ("torch.compile with aot_autograd does not currently support double backward", "torch.compile"),
        ("Double backwards is not supported for CuDNN RNNs due to limitations in the CuDNN API", "CuDNN RNNs"),
        ("trying to differentiate twice a function that was marked with @once_differentiable", "@once_differentiable"),
        ("This backward function was compiled with non-empty donated buffers which requires create_graph=False",
         "torch.compile"),
        ("mat1 and mat2 shapes cannot be multiplied", None),
    ],
)  # fmt: skip
def test_what_torch_says_of_a_missing_derivative(message: str, operator: str | None) -> None:
    assert missing_derivative(RuntimeError(message)) == operator


class Attention(nn.Module):
    """Attention that insists on the fused kernel, as a model may."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = [layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            mixed = nn.functional.scaled_dot_product_attention(*parts)
        return self.out(mixed.transpose(1, 2).flatten(2).mean(1))


def test_fused_attention_of_the_model_s_own_choice() -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(16, 5, 8), torch.randint(3, (16,))) for _ in range(6)]
    model = Attention()
    near = quick(copy.deepcopy(model), batches, engine="differences")
    result = quick(model, batches)
    assert result.engine != "differences"
    assert result.scales == pytest.approx(near.scales, rel=1e-2)


def test_recurrence_is_exact_on_a_cpu() -> None:
    torch.manual_seed(0)

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 6, num_layers=2, batch_first=True, dropout=0.2)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0][:, -1])

    batches = [(torch.randn(16, 5, 4), torch.randint(3, (16,))) for _ in range(6)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert quick(Recurrent(), batches).engine == "graph"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler itself
def test_a_compiled_model_runs_uncompiled_and_is_exact() -> None:
    model = make_model()
    expected = quick(make_model(), make_batches())
    compiled = torch.compile(model)
    inputs = make_batches()[0][0]
    compiled(inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        result = quick(compiled, make_batches())
    assert result.engine == expected.engine != "differences"
    assert {n.removeprefix("_orig_mod."): s for n, s in result.scales.items()} == expected.scales
    assert torch.equal(model[0].weight, compiled._orig_mod[0].weight)
    stance = torch._dynamo.eval_frame._stance.stance
    assert stance == "default"
    torch.testing.assert_close(compiled(inputs), model(inputs))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler itself
def test_a_compiled_part_of_a_model() -> None:
    """A function that is compiled is met only when it is called."""

    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
            self.part = torch.compile(lambda x: torch.tanh(self.first(x)) * 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.part(x))

    class Plain(Partly):
        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(x)) * 2)

    def run(kind: type[nn.Module], engine: str) -> initopt.Result:
        torch.manual_seed(0)
        return quick(kind(), make_batches(), engine=engine)

    expected = run(Plain, "exact")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for engine in ("auto", "differences"):
            found = run(Partly, engine)
            assert list(found.scales.values()) == pytest.approx(list(expected.scales.values()), rel=1e-2), engine


MASKS = (None, "float", "bool", "heads", "causal")
ATTENTION = [(masked, weights, padded) for masked in MASKS for weights in (False, True) for padded in (False, True)]
"""Masks, whether the weights of the attention are asked for, and whether sequences are padded."""


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("masked", "weights", "padded"),
    [
        # Each mask with and without each of the two others.
        pytest.param(*case, marks=() if (MASKS.index(case[0]) + case[1] + case[2]) % 2 else pytest.mark.heavy)
        for case in ATTENTION
    ],
)
def test_multihead_attention_runs_together(masked: str | None, weights: bool, padded: bool) -> None:
    """Attention of a sequence to itself, with every kind of mask."""

    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True, bias=not weights)
            self.head = nn.Linear(8, 3)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            x = batch["x"]
            mask = {
                "float": torch.linspace(-1, 1, 25, dtype=x.dtype).view(5, 5),
                "bool": torch.eye(5, dtype=torch.bool).roll(1, 0),
                "heads": torch.linspace(-1, 1, 50, dtype=x.dtype).view(2, 5, 5).repeat(len(x), 1, 1),
                "causal": torch.ones(5, 5, dtype=torch.bool).triu(1),
            }.get(masked or "")
            padding = batch["padding"] if padded else None
            if padding is not None and mask is not None and mask.dtype != torch.bool:
                padding = torch.zeros_like(padding, dtype=x.dtype).masked_fill(padding, -torch.inf)
            mixed, seen = self.attention(x, x, x, padding, need_weights=weights, attn_mask=mask)
            return self.head(mixed.mean(1)) + (seen.square().sum((1, 2))[:, None] if weights else 0)

    torch.manual_seed(0)
    model = Sequence().double()
    padding = torch.zeros(12, 5, dtype=torch.bool)
    padding[::2, 4] = True
    batches = [({"x": torch.randn(12, 5, 8).double(), "padding": padding}, torch.randint(3, (12,))) for _ in range(2)]
    together = quick(copy.deepcopy(model), batches, overlap=0.0, engine="groups")
    apart = quick(copy.deepcopy(model), batches, overlap=0.0, engine="plain")
    assert list(together.scales.values()) == pytest.approx(list(apart.scales.values()), rel=1e-9)
    measured = [initopt.measure(model, batches, num_subbatches=6, engine=name).gram for name in ("groups", "plain")]
    torch.testing.assert_close(*measured, rtol=1e-9, atol=1e-14)


def test_a_second_derivative_that_is_refused_in_unknown_words() -> None:
    def model(middle: nn.Module) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), middle, nn.Linear(8, 3)).double()

    with pytest.warns(UserWarning, match=r"it says: once is enough for this kernel\) has no second derivative, so deriv"):
        result = quick(model(TanhOnce("once is enough for this kernel")), _double(make_batches()))
    assert result.engine == "differences"
    assert result.scales == pytest.approx(quick(model(nn.Tanh()), _double(make_batches())).scales, rel=1e-4)
    with pytest.raises(RuntimeError, match="once is enough"):
        quick(model(TanhOnce("once is enough for this kernel")), _double(make_batches()), engine="exact")


@pytest.mark.heavy
def test_auto_keeps_to_its_budget() -> None:
    free = _memory.quick(_memory.network())
    assert free.engine == "groups"
    tight = _memory.quick(_memory.network(), memory_budget=25_000)
    assert tight.engine == "recompute"
    assert tight.engine_reason.startswith("the graphs of all sub-batches, some ")
    assert tight.engine_reason.endswith("exceed 0 MB")
    tiny = _memory.quick(_memory.network(), memory_budget=9_000)
    assert tiny.engine == "recompute"
    assert "samples are run at a time" in tiny.engine_reason
    for result in (tight, tiny):
        assert _memory.values(result) == pytest.approx(_memory.values(free), rel=1e-9)


def test_a_budget_does_not_split_batch_norm() -> None:
    result = initopt.nio(make_model(), make_batches(), steps=2, measure_batches=0, memory_budget=1)
    assert result.engine == "recompute"
    assert "samples are run at a time" not in result.engine_reason


def test_needs_grow_as_they_should() -> None:
    need = Need(saved=100, parameters=10, count=4, samples=8)
    assert need.keeping_graphs > need.recomputing > 80
    assert [need.microbatch(budget) for budget in (0, need.recomputing / 2, need.recomputing, 1e9)] == [1, 3, 8, 8]


def test_this_machine_has_memory() -> None:
    free = free_memory(torch.device("cpu"))
    assert free is None or free > 1e6
    assert free_memory(torch.device("meta")) is None
