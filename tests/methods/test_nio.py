"""Whole runs on every architecture of the gallery: the arithmetic of the steps, and what a run may change."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import initopt
from initopt._gallery.truth import PHI, as_real, gradients, gram_of, norms, plain_operations, prepared
from initopt.methods import NIO
from initopt.model.parameters import is_bias
from initopt.testing import ENTRIES, SEED, Entry, check_method

RUNNABLE = [(name, mode) for name, entry in ENTRIES.items() if entry.double_backward for mode in entry.modes]
RESUMED = {"mlp", "batch_norm_residual", "tied_embedding_and_output", "numpy_and_python_noise", "moving_average_buffer"}
"""Entries on which a run is also stopped and resumed: what takes longer on all."""

LR, BETAS, EPS, CLIP = 0.05, (0.8, 0.95), 1e-8, 0.3


def settings_of(entry: Entry, mode: str) -> dict[str, Any]:
    return {
        "num_subbatches": entry.num_subbatches,
        "overlap": entry.overlap,
        "batch_norm": mode,
        "train_mode": entry.train_mode,
        "measure_batches": 0,
        "seed": SEED,
        "lr": LR,
        "betas": BETAS,
        "eps": EPS,
        "scale_grad_clip": CLIP,
        "scale_biases": True,
        "scale_invariant": True,
        "centre": None,
    }


def in_mode(entry: Entry, mode: str) -> NIO:
    options = settings_of(entry, mode) | {"centre": "output"}
    return NIO(steps=2, **{key: options[key] for key in options if key not in ("measure_batches", "seed")})


@pytest.mark.gallery
@pytest.mark.filterwarnings("ignore:initopt. gradients are not centred")
@pytest.mark.parametrize(("name", "mode"), RUNNABLE)
def test_a_run_changes_nothing_but_the_scales(name: str, mode: str) -> None:
    assert check_method(lambda entry: in_mode(entry, mode), [name], resume=False) == 1


@pytest.mark.filterwarnings("ignore:initopt. gradients are not centred")
@pytest.mark.parametrize(("name", "mode"), [case for case in RUNNABLE if case[0] in RESUMED])
def test_a_run_that_was_stopped_is_resumed(name: str, mode: str) -> None:
    assert check_method(lambda entry: in_mode(entry, mode), [name]) == 1


@pytest.mark.gallery
@pytest.mark.filterwarnings("ignore:initopt. nothing to scale")
@pytest.mark.parametrize(("name", "mode"), RUNNABLE)
def test_biases_and_what_is_scale_invariant_stay_by_default(name: str, mode: str) -> None:
    entry = ENTRIES[name]
    options = settings_of(entry, mode) | {"scale_biases": False, "scale_invariant": False}
    with plain_operations():
        scales = initopt.nio(entry.model(), [entry.batch()], entry.loss_fn(), steps=1, **options).scales
        model, batch = prepared(entry)
        rows = gradients(entry, model, batch, mode, create_graph=False, index=0)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for k, (n, p) in enumerate(named.items()):
        value = as_real(p.detach()).flatten()
        cosines = [float(row[k] @ value / row[k].norm() / value.norm()) for row in rows if row[k].any() and value.any()]
        matters = any(abs(cosine) >= 5e-4 for cosine in cosines) or (p.numel() == 1 and bool(cosines))
        if is_bias(n) or cosines:  # one without a gradient yet may move all the same: those of others depend on it
            assert (scales[n] != 1) == (matters and not is_bias(n)), n


def test_scales_of_parameters_without_gradient_stay() -> None:
    entry = ENTRIES["unused_parameters"]
    model = entry.model()
    result = initopt.nio(model, [entry.batch()], entry.loss_fn(), steps=3, **settings_of(entry, "subbatch"))
    assert {n for n, scale in result.scales.items() if scale == 1} == {"never", "unused.weight", "unused.bias"}


def slow_nio(
    entry: Entry,
    mode: str,
    objective: str,
    bound: float,
    steps: int,
    centred: bool = False,
) -> tuple[dict[str, float], list[bool], list[float | None]]:
    """NIO as the design states it, a scalar at a time."""
    model, batch = prepared(entry)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    scales = dict.fromkeys(named, 1.0)
    first = {kind: dict.fromkeys(named, 0.0) for kind in (True, False)}
    second = dict.fromkeys(named, 0.0)
    counts = {True: 0, False: 0}
    constrained: list[bool] = []
    values: list[float | None] = []
    for step in range(steps):
        gram = gram_of(gradients(entry, model, batch, mode, create_graph=True, index=step))
        of_one = norms(gram.detach())[step % len(gram)]
        constrained.append(float(of_one if centred else PHI["grad_norm"](gram.detach())) > bound)
        kind = constrained[-1]
        if centred and not kind:
            gram = gram_of(gradients(entry, model, batch, mode, create_graph=True, centred=True, index=step))
        values.append(None if centred and kind else float(PHI[objective](gram.detach())))
        phi = PHI["grad_norm" if kind else objective](gram)
        derivatives = torch.autograd.grad(phi, list(named.values()), materialize_grads=True, allow_unused=True)
        counts[kind] += 1
        for (n, p), derivative in zip(named.items(), derivatives, strict=True):
            if not p.detach().any():
                continue
            slope = float((as_real(derivative) * as_real(p.detach())).sum()) / scales[n]
            slope = max(-CLIP, min(CLIP, slope))
            first[kind][n] = BETAS[0] * first[kind][n] + (1 - BETAS[0]) * slope
            second[n] = BETAS[1] * second[n] + (1 - BETAS[1]) * slope**2
            moment = first[kind][n] / (1 - BETAS[0] ** counts[kind])
            square = second[n] / (1 - BETAS[1] ** (counts[True] + counts[False]))
            new = max(scales[n] - LR * moment / (math.sqrt(square) + EPS), 0.01)
            with torch.no_grad():
                p.mul_(new / scales[n])
            scales[n] = new
    return scales, constrained, values


@pytest.mark.gallery
@pytest.mark.parametrize("objective", ["cosine", "cosine+norm", "variance+sqnorm"])
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("mlp", "subbatch"),
        ("tied_embedding_and_output", "subbatch"),
        ("zero_residual_branch", "batch"),
        ("batch_norm_residual", "subbatch"),
        ("batch_norm_residual", "batch"),
        ("noise_in_any_mode", "subbatch"),
        ("dropout_training", "batch"),
        ("complex_weight", "subbatch"),
        ("causal_attention", "subbatch"),
        ("mixture_of_experts", "batch"),
    ],
)
def test_steps_are_those_of_the_design(name: str, mode: str, objective: str) -> None:
    """Four steps with a bound that some steps exceed and some do not."""
    entry = ENTRIES[name]
    model = entry.model()
    start = initopt.measure(model, [entry.batch()], entry.loss_fn(), num_subbatches=entry.num_subbatches).grad_norm
    options = settings_of(entry, mode) | {
        "objective": objective,
        "norm_weight": 0.3,
        "min_bias_scale": 0.01,
    }
    for bound in (0.9 * start, 1.05 * start, 1e9):
        model = entry.model()
        result = initopt.nio(model, [entry.batch()], entry.loss_fn(), steps=4, max_grad_norm=bound, **options)
        with plain_operations():
            scales, constrained, values = slow_nio(entry, mode, objective, bound, 4)
        assert [step.constrained for step in result.history] == constrained
        assert [step.objective for step in result.history] == pytest.approx(values, rel=1e-8)
        assert result.scales == pytest.approx(scales, rel=1e-7)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "mode"),
    [("mlp", "subbatch"), ("batch_norm_residual", "batch"), ("tied_embedding_and_output", "subbatch")],
)
def test_centred_steps_are_those_of_the_design(name: str, mode: str) -> None:
    """The objective is that of centred gradients, the bound is on the whole gradient of one sub-batch in its turn."""
    entry = ENTRIES[name]
    start = initopt.measure(entry.model(), [entry.batch()], num_subbatches=entry.num_subbatches).grad_norm
    options = settings_of(entry, mode) | {"centre": "output", "norm_weight": 0.3, "min_bias_scale": 0.01}
    kinds = set()
    for bound in (0.9 * start, 1.02 * start, 20 * start):
        result = initopt.nio(entry.model(), [entry.batch()], entry.loss_fn(), steps=5, max_grad_norm=bound, **options)
        with plain_operations():
            scales, constrained, values = slow_nio(entry, mode, "cosine+lognorm", bound, 5, centred=True)
        assert [step.constrained for step in result.history] == constrained
        kinds |= set(constrained)
        for step, value in zip(result.history, values, strict=True):
            assert step.objective == (None if value is None else pytest.approx(value, rel=1e-8))
        assert result.scales == pytest.approx(scales, rel=1e-7)
    assert kinds == {True, False}


def test_constrained_and_free_steps_alternate() -> None:
    """At the bound, with separate first moments and one second moment."""
    entry = ENTRIES["mlp"]
    options = settings_of(entry, "subbatch") | {"objective": "cosine+norm", "norm_weight": 0.3, "min_bias_scale": 0.01}
    bound = initopt.measure(entry.model(), [entry.batch()], num_subbatches=entry.num_subbatches).grad_norm
    result = initopt.nio(entry.model(), [entry.batch()], steps=12, max_grad_norm=1.1 * bound, **options)
    scales, constrained, _ = slow_nio(entry, "subbatch", "cosine+norm", 1.1 * bound, 12)
    assert 3 <= sum(constrained) <= 9
    assert [step.constrained for step in result.history] == constrained
    assert result.scales == pytest.approx(scales, rel=1e-7)


def test_objective_decreases_and_scales_stay_above_their_minimum() -> None:
    entry = ENTRIES["mlp"]
    model = entry.model()
    options = settings_of(entry, "subbatch") | {"lr": 0.3, "min_scale": 0.5, "min_bias_scale": 0.25}
    result = initopt.nio(model, [entry.batch()], objective="cosine", max_grad_norm=1e9, steps=10, **options)
    assert result.history[-1].objective < result.history[0].objective
    minima = {n: 0.25 if n.endswith("bias") else 0.5 for n in result.scales}
    assert all(scale >= minima[n] for n, scale in result.scales.items())
    assert any(scale == minima[n] for n, scale in result.scales.items())
