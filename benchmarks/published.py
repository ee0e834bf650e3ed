"""A NIO step as the code published with the paper takes it (arXiv 2210.05956), made anew from its description.

One forward pass over the whole batch with a loss per sample; a backward pass through it for each sub-batch, with
``create_graph=True``; the gradients as the rows of a matrix; the objective from that; and a backward pass through
everything.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from initopt.gram.objectives import Objective
from initopt.model.problem import Batch, Problem

__all__ = ["losses_of_samples", "published_step"]


def losses_of_samples(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every sample, shape ``(B,)``; that of a sequence is the mean over its tokens."""
    logits = model(inputs)
    return F.cross_entropy(logits.movedim(-1, 1), targets, reduction="none").reshape(len(targets), -1).mean(1)


def published_step(problem: Problem, batch: Batch, objective: Objective) -> tuple[Tensor, Tensor]:
    """The Gram matrix of a batch, and the derivative of the objective along every scaled tensor.

    Args:
        problem: gives the model and the parameters; its loss is not asked, cross-entropy it is.
        batch: from ``problem.prepare``; its windows are taken from the losses of one forward pass.
        objective: function of a Gram matrix.

    Returns:
        Shapes ``(D, D)`` and ``(num_scales,)``, in the precision of the model.
    """
    parameters = [p.value for p in problem.grad_params]
    scaled = [p.value for p in problem.scale_params]
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        losses = losses_of_samples(problem.model, *batch.data)
        rows = []
        for window in batch.windows.indices:
            loss = losses[window.to(losses.device)].mean()
            gradients = torch.autograd.grad(loss, parameters, create_graph=True)
            rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
        matrix = torch.stack(rows)
        gram = matrix @ matrix.T
        derivatives = torch.autograd.grad(objective(gram), scaled)
    along = [(derivative * weight.detach()).sum() for derivative, weight in zip(derivatives, scaled, strict=True)]
    return gram.detach(), torch.stack(along)
