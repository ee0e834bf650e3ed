"""Odd losses: those of the model itself, weighted, per sample, a single number, of whole images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from initopt._gallery.batches import SIZE, regression, text, vectors
from initopt._gallery.entry import Entry


def mlp(outputs: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, outputs))


class Output(dict[str, Tensor]):
    """A dict whose values are attributes, too, as those of transformers are."""

    def __getattr__(self, name: str) -> Tensor:
        return self[name]


class WithLabels(nn.Module):
    """Takes a batch as keyword arguments, and returns the loss if there are labels."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Output:
        hidden = torch.tanh(self.embedding(input_ids)) * attention_mask[..., None]
        logits = self.head(hidden.cumsum(1))
        output = Output(logits=logits)
        if labels is not None:
            output["loss"] = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        return output


def labelled_batch() -> Any:
    tokens = torch.randint(9, (SIZE, 5))
    mask = (torch.rand(SIZE, 5) < 0.8).long()
    return {"input_ids": tokens, "attention_mask": mask, "labels": torch.where(mask.bool(), tokens.flip(1), -100)}


class OnlyLogits(WithLabels):
    """Its output has logits; the default loss makes a loss of them."""

    def forward(self, input_ids: Tensor) -> Output:  # type: ignore[override]
        return super().forward(input_ids, torch.ones_like(input_ids))


def ignoring_batch() -> Any:
    inputs, targets = vectors()()
    targets[::5] = -100
    return inputs, targets


class Segmentation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def masks_batch() -> Any:
    return torch.randn(SIZE, 2, 4, 4), torch.randint(3, (SIZE, 4, 4))


def per_sample(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none", label_smoothing=0.1)


def per_sample_of_text(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]).movedim(-1, 1), batch[1], reduction="none").mean(1)


def single_number(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.huber_loss(model(batch["x"]), batch["y"]) + 0.01 * sum(p.square().sum() for p in model.parameters())


def contrastive(model: nn.Module, batch: Any) -> Tensor:
    """Every sample is compared with every other one of its sub-batch."""
    first, second = (F.normalize(model(view), dim=-1) for view in batch)
    return F.cross_entropy(5 * first @ second.T, torch.arange(len(first), device=first.device))


def dict_batch() -> Any:
    inputs, targets = regression()()
    return {"x": inputs, "y": targets}


ENTRIES = [
    Entry("mean_squared_error", lambda: mlp(2), regression(), nn.MSELoss),
    Entry("binary_targets", lambda: mlp(2), regression(), nn.BCEWithLogitsLoss),
    Entry(
        "class_weights_and_ignored_targets",
        mlp,
        ignoring_batch,
        lambda: nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 2.0, 4.0])),
    ),
    Entry("loss_in_output", WithLabels, labelled_batch, modes=("subbatch",)),
    Entry("logits_in_output", OnlyLogits, text()),
    Entry("segmentation", Segmentation, masks_batch, nn.CrossEntropyLoss),
    Entry("loss_per_sample", mlp, vectors(), lambda: per_sample),
    Entry(
        "loss_per_sequence",
        lambda: nn.Sequential(nn.Embedding(9, 4), nn.Tanh(), nn.Linear(4, 9)),
        text(),
        lambda: per_sample_of_text,
    ),
    Entry("loss_as_one_number", lambda: mlp(2), dict_batch, lambda: single_number, modes=("subbatch",)),
    Entry(
        "contrastive",
        mlp,
        lambda: (torch.randn(SIZE, 6), torch.randn(SIZE, 6)),
        lambda: contrastive,
        modes=("subbatch",),
    ),
]
