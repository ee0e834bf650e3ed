"""What the callbacks of all frameworks have in common, without any of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, Sampler, TensorDataset

import initopt
from initopt.integrations._work import (
    Batches,
    Calling,
    Diagnosing,
    FindingRate,
    Initializing,
    as_it_is,
    at_its_peak,
    bare_optimizer,
    undisturbed,
)
from initopt.model.reach import Reach
from tests.forks import python
from tests.helpers import make_batches, make_model

DATA = TensorDataset(torch.arange(32.0)[:, None])


def order(loader):
    return [batch[0].flatten().tolist() for batch in loader]


class Counting(Sampler[int]):
    """Gives another order in each pass, as it counts them."""

    def __init__(self):
        self.passes = 0
        self.given = []

    def __iter__(self):
        self.passes += 1
        self.given.append(self.passes)
        yield from torch.randperm(32, generator=torch.Generator().manual_seed(self.passes)).tolist()

    def __len__(self):
        return 32


class TestUndisturbed:
    @pytest.mark.parametrize("how", ["global", "generator", "sampler"])
    def test_the_order_is_what_it_would_have_been(self, how):
        def made():
            torch.manual_seed(0)
            if how == "sampler":
                return DataLoader(DATA, 4, sampler=Counting())
            generator = torch.Generator().manual_seed(3) if how == "generator" else None
            return DataLoader(DATA, 4, sampler=RandomSampler(DATA, generator=generator))

        plain = made()
        expected = [order(plain), order(plain)]
        loader = made()
        with undisturbed(loader):
            assert order(loader) == expected[0]
            order(loader)
            next(iter(loader))
        assert [order(loader), order(loader)] == expected
        if how == "sampler":
            assert loader.sampler.given == [1, 2]

    def test_also_after_an_exception(self):
        loader = DataLoader(DATA, 4, sampler=Counting())
        with pytest.raises(KeyError), undisturbed({"nested": [loader]}):
            order(loader)
            raise KeyError
        assert loader.sampler.passes == 0

    @pytest.mark.processes
    def test_an_iterator_that_is_being_read_with_workers_that_stay(self):
        def begun():
            torch.manual_seed(0)
            loader = DataLoader(DATA, 4, shuffle=True, num_workers=1, persistent_workers=True)
            return loader, iter(loader)

        _, plain = begun()
        expected = order(plain)
        loader, reading = begun()
        seen = [next(reading)]
        with undisturbed(loader):
            assert len(order(loader)) == 8
        seen += list(reading)
        assert order(seen) == expected


def test_batches_are_prepared_and_their_generators_found():
    generator = torch.Generator()
    loader = DataLoader(DATA, 4, shuffle=True, generator=generator)
    batches = Batches(loader, lambda batch: batch[0] + 100, 8)
    assert len(batches) == len(list(batches)) == 8
    assert min(float(batch.min()) for batch in batches) == 100
    assert generator in Reach.of(batches).generators
    with pytest.raises(TypeError, match="does not say how many"):
        len(Batches(loader, as_it_is, None))


def test_optimizers():
    sgd = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)

    class Wrapped(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer

    assert bare_optimizer(Wrapped(Wrapped(sgd))) is sgd
    assert bare_optimizer(None) is None
    torch.optim.lr_scheduler.LinearLR(sgd, start_factor=0.01)
    peak = at_its_peak(sgd)
    assert (sgd.param_groups[0]["lr"], peak.param_groups[0]["lr"]) == (0.001, 0.1)
    assert peak.param_groups[0]["params"][0] is sgd.param_groups[0]["params"][0]


def test_options_go_where_they_belong():
    work = Initializing("nio", {"steps": 2, "measure_batches": 1, "progress": False, "on_harm": "warn"})
    result = work(make_model(), make_batches(), None, None)
    assert len(result.history) == 2
    names = {f"initopt/{name}_{when}" for name in ("grad_cosine", "grad_norm", "loss") for when in ("before", "after")}
    assert set(work.figures(result)) == names | {"initopt/seconds"}
    with pytest.raises(TypeError, match="process_group"):
        Initializing("nio", {"process_group": None})
    with pytest.raises(TypeError, match=r"measure\(\) has no option 'batchs'; it has|did you mean"):
        Calling(initopt.measure, {"batchs": 1})


def test_a_diagnosis_has_the_optimizer_unless_another_is_given():
    model = make_model()
    slow, quick = (torch.optim.SGD(model.parameters(), lr=rate) for rate in (1e-12, 0.1))
    for options, rule in (({}, True), ({"optimizer": quick}, False)):
        work = Diagnosing({"tries": (), "progress": False} | options)
        found = work(model, make_batches(), None, slow)
        assert ("O502" in {finding.rule for finding in found.findings}) == rule
        assert work.figures(found)["initopt/warnings"] >= rule


def test_a_rate_is_for_one_optimizer():
    work = FindingRate(False, {})
    with pytest.raises(ValueError, match="a training with one optimizer, and this one has several, or none"):
        work(make_model(), make_batches(), None, None)
    with pytest.raises(ValueError, match="set_rate must be True or False"):
        FindingRate("yes", {})
    with pytest.raises(TypeError, match="has no option 'optimizer'"):
        FindingRate(True, {"optimizer": None})


@pytest.mark.processes
@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("lightning", "lightning", "lightning"),
        ("transformers", "transformers", "transformers"),
        ("accelerate", "accelerate", "accelerate"),
        ("peft", "peft", "peft"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(module, library, extra):
    code = f"""
import sys
sys.modules[{library!r}] = None
import initopt
assert not {{"lightning", "transformers", "accelerate", "peft"}} & {{name for name, value in sys.modules.items() if value}}
try:
    import initopt.integrations.{module}
except ImportError as error:
    assert "pip install 'initopt[{extra}]'" in str(error), error
else:
    raise AssertionError
"""
    ended = python(code)
    assert ended.returncode == 0, ended.stderr
