"""Every sickness is named by its rule, and nothing else is; healthy networks have no finding above a note."""

import warnings

import pytest
import torch
from torch import nn

import initopt
from initopt import zoo
from initopt.diagnosis import RULES
from tests.diagnosis.sick import SICK


@pytest.mark.parametrize("name", SICK)
def test_a_sickness_is_named_and_nothing_else(name):
    torch.manual_seed(0)
    sick = SICK[name].make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = initopt.diagnose(sick.model, sick.batches, sick.loss_fn, optimizer=sick.optimizer, seed=0, tries=())
    named = {finding.rule for finding in found.findings}
    above = {finding.rule for finding in found.findings if finding.severity != "note"}
    assert named >= SICK[name].named, [str(finding) for finding in found.findings]
    assert above <= SICK[name].named, [str(finding) for finding in found.findings]
    assert above, "it is no sickness"
    assert found.findings[0].rule in SICK[name].named
    text = str(found)
    assert len(text.splitlines()) <= 40
    assert found.findings[0].rule in text


def test_every_rule_is_shown_by_a_sick_network():
    shown = {code for case in SICK.values() for code in case.named}
    elsewhere = {"W120", "S601", "S602", "S603", "S604", "A209", "G306", "G310"}  # other tests have those
    assert shown | elsewhere == set(RULES)
    assert len(SICK) >= 40


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
    "zero_head": (lambda: zero_head(zoo.plain_mlp(depth=4)), vectors),
    "zero_branches": (lambda: zero_branches(zoo.small_vit(depth=2)), lambda: images(32, 16)),
}


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


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_network_has_no_finding_above_a_note(name):
    torch.manual_seed(0)
    make, batches = HEALTHY[name]
    loss = nn.MSELoss() if name == "autoencoder" else None
    found = initopt.diagnose(make(), batches(), loss, optimizer=torch.optim.AdamW, seed=0)
    assert found.healthy, str(found)
    assert found.tried == ()
    assert found.verdict.count(";") == 2
