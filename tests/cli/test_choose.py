"""``initopt choose``."""

import json

import pytest

from initopt.cli.main import main

DEEP = ("--model", "plain_mlp", "--model.depth", "8", "--model.activation", "torch.nn.ReLU", "--data", "digits")
HOW = ("--optimizer", "SGD", "--lr", "0.05", "--optimizer_options.momentum", "0.9", "--threads", "1", "--quiet")


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["choose", *arguments])
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


@pytest.mark.training
def test_a_better_start_is_said_and_written_down_with_status_10(capsys, tmp_path):
    file, folder = tmp_path / "choice.json", tmp_path / "choice"
    options = ("--starts", "orthogonal", "--steps", "40", "--json", str(file), "--output", str(folder))
    status, out, _ = run(capsys, *DEEP, *HOW, *options)
    assert status == 10
    assert "Verdict: orthogonal at your rate 0.05: loss " in out
    stored = json.loads(file.read_text())
    assert (stored["start"], stored["lr"], stored["own_lr"], stored["changes"]) == ("orthogonal", 0.05, 0.05, True)
    assert stored["config"]["optimizer"] == "SGD"
    assert (folder / "choice.html").is_file()


@pytest.mark.training
def test_what_cannot_be_told_apart_has_status_0_and_rates_can_be_tried(capsys):
    shallow = ("--model", "plain_mlp", "--model.depth", "2", "--data", "digits")
    options = ("--starts", "own, trunc_normal+normal", "--lrs", "[0.04]", "--steps", "4", "--seeds", "2")
    status, out, _ = run(capsys, *shallow, *HOW, *options)
    assert status == 0
    assert "2 starts, 2 rates, 2 seeds" in out
    assert "trunc_normal + normal" in out
    assert "keep yours at 0.05" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--optimizer is missing: name one in torch.optim"),
        (("--optimizer", "SGDD"), "unknown --optimizer 'SGDD'"),
        ((*HOW, "--starts", "lsuvv"), "unknown initialization 'lsuvv'"),
        ((*HOW, "--lrs", "near"), "lrs must be a list of learning rates, 'around'"),
        ((*HOW, "--seeds", "1"), "seeds must be an integer of 2 or more"),
    ],
)
def test_bad_input_is_refused_with_status_2(capsys, options, message):
    status, _, err = run(capsys, *DEEP, *options)
    assert status == 2
    assert message in err
