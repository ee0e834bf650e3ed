"""The benchmarks measure what they say, and the page says what was measured."""

# ruff: noqa: E402

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from initopt import objectives
from initopt.engines import ENGINES
from initopt.model.modes import measuring
from initopt.model.preserve import preserved

ROOT = Path(__file__).parents[2]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("benchmarks come with the repository alone", allow_module_level=True)
sys.path += [str(ROOT / "benchmarks")]

import accuracy
import diagnosing
import engines
import imagenet_sample
import measuring as measuring_step
import methods
import plot
import profile_step
import report
import timing
from cases import SUITES, Case
from contenders import PUBLISHED, TRAINING, contender, contender_names, model_and_batch
from memory import process_memory
from networks import NETWORKS, build
from published import published_step
from results import ratios

from tests.helpers import make_problem
from tests.image_files import write_split

TINY = Case("tiny-resnet", batch_size=8, memory=False)
TINY_COUPLED = Case("tiny-resnet-bn", batch_norm="batch", batch_size=8, memory=False)


def double(tree: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(t.double() if t.is_floating_point() else t for t in tree)


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more turns than asked for, and no clean memory."""
    monkeypatch.setattr(timing, "ENOUGH", 0.0)
    monkeypatch.setattr(timing, "SHORT", 0.0)
    monkeypatch.setattr(timing, "gc", SimpleNamespace(collect=lambda: None))


@pytest.mark.parametrize("overlap", [0.0, 0.2])
@pytest.mark.parametrize("network", ["tiny-resnet", "tiny-resnet-bn", "tiny-vit", "tiny-gpt"])
def test_the_published_way_finds_what_the_coupled_engine_finds(network: str, overlap: float) -> None:
    model = build(network, "cpu").double()
    problem = make_problem(model, num_subbatches=3, overlap=overlap, split="published", batch_norm="batch")
    batch = problem.prepare(double(NETWORKS[network].batch(10)), 0)
    objective = objectives.get("cosine+norm")
    with preserved(model), measuring(model):
        gram, along = published_step(problem, batch, objective)
        evaluation = ENGINES["coupled"](problem).evaluate(batch, differentiate=True)
        slope = torch.autograd.grad(objective(evaluation.gram.requires_grad_()), evaluation.gram)[0]
        expected = evaluation.scale_derivatives(slope)
    torch.testing.assert_close(gram, evaluation.gram.detach(), rtol=1e-9, atol=0)
    torch.testing.assert_close(along, expected, rtol=1e-9, atol=1e-12)


def test_contenders() -> None:
    assert contender_names(TINY)[0] == TRAINING
    assert {"graph", "recompute", "plain", "differences", PUBLISHED} <= set(contender_names(TINY))
    assert {"coupled", "differences", PUBLISHED} <= set(contender_names(TINY_COUPLED))
    # Batch norms on the statistics of each sub-batch: not what the published way computes.
    assert PUBLISHED not in contender_names(Case("tiny-resnet-bn"))


@pytest.mark.parametrize("case", [TINY, TINY_COUPLED], ids=lambda case: case.key)
def test_contenders_leave_the_model_as_it_was(case: Case) -> None:
    model, data = model_and_batch(case, "cpu")
    before = {name: value.clone() for name, value in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    for name in contender_names(case):
        with contender(name, case, model, data)() as step:
            step()
    assert [module.training for module in model.modules()] == modes
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_cases_of_a_suite_have_different_names_and_known_networks() -> None:
    for cases in SUITES.values():
        assert len({case.key for case in cases}) == len(cases)
        assert {case.network for case in cases} <= set(NETWORKS)


def test_ratios() -> None:
    assert ratios([4.0, 6.0, 5.0], [2.0, 2.5, 1.0]) == (2.5, 2.0, 3.0)


def test_what_fails_or_takes_too_long_is_left_out_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    model, data = model_and_batch(TINY, "cpu")
    training = contender(TRAINING, TINY, model, data)

    def failing() -> Any:
        raise RuntimeError("out of luck")

    found = timing.take_turns({"training": training, "failing": failing}, "cpu", 2)
    assert len(found["training"]["seconds"]) >= 2
    assert found["failing"] == {"skipped": "RuntimeError: out of luck"}
    monkeypatch.setattr(timing, "LONGEST", 0.0)
    assert "more than 0 s" in timing.take_turns({"training": training}, "cpu", 2)["training"]["skipped"]


@pytest.mark.heavy
@pytest.mark.processes
def test_memory_of_a_larger_batch_is_larger() -> None:
    small, large = (process_memory(Case("tiny-resnet", batch_size=size), "graph", threads=1) for size in (16, 256))
    assert large["peak"] - large["before"] > 3 * (small["peak"] - small["before"]) > 0


@pytest.mark.heavy
@pytest.mark.processes
def test_memory_of_what_fails_says_why() -> None:
    assert "no-such-engine" in process_memory(TINY, "no-such-engine", threads=1)["skipped"]


@pytest.mark.heavy
@pytest.mark.processes
def test_a_run_is_stored_and_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "engines-cpu.json"
    cases = [Case("tiny-resnet", count, batch_size=8, memory=False) for count in (2, 4, 8)]
    options: dict[str, Any] = {"device": "cpu", "threads": 1, "repetitions": 1}
    hurry(monkeypatch)
    results = engines.run_cases([*cases, TINY_COUPLED], out, **options)
    assert json.loads(out.read_text(encoding="utf-8")) == results
    assert set(results["cases"]) == {case.key for case in [*cases, TINY_COUPLED]}

    monkeypatch.setattr(engines, "take_turns", None)  # would fail
    assert engines.run_cases(cases, out, **options) == results
    with pytest.raises(SystemExit, match="was begun with another settings"):
        engines.run_cases(cases, out, device="cpu", threads=1, repetitions=2)

    page = report.page(tmp_path)
    assert "from D = 2 to D = 8" in page
    for name in ENGINES:
        assert f"| {name} " in page
    assert len(plot.against_d([results["cases"][case.key] for case in cases]).axes) == 2
    assert len(plot.over_networks(list(results["cases"].values())).axes) == 2


@pytest.mark.heavy
@pytest.mark.processes
def test_methods_are_timed_and_leave_the_model_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    case = Case("tiny-resnet", batch_size=8)
    model, data = model_and_batch(case, "cpu")
    before = {name: value.clone() for name, value in model.named_parameters()}
    for name in methods.METHODS:
        with methods.method_contender(name, case, model, data)() as step:
            records = step()
            assert any(not torch.equal(parameter, before[n]) for n, parameter in model.named_parameters())
        assert all(torch.equal(parameter, before[n]) for n, parameter in model.named_parameters())
        if name.startswith("gradinit"):
            assert records[0].constrained == name.endswith("constrained")
        if name == "lsuv":
            assert all(record.iterations for record in records)
    out = tmp_path / "methods-cpu.json"
    results = methods.run_cases([case], out, device="cpu", threads=1, repetitions=1)
    assert json.loads(out.read_text(encoding="utf-8")) == results
    page = report.page(tmp_path)
    assert "## Other methods" in page
    assert "| gradinit, free | gradinit, constrained |" in page


def test_accuracy_of_an_entry_of_the_gallery() -> None:
    subjects = {(subject.entry.name, subject.mode): subject for subject in accuracy.of_gallery()}
    mlp = accuracy.measure(subjects["mlp", "subbatch"])
    assert mlp["engines"]["graph float64"]["derivative"] < 1e-12
    assert 1e-10 < mlp["engines"]["graph float32"]["derivative"] < 1e-5
    complex_one = accuracy.measure(subjects["complex_weight", "batch"])
    assert 1e-10 < complex_one["engines"]["coupled float32"]["derivative"] < 1e-5
    assert "draws random numbers" in accuracy.measure(subjects["noise_in_any_mode", "subbatch"])["skipped"]
    noiseless = {"subjects": [mlp, complex_one]}
    assert "| `graph` | float32 | 1 |" in accuracy.accuracy_table(noiseless)


@pytest.mark.skipif(not report.PAGE.exists(), reason="no results yet")
def test_the_page_says_what_the_results_say() -> None:
    assert report.PAGE.read_text(encoding="utf-8") == report.page(report.RESULTS)


@pytest.mark.heavy
@pytest.mark.parametrize("case", [replace(TINY, num_subbatches=2), replace(TINY_COUPLED, num_subbatches=2)])
def test_steps_make_the_products_that_are_told(case: Case) -> None:
    model, data = model_and_batch(case, "cpu")

    def operations(name: str) -> int:
        with contender(name, case, model, data)() as step:
            step()
            step()  # engines check, or search, in their first step
            with FlopCounterMode(display=False) as counted:
                step()
        return counted.get_total_flops()

    training = operations(TRAINING)
    # Not groups: the counter takes the weight gradient of a grouped convolution for that of a dense one.
    for name in {*contender_names(case)} - {"groups"}:
        told = profile_step.products(name, case.num_subbatches, case.batch_norm)
        assert 3 * operations(name) / training == pytest.approx(told, rel=0.1), name


@pytest.mark.slow
@pytest.mark.processes
def test_a_measurement_and_a_profile_are_written_and_told(tmp_path: Path) -> None:
    measuring_step.main(["--smoke", "--threads", "1", "--out", str(tmp_path / "measuring.json")])
    profile_step.main(["--smoke", "--out", str(tmp_path / "profile.json")])
    looking = ["--smoke", "--threads", "1", "--repetitions", "1", "--out", str(tmp_path / "diagnosing.json")]
    diagnosing.main(looking)
    page = report.page(tmp_path)
    assert "GPT, 1 block (0 M parameters)" in page
    assert "| ResNet-8, batch norm of the sub-batch | graph | 2.33 |" in page
    assert "| network | training step | check | check, batch | diagnose |" in page
    torch.set_num_threads(1)


@pytest.fixture
def sample(tmp_path: Path) -> list[str]:
    """Arguments for a tiny network and a folder of images."""
    write_split(tmp_path / "images", "train", 60, columns=("image", "label"))
    tiny = ["--network", "tiny-resnet-bn", "--batch-size", "8", "--image-size", "16", "--measure-batches", "2"]
    return ["--data", str(tmp_path / "images"), *tiny, "--threads", "1", "--about", "60 pictures"]


@pytest.mark.heavy
def test_a_sample_of_images_goes_on_where_time_ran_out(
    tmp_path: Path, sample: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, whole = tmp_path / "imagenet-sample.json", tmp_path / "whole.json"
    call = [*sample, "--steps", "2", "--out", str(out)]
    imagenet_sample.main([*call, "--minutes", "0"])
    assert "out of time after 1 steps" in capsys.readouterr().out
    key = "tiny-resnet-bn defaults B=8"
    first = json.loads(out.read_text(encoding="utf-8"))["cases"][key]
    assert first["steps"] == 1
    imagenet_sample.main(call)
    imagenet_sample.main([*sample, "--steps", "2", "--out", str(whole)])
    found, expected = (json.loads(path.read_text(encoding="utf-8"))["cases"][key] for path in (out, whole))
    for name in ("steps", "history", "scales", "before", "after"):
        assert found[name] == expected[name]
    assert found["history"][:1] == first["history"]
    assert found["before"] != found["after"]
    assert len(found["step_seconds"]) == 2
    assert len(found["training_seconds"]) == 2 * len(expected["training_seconds"]) == 4 * imagenet_sample.TIMED
    capsys.readouterr()
    imagenet_sample.main(call)
    assert "all 2 steps are done" in capsys.readouterr().out

    page = report.page(tmp_path)
    assert "data: 60 pictures" in page
    assert "| ResNet-8, batch norm, `defaults` | 8 / 4 | 2 (2) |" in page  # its norm is 8, and the bound 5


def test_a_sample_of_images_that_cannot_be(tmp_path: Path, sample: list[str]) -> None:
    with pytest.raises(SystemExit, match="no published setting is known for swin"):
        imagenet_sample.main([*sample, "--network", "swin_tiny_patch4_window7_224", "--setting", "published"])


def test_the_share_of_an_epoch() -> None:
    # An epoch is 1,281,167 / 64, so 20019 steps of 2 seconds.
    case = {"batch_size": 64, "steps": 10, "training_seconds": [2.0, 9.0, 1.0], "step_seconds": [7.0, 8.0, 6.0]}
    assert imagenet_sample._shares(case) == pytest.approx((70 / 40038, 700 / 40038))


@pytest.mark.heavy
def test_the_published_setting_is_that_of_the_paper(tmp_path: Path, sample: list[str]) -> None:
    out = tmp_path / "imagenet-sample.json"
    imagenet_sample.main([*sample, "--setting", "published", "--steps", "1", "--out", str(out)])
    (case,) = json.loads(out.read_text(encoding="utf-8"))["cases"].values()
    expected = {"num_subbatches": 4, "overlap": 0.2, "objective": "cosine+norm", "lr": 0.003, "max_grad_norm": 10.0}
    assert case["options"] == expected | {"batch_norm": "batch"}
