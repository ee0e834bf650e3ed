"""Adapters of PEFT, in ``make test-integrations``."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from torch import nn

pytest.importorskip("peft")
pytest.importorskip("transformers")

from peft import LoraConfig, get_peft_model

import initopt
from initopt.comparison.spec.initialization import as_initialization
from initopt.integrations.peft import STARTS, _layers, _load, start
from tests.integrations._hf import Tokens, llama

pytestmark = pytest.mark.filterwarnings("default")

SHORT = {"steps": 3, "measure_batches": 1, "on_harm": "warn", "progress": False, "allow_trained": True}

BATCHES = [{"input_ids": tokens, "labels": tokens} for tokens in Tokens().tokens.split(16)]

VECTORS = [(torch.randn(32, 8), torch.randint(8, (32,))) for _ in range(3)]


def adapted(**options):
    torch.manual_seed(0)
    return get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **options))


def small(**options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    return get_peft_model(net, LoraConfig(r=2, target_modules=["0", "2"], **options))


@torch.no_grad()
def logits(model):
    return model.eval()(**BATCHES[0]).logits


class TestLora:
    def test_says_that_what_moves_is_multiplied_by_zeros(self):
        with pytest.warns(
            initopt.InitoptWarning,
            match=r"nio can scale .4 tensors: .*lora_A.* multiplied by others that are zero .*lora_B.*learning rate",
        ):
            result = initopt.nio(adapted(), BATCHES, **SHORT)
        assert all(scale == 1 for name, scale in result.scales.items() if "lora_B" in name)
        assert any("lora_B" in name for name in result.left_alone["zero"])

    def test_says_nothing_where_something_else_moves(self):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            initopt.nio(adapted(modules_to_save=["lm_head"]), BATCHES, **SHORT)
            initopt.nio(adapted(init_lora_weights="pissa"), BATCHES, **SHORT)
        assert not [w for w in found if "multiplied by" in str(w.message)]

    def test_is_measured(self):
        assert initopt.measure(adapted(), BATCHES, progress=False).grad_norm > 0

    def test_magnitudes_of_pretrained_weights_are_left_alone(self):
        model = adapted(use_dora=True)
        before = logits(model)
        with pytest.warns(initopt.InitoptWarning, match="multiplied by others that are zero"):
            result = initopt.nio(model.train(), BATCHES, **SHORT)
        assert len(result.left_alone["a magnitude of pretrained weights"]) == 4
        assert not any("magnitude" in name for name in result.scales)
        torch.testing.assert_close(logits(model), before)

    def test_magnitudes_alone_are_refused_unless_they_are_asked_for(self):
        model = adapted(use_dora=True)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("magnitude" in name)
        with pytest.raises(ValueError, match="all 4 trainable tensors are magnitudes of pretrained weights"):
            initopt.nio(model, BATCHES, **SHORT)
        result = initopt.nio(model, BATCHES, scale_params=lambda name, parameter, module: True, **SHORT)
        assert any(scale != 1 for scale in result.scales.values())

    def test_a_scheme_would_undo_the_zeros(self):
        with pytest.warns(
            initopt.InitoptWarning, match=r"'orthogonal' draws 4 zero factors of adapters .*scheme=None keeps them"
        ):
            initopt.lsuv(adapted(), BATCHES, measure_batches=0, progress=False, allow_trained=True)


class TestStarts:
    @pytest.mark.parametrize("name", [*STARTS, "pissa_niter_2"])
    def test_the_function_stays_and_the_parameters_are_the_same_objects(self, name):
        model = adapted()
        before, ids = logits(model), {name: id(p) for name, p in model.named_parameters()}
        flags = {name: p.requires_grad for name, p in model.named_parameters()}
        first = {name: p.detach().clone() for name, p in model.named_parameters()}
        model.train()
        start(name, num_batches=2)(model, BATCHES, None)
        assert model.training
        torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-4)
        assert {name: id(p) for name, p in model.named_parameters()} == ids
        assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
        changed = {key for key, p in model.named_parameters() if not torch.equal(first[key], p)}
        assert any("lora_A" in key for key in changed)
        assert any("lora_B" in key for key in changed) == (name not in ("default", "gaussian", "eva"))
        assert all(p.grad is None for p in model.parameters())

    @pytest.mark.parametrize("name", STARTS)
    def test_other_networks_and_losses(self, name):
        model = small()
        before = model.eval()(VECTORS[0][0]).detach()
        start(name)(model, VECTORS, nn.CrossEntropyLoss())
        torch.testing.assert_close(model(VECTORS[0][0]).detach(), before, atol=1e-5, rtol=1e-4)

    def test_one_after_the_other(self):
        model = adapted()
        before = logits(model)
        for name in ("pissa", "olora", "lora_ga", "default"):
            start(name)(model, BATCHES, None)
        torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-4)

    def test_as_peft_itself_makes_them(self):
        ours = adapted()
        start("pissa")(ours, BATCHES)
        theirs = adapted(init_lora_weights="pissa")
        for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other, msg=name)

    def test_directions_of_gradients(self):
        model = small()
        start("lora_ga", num_batches=1)(model, VECTORS, nn.CrossEntropyLoss())
        plain = small()
        weight = plain.base_model.model[0].base_layer.weight.requires_grad_()
        nn.CrossEntropyLoss()(plain(VECTORS[0][0]), VECTORS[0][1]).backward()
        _, _, directions = torch.linalg.svd(weight.grad)
        found = model.base_model.model[0].lora_A["default"].weight
        torch.testing.assert_close((found @ directions[:2].T).abs(), torch.eye(2), atol=1e-3, rtol=0)

    def test_as_an_initialization_of_comparisons(self):
        initialization = as_initialization(start("eva", num_batches=4, tau=0.9))
        assert initialization.name == "peft-eva"
        assert initialization.describe()["steps"][0]["function"]["init_args"] == {
            "name": "eva", "num_batches": 4, "adapter": "default", "options": {"tau": 0.9}
        }  # fmt: skip

    @pytest.mark.processes
    def test_a_comparison(self, tmp_path):
        found = initopt.compare(
            {"small": digits_with_adapter}, "digits", ["default", start("pissa"), start("lora_ga", num_batches=2)], seeds=1,
            recipe={"epochs": 1}, out=tmp_path / "out", progress=False,
        )  # fmt: skip
        assert [run.status for run in found.runs] == ["done"] * 3

    def test_a_choice(self):
        options = {"budget": 300, "steps": 10, "seeds": 2, "progress": False, "seed": 0}
        optimizer = functools.partial(torch.optim.SGD, lr=0.1)
        found = initopt.choose(
            small(), VECTORS * 4, optimizer, nn.CrossEntropyLoss(), starts=[start("pissa"), start("olora")], **options
        )
        assert "peft-pissa" in str(found)
        assert "peft-olora" in str(found)

    @pytest.mark.parametrize(
        ("arguments", "options", "error", "message"),
        [
            (["pisa"], {}, ValueError, "unknown start 'pisa'; known are 'default', 'gaussian'.*'pissa_niter_N'"),
            (["pissa_niter_"], {}, ValueError, "unknown start"),
            (["eva"], {"ro": 1}, TypeError, "the start 'eva' has no option 'ro'; did you mean 'rho'"),
            (["pissa"], {"rho": 1}, TypeError, "the start 'pissa' has no options; got 'rho'"),
            (["eva"], {"num_batches": 0}, ValueError, "num_batches must be an integer of 1 or more; got 0"),
        ],
    )
    def test_refuses(self, arguments, options, error, message):
        with pytest.raises(error, match=message):
            start(*arguments, **options)

    def test_refuses_other_models(self):
        with pytest.raises(TypeError, match=r"is for a model of PEFT's \(get_peft_model\); got Linear"):
            start("pissa")(nn.Linear(2, 2), [])
        with pytest.raises(ValueError, match="unknown adapter 'other'; known are 'default'"):
            start("pissa", adapter="other")(adapted(), BATCHES)
        with pytest.raises(initopt.LoaderError, match="batches is empty"):
            start("eva")(adapted(), [])

    def test_ranks_that_do_not_fit(self):
        model = small()
        layers = _layers(model, "default")
        with pytest.raises(
            ValueError, match=r"EVA found 3 directions for '0', and the adapter has rank 2: give larger batches"
        ):
            _load(layers, "default", {"0": torch.zeros(3, 8)})


def digits_with_adapter():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    return get_peft_model(net, LoraConfig(r=2, target_modules=["1"], modules_to_save=["3"]))
