from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initopt
from initopt.model.losses import as_loss
from tests.helpers import split_windows

MODES = ("subbatch", "batch")
LOSSES = {
    "none": None,
    "criterion": nn.CrossEntropyLoss(),
    "criterion, sum": nn.CrossEntropyLoss(reduction="sum"),
    "criterion, none": nn.CrossEntropyLoss(reduction="none"),
    "mean": lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
    "per sample": lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], reduction="none"),
}
REGRESSION = {
    "mean": nn.MSELoss(),
    "sum": nn.MSELoss(reduction="sum"),
    "none": nn.MSELoss(reduction="none"),
}


@pytest.fixture(autouse=True)
def _float64() -> None:
    torch.set_default_dtype(torch.float64)


def make(outputs: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, outputs))


def classes(size: int = 12) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(size, 6), torch.randint(4, (size,))


def gram(model: nn.Module, batch: Any, loss_fn: Any, mode: Any, overlap: float = 0.25) -> Tensor:
    return initopt.measure(model, [batch], loss_fn, num_subbatches=3, overlap=overlap, batch_norm=mode).gram[0]


def gram_of_losses(model: nn.Module, losses: list[Tensor]) -> Tensor:
    parameters = list(model.parameters())
    rows = torch.stack(
        [torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)]) for loss in losses]
    )
    return rows @ rows.T


def parts(size: int = 12, overlap: float = 0.25) -> list[Tensor]:
    return list(split_windows(size, 3, overlap).indices)


@pytest.mark.parametrize(("name", "mode"), [(n, m) for n in LOSSES for m in MODES if (n, m) != ("mean", "batch")])
def test_all_kinds_of_one_loss_agree(name: str, mode: str) -> None:
    model, batch = make(), classes()
    output = model(batch[0])
    expected = gram_of_losses(model, [F.cross_entropy(output[part], batch[1][part]) for part in parts()])
    torch.testing.assert_close(gram(model, batch, LOSSES[name], mode), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_loss_of_several_numbers_a_sample_is_their_mean(reduction: str, mode: str) -> None:
    model = make(outputs=2)
    batch = (classes()[0], torch.randn(12, 2))
    output = model(batch[0])
    expected = gram_of_losses(model, [F.mse_loss(output[part], batch[1][part]) for part in parts()])
    torch.testing.assert_close(gram(model, batch, REGRESSION[reduction], mode), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("mode", MODES)
def test_a_summed_loss_is_divided_by_the_samples(mode: str) -> None:
    model = make(outputs=2)
    batch = (classes()[0], torch.randn(12, 2))
    output = model(batch[0])
    sums = [F.mse_loss(output[part], batch[1][part], reduction="sum") / len(part) for part in parts()]
    expected = gram_of_losses(model, sums)
    torch.testing.assert_close(gram(model, batch, REGRESSION["sum"], mode), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("mode", MODES)
def test_class_weights_and_ignored_targets_are_those_of_each_sub_batch(mode: str) -> None:
    model, (inputs, targets) = make(), classes()
    targets[[0, 4, 5]] = -100
    weight = torch.tensor([0.1, 1.0, 3.0, 9.0])
    losses = []
    for part in parts():
        kept = part[targets[part] != -100]
        log_likelihood = model(inputs[kept]).log_softmax(1)[range(len(kept)), targets[kept]]
        losses.append(-(weight[targets[kept]] * log_likelihood).sum() / weight[targets[kept]].sum())
    expected = gram_of_losses(model, losses)
    found = gram(model, (inputs, targets), nn.CrossEntropyLoss(weight=weight), mode)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_class_weights_with_whole_batch_norm_couple_through_the_norm_only() -> None:
    """One forward pass over the whole batch, and the criterion on the windows of its output."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4))
    inputs, targets = classes()
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([0.1, 1.0, 3.0, 9.0]), label_smoothing=0.1)
    found = gram(model, (inputs, targets), criterion, "batch")
    output = model.train()(inputs)
    expected = gram_of_losses(model, [criterion(output[part], targets[part]) for part in parts()])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("mode", MODES)
def test_sequence_logits_may_have_classes_first_or_last(mode: str) -> None:
    class Permuted(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).movedim(-1, 1)

    torch.manual_seed(0)
    body = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9))
    tokens = torch.randint(9, (12, 5))
    batch = (tokens, tokens.roll(-1, 1))
    logits = body(tokens)
    losses = [F.cross_entropy(logits[part].flatten(0, 1), batch[1][part].flatten()) for part in parts()]
    expected = gram_of_losses(body, losses)
    torch.testing.assert_close(gram(body, batch, None, mode), expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(gram(Permuted(body), batch, None, mode), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("attribute", [True, False])
def test_a_dict_batch_uses_the_loss_in_the_output(attribute: bool) -> None:
    class Output:
        def __init__(self, loss: Tensor) -> None:
            self.loss = loss

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = make()

        def forward(self, x: Tensor, labels: Tensor) -> Any:
            loss = F.cross_entropy(self.body(x), labels)
            return Output(loss) if attribute else {"loss": loss}

    inputs, targets = classes()
    found = gram(Model(), {"x": inputs, "labels": targets}, None, "subbatch")
    torch.testing.assert_close(found, gram(make(), (inputs, targets), None, "subbatch"), rtol=1e-12, atol=0)


def test_a_dict_batch_with_whole_batch_norm_is_refused() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = make()

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": F.cross_entropy(self.body(x), labels)}

    inputs, targets = classes()
    with pytest.raises(initopt.LossError, match="single number"):
        gram(Model(), {"x": inputs, "labels": targets}, None, "batch")


def test_the_criterion_is_not_changed() -> None:
    criterion = nn.CrossEntropyLoss(reduction="sum")
    gram(make(), classes(), criterion, "subbatch")
    assert criterion.reduction == "sum"
    assert criterion.training


@pytest.mark.parametrize("mode", MODES)
def test_how_many_samples_a_loss_function_sees(mode: str) -> None:
    sizes = []

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        sizes.append(len(batch[0]))
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    gram(make(), classes(), loss_fn, mode)
    # The three sub-batches of 5 run together, and apart to check that; or the whole batch.
    assert set(sizes) == ({15, 5} if mode == "subbatch" else {12})


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (F.cross_entropy, r"takes \(output, target\)"),
        (functools.partial(functools.partial(F.cross_entropy), label_smoothing=0.1), r"cross_entropy takes \(output"),
        (nn.CrossEntropyLoss, "is the class CrossEntropyLoss"),
        ("cross_entropy", "got str"),
    ],
)
def test_what_is_no_loss_function(loss_fn: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        as_loss(loss_fn)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8])
def test_integer_targets_of_any_width(dtype: torch.dtype, mode: str) -> None:
    inputs, targets = classes()
    assert torch.equal(gram(make(), (inputs, targets.to(dtype)), None, mode), gram(make(), (inputs, targets), None, mode))


@pytest.mark.parametrize("shape", [(12, 5, 5), (12, 5, 5, 5)])
def test_logits_in_which_both_layouts_fit_are_refused(shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Linear(6, 5 ** (len(shape) - 1)), nn.Unflatten(1, shape[1:]))
    batch = (classes()[0], torch.randint(5, (12, *shape[2:])))
    with pytest.raises(initopt.LossError, match=r"could be along the second or the last.*loss_fn of \(model, batch\)"):
        gram(model, batch, None, "subbatch")
    assert gram(make(3), (classes()[0][:9], torch.randint(3, (9,))), None, "subbatch").isfinite().all()  # 3 logits of 3


@pytest.mark.parametrize("end", [nn.Identity(), nn.Flatten(0)], ids=["(B, 1)", "(B,)"])
@pytest.mark.parametrize("shape", [(12,), (12, 1)])
def test_a_single_logit_wants_another_loss(end: nn.Module, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(make(1), end)
    with pytest.raises(initopt.LossError, match=r"one logit a sample.*BCEWithLogitsLoss.*floating-point targets"):
        gram(model, (classes()[0], torch.randint(2, shape)), None, "subbatch")


def test_one_hot_targets_and_other_shapes_say_what_to_do() -> None:
    inputs, targets = classes()
    with pytest.raises(initopt.LossError, match=r"one-hot targets, give targets\.argmax\(1\), or targets\.float"):
        gram(make(), (inputs, F.one_hot(targets, 4)), None, "subbatch")
    with pytest.raises(initopt.LossError, match=r"logits of shape \(5, 4\) and targets of shape \(5, 2\)"):
        gram(make(), (inputs, targets.unsqueeze(1).expand(12, 2)), None, "subbatch")


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda output, target: F.mse_loss(output, target),
        lambda a, y: F.mse_loss(a, y),
        lambda o, t: F.mse_loss(o, t),
        lambda batch: batch[0].sum(),
        functools.partial(lambda weight, pred, target: (pred - target) * weight, 2.0),
    ],
)
def test_a_loss_function_of_another_form_is_told_how_it_is_called(loss_fn: Any) -> None:
    with pytest.raises((TypeError, AttributeError)) as caught:
        gram(make(), classes(), loss_fn, "subbatch")
    assert any("loss_fn is called with (model, batch)" in note for note in caught.value.__notes__)


def test_a_loss_function_of_the_right_form_is_not() -> None:
    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        gram(make(), classes(), loss_fn, "subbatch")
    assert not any("called with" in note for note in caught.value.__notes__)
