"""A short training, and what became of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from data import Batch
from torch import nn
from torch.nn import functional as F

__all__ = ["judge", "loss_of", "train"]


def loss_of(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy over samples, and positions of a text."""
    inputs, targets = batch
    return F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


def train(
    model: nn.Module, batches: Sequence[Batch], optimizer: str, lr: float, warmup_steps: int, clip: float | None
) -> dict[str, float]:
    """Train in place at a constant rate, after a linear warm-up if there is one.

    Returns:
        The mean loss of all steps and of the last third, both NaN if it diverged.
    """
    if optimizer == "sgd":
        made: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=5e-4)
    else:
        made = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05)
    model.train()
    losses: list[float] = []
    for step, batch in enumerate(batches, 1):
        for group in made.param_groups:
            group["lr"] = lr * min(1.0, step / max(warmup_steps, 1))
        loss = loss_of(model, batch)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            return {"train_loss": math.nan, "late_loss": math.nan}
        made.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        made.step()
    last = losses[-(len(losses) // 3) :]
    return {"train_loss": sum(losses) / len(losses), "late_loss": sum(last) / len(last)}


@torch.no_grad()
def judge(model: nn.Module, batches: Sequence[Batch]) -> dict[str, float]:
    """Accuracy and loss in evaluation mode."""
    model.eval()
    hits = total = 0
    loss = 0.0
    for inputs, targets in batches:
        logits, wanted = model(inputs).flatten(0, -2), targets.flatten()
        hits += int((logits.argmax(-1) == wanted).sum())
        loss += float(F.cross_entropy(logits, wanted, reduction="sum"))
        total += len(wanted)
    return {"accuracy": hits / total, "loss": loss / total}
