"""The figures of docs/predicting.md are those of its rows, and the rows those of the starts."""

# ruff: noqa: E402

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import initopt

STUDY = Path(__file__).parents[2] / "benchmarks" / "study"
if not STUDY.is_dir():
    pytest.skip("the study comes with the repository alone", allow_module_level=True)
sys.path += [str(STUDY)]

import predicting_page as pages
from predicting import BEGINNINGS, PREDICTING, figures_of

NETWORKS = ("relu-5", "vgg7")


def rows(change: Any = None) -> list[dict[str, Any]]:
    """Of two networks and three seeds; GradCosine has the order of late accuracy, the loss the opposite one."""
    found = []
    for network in NETWORKS:
        for seed in (1, 2, 3):
            order = np.random.default_rng(seed).permutation(len(BEGINNINGS))
            for start, place in zip(BEGINNINGS, order, strict=True):
                figures = dict.fromkeys(pages.FIGURES, 0.0) | {
                    "grad_cosine": float(place) ** 3,
                    "loss": -float(place),
                    "grad_norm": 1.0 + start.count("o"),
                    "centred_grad_norm": 1.0,
                }
                looks = {"accuracy": 0.2 + 0.01 * float(place), "loss": 3.0 - 0.01 * float(place)}
                row = {"network": network, "start": start, "seed": seed, "lr": 0.1, "figures": figures}
                found.append(row | {"early": dict(looks), "late": dict(looks)})
    return found


def test_a_figure_in_the_order_of_accuracy_correlates_fully() -> None:
    found = pages.estimates(pages.Tables(rows()), "late")
    assert (found["grad_cosine"].mean, found["grad_cosine"].low, found["grad_cosine"].high) == pytest.approx((1, 1, 1))
    assert found["loss"].mean == pytest.approx(-1)
    assert math.isnan(found["rank"].mean)
    assert found["grad_cosine"].clear
    assert not found["rank"].clear


def test_correlations_are_those_of_plain_counting() -> None:
    table = next(iter(pages.Tables(rows()).tables.values()))
    norms, accuracy = table.figure("grad_norm"), table.accuracy("late")
    concordant = discordant = ties = 0
    for i in range(len(norms)):
        for j in range(i):
            product = np.sign(norms[i] - norms[j]) * np.sign(accuracy[i] - accuracy[j])
            concordant, discordant, ties = concordant + (product > 0), discordant + (product < 0), ties + (product == 0)
    tau = (concordant - discordant) / math.sqrt((concordant + discordant) * (concordant + discordant + ties))
    assert pages.kendall(norms, accuracy) == pytest.approx(tau)
    places = [[(values < value).sum() + (values == value).sum() / 2 for value in values] for values in (norms, accuracy)]
    assert pages.spearman(norms, accuracy) == pytest.approx(np.corrcoef(places)[0, 1])


def test_partial_correlation_is_that_of_what_a_line_leaves() -> None:
    draw = np.random.default_rng(0)
    ranks = [draw.permutation(20).astype(float) for _ in range(3)]
    fits = [np.polyval(np.polyfit(ranks[2], one, 1), ranks[2]) for one in ranks[:2]]
    expected = np.corrcoef(ranks[0] - fits[0], ranks[1] - fits[1])[0, 1]
    assert pages.partial(*ranks) == pytest.approx(expected)
    assert math.isnan(pages.partial(ranks[0], ranks[1], 2 * ranks[1]))


def test_a_choice_is_worth_one_at_the_best_and_nothing_at_the_mean() -> None:
    accuracy = np.array([10.0, 20.0, 30.0])
    assert pages.share_of_the_best(accuracy, accuracy, True) == 1
    assert pages.share_of_the_best(accuracy, accuracy, False) == -1
    assert pages.share_of_the_best(np.array([0.0, 1.0, 0.0]), accuracy, True) == 0
    assert math.isnan(pages.share_of_the_best(accuracy, np.ones(3), True))


def test_an_interval_is_wider_the_more_networks_differ() -> None:
    alike, apart = np.full((4, 3), 0.5), np.array([[1.0] * 3, [0.0] * 3, [1.0] * 3, [0.0] * 3])
    assert (pages.Estimate.of(alike).low, pages.Estimate.of(alike).high) == (0.5, 0.5)
    found = pages.Estimate.of(apart)
    assert found.mean == 0.5
    assert (found.low, found.high) == (0.0, 1.0)
    apart[0] = math.nan
    assert pages.Estimate.of(apart).mean == pytest.approx(1 / 3)


def test_what_diverged_guesses_and_what_has_no_figures_is_counted() -> None:
    content = rows()
    content[0] |= {"late": None}
    content[1]["figures"] = None
    tables = pages.Tables(content)
    assert tables.without_figures == 1
    table = tables.tables[NETWORKS[0], 1]
    assert len(table.rows) == len(BEGINNINGS) - 1
    assert table.accuracy("late")[0] == pytest.approx(10)
    assert table.gain("late")[0] == -math.inf


def test_seeds_that_are_not_whole_are_left_out() -> None:
    tables = pages.Tables(rows()[:-1])
    assert len(tables.tables) == 5
    assert "with 3 seeds each (VGG-7, no norm with 2)" in tables.extent()
    assert np.isnan(tables.over_all(lambda table: 1.0)).tolist() == [[False] * 3, [False, False, True]]


def test_the_figures_of_a_start_are_those_of_the_library() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(3)]
    found = figures_of(model, batches, seed=0)
    assert found is not None
    assert found["grad_cosine"] == pytest.approx(initopt.measure(model, batches, seed=0).grad_cosine)
    agreements = []
    for inputs, targets in batches[::2]:
        losses = F.cross_entropy(model(inputs), targets, reduction="none")
        samples = [torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in losses]
        agreements.append(torch.stack([torch.cat([g.flatten() for g in s]) for s in samples]).sign().mean(0).abs().mean())
    assert found["sign_agreement"] == pytest.approx(float(torch.stack(agreements).mean()), rel=1e-5)
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[0].weight)
    with torch.no_grad():
        model[2].bias.fill_(math.inf)
    assert figures_of(model, batches, seed=0) is None


@pytest.mark.heavy
@pytest.mark.processes
def test_the_page_says_what_the_rows_say(tmp_path: Path) -> None:
    call = [sys.executable, "predicting_page.py", "--out", str(tmp_path / "page.md"), "--picture", str(tmp_path / "p.png")]
    done = subprocess.run(call, cwd=STUDY, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    page = STUDY.parents[1] / "docs" / "predicting.md"
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in PREDICTING.read_text(encoding="utf-8").splitlines()]
    assert len({(row["network"], row["start"], row["seed"]) for row in rows}) == len(rows)
