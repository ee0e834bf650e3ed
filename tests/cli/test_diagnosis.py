"""``initopt check`` and ``initopt diagnose``."""

import json

import pytest

from initopt.cli.main import main

DEEP = ["--model", "plain_mlp", "--model.depth", "30", "--data", "digits", "--threads", "1"]


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as done:
        main(list(arguments))
    out, err = capsys.readouterr()
    return done.value.code or 0, out, err


def test_a_healthy_start_has_status_0(capsys):
    status, out, _ = run(capsys, "check", "--model", "plain_mlp", "--model.depth", "3")
    assert status == 0
    assert out.startswith("Nothing found in the weights. Whether signals and gradients get through them takes data: ")
    status, out, _ = run(capsys, "check", *DEEP, "--model.depth", "3")
    assert status == 0
    assert out.splitlines()[-1].endswith("Train; initopt.choose tells whether another start trains better.")


def test_a_sick_start_has_status_1(capsys):
    status, out, _ = run(capsys, "check", *DEEP)
    assert status == 1
    assert out.startswith("A204 error: 1,3...59: the signal shrinks")
    assert out.splitlines()[-1].startswith("1 error")
    assert out.endswith(
        "Begin with the first; initopt.diagnose says what it does on your data, and tries remedies on a copy.\n"
    )


@pytest.mark.heavy
def test_rules_are_chosen(capsys):
    assert run(capsys, "check", *DEEP, "--ignore", "A,G")[0] == 0
    assert run(capsys, "check", *DEEP, "--select", "W,D")[0] == 0
    status, _, err = run(capsys, "check", *DEEP, "--select", "X")
    assert status == 2
    assert "there is no rule 'X'" in err


@pytest.mark.parametrize("form", ["json", "github"])
def test_findings_have_other_forms(capsys, form):
    status, out, _ = run(capsys, "check", *DEEP, "--output-format", form)
    assert status == 1
    if form == "json":
        record = json.loads(out)
        assert record["format"] == "initopt check 1"
        assert record["findings"][0]["rule"] == "A204"
    else:
        assert out.startswith("::error title=A204::1,3...59: the signal shrinks")


@pytest.mark.training
def test_a_diagnosis_is_printed_and_saved(capsys, tmp_path):
    folder, file = tmp_path / "found", tmp_path / "found.json"
    options = ["--optimizer", "SGD", "--lr", "0.1", "--tries", "orthogonal", "--num_batches", "2"]
    status, out, _ = run(capsys, "diagnose", *DEEP, *options, "--output", str(folder), "--json", str(file))
    assert status == 0
    assert "tried orthogonal: " in out
    assert "at your learning rate" in out
    assert (folder / "diagnosis.html").is_file()
    assert json.loads(file.read_text(encoding="utf-8"))["tried"][0]["name"] == "orthogonal"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lr", "0.1"], "give --optimizer, too"),
        (["--optimizer", "Magic"], "unknown --optimizer 'Magic'; known are"),
        (["--optimizer", "SGD", "--lr", "-1"], "--lr must be a number above 0"),
        (["--tries", "magic"], "unknown remedy 'magic'"),
    ],
)
def test_what_cannot_be_is_refused(capsys, options, words):
    status, _, err = run(capsys, "diagnose", *DEEP, *options)
    assert status == 2
    assert words in err


def test_a_start_is_compared_with_another(capsys):
    status, out, _ = run(capsys, "check", "--model", "small_vit", "--against", "small_vit", "--against.width", "96")
    assert status == 0
    assert "W120 note" in out
