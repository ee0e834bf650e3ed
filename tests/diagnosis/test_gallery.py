"""Every sickness is named by its rule, and nothing else is; healthy networks have no finding above a note."""

import warnings

import pytest
import torch
from torch import nn

import initopt
from initopt.diagnosis import RULES
from tests.diagnosis.healthy import HEALTHY
from tests.diagnosis.sick import SICK

pytestmark = pytest.mark.gallery


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


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.heavy if name == "vgg" else ()) for name in HEALTHY])
def test_a_healthy_network_has_no_finding_above_a_note(name):
    torch.manual_seed(0)
    make, batches = HEALTHY[name]
    loss = nn.MSELoss() if name == "autoencoder" else None
    found = initopt.diagnose(make(), batches(), loss, optimizer=torch.optim.AdamW, seed=0)
    assert found.healthy, str(found)
    assert found.tried == ()
    assert found.verdict.count(";") == 2


def test_what_small_gains_explain_is_a_note_that_says_so():
    torch.manual_seed(0)
    make, batches = HEALTHY["layer_scale_and_class_attention"]
    notes = [finding for finding in initopt.check(make(), batches()[0]) if finding.rule in ("A205", "G302", "G307")]
    assert {finding.rule for finding in notes} == {"A205", "G302", "G307"}
    for finding in notes:
        assert finding.severity == "note"
        assert "; not so once blocks.0-1.first_gain" in finding.text
        assert "which start at 1e-05, are 1" in finding.text
        assert "LayerScale" in finding.remedy


def test_gains_that_were_drawn_on_purpose_are_a_note():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(layer for _ in range(3) for layer in (nn.Conv2d(3, 64, 1), nn.BatchNorm2d(64), nn.Conv2d(64, 3, 1)))
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0.1, 0.1)  # as timm's RepVGG
    (note,) = initopt.check(model)
    assert (note.rule, note.severity) == ("W114", "note")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
    (warning,) = initopt.check(model)
    assert (warning.rule, warning.severity) == ("W114", "warning")
    assert "random signs" in warning.text
