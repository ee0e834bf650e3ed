from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initopt
from initopt.model.double_backward import plain_attention
from initopt.model.modes import measuring
from initopt.model.preserve import preserved
from initopt.model.state import StateGuard
from tests.model._measuring import MODES, batch_of, measure, normed


def with_statistics(model: nn.Sequential, mean: float, variance: float) -> nn.Sequential:
    model[1].running_mean.fill_(mean)
    model[1].running_var.fill_(variance)
    return model


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("train_mode", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_running_statistics_are_neither_used_nor_changed(mode: str, train_mode: bool, training: bool) -> None:
    options = {"batch_norm": mode, "train_mode": train_mode}
    plain = measure(with_statistics(normed(nn.BatchNorm1d(8)), 0, 1).train(training), batch_of(), **options)
    model = with_statistics(normed(nn.BatchNorm1d(8)), 5, 9).train(training)
    torch.testing.assert_close(measure(model, batch_of(), **options), plain, rtol=1e-6, atol=0)
    initopt.nio(model, [batch_of()], steps=2, measure_batches=0, num_subbatches=2, **options)
    assert model[1].running_mean.tolist() == [5] * 8
    assert model[1].running_var.tolist() == [9] * 8
    assert int(model[1].num_batches_tracked) == 0
    assert model[1].track_running_stats
    assert model[1].momentum == 0.1
    assert model.training == model[1].training == training


def test_instance_norm_statistics_are_neither_used_nor_changed() -> None:
    def make(mean: float) -> nn.Sequential:
        torch.manual_seed(0)
        norm = nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
        norm.running_mean.fill_(mean)
        return nn.Sequential(nn.Conv1d(1, 4, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))

    inputs, targets = batch_of()
    batch = inputs[:, None], targets
    plain, model = measure(make(0), batch), make(3).eval()
    torch.testing.assert_close(measure(model, batch), plain, rtol=1e-6, atol=0)
    assert model[1].running_mean.tolist() == [3] * 4
    assert int(model[1].num_batches_tracked) == 0
    assert model[1].momentum == 0.1


@pytest.mark.parametrize("train_mode", [False, True])
def test_a_frozen_norm_stays_frozen(train_mode: bool) -> None:
    """Put into evaluation mode inside a model in training mode, it uses its running statistics."""

    def frozen(mean: float) -> nn.Sequential:
        model = with_statistics(normed(nn.BatchNorm1d(8)), mean, 2)
        model[1].eval()
        return model

    found = measure(frozen(0.5), batch_of(), train_mode=train_mode)
    assert not torch.allclose(found, measure(frozen(1.5), batch_of(), train_mode=train_mode))

    model = frozen(0.5)
    affine = normed(nn.Identity())
    norm = model[1]
    affine[1].forward = lambda x: F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    affine[1].register_parameter("weight", norm.weight)
    affine[1].register_parameter("bias", norm.bias)
    torch.testing.assert_close(found, measure(affine, batch_of()), rtol=1e-5, atol=0)
    assert not norm.training


def test_a_norm_in_a_model_in_evaluation_mode_is_not_taken_for_frozen() -> None:
    model = with_statistics(normed(nn.BatchNorm1d(8)), 5, 9)
    in_training = measure(model.train(), batch_of())
    torch.testing.assert_close(measure(model.eval(), batch_of()), in_training, rtol=1e-6, atol=0)


def test_sub_batch_statistics_are_those_of_the_sub_batch() -> None:
    """A shift of one sub-batch's inputs is invisible to it alone, and visible when the whole batch normalizes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)).double()
    inputs, targets = batch_of()
    inputs = inputs.double()
    shifted = inputs.clone()
    shifted[:8] += 3
    apart = [measure(model, (x, targets)) for x in (inputs, shifted)]
    coupled = [measure(model, (x, targets), batch_norm="batch") for x in (inputs, shifted)]
    torch.testing.assert_close(*apart, rtol=1e-7, atol=0)
    assert not torch.allclose(*coupled, rtol=0.1)


@pytest.mark.parametrize("mode", MODES)
def test_dropout_is_off_unless_asked_for(mode: str) -> None:
    without, dropping = normed(nn.Identity()), normed(nn.Dropout(0.5))
    plain = measure(without, batch_of(), batch_norm=mode)
    torch.testing.assert_close(measure(dropping, batch_of(), batch_norm=mode), plain)
    noisy = measure(dropping, batch_of(), batch_norm=mode, train_mode=True)
    assert not torch.allclose(noisy, plain, rtol=0.01)


def test_modules_see_the_mode_they_are_promised() -> None:
    model = nn.ModuleDict(
        {"norm": nn.BatchNorm1d(2), "frozen": nn.BatchNorm1d(2), "dropout": nn.Dropout(), "sub": normed(nn.GELU())}
    )
    model["frozen"].eval()
    model["sub"].eval()

    def flags() -> dict[str, bool]:
        return {name: module.training for name, module in model.items()}

    before = flags()
    with measuring(model):
        assert flags() == {"norm": True, "frozen": False, "dropout": False, "sub": False}
    assert flags() == before
    with measuring(model, train_mode=True):
        assert flags() == {"norm": True, "frozen": False, "dropout": True, "sub": False}
    assert flags() == before
    model.eval()
    with measuring(model, train_mode=True):
        assert flags() == {"norm": True, "frozen": True, "dropout": True, "sub": True}
    assert not any(flags().values())


def test_modes_are_put_back_after_an_exception() -> None:
    model = normed(nn.BatchNorm1d(8))

    def fail() -> None:
        with measuring(model):
            assert not model.training
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert all(module.training for module in model.modules())
    assert model[1].track_running_stats


FUSED = "ScaledDotProductFlashAttentionForCpuBackward0"


class Attention(nn.Module):
    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.project, self.head, self.seen = nn.Linear(1, 6), nn.Linear(2, 3), lambda: seen

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project(x[:, None, :, None]).chunk(3, -1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        self.seen().append(mixed.grad_fn.name())
        return self.head(mixed[:, 0].mean(1))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fails", [False, True])
def test_attention_is_plain_where_second_derivatives_are_taken(mode: str, fails: bool) -> None:
    seen: list[str] = []
    model = Attention(seen)
    inputs, targets = batch_of()
    if fails:
        with pytest.raises(initopt.NonFiniteError):
            initopt.measure(model, [(inputs * torch.nan, targets)], num_subbatches=2, batch_norm=mode)
    else:
        initopt.nio(
            model, [(inputs, targets)], steps=1, measure_batches=0, num_subbatches=2, batch_norm=mode, engine="exact"
        )
        assert set(seen) - {FUSED}
    assert seen
    seen.clear()
    model(inputs)
    assert seen == [FUSED]


def test_plain_attention_has_a_second_derivative() -> None:
    x = torch.randn(1, 1, 4, 8, requires_grad=True)

    def slope() -> Tensor:
        return torch.autograd.grad(F.scaled_dot_product_attention(x, x, x).sum(), x, create_graph=True)[0].square().sum()

    with plain_attention():
        assert torch.autograd.grad(slope(), x)[0].isfinite().all()
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(slope(), x)


def test_buffers_are_put_back_whether_written_replaced_or_removed() -> None:
    model = nn.Module()
    for name in ("written", "replaced", "removed"):
        model.register_buffer(name, torch.zeros(2))
    model.register_buffer("empty", None)
    held = dict(model.named_buffers())
    guard = StateGuard(model)
    for _ in range(2):
        model.written.add_(1)
        model.replaced = torch.ones(2)
        model.removed = None
        model.empty = torch.ones(1)
        model.register_buffer("added", torch.ones(2))
        guard.put_back()
        assert model.empty is None
        assert dict(model.named_buffers()).keys() == held.keys()
        for name, buffer in model.named_buffers():
            assert buffer is held[name]
            assert buffer.tolist() == [0, 0]


def test_writes_past_the_version_counter_do_not_outlive_a_run() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("written", torch.zeros(2))
    with preserved(model):
        model.written.numpy()[:] = 1
    assert model.written.tolist() == [0, 0]
