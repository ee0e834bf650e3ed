"""``initopt find-lr``."""

import json

import pytest

from initopt.cli.main import main

SHORT = ["--model", "plain_mlp", "--model.depth", "3", "--data", "digits", "--threads", "1", "--seeds", "2"]
SHORT += ["--steps", "20", "--sweep_steps", "40", "--warmup_steps", "0", "--precision", "1.5"]


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as done:
        main(["find-lr", *arguments])
    out, err = capsys.readouterr()
    return done.value.code or 0, out, err


@pytest.mark.training
def test_rates_are_printed_and_saved(capsys, tmp_path):
    folder, file = tmp_path / "rates", tmp_path / "rates.json"
    options = ["--optimizer", "SGD", "--lr", "0.1", "--optimizer_options.momentum", "0.9"]
    status, out, _ = run(capsys, *SHORT, *options, "--output", str(folder), "--json", str(file))
    assert status == 0
    assert "with SGD: 2 orders of batches" in out
    assert "yours" in out
    assert (folder / "plot.png").is_file()
    record = json.loads(file.read_text(encoding="utf-8"))
    assert record["own"] == 0.1
    assert record["suggested"] > 0
    assert record["config"]["optimizer_options"] == {"momentum": 0.9}


@pytest.mark.heavy
@pytest.mark.training
def test_no_suggestion_has_status_1(capsys):
    status, out, _ = run(capsys, *SHORT, "--model.depth", "30", "--optimizer", "SGD")
    assert status == 1
    assert "No suggestion: the loss hardly falls at any rate" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--optimizer is missing"),
        (["--lr", "0.1"], "--lr is that of an optimizer: give --optimizer, too"),
        (["--optimizer", "Magic"], "unknown --optimizer 'Magic'; known are"),
        (["--optimizer", "SGD", "--optimizer_options.momentumm", "0.9"], "--optimizer SGD does not take these options"),
        (["--optimizer", "SGD", "--budget", "10"], "budget must be 280 training steps or more"),
    ],
)
def test_what_cannot_be_is_refused(capsys, options, words):
    status, _, err = run(capsys, *SHORT, *options)
    assert status == 2
    assert words in err
