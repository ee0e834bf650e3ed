"""A small vision transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from initopt.zoo._layers import TransformerBlock, check_heads, check_sizes

__all__ = ["small_vit"]


def small_vit(
    image_size: int = 32,
    patch_size: int = 4,
    *,
    depth: int = 6,
    width: int = 192,
    heads: int = 3,
    num_classes: int = 10,
    in_channels: int = 3,
) -> nn.Module:
    """A vision transformer (Dosovitskiy et al., arXiv 2010.11929) of a size for small images.

    Layer norms come before attention and perceptron, positions and the class token are learned, and there is no dropout.
    The default has the width and heads of DeiT-Ti, at half its depth: 2.7 M parameters.

    Args:
        image_size: height and width of the images.
        patch_size: height and width of a patch; divides the image size.
        depth: number of blocks.
        width: number of features.
        heads: number of attention heads; divides the width.
        num_classes: number of outputs.
        in_channels: channels of the images.

    Returns:
        The network for inputs of shape ``(B, in_channels, image_size, image_size)``, with PyTorch's default weights;
        positions and class token are drawn from a normal distribution of standard deviation 0.02.

    Raises:
        ValueError: if a number is not a positive integer, or does not divide what it must.

    >>> small_vit(depth=1)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    check_sizes(image_size=image_size, patch_size=patch_size, depth=depth, width=width, heads=heads)
    check_sizes(num_classes=num_classes, in_channels=in_channels)
    check_heads(width, heads)
    if image_size % patch_size:
        raise ValueError(f"image_size must be a multiple of patch_size; got {image_size} and {patch_size}")
    patches = (image_size // patch_size) ** 2
    return _VisionTransformer(in_channels, patches, patch_size, depth, width, heads, num_classes)


class _VisionTransformer(nn.Module):
    def __init__(
        self, channels: int, patches: int, patch_size: int, depth: int, width: int, heads: int, num_classes: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + patches, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, causal=False) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], 1) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(tokens)[:, 0]))
        return logits
