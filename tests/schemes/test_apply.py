"""Schemes for a whole model: what is drawn, with which variance, and what is left."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import initopt
from initopt import schemes, zoo
from initopt.schemes.nonlinearities import NONLINEARITIES, gain_of
from tests.helpers import make_batches, make_model, values


def wide() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(8, 64, 3, groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 3, groups=4),
        nn.Flatten(),
        nn.Linear(8192, 100),
    )


DRAWS = schemes.NAMES[: schemes.NAMES.index("trunc_normal") + 1]
"""Those of torch.nn.init, for any model."""

FANS = {"0.weight": (4 * 9, 64 * 9), "2.weight": (16 * 9, 8 * 9), "4.weight": (8192, 100)}
"""In and out as torch has them for convolutions, which counts the outputs of all groups; of a transposed one, a group's."""


def check_deviation(value: Tensor, expected: float) -> None:
    assert float(value.std()) == pytest.approx(expected, rel=5 / math.sqrt(2 * value.numel()))
    assert abs(float(value.mean())) < 5 * expected / math.sqrt(value.numel())


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
@pytest.mark.parametrize("scheme", ["kaiming_normal", "kaiming_uniform"])
def test_kaiming(scheme: str, mode: Any) -> None:
    model = wide()
    applied = schemes.apply_(model, scheme, mode=mode, seed=1)
    for name, fans in FANS.items():
        fan = fans[0] if mode == "fan_in" else fans[1]
        value = dict(model.named_parameters())[name].detach()
        check_deviation(value, math.sqrt(2 / fan))
        if scheme.endswith("uniform"):
            assert float(value.abs().max()) <= math.sqrt(6 / fan)
        else:
            assert float(value.abs().max()) > 3 * math.sqrt(2 / fan)
        assert applied.gains[name] == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("scheme", ["xavier_normal", "xavier_uniform"])
def test_xavier(scheme: str) -> None:
    model = wide()
    applied = schemes.apply_(model, scheme, nonlinearity="tanh", seed=1)
    for name, fans in FANS.items():
        check_deviation(dict(model.named_parameters())[name].detach(), 5 / 3 * math.sqrt(2 / sum(fans)))
    assert set(applied.gains.values()) == {5 / 3}
    assert applied.set == ("0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias")
    assert not any(p.any() for n, p in model.named_parameters() if n.endswith("bias"))


def test_orthogonal_matrix_by_matrix() -> None:
    """Each projection of attention, each gate, and each group of a transposed convolution is a matrix of its own."""
    model = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(8, 2),
            "apart": nn.MultiheadAttention(8, 2, kdim=6, vdim=4),
            "lstm": nn.LSTM(5, 8, proj_size=3),
            "cell": nn.GRUCell(5, 8),
            "up": nn.ConvTranspose1d(4, 12, 2, groups=2),
            "pairs": nn.Bilinear(3, 4, 6),
        }
    )
    applied = schemes.apply_(model, "orthogonal", gain=2.0, seed=3)
    named = {n: p.detach() for n, p in model.named_parameters()}
    blocks = [*named["attention.in_proj_weight"].split(8), named["attention.out_proj.weight"]]
    blocks += [named[f"apart.{x}_proj_weight"] for x in "qkv"]
    blocks += [*named["lstm.weight_ih_l0"].split(8), *named["lstm.weight_hh_l0"].split(8), named["lstm.weight_hr_l0"]]
    blocks += [*named["cell.weight_ih"].split(8), *named["cell.weight_hh"].split(8)]
    blocks += [part.transpose(0, 1) for part in named["up.weight"].split(2)]
    blocks += [named["pairs.weight"]]
    for block in blocks:
        matrix = block.flatten(1)
        small = min(matrix.shape)
        product = matrix @ matrix.T if len(matrix) == small else matrix.T @ matrix
        torch.testing.assert_close(product, 4 * torch.eye(small), atol=1e-5, rtol=0)
    assert len(blocks) == 3 + 1 + 3 + 4 + 4 + 1 + 3 + 3 + 2 + 1
    assert not any(p.any() for n, p in named.items() if "bias" in n)
    assert applied.left == ()


def test_normal() -> None:
    model = nn.Linear(400, 300)
    applied = schemes.apply_(model, "normal", std=0.01, seed=0)
    check_deviation(model.weight.detach(), 0.01)
    assert float(model.weight.detach().abs().max()) > 0.03
    assert not model.bias.detach().any()
    assert applied.gains == {}


def test_kinds_of_parameters() -> None:
    """As the published scripts of GradInit start a ResNet: the classifier keeps its weights, not its bias."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 10))
    before = values(model)
    applied = schemes.apply_(model, "kaiming_normal", mode="fan_out", params=["convolutions", "biases"], seed=0)
    assert set(applied.set) == {"0.weight", "0.bias", "3.bias"}
    assert torch.equal(model[3].weight, before["3.weight"])
    assert not model[3].bias.detach().any()


def test_truncated_normal() -> None:
    model = wide()
    applied = schemes.apply_(model, "trunc_normal", std=0.1, seed=0)
    for name in FANS:
        value = dict(model.named_parameters())[name].detach()
        assert float(value.abs().max()) <= 0.2
        check_deviation(value, 0.1 * 0.8796)  # of what is left of a normal within two deviations
    assert applied.gains == {}


def test_what_is_left() -> None:
    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(5, 8),
            "tied": nn.Linear(8, 5),
            "norm": nn.LayerNorm(8),
            "normed": weight_norm(nn.Linear(8, 8)),
            "frozen": nn.Linear(8, 8),
            "free": nn.Linear(8, 8),
            "statistics": nn.BatchNorm1d(8),
        }
    )
    model["tied"].weight = model["embedding"].weight
    model["frozen"].requires_grad_(False)
    with torch.no_grad():
        model["statistics"].running_mean.fill_(3.0)
    before = values(model)
    applied = schemes.apply_(model, "kaiming_normal", params=lambda name, p, module: name != "free.bias", seed=0)
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"tied.bias", "free.weight"}
    assert set(applied.set) == changed
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(applied.left) == names - changed
    assert list(applied.gains) == ["free.weight"]


def test_default_draws_what_the_constructors_draw() -> None:
    torch.manual_seed(7)
    model = nn.Sequential(
        nn.Embedding(5, 8),
        nn.Linear(8, 8),
        nn.LayerNorm(8),
        nn.MultiheadAttention(8, 2),
        nn.BatchNorm1d(8),
        nn.Linear(8, 2),
    )
    frozen = model[5].weight.detach().clone()
    model[5].weight.requires_grad_(False)
    with torch.no_grad():
        model[2].weight.fill_(3.0)
        model[3].out_proj.bias.fill_(3.0)
        model[4].running_mean.fill_(3.0)
    before = values(model)
    applied = schemes.apply_(model, "default", seed=0)
    assert torch.equal(model[2].weight, torch.ones(8))
    assert torch.equal(model[3].out_proj.bias, torch.zeros(8))
    assert torch.equal(model[4].running_mean, torch.full((8,), 3.0))
    assert torch.equal(model[5].weight, frozen)
    bound = 1 / math.sqrt(8)
    assert not torch.equal(model[1].weight, before["1.weight"])
    assert 0.8 * bound < float(model[1].weight.detach().abs().max()) <= bound
    assert applied.left == ()
    again = values(model)
    schemes.apply_(model, "default", seed=0)
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", DRAWS)
def test_seeds(name: str) -> None:
    """A seed gives the same weights, and leaves torch's random state alone; without one, it advances."""
    model = make_model()
    before = torch.get_rng_state()
    schemes.apply_(model, name, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    first = values(model)
    schemes.apply_(model, name, seed=5)
    assert not torch.equal(model[0].weight, first["0.weight"])
    schemes.apply_(model, name, seed=4)
    assert all(torch.equal(value, first[n]) for n, value in model.state_dict().items())
    schemes.apply_(model, name)
    one = values(model)
    schemes.apply_(model, name)
    assert not torch.equal(model[0].weight, one["0.weight"])
    torch.manual_seed(0)
    schemes.apply_(model, name)
    one = values(model)
    torch.manual_seed(0)
    schemes.apply_(model, name)
    assert torch.equal(model[0].weight, one["0.weight"])


class Followed(nn.Module):
    """Nonlinearities as modules, functions, methods and in place; through norms, sums, pools and reshapes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.leaky = nn.LeakyReLU(0.2)
        self.prelu = nn.PReLU(init=0.3)
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.gate, self.value, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.unused = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)), inplace=True)
        x = self.leaky(F.max_pool2d(x + self.norm(self.second(x)), 2))
        x = x.mean((2, 3))
        x = self.a(x).view(-1, 8).tanh()
        x = torch.sigmoid(self.b(x))
        x = self.prelu(self.c(x))
        x = F.silu(self.gate(x)) * self.value(x)
        return self.out(x)


def test_gains_follow_the_nonlinearities_of_a_model() -> None:
    torch.manual_seed(0)
    model = Followed()
    batch = torch.randn(4, 3, 8, 8), torch.randint(4, (4,))
    running, state = model.norm.running_mean.clone(), torch.get_rng_state()
    applied = schemes.apply_(model, "kaiming_normal", batch, seed=0)
    assert applied.nonlinearities == {
        "conv.weight": "relu",
        "second.weight": "leaky_relu",
        "a.weight": "tanh",
        "b.weight": "sigmoid",
        "c.weight": "leaky_relu",
        "gate.weight": "silu",
    }
    assert applied.gains == pytest.approx(
        {
            "conv.weight": math.sqrt(2),
            "second.weight": math.sqrt(2 / 1.04),
            "a.weight": 5 / 3,
            "b.weight": 1.0,
            "c.weight": math.sqrt(2 / 1.09),
            "gate.weight": 1 / math.sqrt(0.355769),
            "value.weight": 1.0,
            "out.weight": 1.0,
            "unused.weight": 1.0,
        },
        rel=1e-5,
    )
    check_deviation(model.a.weight.detach(), 5 / 3 / math.sqrt(8))
    assert torch.equal(model.norm.running_mean, running)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert model.norm.track_running_stats


def test_gains_in_whole_networks() -> None:
    images = torch.randn(2, 3, 16, 16), torch.randint(10, (2,))
    found = schemes.apply_(zoo.cifar_resnet(8), "kaiming_normal", images).nonlinearities
    assert set(found.values()) == {"relu"}
    assert len(found) == 7  # all but the last
    vit = zoo.small_vit(16, 4, depth=2, width=16, heads=2)
    assert schemes.apply_(vit, "xavier_uniform", images).nonlinearities == {
        "blocks.0.perceptron.0.weight": "gelu",
        "blocks.1.perceptron.0.weight": "gelu",
    }


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_gains_keep_the_mean_square(name: str) -> None:
    """But for the textbook's values of sigmoid, tanh and SELU, which are other ones."""
    z = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    function = {"linear": lambda x: x, "sigmoid": torch.sigmoid, "tanh": torch.tanh}.get(name) or getattr(F, name)
    if name in ("sigmoid", "tanh", "selu"):
        assert gain_of(name) == {"sigmoid": 1, "tanh": 5 / 3, "selu": 3 / 4}[name]
    else:
        assert gain_of(name) * float(function(z).square().mean().sqrt()) == pytest.approx(1, rel=0.01)


def test_arguments_of_a_nonlinearity_count() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ELU(alpha=3.0), nn.Linear(4, 4), nn.GELU(approximate="tanh"), nn.Linear(4, 2))
    gains = schemes.apply_(model, "orthogonal", (torch.randn(3, 4), torch.tensor([0, 1, 1]))).gains
    z = torch.randn(400_000, dtype=torch.float64)
    assert gains["0.weight"] * float(F.elu(z, 3.0).square().mean().sqrt()) == pytest.approx(1, rel=0.01)
    assert gains["2.weight"] == pytest.approx(gain_of("gelu"), rel=1e-3)


@pytest.mark.parametrize(
    ("scheme", "options", "message"),
    [
        ("he", {}, "unknown scheme 'he'; known are 'default', 'kaiming_normal', 'kaiming_uniform'"),
        (3, {}, "unknown scheme 3"),
        ("kaiming_normal", {"mode": "fan"}, "unknown mode 'fan'; known are 'fan_in', 'fan_out'"),
        (
            "xavier_normal",
            {"mode": "fan_out"},
            "scheme 'xavier_normal' has no option 'mode'; it has gain, nonlinearity",
        ),
        ("xavier_normal", {"std": 0.1}, "scheme 'xavier_normal' has no option 'std'; it has gain, nonlinearity"),
        ("normal", {"st": 0.1}, r"scheme 'normal' has no option 'st'; did you mean 'std'\?"),
        ("default", {"std": 0.1}, "scheme 'default' has no option 'std'; it has none"),
        (schemes.Normal(std=0.1), {"std": 0.2}, r"std: give the options to Normal\(\.\.\.\) itself"),
        (schemes.Normal, {}, r"scheme is the class Normal; pass an instance, Normal\(\), or its name"),
        ("zero_branches", {}, r"has to see the model run: give it a batch, apply_\(model, 'zero_branches', batch\)"),
        ("trunc_normal", {"std": 0.0}, "std must be a number above 0; got 0.0"),
        ("orthogonal", {"gain": -1.0}, "gain must be a number above 0; got -1.0"),
        ("orthogonal", {"gain": "big"}, "gain must be a number above 0; got 'big'"),
        ("orthogonal", {"nonlinearity": "swish"}, "unknown nonlinearity 'swish'; known are 'linear', 'celu'"),
        ("orthogonal", {"nonlinearity": "relu", "gain": 2.0}, "gain=2.0 and nonlinearity='relu' both say what the gain is"),
        ("orthogonal", {"seed": -1}, "seed must be an integer of 0 or more; got -1"),
        ("orthogonal", {"params": lambda *_: False}, "params matches none of the 8 trainable parameters"),
    ],
)
def test_bad_arguments(scheme: Any, options: dict[str, Any], message: str) -> None:
    model = make_model()
    before = values(model)
    with pytest.raises((ValueError, TypeError), match=message):
        schemes.apply_(model, scheme, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_fails_is_as_before() -> None:
    model = make_model()
    before = values(model)
    with pytest.raises(RuntimeError):
        schemes.apply_(model, "kaiming_normal", (torch.randn(4, 7), torch.randint(3, (4,))))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training


def test_low_precision() -> None:
    model = nn.Linear(64, 64, dtype=torch.bfloat16)
    schemes.apply_(model, "orthogonal", seed=0)
    product = model.weight.detach().float() @ model.weight.detach().float().T
    torch.testing.assert_close(product, torch.eye(64), atol=0.02, rtol=0)
    wide_model = nn.Linear(64, 64, dtype=torch.float64)
    schemes.apply_(wide_model, "orthogonal", seed=0)
    torch.testing.assert_close(wide_model.weight @ wide_model.weight.T, torch.eye(64).double(), atol=1e-12, rtol=0)


Method = Callable[..., initopt.Result]
LEARNED: list[Method] = [initopt.nio, initopt.gradinit, initopt.metainit, initopt.lsuv]


@pytest.mark.heavy
@pytest.mark.parametrize("method", LEARNED, ids=[method.__name__ for method in LEARNED])
def test_any_method_starts_from_any_scheme(method: Method) -> None:
    """The scales refer to the scheme's weights, and what is measured before is the model's own."""
    for scheme in DRAWS:
        model, other = make_model(), make_model()
        result = method(
            model, make_batches(7), steps=1, measure_batches=2, diagnose=False, scheme=scheme, seed=3, on_harm="warn"
        )
        schemes.apply_(other, scheme, make_batches(1)[0], seed=3)
        for (n, p), start in zip(model.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, start * result.scales[n], rtol=1e-6, atol=0)
        assert result.options["scheme"] == scheme


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore::initopt.InitoptWarning")
@pytest.mark.parametrize("scheme", [name for name in schemes.NAMES if name not in DRAWS])
def test_a_method_starts_from_a_scheme_that_sees_the_model_run(scheme: str) -> None:
    models = [zoo.small_vit(8, 4, depth=1, width=8, heads=2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    batches = [(torch.randn(64, 3, 8, 8), torch.randint(10, (64,))) for _ in range(2)]
    result = initopt.nio(
        models[0], batches, steps=1, measure_batches=1, diagnose=False, scheme=scheme, seed=3, on_harm="warn"
    )
    schemes.apply_(models[1], scheme, batches[0], seed=3)
    for (n, p), start in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, start * result.scales.get(n, 1.0), rtol=1e-6, atol=0)


def test_a_scheme_with_options_is_the_start_of_a_method_and_of_its_checkpoint(tmp_path: Any) -> None:
    options = {"steps": 2, "measure_batches": 1, "seed": 1, "checkpoint": tmp_path / "run", "on_harm": "warn"}
    result = initopt.nio(make_model(), make_batches(), scheme=schemes.Normal(std=0.3), **options)
    assert result.options["scheme"] == {"scheme": "normal", "std": 0.3}
    result.save(tmp_path / "saved")
    assert initopt.Result.load(tmp_path / "saved").options["scheme"] == {"scheme": "normal", "std": 0.3}
    with pytest.raises(initopt.MismatchError, match="scheme was"):
        initopt.nio(make_model(), make_batches(), scheme=schemes.Normal(std=0.4), **(options | {"steps": 3}))
    with pytest.raises(ValueError, match="unknown scheme 'orthogonl'"):
        initopt.methods.NIO(scheme="orthogonl")


def test_what_was_applied_in_words() -> None:
    assert str(schemes.apply_(make_model(), "orthogonal", seed=0)) == (
        "orthogonal: 6 tensors set, 2 left as they were\n"
        "Train from these weights, or improve them first: initopt.nio(model, batches)."
    )
    vit = zoo.small_vit(8, 4, depth=1, width=8, heads=2)
    text = str(schemes.apply_(vit, "mimetic", seed=0))
    assert "query, key, value: blocks.0.queries_keys_values.weight" in text
    assert text.splitlines()[-1].startswith("Look whether these are what they are taken for, then train")
    frozen = nn.Sequential(nn.LayerNorm(3))
    assert "Nothing in this model is for this scheme" in str(schemes.apply_(frozen, "orthogonal"))


def test_names_and_classes() -> None:
    assert tuple(schemes.SCHEMES) == schemes.NAMES
    for name, kind in schemes.SCHEMES.items():
        scheme = schemes.create_scheme(name)
        assert scheme == kind()
        assert scheme.as_plain() == name
    for kind in schemes.SCHEMES.values():
        assert kind.__name__ in schemes.__all__


@pytest.mark.parametrize("method", LEARNED, ids=[method.__name__ for method in LEARNED])
def test_before_is_of_the_models_own_weights(method: Method) -> None:
    batches = make_batches(5)
    model = make_model()
    result = method(model, batches, steps=1, measure_batches=1, scheme="orthogonal", seed=3)
    taken = {"gradinit": 3}.get(method.__name__, 1)
    own = initopt.measure(make_model(), batches[taken : taken + 1], seed=3)
    assert result.before.grad_norm == pytest.approx(own.grad_norm)


def test_a_failed_run_gives_the_models_own_weights_back() -> None:
    model = make_model()
    before = values(model)

    def fail(record: Any) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError):
        initopt.nio(model, make_batches(), steps=5, scheme="kaiming_normal", callbacks=fail, measure_batches=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.heavy
def test_a_killed_run_goes_on_from_the_scheme(tmp_path: Any) -> None:
    options = {"steps": 6, "scheme": "xavier_normal", "measure_batches": 2, "seed": 1, "checkpoint_every": 1}

    def stop(record: Any) -> None:
        if record.step == 3:
            raise KeyboardInterrupt

    for method in (initopt.nio, initopt.gradinit):
        whole, broken = make_model(), make_model()
        expected = method(whole, make_batches(), **options)
        path = tmp_path / method.__name__
        with pytest.raises(KeyboardInterrupt):
            method(broken, make_batches(), checkpoint=path, callbacks=stop, **options)
        found = method(broken, make_batches(), checkpoint=path, **options)
        assert found.scales == expected.scales
        assert found.before.grad_norm == expected.before.grad_norm
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), broken.parameters(), strict=True))
        with pytest.raises(initopt.MismatchError, match="scheme was 'xavier_normal' and is 'orthogonal'"):
            method(make_model(), make_batches(), checkpoint=path, **(options | {"scheme": "orthogonal"}))
