"""The callbacks of skorch, in ``make test-integrations``."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

pytest.importorskip("skorch")

from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier
from skorch.dataset import ValidSplit

import initopt
from initopt.integrations.skorch import Diagnose, Initialize
from tests.integrations._small import net as made

pytestmark = pytest.mark.filterwarnings("default")

SHORT = {"steps": 3, "measure_batches": 1, "on_harm": "warn", "progress": False}


class Small(nn.Module):
    """A net that notes the batches of its training."""

    seen: list[float] = []  # noqa: RUF012 - skorch makes the module, and a test reads it

    def __init__(self):
        super().__init__()
        self.net = made()

    def forward(self, inputs):
        return self.net(inputs)


class Noting(NeuralNetClassifier):
    def get_loss(self, y_pred, y_true, X=None, training=False):  # noqa: N803
        if training:
            Small.seen.append(float(X.double().sum()))
        return super().get_loss(y_pred, y_true, X=X, training=training)


def data():
    inputs = torch.randn(160, 8, generator=torch.Generator().manual_seed(1)).numpy()
    return inputs, inputs[:, :3].argmax(1)


def skorch_net(*callbacks, kind=NeuralNetClassifier, **options):
    """Two epochs of training in another order each."""
    settings = {"criterion": nn.CrossEntropyLoss, "max_epochs": 2, "lr": 0.1, "batch_size": 16, "verbose": 0}
    settings |= {"iterator_train__shuffle": True, "train_split": ValidSplit(4)}
    return kind(Small, callbacks=list(callbacks), **(settings | options))


def trained(callbacks, **options):
    torch.manual_seed(0)
    Small.seen.clear()
    fitted = skorch_net(*callbacks, **options).fit(*data())
    return fitted, list(Small.seen)


class TestInitialize:
    def test_as_by_hand(self):
        start = Initialize("nio", seed=0, **SHORT)
        trained([start], iterator_train__shuffle=False)
        by_hand = skorch_net(iterator_train__shuffle=False).initialize()
        training, _ = by_hand.get_split_datasets(*data())
        batches = by_hand.get_iterator(training, training=True)
        found = initopt.nio(by_hand.module_, batches, nn.CrossEntropyLoss(), seed=0, **SHORT)
        assert len(set(found.scales.values())) > 2
        assert start.result.scales == pytest.approx(found.scales, rel=1e-5)

    @pytest.mark.parametrize("callback", [Initialize("nio", **SHORT), Diagnose(tries=())], ids=["initialize", "diagnose"])
    def test_training_sees_what_it_would_have_seen(self, callback):
        _, plain = trained([], kind=Noting)
        fitted, seen = trained([callback], kind=Noting)
        assert callback.result is not None
        assert len(plain) == 2 * 8
        assert seen[-len(plain) :] == plain
        assert len(seen) > len(plain)  # those of the callback
        assert len(fitted.history) == 2

    def test_not_again_after_training_began(self):
        start = Initialize("nio", **SHORT)
        net = skorch_net(start, max_epochs=1)
        net.partial_fit(*data())
        assert start.result is not None
        net.partial_fit(*data())
        assert start.result is None
        net.fit(*data())  # anew
        assert start.result is not None
        net.set_params(warm_start=True).fit(*data())
        assert start.result is None
        assert len(net.history) == 2

    def test_grid_search_keeps_the_options(self):
        start = Initialize("nio", **SHORT)
        assert clone(start).get_params() == {"method": "nio", "loss": None, **SHORT}
        search = GridSearchCV(
            skorch_net(("initopt", start)), {"callbacks__initopt__steps": [2, 4]}, cv=2, scoring="accuracy"
        )
        search.fit(*data())
        best = dict(search.best_estimator_.callbacks)["initopt"]
        assert len(best.result.history) == best.get_params()["steps"] == search.best_params_["callbacks__initopt__steps"]
        assert start.result is None
        assert len(pickle.loads(pickle.dumps(search.best_estimator_)).predict(data()[0])) == 160

    def test_a_wrong_option_is_refused_when_it_is_made(self):
        with pytest.raises(TypeError, match="nio"):
            Initialize("nio", stepps=3)
        with pytest.raises(ValueError, match="unknown method"):
            Initialize("nioo")
        with pytest.raises(TypeError, match="stepps"):
            Initialize("nio").set_params(stepps=3)

    def test_a_training_step_of_its_own(self):
        class Own(NeuralNetClassifier):
            def train_step_single(self, batch, **fit_params):
                return super().train_step_single(batch, **fit_params)

        with pytest.raises(ValueError, match=r"Own has a train_step_single of its own.* give loss="):
            skorch_net(Initialize("nio", **SHORT), kind=Own).fit(*data())
        start = Initialize("nio", lambda module, batch: nn.functional.cross_entropy(module(batch[0]), batch[1]), **SHORT)
        skorch_net(start, kind=Own).fit(*data())
        assert start.result is not None


class TestDiagnose:
    def test_with_the_optimizer_and_remedies_on_copies(self):
        class Deep(nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                layers = [layer for _ in range(16) for layer in (nn.Linear(8, 8), nn.Tanh())]
                self.net = nn.Sequential(*layers, nn.Linear(8, 3))

            def forward(self, inputs):
                return self.net(inputs)

        look = Diagnose(tries=("orthogonal",), progress=False)
        skorch_net(look, max_epochs=1, lr=1e-12).set_params(module=Deep).fit(*data())
        codes = {finding.rule for finding in look.result.findings}
        assert {"A204", "O502"} <= codes
        assert look.result.tried[0].better

    def test_printed_if_verbose(self, capsys):
        trained([Diagnose(tries=())], verbose=1)
        assert "layers" in capsys.readouterr().out
