"""A model of ``fully_shard`` is diagnosed as it is, and stays as it was."""

import functools
import math

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import initopt
from initopt.model.sharded import has_shards, own_class
from tests.processes import in_processes

pytestmark = pytest.mark.processes

fsdp = pytest.importorskip("torch.distributed.fsdp", reason="fully_shard is public since PyTorch 2.6")
if not hasattr(fsdp, "fully_shard"):
    pytest.skip("fully_shard is public since PyTorch 2.6", allow_module_level=True)

ADAMW = functools.partial(torch.optim.AdamW, lr=0.03)


class Remembering(nn.Linear):
    """Keeps what it has seen, as recurrent states and metrics are kept."""

    calls = 0
    last = None

    def forward(self, x):
        self.calls, self.last = self.calls + 1, x.detach()
        return super().forward(x + (self.calls > 1))


def build():
    torch.manual_seed(0)
    first, second, last = Remembering(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)
    nn.init.constant_(second.weight, 0.1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last).double()


def sharded():
    model = build()
    fsdp.fully_shard(model[0])
    fsdp.fully_shard(model[2])
    fsdp.fully_shard(model)
    return model


def batches():
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(4, 16, 8, generator=generator), torch.randint(3, (4, 16), generator=generator)
    return list(zip(inputs.double(), targets, strict=True))


def refusal(call):
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    return str(caught.value)


def what_is_found():
    model = sharded()
    optimizer = ADAMW(model.parameters())
    before = [parameter.to_local().clone() for parameter in model.parameters()]
    found = {
        "check": initopt.check(model, batches()[0]),
        "diagnosis": initopt.diagnose(model, batches(), optimizer=optimizer, seed=0, progress=False),
        "by a function": initopt.diagnose(model, batches(), optimizer=ADAMW, seed=0, progress=False).rows,
        "refused": refusal(lambda: initopt.diagnose(model, batches(), tries=["orthogonal"])),
        "name": own_class(model).__name__,
    }
    parts = [parameter.to_local() for parameter in model.parameters()]
    remembered = model[0].calls, model[0].last
    found["kept"] = all(map(torch.equal, parts, before)), has_shards(model), not optimizer.state, remembered == (0, None)
    nn.functional.cross_entropy(model(batches()[0][0]), batches()[0][1]).backward()
    found["trains"] = all(parameter.grad is not None for parameter in model.parameters())
    torch.manual_seed(0)  # so that both draw the same part
    model[2].weight.detach().to_local().normal_()
    found["copies"] = [(finding.rule, finding.place) for finding in initopt.check(model, batches()[0])]
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallel = parallelize_module(build(), init_device_mesh("cpu", (2,)), plan)
    found["parallel"] = refusal(lambda: initopt.diagnose(parallel, batches()))
    found["weights of it"] = [finding.rule for finding in initopt.check(parallel)]
    return found


def trials():
    foreign = refusal(lambda: initopt.nio(sharded(), batches(), optimizer=ADAMW(sharded().parameters())))
    options = {"steps": 2, "measure_batches": 1, "trial_steps": 2, "seed": 0, "diagnose": False, "on_harm": "warn"}
    found = []
    for make in (lambda model: ADAMW(model.parameters()), lambda model: ADAMW):
        model = sharded()
        result = initopt.nio(model, batches(), optimizer=make(model), progress=False, **options)
        found.append((result.scales, result.trial))
    return foreign, found


@pytest.fixture(scope="module")
def by_rank():
    return in_processes(what_is_found, 2)


def same(one, other):
    """Whether rows are the same, with nan for nan."""
    pairs = [pair for a, b in zip(one, other, strict=True) for pair in zip(vars(a).values(), vars(b).values(), strict=True)]
    for a, b in pairs:
        if isinstance(a, float) and not math.isnan(a):
            assert a == pytest.approx(b, rel=1e-9)
        elif not isinstance(a, float):
            assert a == b


def test_the_findings_and_figures_are_those_of_the_whole_model(by_rank):
    alone = initopt.diagnose(build(), batches(), optimizer=ADAMW, tries=(), seed=0, progress=False)
    for found in by_rank:
        assert found["check"] == initopt.check(build(), batches()[0])
        assert found["check"][0].rule == "W106"
        assert found["diagnosis"].findings == alone.findings
        same(found["diagnosis"].rows, alone.rows)
        same(found["by a function"], alone.rows)
        assert found["diagnosis"].model == found["name"] == "Sequential"
        assert found["diagnosis"].untried == "a model that is sharded over devices has no copies to try them on"


def test_the_model_stays_in_parts_and_trains(by_rank):
    for found in by_rank:
        assert found["kept"] == (True, True, True, True)
        assert found["trains"]


def test_parts_that_are_copies_are_found_on_data_too(by_rank):
    for found in by_rank:
        assert ("S602", "2.weight") in found["copies"]


def test_what_cannot_be_done_is_refused_with_words(by_rank):
    for found in by_rank:
        assert "tries: remedies are tried on copies of the model" in found["refused"]
        assert "and not by fully_shard, so it cannot be gathered" in found["parallel"]
        assert found["weights of it"] == ["W106"]


@pytest.mark.heavy
def test_an_optimizer_of_the_parts_is_one_of_the_whole_weights():
    for foreign, (of_parts, of_a_function) in in_processes(trials, 2):
        assert "the optimizer has none of the model's trainable parameters" in foreign
        assert of_parts == of_a_function
        assert of_parts[1].training_steps >= 4
