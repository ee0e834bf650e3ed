"""The slow truth, against central differences and the public functions of K."""

import pytest
import torch

from initopt import objectives
from initopt._gallery.truth import NORM_WEIGHT, PHI, central_differences, known_truth
from initopt.testing import CHECKED, ENTRIES
from tests.engines._cases import CASES, assert_close

BOTH_WAYS = [case for case in CASES if ENTRIES[case[0]].double_backward and ENTRIES[case[0]].conservative]
"""Where there is a double backward, and the gradient is the gradient of something."""


def vector(values: dict[str, float]) -> torch.Tensor:
    return torch.tensor(list(values.values()), dtype=torch.float64)


@pytest.mark.gallery
@pytest.mark.parametrize(("name", "mode"), BOTH_WAYS)
def test_double_backward_agrees_with_central_differences(name: str, mode: str) -> None:
    entry = ENTRIES[name]
    expected = known_truth(entry, mode, CHECKED, centred=False).derivatives
    central = central_differences(entry, mode, centred=False)
    for function, values in expected.items():
        assert_close(vector(values), vector(central[function]), 1e-7, function)


@pytest.mark.parametrize("name", ["mlp", "batch_norm_residual", "loss_in_output", "segmentation", "gru", "binary_targets"])
def test_centred_double_backward_agrees_with_central_differences(name: str) -> None:
    functions = ("cosine+lognorm", "grad_norm")
    expected = known_truth(ENTRIES[name], "subbatch", functions, centred=True).derivatives
    central = central_differences(ENTRIES[name], "subbatch", centred=True)
    for function in functions:
        assert_close(vector(expected[function]), vector(central[function]), 1e-7, function)


@pytest.mark.parametrize("function", [name for name in PHI if name not in ("entry", "grad_norm")])
@pytest.mark.parametrize("name", ["mlp", "gru", "batch_norm_residual", "one_sample_each"])
def test_objectives_are_those_of_the_definition(name: str, function: str) -> None:
    """Values and derivatives by K, so that what holds of an engine for some functions holds for all."""
    gram = known_truth(ENTRIES[name], "subbatch", CHECKED, centred=False).gram
    found = []
    for phi in (objectives.get(function, NORM_WEIGHT), PHI[function]):
        leaf = gram.clone().requires_grad_()
        value = phi(leaf)
        (slope,) = torch.autograd.grad(value, leaf)
        found.append((value.detach(), slope + slope.T))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-13)


def test_without_norms_the_two_modes_agree() -> None:
    for name in ("mlp", "layer_norm", "class_weights_and_ignored_targets", "instance_norm", "segmentation", "gru"):
        grams = [known_truth(ENTRIES[name], mode, CHECKED, centred=False).gram for mode in ("batch", "subbatch")]
        assert_close(*grams, 1e-12, name)


def test_with_batch_norm_the_two_modes_differ() -> None:
    for name in ("batch_norm_1d", "batch_norm_residual"):
        apart, coupled = (known_truth(ENTRIES[name], mode, CHECKED, centred=False).gram for mode in ("subbatch", "batch"))
        assert float((apart - coupled).abs().max()) > 0.01 * float(apart.abs().max())


def test_the_gallery_is_large() -> None:
    assert len(ENTRIES) >= 100
    assert {mode for _, mode in CASES} == {"subbatch", "batch"}
