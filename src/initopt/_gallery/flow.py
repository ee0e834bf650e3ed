"""Piecewise functions, branches that depend on data, gradients that are not plain, nested inputs and outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from initopt._gallery.batches import SIZE, regression, vectors
from initopt._gallery.entry import Entry


def mlp(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), activation, nn.Linear(5, 5), activation, nn.Linear(5, 4))


class MixtureOfExperts(nn.Module):
    """Hard routing: an expert that no sample of a sub-batch reaches has no gradient there."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)) for _ in range(7))
        self.gate = nn.Linear(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.gate(x), -1)
        choice = weights.argmax(-1)
        out = x.new_zeros(len(x), 4)
        for index in choice.unique().tolist():
            rows = (choice == index).nonzero().squeeze(-1)
            out = out.index_add(0, rows, self.experts[index](x[rows]) * weights[rows, index, None])
        return out


class DataDependentDepth(nn.Module):
    """A layer runs only if the sub-batch's first feature is large on average."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.extra, self.head = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.stem(x))
        if x[:, 0].mean() > 0.3:
            hidden = hidden + torch.tanh(self.extra(hidden))
        return self.head(hidden)


class Maxout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 15), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).unflatten(-1, (5, 3)).amax(-1)).abs()


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.silu(self.first(x)).clone()
        hidden[:, 1:3] *= 2
        hidden.add_(0.1)
        return self.second(hidden.mul_(0.5)).tanh_()


class NestedInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.bag = nn.Linear(3, 4), nn.Linear(2, 4), nn.Embedding(5, 4)

    def forward(self, inputs: dict[str, Any]) -> Tensor:
        (left, [right]), ids = inputs["dense"], inputs["ids"]
        return torch.tanh(self.left(left)) + self.right(right) * self.bag(ids)


def nested_batch() -> Any:
    dense = (torch.randn(SIZE, 3), [torch.randn(SIZE, 2)])
    return {"dense": dense, "ids": torch.randint(5, (SIZE,))}, torch.randint(4, (SIZE,))


class NestedOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.heads = nn.Linear(6, 5), nn.ModuleList([nn.Linear(5, 2), nn.Linear(5, 3)])

    def forward(self, x: Tensor) -> dict[str, Any]:
        hidden = torch.tanh(self.body(x))
        return {"heads": [head(hidden) for head in self.heads], "aux": (hidden.square().mean(-1),)}


class TwoHeadedCriterion(nn.Module):
    def forward(self, output: dict[str, Any], targets: dict[str, Tensor]) -> Tensor:
        regression = F.mse_loss(output["heads"][0], targets["value"])
        return regression + F.cross_entropy(output["heads"][1], targets["label"]) + 0.1 * output["aux"][0].mean()


def two_headed_batch() -> Any:
    targets = {"value": torch.randn(SIZE, 2), "label": torch.randint(3, (SIZE,))}
    return torch.randn(SIZE, 6), targets


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 5), nn.Linear(5, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=False)
        return self.head(x)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -0.5 * gradient


class GradientReversal(nn.Module):
    """What it calls its gradient is the gradient of nothing, so the "Hessian" is not symmetric."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.label, self.domain = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(x))
        return self.label(hidden) + torch.sin(self.domain(_Reverse.apply(hidden)))


class StoppedGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(x))
        return self.head(hidden / hidden.detach().norm(dim=-1, keepdim=True))


class _Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


class CustomFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(_Cube.apply(self.first(x)))


def hooked() -> nn.Module:
    model = mlp(nn.Tanh())
    model[0].register_forward_hook(lambda module, inputs, output: output * 1.5)
    model[2].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 0.1,))
    return model


def penalized() -> nn.Module:
    return nn.Sequential(*[*mlp(nn.Tanh())][:3], nn.Linear(5, 2))


def gradient_penalty(model: nn.Module, batch: Any) -> Tensor:
    inputs = batch[0].clone().requires_grad_()
    score = model(inputs)
    (slope,) = torch.autograd.grad(score.sum(), inputs, create_graph=True)
    return (score - batch[1]).square().mean(-1) + 0.3 * slope.square().sum(-1)


ENTRIES = [
    Entry("mlp", lambda: mlp(nn.Tanh()), vectors()),
    Entry("relu", lambda: mlp(nn.ReLU()), vectors(), smooth=False),
    Entry("relu_in_place", lambda: mlp(nn.ReLU(inplace=True)), vectors(), smooth=False),
    Entry("prelu", lambda: mlp(nn.PReLU(5)), vectors(), smooth=False),
    Entry("one_sample_each", lambda: mlp(nn.Softplus()), vectors(size=5), num_subbatches=5, overlap=0.0),
    Entry("two_subbatches_of_an_odd_batch", lambda: mlp(nn.ELU()), vectors(size=11), num_subbatches=2, smooth=False),
    Entry("maxout", Maxout, vectors(), smooth=False),
    Entry("in_place_writes", InPlace, vectors()),
    Entry("mixture_of_experts", MixtureOfExperts, vectors(), smooth=False),
    Entry("data_dependent_depth", DataDependentDepth, vectors(), smooth=False),
    Entry("nested_inputs", NestedInputs, nested_batch),
    Entry("nested_outputs", NestedOutputs, two_headed_batch, TwoHeadedCriterion),
    Entry("checkpointed", Checkpointed, vectors()),
    Entry("gradient_reversal", GradientReversal, vectors(), conservative=False),
    Entry("stopped_gradient", StoppedGradient, vectors(), conservative=False),
    Entry("custom_function", CustomFunction, vectors()),
    Entry("hooks", hooked, vectors()),
    Entry(
        "gradient_penalty",
        lambda: nn.Sequential(*[*mlp(nn.Tanh())][:3], nn.Linear(5, 2)),
        regression(),
        lambda: gradient_penalty,
    ),
]
