"""Data sets by name on the command line."""

import json

import datasets
import pytest
import yaml

from initopt.cli import main
from tests.image_files import write_split


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run a command in a folder with a text and small data in the layout of CIFAR-10; gives status, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question " * 40, encoding="utf-8")
    write_split(tmp_path / "cifar", "train", 60)
    write_split(tmp_path / "cifar", "test", 20)
    capsys.readouterr()

    def called(line: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(line.split())
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return called


@pytest.mark.heavy
def test_measure_takes_batches_of_a_part(run):
    common = "measure --model plain_mlp --model.inputs 3072 --data cifar10 --data.path cifar --data.augment false"
    figures = {}
    variants = {"train": "", "again": "", "validation": "--data.subset validation", "seed": "--data.seed 1"}
    for name, options in variants.items():
        status, _, err = run(
            f"{common} --data.batch_size 4 {options} --num_batches 1 --num_subbatches 2 --json {name}.json"
        )
        assert (status, err) == (0, "")
        with open(f"{name}.json") as file:
            figures[name] = json.load(file)["grad_norm"]
    assert figures["train"] == figures["again"]
    assert len(set(figures.values())) == 3


def test_help_has_the_arguments_of_the_data_and_of_its_batches(run):
    _, out, _ = run("run --model small_gpt --data text --help")
    for option in ("--data.path", "--data.length", "--data.batch_size", "--data.subset", "--data.seed", "--data.loaders"):
        assert option in out


@pytest.mark.heavy
def test_compare_on_the_command_line_and_from_a_file(run):
    common = "--recipe.batch_size 8 --recipe.epochs 1 --recipe.measure_batches 1 --seeds 1 --report false"
    status, printed, err = run(
        "compare --models.gpt small_gpt --initializations [default] --data text --data.path text.txt --data.length 8 "
        f"{common} --print_config"
    )
    assert (status, err) == (0, "")
    config = yaml.safe_load(printed)
    assert config["data"]["init_args"]["length"] == 8
    small = {"context": 8, "depth": 1, "width": 8, "heads": 1}
    config["models"] = {"gpt": {"class_path": "small_gpt", "init_args": small}}
    with open("c.yaml", "w") as file:
        yaml.safe_dump(config, file)
    status, out, err = run("compare --config c.yaml --data.train_samples 40 --out out")
    assert (status, err) == (0, "")
    assert "1 of 1" in out
    with open("out/comparison.json") as file:
        data = json.load(file)["data"]
    assert data["train"]["samples"] == data["source"]["init_args"]["train_samples"] == 40
    status, _, err = run("compare --config c.yaml --data.train_samples 48 --out out")
    assert status == 2
    assert "data.source.init_args.train_samples was 40 and is 48" in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("measure --model plain_mlp --data cifar10 --data.path nowhere", "there is no folder nowhere"),
        (
            "compare --models.m plain_mlp --initializations [nio] --data cifar10 --data.path nowhere --out o",
            "there is no folder",
        ),
        ("compare --models.m plain_mlp --initializations [nio] --data cifar10 --data.pat x --out o", "--data.pat"),
        ("measure --model small_gpt --data text", "data.path"),
        ("measure --model plain_mlp --data cifar10 --data.path cifar --data.augment [turn]", "got 'turn'"),
    ],
)
def test_bad_input_is_a_message(run, line, message):
    status, out, err = run(line)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
