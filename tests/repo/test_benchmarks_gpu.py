"""What is made ready for a GPU, tried on a CPU with tiny sizes."""

# ruff: noqa: E402

from __future__ import annotations

import doctest
import json
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("benchmarks come with the repository alone", allow_module_level=True)
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "gpu")]

import cifar
import cifar_training
import correctness
import engine_steps
import gallery_check
import prepare
import resnet50
import run as on_gpu
import tasks
from bundle import Bundle, make_wheels_importable
from cases import Case
from cifar_training import Recipe, Setting, decode_once, time_steps, train_once
from tasks import Result, Task, run_tasks

from tests.image_files import write_split
from tests.short_tasks import die, double, fail, sleep

TRAIN, TEST, PICTURES = 60, 20, 12


def silent(share: float) -> None:
    pass


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("hub")
    write_split(folder / "cifar10", "train", TRAIN)
    write_split(folder / "cifar10", "test", TEST)
    write_split(folder / "imagenet", "train", PICTURES, columns=("image", "label"), size=(40, 30))
    return ["--cifar10", str(folder / "cifar10"), "--imagenet", str(folder / "imagenet"), "--missing"]


@pytest.fixture(scope="module")
def folder(sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    sizes = ["--train", "40", "--test", "10", "--pictures", "10", "--about", "pictures", "--out", str(out)]
    prepare.main([*sources, *sizes])
    return out


@pytest.mark.parametrize("module", [cifar, cifar_training])
def test_examples(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class TestPrepare:
    def test_what_is_in_the_folder(self, folder: Path, sources: list[str]) -> None:
        about = Bundle(folder).about
        assert about["cifar10"] == {"train": 40, "test": 10}
        assert about["imagenet"] == {"train": 10}
        assert about["about"] == "pictures"
        assert Bundle(folder).wheels == []
        parts = Bundle(folder).files("cifar10")
        assert np.bincount(parts["train"].labels).tolist() == [20, 20]  # all classes alike
        assert parts["test"].classes == ("cat", "dog")
        whole = set(_contents(Path(sources[1]), "train"))
        assert set(parts["train"].contents) < whole
        assert len(set(parts["train"].contents)) == 40

    def test_refuses(self, folder: Path, sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(SystemExit, match=r"--out .*bundle is there already; remove it, or choose another"):
            prepare.main([*sources, "--out", str(folder)])
        out = tmp_path / "out"
        with pytest.raises(SystemExit, match=r"--pictures 13: .* has 12; choose 1 to 12"):
            prepare.main([*sources, "--out", str(out), "--train", "40", "--test", "10", "--pictures", "13"])
        with pytest.raises(ValueError, match="fewer than train_samples=61"):
            prepare.main([*sources, "--out", str(out), "--train", "61", "--test", "10"])
        monkeypatch.setattr(prepare, "MOST", 10_000)
        with pytest.raises(SystemExit, match="MiB are more than 0; lower --train, --test or --pictures"):
            prepare.main([*sources, "--out", str(out), "--train", "40", "--test", "10", "--pictures", "10"])
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match=r"has no bundle\.json; make it with benchmarks/gpu/prepare\.py"):
            on_gpu.main(["--bundle", str(tmp_path), "--out", str(tmp_path / "out")])


def _contents(folder: Path, split: str) -> list[bytes]:
    from datasets import Image, load_dataset

    records = load_dataset("parquet", data_files=str(folder / f"{split}-*.parquet"), split="train")
    return [image["bytes"] for image in records.cast_column("img", Image(decode=False))["img"]]


def test_wheels_are_unpacked_where_they_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wheel(name: str) -> Path:
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{name.split('-')[0]}.py", "VALUE = 3")
        return path

    ours, installed, other = (
        "made_up_for_a_test-1.0-py3-none-any.whl",
        "numpy-1.0-py3-none-any.whl",
        "odd-1.0-cp27-cp27m-any.whl",
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "before")
    done = make_wheels_importable([wheel(name) for name in (ours, installed, other)], tmp_path / "site")
    assert done == {
        ours: "unpacked: 1.0",
        installed: f"left out: {np.__version__} is installed",
        other: "left out: it is for another Python",
    }
    import made_up_for_a_test  # type: ignore[import-not-found]

    assert made_up_for_a_test.VALUE == 3
    assert sys.path[-1] == str(tmp_path / "site")  # what is installed comes first


def run(plan: Callable[[Mapping[str, Result]], list[Task]], *, seconds: float = 60.0, workers: int = 1) -> tuple[Any, Any]:
    results: dict[str, Result] = {}
    kept: list[list[str]] = []
    left = run_tasks(plan, results, lambda: kept.append(list(results)), workers, time.monotonic() + seconds)
    assert kept == [list(results)[: number + 1] for number in range(len(results))]  # after each of them
    return results, left


@pytest.mark.processes
class TestTasks:
    @pytest.mark.heavy
    def test_one_that_fails_and_one_that_dies_cost_themselves(self) -> None:
        doubles = [Task(f"double {value}", double, {"value": value}) for value in (1, 2)]
        results, left = run(lambda done: [doubles[0], Task("fails", fail), Task("dies", die), doubles[1]])
        assert left == []
        assert results["double 1"]["value"] == 2
        assert results["double 2"]["value"] == 4
        assert results["fails"]["failed"].startswith("KeyError: 'no such thing'")
        assert "Traceback" in results["fails"]["failed"]
        assert results["dies"]["failed"] == "its process ended with 7"

    @pytest.mark.heavy
    def test_what_becomes_possible_by_a_result(self) -> None:
        def plan(done: Mapping[str, Result]) -> list[Task]:
            first = Task("first", double, {"value": 3})
            return [first, Task("second", double, {"value": done["first"]["value"]})] if "first" in done else [first]

        results, left = run(plan)
        assert left == []
        assert results["second"]["value"] == 12

    @pytest.mark.heavy
    def test_nothing_is_begun_that_does_not_fit(self) -> None:
        tasks_ = [Task("long", double, {"value": 1}, alone=1000.0), Task("short", double, {"value": 1}, alone=1.0)]
        results, left = run(lambda done: tasks_)
        assert list(results) == ["short"]
        assert left == ["long"]

    def test_those_beside_each_other_have_to_fit_together(self) -> None:
        shared = [Task(name, sleep, {"seconds": 0.0}, share=40.0) for name in ("one", "two")]
        busy = [worker_at(shared[0], progress) for progress in (0.0, 0.5)]
        deadline = time.monotonic() + 75.0
        assert tasks._fits(shared[1], [], deadline)
        assert tasks._fits(shared[1], [busy[1]], deadline)
        assert not tasks._fits(shared[1], [busy[0]], deadline)

    def test_what_takes_far_too_long_is_ended(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tasks, "SHORTEST", 0.2)
        results, _ = run(lambda done: [Task("sleeps", sleep, {"seconds": 60.0}, alone=0.1)])
        assert "s were reckoned" in results["sleeps"]["failed"]

    def test_what_is_not_done_in_time_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tasks, "GRACE", 0.0)
        results, left = run(lambda done: [Task("sleeps", sleep, {"seconds": 60.0}, alone=0.1)], seconds=0.5)
        assert results == {}
        assert left == ["sleeps"]


def worker_at(task: Task, progress: float) -> tasks._Worker:
    worker = tasks._Worker.__new__(tasks._Worker)
    worker.task, worker._progress = task, progress
    return worker


@pytest.fixture(scope="module")
def setting(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    pixels = tmp_path_factory.mktemp("pixels") / "cifar10.npz"
    assert decode_once(folder, pixels) == {"train": 40, "test": 10}
    return Setting(pixels, "cpu", batch_size=8, nio_steps=2, measured=2, tiny=True)


VGG = "VGG-16, no norm"


class TestCifar:
    @pytest.mark.heavy
    def test_a_run_is_the_same_again_from_a_stored_start_and_from_one_made_anew(
        self, setting: Setting, tmp_path: Path
    ) -> None:
        told: list[float] = []
        arguments = {"network": VGG, "start": "nio", "seed": 1, "epochs": 2, "setting": setting}
        recipe = Recipe("sgd", 0.1, clip=1.0)
        first = train_once(recipe=recipe, cache=tmp_path, tell=told.append, **arguments)
        assert told == [0.5, 1.0]
        assert [epoch for epoch, *_ in first["curve"]] == [0, 1, 2]
        assert first["before"] != first["after"]
        assert not first["diverged"]
        torch.rand(7)  # another run draws
        for cache in (tmp_path, None):
            again = train_once(recipe=recipe, cache=cache, tell=silent, **arguments)
            assert again["fingerprint"] == first["fingerprint"]
            assert again["curve"] == first["curve"]
            assert (again["before"], again["after"]) == (first["before"], first["after"])
        other = train_once(recipe=replace(recipe, lr=0.2), cache=tmp_path, tell=silent, **arguments)
        assert other["after"] == first["after"]
        assert other["fingerprint"] != first["fingerprint"]

    @pytest.mark.heavy
    def test_starts_of_a_seed_begin_with_the_same_weights(self, setting: Setting) -> None:
        arguments: dict[str, Any] = {"recipe": Recipe("adamw", 1e-3, warmup=0.5), "setting": setting, "cache": None}
        runs = {
            start: train_once(VGG, start=start, seed=0, epochs=1, tell=silent, **arguments) for start in ("own", "lsuv")
        }
        assert runs["own"]["before"] == runs["lsuv"]["before"] == runs["own"]["after"]
        assert runs["lsuv"]["after"] != runs["lsuv"]["before"]

    def test_a_run_that_diverges_ends(self, setting: Setting) -> None:
        wild = train_once(VGG, Recipe("sgd", 1e30), "own", 0, 3, setting, None, silent)
        assert wild["diverged"]
        assert len(wild["curve"]) < 4
        assert json.loads(json.dumps(wild, allow_nan=False))["diverged"]

    def test_the_time_of_a_step(self, setting: Setting) -> None:
        found = time_steps(VGG, Recipe("sgd", 0.1), setting, begin=time.time(), seconds=0.1, tell=silent)
        assert 0 < found["step_seconds"] < 10

    def test_every_run_is_planned_once_and_in_the_order_of_worth(self, setting: Setting, tmp_path: Path) -> None:
        samples = {"train": 40, "test": 10}
        plan = cifar.cifar_plan(setting, samples, tmp_path, 14, time.monotonic() + 100, 0.0, seeds=2)
        results: dict[str, Result] = {}
        timings = plan(results)
        assert len(timings) == 14
        assert {task.arguments["network"] for task in timings} == {arm.network for arm in cifar.ARMS}
        for task in timings:
            results[task.name] = {"network": task.arguments["network"], "step_seconds": 0.02}
        (settle,) = [task for task in plan(results) if task.name not in results]
        results["epochs"] = settle.function(**settle.arguments, tell=silent)
        assert results["epochs"]["epochs"] == 10
        done: list[str] = []
        while waiting := [task for task in plan(results) if task.name not in results]:
            names = [task.name for task in waiting]
            assert len(set(names)) == len(names)
            done.append(names[0])
            results[names[0]] = {"fingerprint": "same"}
        assert len(done) == 2 * len(cifar.ARMS) * 3 + 1
        seeds = [int(name.partition("seed ")[2][0]) for name in done]
        assert seeds == sorted(seeds)
        vit = [name for name in done if name.startswith("ViT") and "nio, seed 0" in name]
        assert vit[0] == "ViT, 9 blocks, 192 wide, lr 0.001, nio, seed 0"  # makes the start that the others take
        assert done[3 * len(cifar.ARMS)].endswith("again")
        assert "the same to the last bit: yes" in cifar.cifar_table(results)

    def test_another_recipe_waits_for_the_start(self, setting: Setting, tmp_path: Path) -> None:
        plan = cifar.cifar_plan(setting, {"train": 40, "test": 10}, tmp_path, 4, time.monotonic(), 0.0, seeds=1)
        results: dict[str, Result] = {task.name: {"failed": "no"} for task in plan({})}
        first = "ViT, 9 blocks, 192 wide"
        results["timing 4"] = {"network": first, "step_seconds": 0.01}
        results["epochs"] = {"epochs": 1}
        names = [task.name for task in plan(results)]
        assert names == [f"{first}, lr 0.001, {start}, seed 0" for start in ("own", "lsuv", "nio")]
        results[f"{first}, lr 0.001, nio, seed 0"] = {"failed": "out of memory"}  # the next one makes it, then
        assert f"{first}, lr 0.001, warm-up, nio, seed 0" in [task.name for task in plan(results)]
        results["timing 1"] = {"network": VGG, "step_seconds": 0.01}  # could be timed in a later call
        assert f"{VGG}, lr 0.1, own, seed 0" in [task.name for task in plan(results)]

    def test_tables(self) -> None:
        def of(start: str, seed: int, end: float, diverged: bool = False) -> Result:
            figures = {"grad_cosine": 0.1, "grad_norm": 1.0}
            about = {"network": VGG, "lr": 0.1, "warmup": 0.0, "start": start, "seed": seed, "start_seconds": 1.0}
            curve = [[0, None, 2.3, 0.1], [1, 2.0, 2.0, 0.2], [2, 1.0, 1.0, end]]
            return {**about, "curve": curve, "before": figures, "after": None, "diverged": diverged}

        runs = [of("own", 0, 0.5), of("own", 1, 0.6), of("nio", 0, 0.7), of("nio", 1, 0.9, diverged=True)]
        text = cifar.cifar_table({str(number): found for number, found in enumerate(runs)})
        assert "| VGG-16, no norm, lr 0.1 | own | 20.0 ± 0.0 | 55.0 ± 7.1 |  | 2 | 1.0 | 0.100 → - |" in text
        assert "| nio | 20.0 ± 0.0 | 80.0 ± 14.1 | +25.0 ± 7.1 | 2 (1 diverged) |" in text

    @pytest.mark.parametrize("seconds", [100, 150, 300])
    def test_the_epochs_are_those_for_which_there_is_time(self, seconds: float) -> None:
        steps = {arm.network: 0.01 for arm in cifar.ARMS}
        epochs = cifar.epochs_that_fit(steps, 156, seconds, workers=14)

        def needed(epochs: int) -> float:
            starts = 4 * 0.01 * sum(cifar._START.values())
            return 5 * (starts + len(cifar.ARMS) * 3 * epochs * 156 * 0.01 * cifar._LOOK) / 14

        assert cifar.LEAST <= epochs <= cifar.WISHED
        if epochs > cifar.LEAST:
            assert needed(epochs) <= 0.9 * seconds
        if epochs < cifar.WISHED:
            assert needed(epochs + 1) > 0.9 * seconds


@pytest.mark.heavy
class TestResnet50:
    def test_both_settings(self, folder: Path) -> None:
        plan = resnet50.resnet50_plan(folder, "cpu", 0, dry=True)
        found = {task.name: task.function(**task.arguments, tell=silent) for task in plan({})}
        assert {name: len(result["history"]) for name, result in found.items()} == {"defaults": 3, "published": 3}
        assert found["published"]["options"]["split"] == "published"
        assert found["published"]["floor"] > 0.2
        assert "| `published` | coupled |" in resnet50.resnet50_table(found)
        json.dumps(found)

    def test_no_image_is_in_a_batch_twice(self) -> None:
        orders = list(resnet50._orders(10, 4, 7))
        assert len(orders) == 7
        assert all(len(set(order)) == 4 for order in orders)
        assert set(orders[0]).isdisjoint(orders[1])

    def test_too_few_images(self, folder: Path) -> None:
        with pytest.raises(ValueError, match="has 10 images of ImageNet, fewer than a batch of 64"):
            resnet50.run_nio("defaults", folder, "cpu", 0, silent)


def test_engines_are_timed_in_both_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        engine_steps, "take_turns", lambda contenders, *_: {name: _once(c) for name, c in contenders.items()}
    )
    for case in engine_steps._DRY[:3:2]:
        found = engine_steps.time_engines(replace(case, batch_size=4, num_subbatches=2), "cpu", silent)
        assert {"graph", "coupled", "published"} < set(found["contenders"])
        assert f"| {case.key} | published |" in engine_steps.engines_table({case.key: found})
    assert Case("vit", precision="bf16", channels_last=True).key == "vit subbatch B=64 D=4 bf16 channels last"


def _once(contender: Any) -> dict[str, Any]:
    with contender() as step:
        step()
    return {"seconds": [1.0]}


def test_bf16_is_what_is_computed() -> None:
    """The derivatives are those of float32, as far as bfloat16 goes, and not to the last digit."""
    from contenders import contender, model_and_batch

    found = {}
    for case in (Case("tiny-vit", batch_size=8), Case("tiny-vit", batch_size=8, precision="bf16")):
        model, data = model_and_batch(case, "cpu")
        for name in ("graph", "published"):
            with contender(name, replace(case, batch_norm="batch") if name == "published" else case, model, data)() as step:
                result = step()
                found[name, case.precision] = result[1] if name == "published" else result
    for name in ("graph", "published"):
        exact, rough = found[name, "float32"], found[name, "bf16"]
        assert 1e-5 < float((rough - exact).norm() / exact.norm()) < 0.2


class TestCorrectness:
    @pytest.mark.heavy
    def test_the_gallery(self) -> None:
        found = gallery_check.check_gallery(
            ["mlp", "contrastive", "noise_in_any_mode", "embedding_bag_mean"], "cpu", silent
        )
        told = gallery_check.verdict([found])
        assert told["wrong"] == []
        assert told["not_there"] == []
        assert told["checked"]["float64"] > 15
        assert told["checked"]["float32"] > 10
        precisions = {precision for name, _, _, precision, *_ in found["rows"] if name == "noise_in_any_mode"}
        assert precisions == {"float64"}  # what is drawn in float32 is something else

    def test_what_is_wrong_is_told(self) -> None:
        right = ["mlp", "subbatch", "graph", "float64", 1e-15, 1e-15, ""]
        off = ["mlp", "batch", "graph", "float64", 1e-15, 1e-3, ""]
        no_number = ["mlp", "batch", "coupled", "float32", float("nan"), None, ""]
        beyond = ["lstm", "subbatch", "groups", "float64", None, None, "NotCoveredError: used in lstm"]
        broken = ["lstm", "subbatch", "graph", "float64", None, None, "RuntimeError: no such kernel"]
        absent = ["odd", "batch", "truth", "float64", None, None, "RuntimeError: on the CPU alone"]
        rows = {
            "rows": [right, off, no_number, beyond, broken, absent],
            "elsewhere": {"relu batch": 1e-3, "mlp batch": 0.0},
        }
        told = gallery_check.verdict([rows, {"failed": "KeyError: x\n\nTraceback"}])
        starts = ["mlp, batch, graph", "mlp, batch, coupled", "lstm, subbatch, graph", "relu batch: the truth", "a part of"]
        assert [wrong.startswith(start) for wrong, start in zip(told["wrong"], starts, strict=True)] == [True] * 5
        assert told["not_there"] == ["odd: RuntimeError: on the CPU alone"]
        table = correctness.correctness_table({"gallery 1": rows, "resume": {"right": False, "seen": "other scales"}})
        assert "| gallery | no |" in table
        assert "| resume | no | other scales |" in table

    @pytest.mark.heavy
    @pytest.mark.parametrize("name", ["attention that insists", "channels last", "data on the device", "resume"])
    def test_checks_pass_on_a_cpu(self, name: str) -> None:
        assert correctness.run_check(name, "cpu", silent)["right"]
        assert not torch.are_deterministic_algorithms_enabled()

    def test_every_check_is_a_task(self) -> None:
        names = [task.name for task in correctness.correctness_plan("cpu", dry=False)({})]
        assert set(correctness.CHECKS) < set(names)
        entries = [name for task in correctness.correctness_plan("cpu", dry=False)({}) if task.name.startswith("gallery")
                   for name in task.arguments["names"]]  # fmt: skip
        assert sorted(entries) == sorted(correctness.ENTRIES)


@pytest.mark.processes
class TestRun:
    @pytest.mark.heavy
    def test_a_part_is_stored_and_a_second_call_goes_on(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        monkeypatch.setenv("PYTHONPATH", "")
        call = ["--bundle", str(folder), "--out", str(tmp_path / "out"), "--dry", "--parts", "resnet50", "--workers", "1"]
        on_gpu.main([*call, "--minutes", "0"])
        assert "call again for 2 more: defaults, published" in capsys.readouterr().out
        path = tmp_path / "out" / "resnet50.json"
        assert not path.exists()
        on_gpu.main([*call, "--minutes", "2"])
        out = capsys.readouterr().out
        assert "defaults: " in out
        assert out.index("published: ") < out.index("## (c) NIO on a ResNet-50")
        assert set(json.loads(path.read_text(encoding="utf-8"))["cases"]) == {"defaults", "published"}
        on_gpu.main([*call, "--minutes", "2"])
        again = capsys.readouterr().out
        assert "  defaults: " not in again
        assert "## (c) NIO on a ResNet-50" in again

    @pytest.mark.heavy
    def test_what_failed_is_tried_again(self, tmp_path: Path) -> None:
        stored = {"cases": {"one": {"failed": "RuntimeError: out of luck"}, "two": {"value": 0}}}
        part = on_gpu.Part(lambda deadline: lambda done: [Task(name, double, {"value": 1}) for name in ("one", "two")])
        assert on_gpu._do("cifar", part, stored, tmp_path / "cifar.json", time.monotonic() + 60)
        assert {name: result["value"] for name, result in stored["cases"].items()} == {"one": 2, "two": 0}
        assert json.loads((tmp_path / "cifar.json").read_text(encoding="utf-8")) == stored

    def test_a_part_that_breaks_does_not_keep_the_next_from_its_turn(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def broken(*arguments: Any) -> Any:
            raise OSError("no space left")

        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        monkeypatch.setenv("PYTHONPATH", "")
        monkeypatch.setattr("engine_steps.engines_plan", broken)
        call = ["--bundle", str(folder), "--out", str(tmp_path / "out"), "--dry", "--minutes", "0"]
        with pytest.raises(SystemExit, match="broken off, see above: engines"):
            on_gpu.main([*call, "--parts", "engines,resnet50"])
        printed = capsys.readouterr()
        assert "OSError: no space left" in printed.err
        assert "call again for 2 more: defaults, published" in printed.out

    def test_the_tables_of_what_is_there(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        cases = {"resume": {"right": True, "seen": "the same"}, "autocast": {"failed": "KeyError: 'x'\n\nTraceback"}}
        (tmp_path / "correctness.json").write_text(json.dumps({"cases": cases}), encoding="utf-8")
        on_gpu.main(["--out", str(tmp_path), "--show"])
        printed = capsys.readouterr().out
        assert "| resume | yes | the same |" in printed
        assert "| autocast | no | KeyError: 'x' |" in printed
        assert "(b)" not in printed

    def test_refuses(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match="--bundle DIR is missing"):
            on_gpu.main(["--out", str(tmp_path)])
        call = ["--bundle", str(folder), "--out", str(tmp_path), "--dry"]
        with pytest.raises(SystemExit, match="there is no part 'speed', but correctness, engines, resnet50, cifar"):
            on_gpu.main([*call, "--parts", "engines,speed"])
        with pytest.raises(SystemExit, match="--workers must be 1 or more; got 0"):
            on_gpu.main([*call, "--workers", "0"])

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
    def test_without_a_device(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match="no CUDA device that torch can use; --dry tries everything on a CPU"):
            on_gpu.main(["--bundle", str(folder), "--out", str(tmp_path)])
