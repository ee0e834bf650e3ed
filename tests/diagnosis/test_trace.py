"""The tracing pass against plain PyTorch, its cost, and that the model stays as it is."""

import copy
import functools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from initopt.diagnosis import trace
from tests.diagnosis.sick import Gain, labelled, mlp
from tests.helpers import make_batches, make_model, values


def test_outputs_and_gradients_are_those_of_pytorch():
    torch.manual_seed(0)
    model, (batch, *_) = mlp(3, activation=nn.Tanh), labelled()
    seen = trace(model, [batch])
    x, y = batch
    hidden = model[0](x).detach()
    assert seen.calls[0].rms == pytest.approx(float(hidden.square().mean().sqrt()), rel=1e-4)
    assert seen.calls[0].mean == pytest.approx(float(hidden.mean()), rel=1e-3, abs=1e-6)
    within = torch.stack([part.var(0, correction=0) for part in hidden.split(8)]).mean()
    assert seen.calls[0].deviation == pytest.approx(float(within.sqrt()), rel=1e-4)
    gradients = [torch.autograd.grad(F.cross_entropy(model(a), b), list(model.parameters()))
                 for a, b in zip(x.split(8), y.split(8), strict=True)]  # fmt: skip
    for tensor, column in zip(seen.tensors, zip(*gradients, strict=True), strict=True):
        rows = torch.stack([g.reshape(-1) for g in column]).double()
        torch.testing.assert_close(tensor.gram[0], rows @ rows.T)
        assert tensor.agreement == pytest.approx(float(rows.sign().mean(0).abs().mean()), rel=1e-5)
        assert tensor.slope == pytest.approx(float(rows.mean(0).square().mean().sqrt()), rel=1e-4)
    torch.testing.assert_close(seen.whole.gram, sum(tensor.gram for tensor in seen.tensors))
    assert sum(tensor.share for tensor in seen.tensors) == pytest.approx(1)
    assert sum(block.share for block in seen.blocks) == pytest.approx(1)


def test_the_measures_of_single_tensors_are_those_of_the_gradients_of_single_samples():
    torch.manual_seed(0)
    model, (x, y) = mlp(3, activation=nn.Tanh).double(), labelled(size=32)[0]
    x = x.double()
    seen = trace(model, [(x, y)], num_subbatches=32)
    losses = F.cross_entropy(model(x), y, reduction="none")
    parameters = list(model.parameters())
    samples = zip(*[torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses], strict=True)
    gradients = [torch.stack(column).reshape(32, -1) for column in samples]
    signs = torch.cat([rows.sign() for rows in gradients], 1)
    assert seen.sign_agreement == pytest.approx(float(signs.mean(0).abs().mean()))
    table = seen.to_dataframe().set_index("name")
    assert list(table.index) == [name for name, _ in model.named_parameters()]
    for rows, (_, found) in zip(gradients, table.iterrows(), strict=True):
        variance = rows.var(0).sum() / 32  # of the mean of the batch
        signal = rows.mean(0).square().sum() - variance
        assert found.signal_to_noise == pytest.approx(max(float(signal / variance), 0.0))
        assert found.coherence == pytest.approx(float(rows.sum(0).square().sum() / rows.square().sum()))
        assert found.sign_agreement == pytest.approx(float(rows.sign().mean(0).abs().mean()))
        assert found.grad_norm == pytest.approx(float(rows.norm(dim=1).mean()))


def test_the_gradient_of_an_output_is_that_of_the_loss_of_a_sample():
    torch.manual_seed(0)
    model, (x, y) = mlp(3), labelled()[0]
    hidden = model[1](model[0](x)).detach().requires_grad_()
    losses = F.cross_entropy(model[2:](hidden), y, reduction="none")
    (slope,) = torch.autograd.grad(losses.sum(), hidden)
    found = next(call for call in trace(model, [(x, y)]).calls if call.name == "1")
    assert found.slope == pytest.approx(float(slope.square().sum(1).mean().sqrt()), rel=1e-4)


def test_nothing_of_the_model_or_the_random_state_changes():
    model, batches = make_model(dropout=0.5), make_batches()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before, state, modes = values(model), torch.get_rng_state(), [m.training for m in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    trace(model, batches, optimizer=functools.partial(torch.optim.Adam, lr=1.0))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [m.training for m in model.modules()]
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert bool((model[0].weight.grad == 1).all())
    assert model[4].weight.grad is None


class Counting(nn.Module):
    """Counts the samples that go forwards and backwards through it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        counts["forward"] += len(x)
        output = self.inner(x)
        output.register_hook(lambda slope: counts.update(backward=counts["backward"] + len(slope)))
        return output


counts = {"forward": 0, "backward": 0}


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("gains", [False, True])
def test_four_batches_cost_less_than_three_training_steps(zeros, gains):
    model = Counting(mlp())
    if zeros:
        nn.init.zeros_(model.inner[-1].weight)
    if gains:
        model.inner.append(Gain(nn.Identity(), 4))
    counts.update(forward=0, backward=0)
    trace(model, labelled(size=64))
    cost = (counts["forward"] + 2 * counts["backward"]) / 64  # a backward pass counts as two forward ones
    assert cost <= 3 * 3
    assert counts["backward"] >= 2 * 64
    if not zeros and not gains:
        assert counts == {"forward": 4 * 64, "backward": 2 * 64}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_parameters_are_told_apart_by_why_they_have_no_gradient(dtype):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen, self.unused, self.cut = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
            self.behind, self.zero, self.head = nn.Linear(16, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 4)
            self.frozen.requires_grad_(False)
            nn.init.zeros_(self.zero.weight)

        def forward(self, x):
            x = self.frozen(x).tanh()
            return self.head(x + self.zero(self.behind(x)) + self.cut(x).detach())

    batches = [(x.to(dtype), y) for x, y in labelled()]
    found = {tensor.name: tensor.fate for tensor in trace(Odd().to(dtype), batches).tensors}
    assert {name: found[f"{name}.weight"] for name in ("frozen", "unused", "cut", "behind", "zero", "head")} == {
        "frozen": "frozen", "unused": "unused", "cut": "detached", "behind": "zero", "zero": "trains", "head": "trains",
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_branches_that_start_next_to_closed_are_seen_open_too(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), Gain(nn.Sequential(nn.Linear(32, 32), nn.Tanh()), 32), nn.Linear(32, 4))
    model.to(dtype)
    x, y = labelled(size=8)[0]
    x = x.to(dtype)
    before = values(model)
    seen = trace(model, [(x, y)], num_subbatches=2, seed=0)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert seen.opened.gains == ("1.gain",)
    assert seen.opened.size == pytest.approx(1e-5)
    other = copy.deepcopy(model)
    other[1].gain.data.fill_(1.0)
    part = trace(other, [(x[:4], y[:4])], num_subbatches=2, seed=0)  # the first sub-batch
    assert part.opened is None
    for tensor in part.tensors:
        assert seen.opened.slopes[tensor.name] == pytest.approx(tensor.slope, rel=1e-4)
    for call in part.calls:
        opened = seen.opened.calls[call.name]
        assert opened.rms == pytest.approx(call.rms, rel=1e-4)
        assert opened.slope == pytest.approx(call.slope, rel=1e-4)
    inner = next(call for call in seen.calls if call.name == "1.inner.0")
    assert inner.slope < 1e-4 * seen.opened.calls["1.inner.0"].slope  # the pass itself is as the model is


def test_gains_that_are_ordinary_or_zero_need_no_other_pass():
    for gain in (0.0, 0.1, 1.0):
        assert trace(nn.Sequential(Gain(nn.Linear(16, 16), gain=gain), nn.Linear(16, 4)), labelled()).opened is None


def test_a_weight_in_front_of_a_norm_is_scale_invariant():
    model = nn.Sequential(nn.Linear(16, 32, bias=False), nn.LayerNorm(32), nn.Tanh(), nn.Linear(32, 4))
    found = {tensor.name: tensor.scale_invariant for tensor in trace(model, labelled(), seed=0).tensors}
    assert found["0.weight"]
    assert not found["3.weight"]


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12])
def test_sizes_neither_overflow_nor_vanish(scale):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32, bias=False), nn.Linear(32, 4, bias=False))
    rms = trace(model, labelled(), seed=0).calls[0].rms
    model[0].weight.data.mul_(scale)
    seen = trace(model, labelled(), seed=0)
    assert seen.calls[0].rms == pytest.approx(scale * rms, rel=1e-3)
    assert seen.calls[0].spread == pytest.approx(1.0, abs=0.1)


def test_the_first_update_is_that_of_the_optimizer():
    model, (batch, *_) = mlp(), labelled()
    seen = trace(model, [batch], optimizer=functools.partial(torch.optim.SGD, lr=0.5), seed=0)
    other = copy.deepcopy(model)
    F.cross_entropy(other(batch[0]), batch[1]).backward()
    for tensor, parameter in zip(seen.tensors, other.parameters(), strict=True):
        assert tensor.update == pytest.approx(0.5 * float(parameter.grad.square().mean().sqrt()), rel=1e-3)
    adam = trace(model, [batch], optimizer=torch.optim.Adam(model.parameters(), lr=0.01), seed=0)
    assert adam.tensors[0].update == pytest.approx(0.01, rel=0.05)
    rounded = trace(model, [batch], optimizer=functools.partial(torch.optim.SGD, lr=1e-12), seed=0)
    for tensor, parameter in zip(rounded.tensors, other.parameters(), strict=True):
        assert tensor.update == pytest.approx(1e-12 * float(parameter.grad.square().mean().sqrt()), rel=1e-3)
    partly = trace(model, [batch], optimizer=torch.optim.SGD(model[:4].parameters(), lr=0.1), seed=0)
    assert [tensor.update > 0 for tensor in partly.tensors] == [tensor.name[0] in "0123" for tensor in partly.tensors]


@pytest.mark.parametrize(
    ("optimizer", "words"), [(3, "function that makes one"), (lambda p, lr: None, "functools.partial")]
)
def test_what_makes_no_optimizer_is_refused(optimizer, words):
    with pytest.raises(TypeError, match=words):
        trace(mlp(), labelled(), optimizer=optimizer)


def test_convolutions_have_their_units_along_the_second_dimension():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model[0].bias.data[:4] = -100
    seen = trace(model, [(torch.randn(16, 3, 8, 8), torch.randint(5, (16,)))])
    assert [call.units for call in seen.calls] == [8, 8, 5, 5, 5]
    assert seen.calls[1].dead == 0.5


def test_ranks_are_those_of_the_first_batch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 1, bias=False), nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 4))
    seen = trace(model, labelled(size=64), seed=0)
    assert seen.calls[1].rank == pytest.approx(1, abs=0.01)
    assert 1 < seen.calls[2].rank < 4


@pytest.mark.parametrize("make", [lambda: nn.LSTM(4, 8, batch_first=True), lambda: nn.GRUCell(4, 8)])
def test_modules_that_return_several_tensors_are_seen_by_the_first(make):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = make(), nn.Linear(8, 4)

        def forward(self, x):
            steps = x.unflatten(1, (4, 4))
            if isinstance(self.cell, nn.LSTM):
                return self.head(self.cell(steps)[0][:, -1])
            return self.head(self.cell(steps[:, 1], self.cell(steps[:, 0])))

    seen = trace(Net(), labelled())
    assert {tensor.fate for tensor in seen.tensors} == {"trains"}
    assert {call.path for call in seen.calls} == {"cell", "head"}


def test_calls_of_one_module_are_told_apart():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, x):
            return self.head(F.gelu(self.layer(F.gelu(self.layer(x)))))

    names = [call.name for call in trace(Twice(), labelled()).calls]
    assert names == ["layer", "gelu()", "layer#2", "gelu()#2", "head"]


@pytest.mark.parametrize("attend", ["modules", "functional"])
def test_attention_has_an_entropy(attend):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix, self.head = (
                nn.Linear(16, 16),
                nn.MultiheadAttention(16, 2, batch_first=True),
                nn.Linear(16, 4),
            )

        def forward(self, x):
            x = self.embed(x).unflatten(1, (4, 4)).repeat(1, 1, 4)
            if attend == "modules":
                return self.head(self.mix(x, x, x)[0].mean(1))
            x = x.unflatten(-1, (2, 8)).transpose(1, 2)
            return self.head(F.scaled_dot_product_attention(x, x, x, is_causal=True).transpose(1, 2).flatten(2).mean(1))

    seen = trace(Net(), labelled())
    assert len(seen.attention) == 1
    assert 0 < next(iter(seen.attention.values())) <= 1


def test_checkpointed_parts_are_not_counted_twice():
    class Net(nn.Sequential):
        def forward(self, x):
            inner = torch.utils.checkpoint.checkpoint(lambda x: self[1](self[0](x)), x, use_reentrant=False)
            return self[2](inner)

    torch.manual_seed(0)
    plain = mlp(2)
    checkpointed = Net(*plain)
    one, other = trace(plain, labelled(), seed=0), trace(checkpointed, labelled(), seed=0)
    assert [(c.name, c.rms) for c in one.calls] == [(c.name, c.rms) for c in other.calls]
    for a, b in zip(one.tensors, other.tensors, strict=True):
        torch.testing.assert_close(a.gram, b.gram)


def test_fewer_batches_than_asked_for_are_enough():
    assert trace(mlp(), iter(labelled()[:3])).num_batches == 3


def test_signal_to_noise_is_that_of_the_estimators():
    seen = trace(mlp(), labelled(size=64), seed=0)
    noise, signal = [], []
    for gram in seen.whole.gram:
        noise.append((gram.trace() / 4 - gram.mean()) / (1 / 16 - 1 / 64) / 64)
        signal.append((64 * gram.mean() - 16 * gram.trace() / 4) / 48)
    wanted = max(float(sum(signal)), 0.0) / float(sum(noise))
    assert seen.whole.signal_to_noise == pytest.approx(wanted)
    assert math.isfinite(seen.whole.cosine)
