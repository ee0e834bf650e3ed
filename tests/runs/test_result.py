"""A result is saved whole, loads as it was, and says what does not fit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import initopt
from initopt._support.files import write_folder
from initopt.batches.subbatches import SubBatches
from initopt.runs.result import CONTENTS
from tests.helpers import make_batches, make_model, values


@pytest.fixture(scope="module")
def result() -> initopt.Result:
    return initopt.nio(make_model(), make_batches(), steps=6, measure_batches=3, max_grad_norm=math.inf)


def test_it_loads_as_it_was_saved(result: initopt.Result, tmp_path: Path) -> None:
    result.save(tmp_path / "out")
    loaded = initopt.Result.load(tmp_path / "out")
    assert loaded.history == result.history
    assert loaded.scales == result.scales
    assert list(loaded.scales) == list(result.scales)
    assert (loaded.method, loaded.engine, loaded.seconds) == (result.method, result.engine, result.seconds)
    assert loaded.versions == result.versions
    assert loaded.options == result.options | {"betas": [0.9, 0.999]}
    assert {name: v.tolist() for name, v in loaded.weights.items()} == {n: v.tolist() for n, v in result.weights.items()}
    for mine, theirs in ((loaded.before, result.before), (loaded.after, result.after)):
        assert mine is not None
        assert theirs is not None
        assert mine.to_dict() == theirs.to_dict()
        assert torch.equal(mine.gram, theirs.gram)


def test_the_folder_is_json_and_safetensors_only(result: initopt.Result, tmp_path: Path) -> None:
    result.save(tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["grams.safetensors", "result.json", "weights.safetensors"]
    record = json.loads((tmp_path / "out" / "result.json").read_text(), parse_constant=pytest.fail)
    assert record["options"]["max_grad_norm"] == "inf"


def test_the_weights_are_those_of_the_model(tmp_path: Path) -> None:
    model = make_model()
    start = values(model)
    result = initopt.nio(model, make_batches(), steps=6, measure_batches=0)
    assert {name: value.tolist() for name, value in model.named_parameters()} == {
        name: value.tolist() for name, value in result.weights.items()
    }
    for name, scale in result.scales.items():
        torch.testing.assert_close(result.weights[name], start[name] * scale)
    fresh = make_model(seed=9)
    result.save(tmp_path / "out")
    initopt.Result.load(tmp_path / "out", fresh)
    assert all(torch.equal(p, result.weights[name]) for name, p in fresh.named_parameters())


def test_saving_again_replaces_an_earlier_result(result: initopt.Result, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    result.save(tmp_path / "out")
    other = initopt.nio(make_model(), make_batches(), steps=2, measure_batches=0)
    other.save(tmp_path / "out")
    assert len(initopt.Result.load(tmp_path / "out").history) == 2
    assert initopt.Result.load(tmp_path / "out").before is None
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_of_others_is_refused_and_left(result: initopt.Result, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(FileExistsError, match="was not written by initopt"):
        result.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_write_that_fails_leaves_nothing_half(result: initopt.Result, tmp_path: Path) -> None:
    result.save(tmp_path / "out")

    def write(into: Path) -> None:
        (into / "half").write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_folder(tmp_path / "out", write, CONTENTS)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(initopt.Result.load(tmp_path / "out").history) == 6


@pytest.mark.parametrize("name", ["result.json", "weights.safetensors", "grams.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_broken_folder_is_refused(result: initopt.Result, tmp_path: Path, name: str, damage: str) -> None:
    result.save(tmp_path / "out")
    path = tmp_path / "out" / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=name):
        initopt.Result.load(tmp_path / "out")


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"accuracy": 1}')
    with pytest.raises(ValueError, match="is no 'initopt result 1' file"):
        initopt.Result.load(tmp_path)


def test_weights_of_another_run_are_refused(result: initopt.Result, tmp_path: Path) -> None:
    result.save(tmp_path / "a")
    small = nn.Sequential(nn.Linear(6, 3))
    initopt.nio(small, make_batches(), steps=1, measure_batches=0).save(tmp_path / "b")
    (tmp_path / "b" / "weights.safetensors").replace(tmp_path / "a" / "weights.safetensors")
    with pytest.raises(initopt.MismatchError, match=r"'0\.weight' is float32 \[12, 6\] in .* and float32 \[3, 6\] in"):
        initopt.Result.load(tmp_path / "a")


def test_another_model_is_refused_and_left_alone(result: initopt.Result) -> None:
    other = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 3)).double()
    before = values(other)
    with pytest.raises(initopt.MismatchError) as caught:
        result.apply(other)
    message = str(caught.value)
    assert "'0.weight' is float32 [12, 6] in the stored weights and float64 [12, 6] in the Sequential" in message
    assert "'4.weight' is only in the stored weights" in message
    assert "'2.weight' is only in the Sequential" in message
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_the_history_as_a_table(result: initopt.Result) -> None:
    table = result.to_dataframe()
    assert list(table["step"]) == list(range(6))
    assert table["grad_cosine"].iloc[2] == result.history[2].grad_cosine


@pytest.mark.heavy
def test_the_picture_shows_bound_constrained_steps_and_every_scale(tmp_path: Path) -> None:
    options = {"lr": 0.1, "max_grad_norm": 0.8, "on_harm": "warn"}
    result = initopt.nio(make_model(), make_batches(), steps=20, measure_batches=2, **options)
    assert any(record.constrained for record in result.history)
    figure = result.plot()
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "GradCosine, centred",
        "gradient norm",
        "GradCosine, centred",
        "gradient norm",
        "scale of each tensor, in network order",
        "signal: output that depends on the input",
        "gradient of a sample's loss with respect to the output",
    ]
    norm = figure.axes[1]
    assert [text.get_text() for text in norm.get_legend().get_texts()] == ["constrained step", "bound 0.8"]
    marked = next(line for line in norm.lines if line.get_marker() == "o")
    assert list(marked.get_xdata()) == [record.step for record in result.history if record.constrained]
    assert [text.get_text() for text in figure.axes[4].get_xticklabels()] == list(result.scales)
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


@pytest.mark.heavy
def test_the_picture_of_a_run_without_measurements_says_so() -> None:
    figure = initopt.nio(make_model(), make_batches(), steps=1, measure_batches=0).plot()
    assert any("not measured" in text.get_text() for text in figure.axes[2].texts)


def test_numeric_options_are_numbers_again(result: initopt.Result, tmp_path: Path) -> None:
    result.save(tmp_path / "out")
    for one in (result, initopt.Result.load(tmp_path / "out")):
        assert one.options["max_grad_norm"] == math.inf
        assert one.options["lr"] == 0.03


def test_the_path_of_the_record_stands_for_the_folder(result: initopt.Result, tmp_path: Path) -> None:
    result.save(tmp_path / "out")
    assert initopt.Result.load(tmp_path / "out" / "result.json").scales == result.scales


class Prefixed(nn.Module):
    """Holds a model under the name that a wrapper gives it."""

    def __init__(self, **inner: nn.Module) -> None:
        super().__init__()
        for name, module in inner.items():
            self.add_module(name, module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = next(self.children())(x)
        return output


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model,
        nn.DataParallel,
        lambda model: Prefixed(_orig_mod=model),
        lambda model: Prefixed(module=Prefixed(_orig_mod=model)),
        lambda model: Prefixed(_orig_mod=Prefixed(module=model)),
    ],
)
def test_names_that_wrappers_give_make_no_difference(result: initopt.Result, wrap: Any) -> None:
    model = make_model(seed=9)
    result.apply(wrap(model))
    assert all(torch.equal(p, result.weights[name]) for name, p in model.named_parameters())
    wrapped = initopt.nio(wrap(make_model()), make_batches(), steps=2, measure_batches=0)
    bare = make_model(seed=9)
    wrapped.apply(bare)
    assert all(torch.equal(p, w) for p, w in zip(bare.parameters(), wrapped.weights.values(), strict=True))


class TestNoiseFloor:
    @pytest.mark.heavy
    def test_steps_are_shown_beside_what_shared_samples_alone_give(self) -> None:
        result = initopt.nio(make_model(), make_batches(count=16), steps=4, measure_batches=4, on_harm="warn")
        floor = SubBatches(count=4, overlap=0.2).noise_cosine(16)
        assert [record.noise_cosine for record in result.history] == [pytest.approx(floor)] * 4
        assert f"; shared samples alone give {floor:.2f}" in str(result)
        axes = next(a for a in result.plot().axes if "GradCosine" in a.get_title(loc="left") + a.get_title())
        assert f"{floor:.2f} by shared samples alone" in [text.get_text() for text in axes.get_legend().get_texts()]

    def test_without_overlap_nothing_is_said(self) -> None:
        result = initopt.nio(make_model(), make_batches(count=16), steps=2, measure_batches=4, overlap=0.0, on_harm="warn")
        assert [record.noise_cosine for record in result.history] == [0.0, 0.0]
        assert "shared samples" not in str(result)
