"""Networks to try things on."""

from initopt.zoo.cifar_resnet import cifar_resnet
from initopt.zoo.densenet import densenet
from initopt.zoo.library_models import library_model
from initopt.zoo.plain_mlp import plain_mlp
from initopt.zoo.small_gpt import small_gpt
from initopt.zoo.small_vit import small_vit
from initopt.zoo.vgg import vgg
from initopt.zoo.wide_resnet import wide_resnet

__all__ = [
    "cifar_resnet",
    "densenet",
    "library_model",
    "plain_mlp",
    "small_gpt",
    "small_vit",
    "vgg",
    "wide_resnet",
]
