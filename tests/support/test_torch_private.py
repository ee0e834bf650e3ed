"""A probe for each private name of PyTorch: one that fails says what to look at in ``_torch_private.py``, and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed.fsdp as fsdp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from initopt._support import _torch_fsdp
from initopt._support import _torch_private as private
from tests.forks import python
from tests.processes import in_processes

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


class Seen(TorchFunctionMode):
    """Notes the functions that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.functions: list[object] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.functions.append(func)
        return func(*args, **(kwargs or {}))


def close(found: Tensor, expected: Tensor) -> bool:
    torch.testing.assert_close(found, expected)
    return True


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class TestAutograd:
    def test_a_backward_pass_is_that_of_autograd_grad(self) -> None:
        x, unused = torch.randn(3, requires_grad=True), torch.ones(1, requires_grad=True)
        y = x.square()
        found = private.backward_pass([y], [torch.ones(3)], True, True, [x, unused], True)
        expected = torch.autograd.grad(y.sum(), [x, unused], create_graph=True, allow_unused=True)
        assert found[1] is expected[1] is None
        assert found[0] is not None
        assert close(found[0], expected[0])
        assert close(*torch.autograd.grad(found[0].sum(), x), 2 * torch.ones(3))
        assert x.grad is None

    def test_a_mode_is_on_in_a_backward_pass(self) -> None:
        x = torch.randn(3, requires_grad=True)
        y = checkpoint(torch.sin, x, use_reentrant=False)
        with torch.autograd.set_multithreading_enabled(False), Seen() as seen:
            private.backward_pass([y], [torch.ones(3)], False, False, [x], False)
        assert torch.sin in seen.functions

    def test_no_mode_sees_what_is_undisturbed(self) -> None:
        with Seen() as seen, private.undisturbed():
            torch.ones(1).sin()
        assert seen.functions == []

    def test_transforms_are_noticed(self) -> None:
        inside: list[bool] = []

        def f(x: Tensor) -> Tensor:
            inside.append(private.in_functorch())
            return x.sum()

        torch.func.grad(f)(torch.ones(2))
        torch.func.vmap(f)(torch.ones(2, 2))
        assert inside == [True, True]
        assert not private.in_functorch()

    def test_hooks_are_found_and_taken_off_for_a_while(self) -> None:
        x = torch.ones(2, requires_grad=True)
        assert not private.hooks_of(x)
        x.register_hook(lambda g: 3 * g)
        assert len(private.hooks_of(x) or {}) == 1
        y = x.square().sum()
        with private.without_hooks([x]):
            assert torch.autograd.grad(y, x, retain_graph=True)[0].tolist() == [2, 2]
        assert torch.autograd.grad(y, x)[0].tolist() == [6, 6]

    def test_writes_are_counted(self) -> None:
        x = torch.ones(2)
        before = private.version_of(x)
        x.add_(1)
        assert private.version_of(x) > before
        with torch.inference_mode():
            assert private.version_of(torch.ones(2)) == 0

    def test_attributes_are_known(self) -> None:
        weight = nn.Parameter(torch.ones(2))
        with Seen() as seen:
            assert [weight.shape, weight.dtype, weight.device, weight.ndim, weight.layout, weight.requires_grad]
            assert [weight.is_leaf, weight.grad_fn, private.hooks_of(weight)]
        assert set(seen.functions) <= private.ATTRIBUTES
        assert len(private.ATTRIBUTES) == 9


class TestOperations:
    @pytest.mark.parametrize("transposed", [False, True])
    def test_convolution(self, transposed: bool) -> None:
        x, weight, bias = torch.randn(2, 4, 6, 6), torch.randn(4, 4, 3, 3), torch.randn(4)
        place = {"stride": [2, 2], "padding": [1, 1], "dilation": [1, 1], "output_padding": [int(transposed)] * 2}
        options = place | {"transposed": transposed, "groups": 1}
        for tensor in (x, weight):
            tensor.requires_grad_()
        expected = F.conv_transpose2d(x, weight, bias, 2, 1, 1) if transposed else F.conv2d(x, weight, bias, 2, 1)
        assert close(private.convolution(x, weight, bias, **options), expected)  # type: ignore[arg-type]
        dy = torch.randn_like(expected)
        dx, dw = torch.autograd.grad(expected, (x, weight), dy)
        found = private.convolution_backward(dy, x, weight, (True, True, False), **options)  # type: ignore[arg-type]
        assert close(found[0], dx)
        assert close(found[1], dw)

    def test_batch_norm(self) -> None:
        x, weight, bias = torch.randn(6, 3, 4), torch.rand(3), torch.randn(3)
        for tensor in (x, weight, bias):
            tensor.requires_grad_()
        expected = F.batch_norm(x, None, None, weight, bias, True, 0.0, 1e-5)
        y, mean, invstd = private.batch_norm_forward(x, weight, bias, 1e-5)
        assert close(y, expected)
        assert close(mean, x.mean((0, 2)))
        assert close(invstd, (x.var((0, 2), unbiased=False) + 1e-5).rsqrt())
        dy = torch.randn_like(y)
        derivatives = torch.autograd.grad(expected, (x, weight, bias), dy)
        with torch.no_grad():
            found = private.batch_norm_backward(dy, x, weight, mean, invstd, 1e-5)
        assert all(map(close, found, derivatives))

    def test_layer_norm(self) -> None:
        x, weight, bias = torch.randn(6, 3, 4, requires_grad=True), torch.rand(4), torch.randn(4)
        expected = F.layer_norm(x, (4,), weight, bias)
        y, mean, invstd = private.layer_norm_forward(x, (4,), weight, bias, 1e-5)
        assert close(y, expected)
        dy = torch.randn_like(y)
        with torch.no_grad():
            found = private.layer_norm_backward(dy, x, (4,), mean, invstd, weight, bias)
        assert close(found, *torch.autograd.grad(expected, x, dy))

    def test_attention_has_a_second_derivative(self) -> None:
        q, k, v = (torch.randn(2, 2, 5, 4, requires_grad=True) for _ in range(3))
        mask = torch.zeros(5, 5).masked_fill_(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        found = private.attention_math(q, k, v, mask, 0.0, False, None, False)
        assert close(found, F.scaled_dot_product_attention(q, k, v, is_causal=True))
        assert close(private.attention_math(q, k, v, None, 0.0, True, 0.3, True),
                     F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3))  # fmt: skip
        (slope,) = torch.autograd.grad(found.square().sum(), q, create_graph=True)
        assert torch.autograd.grad(slope.sum(), k)[0].any()

    def test_attention_of_torch_calls_what_a_mode_can_see(self) -> None:
        layer, x = nn.MultiheadAttention(8, 2), torch.randn(5, 2, 8)
        arguments = (x, x, x, 8, 2, layer.in_proj_weight, layer.in_proj_bias, None, None, False, 0.0,
                     layer.out_proj.weight, layer.out_proj.bias)  # fmt: skip
        with Seen() as seen:
            found = private.unheard(F.multi_head_attention_forward)(*arguments, need_weights=False)[0]
        assert close(found, layer(x, x, x, need_weights=False)[0])
        assert F.scaled_dot_product_attention in seen.functions
        assert F.multi_head_attention_forward not in seen.functions

    @pytest.mark.filterwarnings("ignore::FutureWarning")  # of the older weight norm
    @pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, getattr(nn.utils, "weight_norm", None)])
    def test_weight_norm_and_hard_sigmoids_call_the_kernels_that_are_known(self, norm) -> None:  # type: ignore[no-untyped-def]
        if norm is None:
            pytest.skip("this PyTorch has the newer weight norm only")
        known = private.kernels_named("_weight_norm", "_C._nn.hardsigmoid", "_C._nn.hardsigmoid_")
        assert len(known) == 3
        with Seen() as seen:
            norm(nn.Linear(3, 2))(torch.ones(1, 3))
        assert known[0] in seen.functions
        for inplace in (False, True):
            with Seen() as seen:
                nn.Hardsigmoid(inplace)(torch.ones(3))
            assert F.hardsigmoid in seen.functions or known[1 + inplace] in seen.functions


class TestModules:
    @pytest.mark.parametrize(
        ("kinds", "private_name", "classes"),
        [
            (private.BATCH_NORMS, "_BatchNorm", ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")),
            (private.INSTANCE_NORMS, "_InstanceNorm", ("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d")),
            (private.CONVOLUTIONS, "_ConvNd", ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose3d")),
            (private.TRANSPOSED_CONVOLUTIONS, "_ConvTransposeNd", ("ConvTranspose1d", "ConvTranspose2d")),
        ],
    )
    def test_kinds(self, kinds: tuple[type, ...], private_name: str, classes: tuple[str, ...]) -> None:
        assert kinds[0].__name__ == private_name  # that from which other libraries may have theirs
        for name in classes:
            assert issubclass(getattr(nn, name), kinds[0])
            assert getattr(nn, name) in kinds or kinds is private.CONVOLUTIONS

    def test_public_classes_do_where_the_private_one_is_gone(self) -> None:
        assert private._kinds("batchnorm", "_NoSuchNorm", nn.BatchNorm1d) == (nn.BatchNorm1d,)
        assert private._kinds("no_such_module", "_BatchNorm", nn.BatchNorm1d) == (nn.BatchNorm1d,)

    def test_parameters_and_buffers_are_where_a_module_looks_for_them(self) -> None:
        norm = nn.BatchNorm1d(3)
        assert private.parameters_of(norm) == dict(norm.named_parameters())
        assert private.buffers_of(norm) == dict(norm.named_buffers())
        other = nn.Parameter(torch.zeros(3))
        private.parameters_of(norm)["weight"] = other
        assert norm.weight is other
        private.buffers_of(norm)["running_mean"] = torch.ones(3)
        assert norm.running_mean is not None
        assert norm.running_mean.tolist() == [1, 1, 1]
        assert {"_parameters", "_modules", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks"} <= private.STRUCTURE
        assert all(isinstance(vars(norm).get(name, {}), (dict, type(None), bool)) for name in private.STRUCTURE)

    def test_transient_buffers(self) -> None:
        module = nn.Module()
        module.register_buffer("kept", torch.ones(1))
        module.register_buffer("left", torch.ones(1), persistent=False)
        assert private.transient_buffers(module) == {"left"}
        private.set_transient_buffers(module, {"kept"})
        assert set(module.state_dict()) == {"left"}

    def test_recurrent_layers_run_on_the_parameters_that_they_are_told_of(self) -> None:
        layer, x = nn.LSTM(3, 2), torch.randn(4, 1, 3)
        before = layer(x)[0]
        for name, value in layer.named_parameters():
            private.parameters_of(layer)[name] = nn.Parameter(torch.zeros_like(value))
        private.tell_recurrent(layer)
        assert before.any()
        assert not layer(x)[0].any()

    def test_attention_draws_its_weights_anew(self) -> None:
        for layer in (nn.Linear(2, 2), nn.MultiheadAttention(4, 2)):
            reset = private.reset_of(layer)
            before = next(layer.parameters()).detach().clone()
            assert reset is not None
            reset()
            assert not torch.equal(before, next(layer.parameters()))
        assert private.reset_of(nn.ReLU()) is None


class TestCompiler:
    @pytest.mark.heavy
    @pytest.mark.processes
    def test_compiled_modules_are_known(self) -> None:
        # Before 2.6, fully_shard, which the server of these processes has imported, brings the compiler along.
        code = f"""
import torch
from torch import nn
from initopt._support import _torch_private as private
assert private.compiler_is_loaded() is {TORCH < (2, 6)}
model, other = nn.Linear(2, 2), nn.Linear(2, 2)
assert not private.is_compiled(model)
compiled = torch.compile(model)
other.compile()
assert private.compiler_is_loaded()
assert private.is_compiled(compiled) and private.is_compiled(other) and not private.is_compiled(model)
assert getattr(compiled, private.ORIGINAL) is model
"""
        ended = python(code)
        assert ended.returncode == 0, ended.stderr


class TestState:
    def test_function_modes(self) -> None:
        assert private.function_modes() == []
        with Seen() as outer:
            inner = Seen()
            inner.__enter__()
            assert private.function_modes() == [outer, inner]
            private.set_function_modes([outer])
            assert private.function_modes() == [outer]
        assert private.function_modes() == []

    def test_dispatch_modes(self) -> None:
        operations: list[str] = []

        class Listening(private.DispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
                operations.append(func.name())
                return func(*args, **(kwargs or {}))

        x = torch.ones(1)
        with Listening() as mode:
            assert private.dispatch_modes() == [mode]
            x.sin()
        assert operations == ["aten::sin"]
        private.set_dispatch_modes([mode])
        assert private.dispatch_modes() == [mode]
        private.set_dispatch_modes([])
        assert private.dispatch_modes() == []

    def test_flags_of_the_thread(self) -> None:
        assert private.is_multithreading_enabled()
        with torch.autograd.set_multithreading_enabled(False):
            assert not private.is_multithreading_enabled()
        assert private.autocast_nesting() == 0
        with torch.autocast("cpu"):
            assert private.autocast_nesting() == 1

    @pytest.mark.skipif(TORCH < (2, 6), reason="PyTorch 2.5 does not tell")
    def test_hooks_on_saved_tensors(self) -> None:
        assert private.saved_tensors_hooks() is None
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
        hooks.__enter__()
        assert private.saved_tensors_hooks() is not None
        private.pop_saved_tensors_hooks()
        assert private.saved_tensors_hooks() is None


@pytest.mark.processes
def test_a_loader_forgets_the_iterator_that_it_keeps() -> None:
    loader = DataLoader(range(8), batch_size=2, num_workers=1, persistent_workers=True)
    first = iter(loader)
    assert iter(loader) is first
    private.forget_iterator(loader)
    assert iter(loader) is not first


def when_whole_weights_are_let_go() -> tuple[int, bool, bool]:
    model = fsdp.fully_shard(nn.Linear(4, 4))
    before = _torch_fsdp.resharding(model)
    model.set_reshard_after_forward(True)
    model.set_reshard_after_backward(False)
    changed = _torch_fsdp.resharding(model)
    _torch_fsdp.set_resharding(model, before)
    return len(before), changed != before, _torch_fsdp.resharding(model) == before


def settings_of_reductions() -> dict[str, Any]:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    model = fsdp.fully_shard(nn.Linear(4, 4, bias=False), mp_policy=MixedPrecisionPolicy(output_dtype=torch.float64))
    model.set_requires_gradient_sync(False)
    model.set_is_last_backward(False)
    ran: list[Any] = []
    model.weight.register_post_accumulate_grad_hook(lambda p: ran.append(p))
    found: dict[str, Any] = {"fresh": _torch_fsdp.forget_passes([model])}
    with _torch_fsdp.reducing([model]), _torch_fsdp.without_steps([model.weight]):
        out = model(torch.ones(2, 4))
        model.reshard()
        with _torch_fsdp.without_fetching([model]):
            torch.autograd.grad(out.sum(), out, retain_graph=True)
        found["gathered"] = type(model.weight).__name__
        out.sum().backward()
        found["reduced"] = type(model.weight.grad).__name__
        found["ran"] = len(ran)
    model(torch.ones(2, 4)).sum().backward()  # as its user has it: nothing is reduced
    group = model._get_fsdp_state()._fsdp_param_groups[0]
    whole = group.fsdp_params[0]._unsharded_param
    found["own"] = group.reduce_grads, model._get_fsdp_state()._state_ctx.is_last_backward, whole.grad is not None
    kept = whole.grad
    with _torch_fsdp.reducing([model]):
        found["put aside"] = whole.grad is None
    found["back"] = whole.grad is kept
    found["precisions"] = _torch_fsdp.precisions(model), _torch_fsdp.hooked_reduction(model)
    found["mesh"] = _torch_fsdp.data_mesh(model).ndim, _torch_fsdp.data_mesh(fsdp.fully_shard(nn.Sequential(model)))
    return found


def of_fully_shard() -> tuple[Any, Any]:
    return when_whole_weights_are_let_go(), settings_of_reductions() if TORCH >= (2, 13) else None


@pytest.mark.processes
@pytest.mark.skipif(TORCH < (2, 6), reason="fully_shard is public since PyTorch 2.6")
def test_settings_of_fully_shard() -> None:
    """When whole weights are let go, of the module itself and of one group of parameters; and what a reduction is."""
    ((let_go, reductions),) = in_processes(of_fully_shard, 1)
    assert let_go == (2, True, True)
    if TORCH >= (2, 13):
        assert reductions == {
            "fresh": True, "gathered": "DTensor", "reduced": "DTensor", "ran": 0, "own": (False, False, True),
            "put aside": True, "back": True, "precisions": ([torch.float64], False),
            "mesh": (1, None),
        }  # fmt: skip


@pytest.mark.processes
def test_the_package_is_imported_without_any_of_them() -> None:
    """Each name is looked up when it is used, so that one that goes breaks what needs it, and nothing else."""
    code = """
import torch, torch.nn.utils
from torch.nn.modules import batchnorm, conv, instancenorm
gone = [(torch._C, "DisableTorchFunction"), (torch._C._nn, "hardsigmoid"), (torch._C._nn, "hardsigmoid_"),
        (torch, "_weight_norm"), (torch, "_scaled_dot_product_attention_math"), (batchnorm, "_BatchNorm"),
        (instancenorm, "_InstanceNorm"), (conv, "_ConvNd"), (conv, "_ConvTransposeNd"), (torch.nn.utils, "weight_norm"),
        (torch.autograd.Variable, "_execution_engine"), (torch._C._functorch, "maybe_current_level")]
for place, name in gone:
    delattr(place, name)
import initopt
"""
    ended = python(code)
    assert ended.returncode == 0, ended.stderr
