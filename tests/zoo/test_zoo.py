import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import initopt
from initopt.zoo import cifar_resnet, densenet, plain_mlp, small_gpt, small_vit, vgg, wide_resnet

PARAMETERS = {
    "plain_mlp": (plain_mlp, 38_090),
    "vit": (small_vit, 2_693_578),
    "gpt": (small_gpt, 818_048),
}

PUBLISHED = {
    "ResNet-20": (lambda **options: cifar_resnet(20, **options), 0.27, 64),
    "ResNet-32": (lambda **options: cifar_resnet(32, **options), 0.46, 64),
    "ResNet-56": (lambda **options: cifar_resnet(56, **options), 0.85, 64),
    "ResNet-110": (lambda **options: cifar_resnet(110, **options), 1.7, 64),
    "WRN-16-4": (lambda **options: wide_resnet(16, 4, **options), 2.7, 256),
    "WRN-28-10": (wide_resnet, 36.5, 640),
    "VGG-19": (vgg, 20.0, 512),
    "VGG-16": (lambda **options: vgg(16, **options), 14.7, 512),
    "DenseNet-100": (densenet, 0.77, 342),
}
"""With the millions of parameters that the literature gives for ten classes, and the features before the last layer."""

SMALL_IMAGE_NETWORKS = {
    "resnet": lambda norm: cifar_resnet(8, norm=norm, num_classes=7),
    "wide resnet": lambda norm: wide_resnet(10, 1, norm=norm, num_classes=7),
    "vgg": lambda norm: vgg(7, width=4, norm=norm, num_classes=7),
    "densenet": lambda norm: densenet(10, growth=4, norm=norm, num_classes=7),
}


def linear_layers(model):
    return [module for module in model if isinstance(module, nn.Linear)]


def test_depth_and_width():
    model = plain_mlp(5, 3, depth=4, width=7)
    assert [(layer.in_features, layer.out_features) for layer in linear_layers(model)] == [(5, 7), (7, 7), (7, 7), (7, 3)]
    assert model(torch.zeros(2, 5)).shape == (2, 3)


def test_one_layer_has_no_activation():
    assert [type(module) for module in plain_mlp(depth=1)] == [nn.Flatten, nn.Linear]


def test_activation():
    assert sum(isinstance(module, nn.ReLU) for module in plain_mlp(depth=4, activation=nn.ReLU)) == 3


def test_output_hardly_depends_on_the_input_of_a_deep_one():
    torch.manual_seed(0)
    inputs = torch.randn(100, 64)
    shallow, deep = (plain_mlp(depth=depth)(inputs).std(0).mean().item() for depth in (2, 10))
    assert deep < shallow / 20


@pytest.mark.parametrize("name", ["inputs", "classes", "depth", "width"])
def test_refuses(name):
    with pytest.raises(ValueError, match=f"{name} must be an integer of 1 or more; got 0"):
        plain_mlp(**{name: 0})


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    build, expected = PARAMETERS[name]
    assert sum(parameter.numel() for parameter in build().parameters()) == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_the_literature(name):
    build, millions, features = PUBLISHED[name]
    count = {}
    for norm, classes in itertools.product(("batch", "none"), (10, 100)):
        with torch.device("meta"):
            model = build(norm=norm, num_classes=classes)
        count[norm, classes] = sum(parameter.numel() for parameter in model.parameters())
    digits = len(str(millions).partition(".")[2])
    assert round(count["batch", 10] / 1e6, digits) == millions
    assert count["batch", 100] - count["batch", 10] == 90 * (features + 1)
    assert count["none", 100] - count["none", 10] == 90 * (features + 1)
    # The bias of a convolution stands for the weight and bias of the norm after it (or before it, of more channels).
    assert 0.97 * count["batch", 10] < count["none", 10] < count["batch", 10]


@pytest.mark.gallery
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("name", SMALL_IMAGE_NETWORKS)
def test_nio_improves_each(name, norm):
    torch.manual_seed(0)
    model = SMALL_IMAGE_NETWORKS[name](norm)
    inputs, targets = torch.randn(16, 3, 16, 16), torch.randint(7, (16,))
    options = {
        "objective": "cosine",
        "max_grad_norm": 100.0,
        "scale_biases": True,
        "scale_invariant": True,
        "seed": 0,
        "centre": None,
    }
    result = initopt.nio(model, [(inputs, targets)], steps=8, num_subbatches=2, lr=0.02, measure_batches=0, **options)
    assert result.history[-1].grad_cosine > result.history[0].grad_cosine + 0.01
    F.cross_entropy(model(inputs), targets).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", SMALL_IMAGE_NETWORKS)
def test_norms_and_biases(name):
    kinds = {}
    for norm in ("batch", "none"):
        model = SMALL_IMAGE_NETWORKS[name](norm)
        convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        assert all((layer.bias is None) == (norm == "batch") for layer in convolutions)
        kinds[norm] = {type(module) for module in model.modules()}
        assert model(torch.randn(2, 3, 16, 16)).shape == (2, 7)
    assert nn.BatchNorm2d in kinds["batch"] - kinds["none"]


@pytest.mark.parametrize(("depth", "width", "convolutions"), [(28, 10, 28), (16, 4, 16), (10, 1, 9)])
def test_depth_of_a_wide_resnet_counts_convolutions(depth, width, convolutions):
    with torch.device("meta"):
        model = wide_resnet(depth, width)
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == convolutions


def test_depth_of_a_resnet_counts_layers_with_weights():
    model = cifar_resnet(32)
    assert sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in model.modules()) == 32


@pytest.mark.parametrize(("depth", "convolutions", "pools"), [(7, 6, 3), (11, 8, 5), (13, 10, 5), (16, 13, 5), (19, 16, 5)])
def test_depth_of_a_vgg(depth, convolutions, pools):
    model = vgg(depth, width=2)
    kinds = [type(module) for module in model]
    assert kinds.count(nn.Conv2d) == kinds.count(nn.BatchNorm2d) == kinds.count(nn.ReLU) == convolutions
    assert kinds.count(nn.MaxPool2d) == pools
    widths = [module.out_channels for module in model if isinstance(module, nn.Conv2d)]
    assert (widths[0], widths[-1]) == (2, 2 * min(2 ** (pools - 1), 8))
    assert widths == sorted(widths)


def test_depth_of_a_densenet_counts_layers_with_weights():
    model = densenet(22, growth=2)
    assert sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in model.modules()) == 22


def test_a_layer_of_a_densenet_keeps_what_it_is_given():
    x = torch.rand(2, 8, 4, 4)
    y = densenet(10, growth=4)[1](x)
    assert y.shape == (2, 12, 4, 4)
    assert torch.equal(y[:, :8], x)


def test_shortcuts_of_a_resnet_have_no_parameters():
    """A block whose branch is zero takes every second pixel, and puts it between channels of zeros."""
    block = cifar_resnet(8, norm="none")[4]
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.rand(2, 16, 6, 6)
    assert torch.equal(block(x), F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8)))


def test_a_vision_transformer_sees_every_patch_and_its_place():
    torch.manual_seed(0)
    model = small_vit(8, 4, depth=1, width=12, heads=2, num_classes=3)
    image = torch.randn(1, 3, 8, 8)
    elsewhere = image.roll(4, dims=-1)
    assert not torch.allclose(model(image), model(elsewhere))
    for row, column in ((0, 0), (7, 7)):
        changed = image.clone()
        changed[..., row, column] += 1
        assert not torch.allclose(model(image), model(changed))


def test_a_language_model_sees_the_past_alone():
    torch.manual_seed(0)
    model = small_gpt(11, 8, depth=2, width=12, heads=2)
    tokens = torch.arange(8)[None]
    changed = tokens.clone()
    changed[0, 4] = 10
    before, after = model(tokens), model(changed)
    assert before.shape == (1, 8, 11)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_a_language_model_is_no_better_than_chance_at_first():
    torch.manual_seed(0)
    tokens = torch.randint(65, (4, 32))
    logits = small_gpt(depth=2)(tokens)
    assert F.cross_entropy(logits.movedim(-1, 1), tokens.roll(1)).item() == pytest.approx(math.log(65), abs=0.2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: cifar_resnet(21), r"depth must be 6 n \+ 2.*got 21"),
        (lambda: cifar_resnet(2), "depth must be an integer of 8 or more; got 2"),
        (lambda: cifar_resnet(20, norm="layer"), "unknown norm 'layer'; known are 'batch', 'none'"),
        (lambda: wide_resnet(20), r"depth must be 6 n \+ 4.*got 20"),
        (lambda: wide_resnet(16, 0), "width must be an integer of 1 or more; got 0"),
        (lambda: wide_resnet(16, 1, norm="x"), "unknown norm 'x'"),
        (lambda: vgg(12), "depth must be one of 7, 11, 13, 16, 19; got 12"),
        (lambda: vgg(width=0), "width must be an integer of 1 or more; got 0"),
        (lambda: vgg(norm="x"), "unknown norm 'x'"),
        (lambda: densenet(20), r"depth must be 6 n \+ 4.*got 20"),
        (lambda: densenet(growth=0), "growth must be an integer of 1 or more; got 0"),
        (lambda: densenet(norm="x"), "unknown norm 'x'"),
        (lambda: small_vit(30, 4), "image_size must be a multiple of patch_size; got 30 and 4"),
        (lambda: small_vit(width=10), "width must be a multiple of heads; got width 10 and 3 heads"),
        (lambda: small_gpt(width=10), "width must be a multiple of heads; got width 10 and 4 heads"),
        (lambda: small_gpt(context=0), "context must be an integer of 1 or more; got 0"),
    ],
)
def test_refuses_what_cannot_be_built(build, message):
    with pytest.raises(ValueError, match=message):
        build()
