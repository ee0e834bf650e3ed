"""The engine that runs all sub-batches side by side, on the gallery: right, or refused."""

import pytest
import torch
from torch import Tensor, nn

import initopt
from initopt.engines.stacked.operations import NotCoveredError
from initopt.testing import ENTRIES, evaluate
from tests.engines._cases import BEYOND_GROUPS, check, engine_cases

pytestmark = pytest.mark.gallery


class Taught(nn.Module):
    """Adds what a part gives that no gradient goes through, and that has a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.layer, self.head = nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.teacher(2 * x + 1)
        return self.head(torch.tanh(self.layer(x)) + target)


@pytest.mark.parametrize(("name", "mode", "engine"), engine_cases("groups"))
def test_gram_and_derivatives(name: str, mode: str, engine: str) -> None:
    check(name, mode, engine)


@pytest.mark.parametrize(("name", "message"), BEYOND_GROUPS.items())
def test_what_is_beyond_it_is_refused(name: str, message: str) -> None:
    with pytest.raises(NotCoveredError, match=message):
        evaluate("groups", ENTRIES[name], functions=["cosine"])


def test_a_batch_norm_without_gradients_has_the_statistics_of_each_sub_batch() -> None:
    torch.manual_seed(0)
    model = Taught().double()
    batches = [(torch.randn(16, 8).double(), torch.randint(4, (16,)))]
    groups, plain = (
        initopt.measure(model, batches, engine=engine, seed=0, progress=False) for engine in ("groups", "plain")
    )
    torch.testing.assert_close(groups.gram, plain.gram, rtol=1e-12, atol=0)
