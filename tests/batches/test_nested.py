"""Batches whose samples are in lists, and what to do with those that cannot be split."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import initopt
from initopt.batches.nested import batch_size, concatenate, take

a, b, c = torch.ones(5), torch.ones(7), torch.ones(9)
x, y = torch.randn(8, 4), torch.arange(8)


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (([a, b, c], [0, 1, 2]), 3),
        (((a, b, c), (0, 1, 2)), 3),
        (([a, a, a], [0, 1, 2]), 3),  # of one shape, too: labels say so
        (([a, b, c], torch.arange(3)), 3),
        (([a, a, a], torch.arange(3)), 3),
        (([a, b, c], [torch.tensor(1), torch.tensor(0), torch.tensor(2)]), 3),
        (([a, b], [{"boxes": torch.rand(2, 4)}, {"boxes": torch.rand(6, 4)}]), 2),
        ({"images": [a, b], "labels": ["cat", "dog"]}, 2),
        ({"one": {"images": [a, b]}, "other": [c, a], "mode": "fast"}, 2),
        ([{"image": a, "label": 1}, {"image": b, "label": 0}], 2),
        (([x, x], y), 8),  # two inputs
        (([x, x], [y, y]), 8),  # and two targets
        (([x, x, x], y, list(range(8))), 8),
        ({"views": [x, x], "mode": ["fast"]}, 8),
        ([x, y], 8),
        ((x, {"a": y}), 8),
    ],
)
def test_how_many_samples(batch: Any, size: int) -> None:
    assert batch_size(batch) == size


def test_what_may_be_samples_or_inputs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch\[0\] is a list of 8 tensors of 8: as many samples, or inputs of as many"):
        batch_size(([x] * 8, list(range(8))))


@pytest.mark.parametrize(
    "batch",
    [([a, b, c], torch.arange(2)), (a, b), nn.utils.rnn.pack_sequence([b, a]), object(), ([a, b], [c, b, a])],
    ids=["labels", "two", "packed", "graph", "lists"],
)
def test_what_cannot_be_split_says_how_to_go_on(batch: Any) -> None:
    with pytest.raises(ValueError, match=r"can be given by index: batches of \(indices,\), and a loss_fn of"):
        batch_size(batch)


def test_samples_of_lists_are_taken_and_joined() -> None:
    batch = {"images": [a, b, c], "labels": torch.tensor([0, 1, 2]), "mode": "fast"}
    taken = take(batch, torch.tensor([2, 0]), 3)
    assert [len(image) for image in taken["images"]] == [9, 5]
    assert taken["labels"].tolist() == [2, 0]
    taken["images"][0].zero_()  # a copy
    assert c.all()
    joined = concatenate([batch, taken])
    assert [len(image) for image in joined["images"]] == [5, 7, 9, 9, 5]
    assert batch_size(joined) == 5


class Clips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.out = nn.Conv1d(1, 8, 9, stride=4), nn.Linear(8, 3)

    def forward(self, clips: list[Tensor]) -> Tensor:
        return torch.stack([self.out(F.relu(self.conv(clip[None, None]))[0].mean(1)) for clip in clips])


def of_lists(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), torch.tensor(batch[1]))


@pytest.mark.parametrize("run", [initopt.nio, initopt.gradinit, initopt.metainit])
def test_lists_of_samples_are_as_good_as_stacks(run: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    stacked = [(torch.randn(8, 60, generator=generator), torch.randint(3, (8,), generator=generator)) for _ in range(6)]
    lists = [(list(clips), labels.tolist()) for clips, labels in stacked]
    options: dict[str, Any] = {"steps": 2, "measure_batches": 1, "seed": 0}
    found = run(Clips(), lists, of_lists, **options)
    expected = run(Clips(), stacked, lambda m, batch: F.cross_entropy(m(list(batch[0])), batch[1]), **options)
    assert found.scales == pytest.approx(expected.scales, rel=1e-6)
    torch.testing.assert_close(found.after.gram, expected.after.gram)


def test_a_batch_of_indices() -> None:
    """The way out for what cannot be split: the loss collates."""
    clips = [torch.randn(50 + i) for i in range(32)]
    labels = torch.randint(3, (32,))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        (indices,) = batch
        return F.cross_entropy(model([clips[i] for i in indices.tolist()]), labels[indices])

    batches = [(part,) for part in torch.arange(32).split(8)]
    found = initopt.measure(Clips(), batches, loss)
    lists = [([clips[i] for i in part.tolist()], labels[part].tolist()) for (part,) in batches]
    torch.testing.assert_close(found.gram, initopt.measure(Clips(), lists, of_lists).gram)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.a(x + z)


class Quantized(nn.Module):
    """A frozen 8-bit weight with an adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randint(0, 255, (3, 4), dtype=torch.uint8), requires_grad=False)
        self.up = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x @ ((self.weight.float() - 127) / 600).T + self.up(x)


def told(error: BaseException) -> str:
    return " ".join([str(error), *getattr(error, "__notes__", [])])


@pytest.mark.parametrize(
    ("model", "batch", "loss", "options", "message"),
    [
        (Two(), ((x, x), y % 3), None, {}, "inputs being a tuple of 2; a loss_fn of (model, batch) can spread it"),
        (Two(), {"x": x, "z": x, "label": y}, None, {}, "so the model was called as model(**batch); a loss_fn"),
        (nn.Linear(2, 1), (torch.rand(1, 9, 2), torch.rand(1, 9, 1)), nn.MSELoss(), {}, "a batch of 1 sample cannot be sp"),
        (nn.Linear(4, 3), (x, torch.where(y < 2, -100, 0)), None, {}, "is nan (a mean over no target is: are all those of"),
        (nn.Linear(4, 4), (x,), lambda m, b: F.cross_entropy(m(b[0]) @ m(b[0]).T, torch.arange(len(b[0]))),
         {"num_subbatches": 8}, "A contrastive loss needs more than one sample in a sub-batch"),
    ],
)  # fmt: skip
def test_messages(model: nn.Module, batch: Any, loss: Any, options: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError, ArithmeticError)) as caught:
        initopt.measure(model, [batch], loss, **options)
    assert message in told(caught.value)
    assert "num_subbatches <= 1" not in told(caught.value)


def test_a_model_that_works_in_training_mode_only() -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 2)

        def forward(self, images: Tensor) -> Any:
            found = self.body(images)
            return {"loss": found.square().mean()} if self.training else [{"boxes": box} for box in found]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return sum(model(batch).values())

    model = Detector()
    with pytest.raises(AttributeError) as caught:
        initopt.measure(model, [x], loss)
    assert "train_mode=True runs it as training does" in told(caught.value)
    assert initopt.measure(model, [x], loss, train_mode=True).num_batches == 1
    with pytest.raises(AttributeError) as caught:
        initopt.measure(model.eval(), [x], loss)
    assert "train_mode" not in told(caught.value)


@pytest.mark.parametrize("run", [initopt.measure, initopt.nio])
def test_frozen_integer_weights_are_left_alone(run: Any) -> None:
    model = Quantized()
    weight = model.weight.clone()
    run(model, [(x, y % 3)] * 20, **({"measure_batches": 0} if run is initopt.nio else {}))
    assert torch.equal(model.weight, weight)
