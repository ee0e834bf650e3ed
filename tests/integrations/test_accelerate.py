"""What Accelerate and Fabric have prepared, in ``make test-integrations``."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

pytest.importorskip("accelerate")
pytest.importorskip("lightning.fabric")

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from lightning.fabric import Fabric

import initopt
from initopt.integrations import accelerate, fabric
from tests.helpers import values
from tests.integrations._small import loader, net, order
from tests.integrations._two import in_two_processes

pytestmark = pytest.mark.filterwarnings("default")

SHORT = {"steps": 10, "measure_batches": 2, "on_harm": "warn", "progress": False, "seed": 0}


@pytest.fixture(autouse=True)
def _anew():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def close(found, expected, tolerance=1e-5):
    assert any(scale != 1 for scale in found.scales.values())
    for name, scale in expected.scales.items():
        assert math.isclose(found.scales[name], scale, rel_tol=tolerance), name


class TestAccelerate:
    def test_as_before_it_was_prepared(self):
        accelerator = Accelerator(cpu=True)
        model, batches = accelerator.prepare(net(), loader())
        close(accelerate.optimize(accelerator, model, batches, **SHORT), initopt.nio(net(), loader(), **SHORT))

    def test_the_books_of_training(self):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model, batches = accelerator.prepare(net(), loader())
        accelerate.optimize(accelerator, model, batches, **SHORT)
        accelerate.measure(accelerator, model, batches, num_batches=3, progress=False)
        accelerate.diagnose(accelerator, model, batches, tries=(), progress=False)
        state = accelerator.gradient_state
        assert (state.sync_gradients, state.active_dataloader, batches.iteration) == (True, None, 0)
        assert order(batches) == order(accelerator.prepare(loader()))
        assert accelerator.step == 0

    def test_in_an_epoch_that_is_going_on(self):
        accelerator = Accelerator(cpu=True)
        model, batches, plain = accelerator.prepare(net(), loader(), loader())
        seen = []
        for number, batch in enumerate(batches):
            seen.append(float(batch[0].double().sum()))
            if number == 3:
                accelerate.measure(accelerator, model, batches, num_batches=2, progress=False)
        assert seen == order(plain)[:8]

    def test_mixed_precision(self):
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        dtypes = set()

        class Watched(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = net()

            def forward(self, inputs):
                found = self.net(inputs)
                dtypes.add(found.dtype)
                return found

        model, batches = accelerator.prepare(Watched(), loader())
        found = accelerate.measure(accelerator, model, batches, progress=False)
        assert torch.bfloat16 in dtypes
        assert math.isclose(found.grad_norm, initopt.measure(net(), loader(), progress=False).grad_norm, rel_tol=0.05)

    def test_the_scale_of_the_loss_changes_nothing(self):
        accelerator = Accelerator(cpu=True)
        model, batches = accelerator.prepare(net(), loader())
        before = accelerate.measure(accelerator, model, batches, seed=0, progress=False)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        after = accelerate.measure(accelerator, model, batches, seed=0, progress=False)
        assert torch.equal(before.gram, after.gram)
        assert accelerator.scaler.get_scale() == 1024

    def test_the_optimizer_that_was_prepared(self):
        accelerator = Accelerator(cpu=True)
        made = net()
        model, optimizer, batches = accelerator.prepare(made, torch.optim.SGD(made.parameters(), 1e-12), loader())
        found = accelerate.diagnose(accelerator, model, batches, optimizer=optimizer, tries=(), progress=False)
        assert "O502" in {finding.rule for finding in found.findings}

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (("accelerator", None, []), TypeError, "accelerator must be an accelerate.Accelerator; got str"),
            ((None, None, "batches"), TypeError, "batches must be an iterable of batches"),
        ],
    )
    def test_refuses(self, arguments, error, message):
        accelerator, model, batches = arguments
        accelerator = Accelerator(cpu=True) if accelerator is None else accelerator
        with pytest.raises(error, match=message):
            accelerate.measure(accelerator, net() if model is None else model, batches)
        with pytest.raises(TypeError, match=r"measure\(\) has no option 'steps'"):
            accelerate.measure(accelerator, net(), [], steps=3)

    def test_sharding_is_refused(self, monkeypatch):
        from accelerate.utils import DistributedType

        accelerator = Accelerator(cpu=True)
        monkeypatch.setattr(Accelerator, "distributed_type", property(lambda self: DistributedType.DEEPSPEED))
        with pytest.raises(
            ValueError, match="DEEPSPEED spreads the weights over processes in a way that initopt does not know here"
        ):
            accelerate.measure(accelerator, net(), loader())


class TestFabric:
    @pytest.mark.parametrize(
        ("precision", "tolerance"), [("32-true", 1e-5), ("64-true", 1e-4), ("bf16-mixed", 0.01), ("bf16-true", 0.01)]
    )
    def test_precisions(self, precision, tolerance):
        lit = Fabric(accelerator="cpu", precision=precision)
        model = lit.setup(net())
        batches = lit.setup_dataloaders(loader())
        found = fabric.optimize(lit, model, batches, **SHORT)
        close(found, initopt.nio(net(), loader(), **SHORT), tolerance)
        assert order(batches) == order(lit.setup_dataloaders(loader()))
        assert "forward" not in vars(model.module)
        lit.backward(model(next(iter(batches))[0]).sum())  # and it trains on

    def test_a_loss_of_the_users(self):
        lit = Fabric(accelerator="cpu")
        model = lit.setup(net())
        found = fabric.measure(
            lit,
            model,
            loader(),
            lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
            progress=False,
        )
        assert math.isclose(found.grad_norm, initopt.measure(net(), loader(), progress=False).grad_norm, rel_tol=1e-5)

    def test_diagnose(self):
        lit = Fabric(accelerator="cpu")
        made = net()
        model, optimizer = lit.setup(made, torch.optim.SGD(made.parameters(), 1e-12))
        before = values(made)
        found = fabric.diagnose(lit, model, loader(), optimizer=optimizer, tries=(), progress=False)
        assert "O502" in {finding.rule for finding in found.findings}
        assert all(torch.equal(before[name], value) for name, value in made.state_dict().items())

    def test_refuses(self):
        lit = Fabric(accelerator="cpu")
        with pytest.raises(TypeError, match="model must be what fabric.setup returned; got Sequential"):
            fabric.measure(lit, net(), loader())
        with pytest.raises(TypeError, match="fabric must be a lightning.Fabric; got str"):
            fabric.measure("fabric", net(), loader())


@pytest.mark.processes
def test_two_processes(tmp_path):
    ranks = in_two_processes("two_accelerate.py", tmp_path)
    for name in ("accelerate", "accelerate, sharded", "fabric", "fabric, sharded"):
        first, second = (rank[name] for rank in ranks)
        assert first["equal"], name
        assert first["order"], name
        assert second["order"], name
        assert first["scales"] == second["scales"], name
        assert first["measured"] == second["measured"], name
        assert any(scale != 1 for scale in first["scales"].values())
        assert first["sharded"] == name.endswith("sharded")
        assert first["scales"] == pytest.approx(ranks[0][name.partition(",")[0]]["scales"], rel=1e-6)
