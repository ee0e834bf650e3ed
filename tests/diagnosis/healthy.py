"""Networks that are well, however odd they look: nothing above a note may be found on them."""

import torch
from torch import nn

from initopt import zoo

__all__ = ["HEALTHY"]


def images(size, count=32):
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.rand(count, 3, size, size, generator=generator), torch.randint(10, (count,), generator=generator))
        for _ in range(4)
    ]


def sequences():
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randint(65, (16, 33), generator=generator) for _ in range(4)]
    return [(tokens[:, :-1], tokens[:, 1:]) for tokens in drawn]


def vectors():
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(64, 64, generator=generator), torch.randint(10, (64,), generator=generator)) for _ in range(4)]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.lstm, self.head = nn.Embedding(65, 32), nn.LSTM(32, 32, 2, batch_first=True), nn.Linear(32, 65)

    def forward(self, x):
        return self.head(self.lstm(self.tokens(x))[0])


class Autoencoder(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 8), nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 64))


def zero_head(model):
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    return model


def zero_branches(model):
    for block in model.modules():
        if hasattr(block, "attention_output"):
            nn.init.zeros_(block.attention_output.weight)
            nn.init.zeros_(block.perceptron[-1].weight)
    return zero_head_of(model)


def zero_head_of(model):
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    return model


def small_head(model):
    """As head_init_scale=0.001 in timm."""
    with torch.no_grad():
        model.head.weight.mul_(1e-3)
    return model


class Attention(nn.Module):
    """Attention of queries to what they are given."""

    def __init__(self, width):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, x, context):
        shares = (self.query(x) @ self.key(context).transpose(1, 2) / x.shape[-1] ** 0.5).softmax(-1)
        return self.output(shares @ self.value(context))


class Scaled(nn.Module):
    """A block of attention and a perceptron whose branches start next to closed: LayerScale."""

    def __init__(self, width, gain):
        super().__init__()
        self.attention, self.first_norm, self.second_norm = Attention(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.first_gain, self.second_gain = (nn.Parameter(torch.full((width,), gain)) for _ in range(2))

    def forward(self, x, context=None):
        normed = self.first_norm(x if context is None else torch.cat([x, context], 1))
        x = x + self.first_gain * self.attention(normed[:, : x.shape[1]], normed)
        return x + self.second_gain * self.perceptron(self.second_norm(x))


class PatchNet(nn.Module):
    """Patches in blocks behind gains, with a mean or a token that is classified.

    As in DeiT III, the token is one of them in every block; as in CaiT, it comes to them in blocks of its own. It sees
    them only through gains.
    """

    def __init__(self, gain, depth=2, width=48, token=False, class_blocks=0):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.ModuleList(Scaled(width, gain) for _ in range(depth))
        self.class_blocks = nn.ModuleList(Scaled(width, gain) for _ in range(class_blocks))
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width)) if token or class_blocks else None
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        token = None if self.token is None else self.token.expand(len(x), -1, -1)
        if token is not None and not self.class_blocks:
            x = torch.cat([token, x], 1)
        for block in self.blocks:
            x = block(x)
        for block in self.class_blocks:
            token = block(token, x)
        if self.class_blocks:
            x = torch.cat([token, x], 1)
        return self.head(self.norm(x)[:, 0] if token is not None else self.norm(x).mean(1))


class ScaledConvNet(nn.Module):
    """As ConvNeXt is: depthwise convolutions and perceptrons behind a gain."""

    def __init__(self, gain, depth=3, width=32):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, groups=width),
                nn.GroupNorm(1, width),
                nn.Conv2d(width, 4 * width, 1),
                nn.GELU(),
                nn.Conv2d(4 * width, width, 1),
            )
            for _ in range(depth)
        )
        self.gains = nn.ParameterList(torch.full((1, width, 1, 1), gain) for _ in range(depth))
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.stem(x)
        for block, gain in zip(self.blocks, self.gains, strict=True):
            x = x + gain * block(x)
        return self.head(x.mean((2, 3)))


class Bounded(nn.Module):
    """Bounds and a mask as buffers, vectors that start alike, and a gate that starts open."""

    def __init__(self, width=16):
        super().__init__()
        self.register_buffer("least", torch.tensor(-torch.inf))
        self.register_buffer("mask", torch.full((8, 8), -torch.inf).triu(1))
        self.first, self.gate, self.last = nn.Linear(64, width), nn.Linear(width, width), nn.Linear(width, 10)
        self.mixes = nn.ParameterList(torch.linspace(0.1, 1, width).reshape(1, 1, -1) for _ in range(3))
        nn.init.normal_(self.gate.weight, std=1e-6)
        nn.init.ones_(self.gate.bias)

    def forward(self, x):
        x = torch.tanh(self.first(x)).clamp(min=self.least)[:, None]
        for mix in self.mixes:
            x = x * mix + x
        return self.last((x * self.gate(x))[:, 0]) + 0 * torch.softmax(self.mask, -1).sum()


class Ghost(nn.Module):
    """Norms channel by channel in a row: the gains of the first are undone by the second."""

    def __init__(self, width=16):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.branch = nn.Sequential(
            nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, groups=width, bias=False, padding=1), nn.BatchNorm2d(width)
        )
        nn.init.uniform_(self.branch[1].weight, 30, 60)  # beside which the epsilon of the norm is nothing
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + torch.sigmoid(self.branch(x)) * x).mean((2, 3)))


HEALTHY = {
    "plain_mlp": (lambda: zoo.plain_mlp(depth=4), vectors),
    "plain_mlp_relu": (lambda: zoo.plain_mlp(depth=4, activation=nn.ReLU), vectors),
    "plain_mlp_gelu": (lambda: zoo.plain_mlp(depth=4, activation=nn.GELU), vectors),
    "cifar_resnet": (lambda: zoo.cifar_resnet(20), lambda: images(16)),
    "cifar_resnet_without_norm": (lambda: zoo.cifar_resnet(14, norm="none"), lambda: images(16)),
    "vgg": (lambda: zoo.vgg(11), lambda: images(32, 8)),
    "densenet": (lambda: zoo.densenet(22), lambda: images(16)),
    "wide_resnet": (lambda: zoo.wide_resnet(10, 1), lambda: images(16)),
    "small_vit": (lambda: zoo.small_vit(depth=3), lambda: images(32, 16)),
    "small_gpt": (lambda: zoo.small_gpt(depth=3), sequences),
    "lstm": (lambda: Recurrent(), sequences),
    "autoencoder": (lambda: Autoencoder(), lambda: [(x, x) for x, _ in vectors()]),
    "small_head": (lambda: small_head(PatchNet(1.0, depth=3)), lambda: images(32, 16)),
    "zero_head": (lambda: zero_head(zoo.plain_mlp(depth=4)), vectors),
    "layer_scale": (lambda: PatchNet(1e-6), lambda: images(32, 16)),
    "layer_scale_and_token": (lambda: PatchNet(1e-6, depth=3, token=True), lambda: images(32, 16)),
    "layer_scale_and_class_attention": (lambda: PatchNet(1e-5, class_blocks=2), lambda: images(32, 16)),
    "layer_scale_of_convolutions": (lambda: ScaledConvNet(1e-6), lambda: images(32, 16)),
    "bounds_and_gates": (lambda: Bounded(), vectors),
    "norms_in_a_row": (lambda: Ghost(), lambda: images(16)),
    "zero_branches": (lambda: zero_branches(zoo.small_vit(depth=2)), lambda: images(32, 16)),
}
