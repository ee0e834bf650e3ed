"""A race on each odd model of the gallery leaves it as it was."""

import functools
import warnings

import pytest
import torch

import initopt
from initopt.testing import ENTRIES

pytestmark = pytest.mark.gallery

SGD = functools.partial(torch.optim.SGD, lr=1e-3)


@pytest.mark.parametrize("name", ENTRIES)
def test_a_race_leaves_the_model_as_it_was(name):
    entry = ENTRIES[name]
    if name == "weight_norm_by_hook":
        pytest.skip("torch cannot copy it")
    model, batches = entry.model(), [entry.batch(number) for number in range(1, 7)]
    before = {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    modes = [module.training for module in model.modules()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = initopt.choose(
            model, batches, SGD, entry.loss_fn(), starts=["orthogonal"], steps=2, seeds=2, seed=0, progress=False
        )
    assert len(found.rows) == 2
    assert not found.rows[1].why or found.rows[1].outcome in ("unchanged", "failed", "diverged")
    after = model.state_dict()
    assert all(torch.equal(after[name].nan_to_num(), value.nan_to_num()) for name, value in before.items())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
