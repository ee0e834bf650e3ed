"""The command line, in this process and as a process of its own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import initopt
from initopt.cli import main
from initopt.cli.commands import COMMANDS
from initopt.methods import NIO
from tests.forks import COMMAND_LINE, Python
from tests.helpers import with_the_tests

ROOT = Path(__file__).parents[2]
USER_MODULE = '''
import os
import torch
from torch import nn

class Net(nn.Module):
    """A small network.

    Args:
        width: how wide the one hidden layer is.
    """
    def __init__(self, width: int = 8, act="ReLU"):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), getattr(nn, act)(), nn.Linear(width, 10))

    def forward(self, x):
        return self.layers(x)

def untyped_data(path):
    return path


def untyped_net(width, act="Tanh"):
    return Net(width, act)

class Buggy(Net):
    def forward(self, x):
        raise ValueError("a bug of the user")

class NoNet:
    pass

net = Net()

def batches(count: int = 6, size=16):
    for _ in range(count):
        yield torch.randn(size, 1, 8, 8), torch.randint(10, (size,))

def annotated_batches(count: int = 3) -> "collections.abc.Iterator[tuple[torch.Tensor, torch.Tensor]]":
    drawn = list(batches(count))
    DRAWN.append(drawn[0][0])
    return drawn

DRAWN = []

def floats():
    return [(torch.randn(16, 64), torch.randn(16, 10))] * 3

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

def nan_loss(model, batch):
    return model(batch[0]).sum() * float("nan")

def zero_loss(model, batch):
    return model(batch[0]).sum() * 0

def negative_cosine(gram):
    return -initopt_cosine(gram)

def weights_only(name, parameter, module):
    return name.endswith("weight")

class Pieces:
    """Three splits of stripes."""
    def __init__(self, samples: int = 64):
        labels = torch.arange(samples) % 10
        part = (torch.sin(torch.arange(64.0) * labels[:, None]).view(samples, 1, 8, 8), labels)
        self.train = self.validation = self.test = part

def busy_data():
    os.makedirs("result", exist_ok=True)
    open("result/events.log", "w").close()
    return list(batches())

def slow_batches():
    print("ready", flush=True)
    while True:
        yield from batches(1)

from initopt.gram.functional import grad_cosine as initopt_cosine
'''


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """The name of a fresh module of the user in the current folder."""
    name = f"user_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(USER_MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delenv("INITOPT_DEBUG", raising=False)
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def cli(capsys, user_module):
    """Run the command line with USER for the user's module; gives (status, standard output, standard error)."""

    def run(line: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(line.replace("USER", user_module).split())
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


class TestHelp:
    @pytest.mark.parametrize(
        "line",
        ["--help", "", "run --help", "measure -h", "demo --help", "run --method nio --help", "compare -h", "report -h"],
    )
    def test_fits_eighty_columns(self, cli, monkeypatch, line):
        monkeypatch.setenv("COLUMNS", "80")
        status, out, err = cli(line)
        assert (status, err) == (0, "")
        assert max(map(len, out.splitlines())) <= 80
        assert "``" not in out
        assert ":func:" not in out

    def test_has_the_docstrings(self, cli):
        _, out, _ = cli("run --help")
        text = " ".join(out.split())
        assert "--max_grad_norm X" in text
        assert "(default: 7.0)" in text
        assert "how many batches to hold back from the steps" in text
        if "max_grad_norm:" in NIO.__doc__:
            assert "--max_grad_norm X the bound gamma on the gradient norm" in text

    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_command_is_found(self, cli, name):
        assert cli("--help")[1].count(f"  {name} ") == 1
        assert cli(f"{name} --help")[1].startswith(f"usage: initopt {name} ")

    def test_shows_the_arguments_of_what_was_chosen(self, cli):
        _, out, _ = cli("measure --model USER.Net --data digits --help")
        assert "how wide the one hidden layer is. (default: 8)" in out
        assert "--data.batch_size" in out

    def test_version(self, cli):
        assert cli("--version") == (0, f"initopt {initopt.__version__}\n", "")

    def test_unknown_command(self, cli):
        status, _, err = cli("nope")
        assert status == 2
        assert ", ".join(map(repr, COMMANDS)) in err


class TestMeasure:
    def test_figures_equal_those_of_the_library(self, cli, user_module):
        status, out, err = cli("measure --model USER.Net --model.width 12 --data digits --num_batches 4 --json in/f.json")
        assert (status, err) == (0, "")
        assert "GradCosine" in out
        assert "over 4 batches, each in 4 sub-batches of 16 samples" in out
        found = json.loads(Path("in/f.json").read_text())
        torch.manual_seed(0)
        model = sys.modules[user_module].Net(width=12)
        expected = initopt.measure(model, initopt.data.digits().batches(), num_batches=4)
        assert found["grad_cosine"] == pytest.approx(expected.grad_cosine, rel=1e-5)
        assert found["sem"]["grad_norm"] == pytest.approx(expected.sem["grad_norm"], rel=1e-5)
        assert found["config"]["model"] == {"class_path": f"{user_module}.Net", "init_args": {"width": 12, "act": "ReLU"}}

    @pytest.mark.parametrize(
        "options",
        [
            "--model USER.untyped_net --model.width 4 --data USER.batches --data.count 2",
            "--model=USER.Net --model.act=Tanh --data=USER.annotated_batches --loss USER.loss",
            "--model USER.Net --data USER.floats --loss torch.nn.MSELoss --loss.reduction sum",
            "--model USER.Net --data USER.floats --loss MSELoss",
            "--model USER.Net --data USER.batches --grad_params USER.weights_only --threads 1",
            "--data.count 3 --data USER.batches --model.width 3 --model USER.Net --device cpu",
        ],
    )
    def test_own_parts(self, cli, options):
        threads = torch.get_num_threads()
        status, out, err = cli(f"measure {options}")
        torch.set_num_threads(threads)
        assert (status, err) == (0, "")
        assert "noise scale" in out

    def test_seed(self, cli):
        lines = [f"measure --model USER.Net --data USER.batches --seed {seed}" for seed in (1, 1, 2)]
        first, again, other = [cli(line)[1] for line in lines]
        assert first == again != other

    def test_data_do_not_depend_on_what_the_model_drew(self, cli, user_module):
        for width in (2, 30):
            cli(f"measure --model USER.Net --model.width {width} --data USER.annotated_batches --seed 3")
        first, second = sys.modules[user_module].DRAWN
        assert torch.equal(first, second)

    def test_says_what_the_figures_mean(self, cli):
        _, out, _ = cli("measure --model USER.Net --data digits --num_batches 1")
        assert "One batch has no standard error" in out
        assert "nan" not in out
        _, out, _ = cli("measure --model plain_mlp --data USER.batches")
        assert "unrelated directions" in out


@pytest.mark.training
class TestRun:
    @pytest.mark.heavy
    def test_an_optimizer_tries_the_weights(self, cli, user_module):
        call = "run --model USER.Net --data digits --steps 3 --measure_batches 2 --trial_steps 2 --on_harm warn"
        status, out, _ = cli(f"{call} --out tried --optimizer SGD --optimizer.lr 0.1 --optimizer.momentum 0.9")
        assert status == 0
        assert "a trial of 4 training steps" in out or "a trial of 6 training steps" in out
        result = initopt.Result.load("tried")
        assert result.trial.old.lr == 0.1
        assert result.options["optimizer"].startswith("torch.optim.sgd.SGD(lr=0.1, momentum=0.9")
        assert cli("run --config tried/config.yaml --out again")[0] == 0
        assert initopt.Result.load("again").trial.old.lr == 0.1

    def test_result_folder(self, cli, user_module):
        status, out, err = cli("run --model USER.Net --data digits --steps 3 --measure_batches 2 --out out/first")
        assert (status, err) == (0, "")
        for text in (
            "before",
            "after",
            "nio: ",
            "layers.1.weight",
            "3 steps and the measurements in",
            "(engine 'groups')",
            "Next: ",
        ):
            assert text in out
        assert 'initopt.Result.load("out/first").apply(model)' in out
        assert {path.name for path in Path("out/first").iterdir()} == {
            "result.json",
            "weights.safetensors",
            "grams.safetensors",
            "plot.png",
            "config.yaml",
        }
        assert Path("out/first/plot.png").read_bytes().startswith(b"\x89PNG")
        model = sys.modules[user_module].Net()
        result = initopt.Result.load("out/first", model)
        assert torch.equal(model.layers[1].weight, result.weights["layers.1.weight"])

    @pytest.mark.heavy
    def test_same_numbers_again_from_its_own_config(self, cli):
        line = "run --model USER.Net --model.width 6 --data USER.batches --data.count 9 --loss USER.loss --steps 4"
        assert cli(f"{line} --measure_batches 2 --max_grad_norm .inf --betas [0.8,0.9] --out one")[0] == 0
        assert cli("run --config one/config.yaml --out two")[0] == 0
        one, two = initopt.Result.load("one"), initopt.Result.load("two")
        assert one.options["betas"] == [0.8, 0.9]
        assert one.options["max_grad_norm"] == float("inf")
        assert one.scales == two.scales
        assert one.history[-1].grad_cosine == two.history[-1].grad_cosine

    @pytest.mark.heavy
    def test_replaces_its_own_result_only(self, cli):
        line = "run --model USER.Net --data digits --steps 1 --measure_batches 0 --out"
        assert cli(f"{line} here")[0] == 0
        status, out, _ = cli(f"{line} here")
        assert status == 0
        assert "grams.safetensors" not in out
        Path("mine").mkdir()
        Path("mine/thesis.tex").touch()
        status, out, err = cli(f"{line} mine")
        assert (status, out) == (2, "")
        assert "mine exists and was not written by initopt" in err
        assert [path.name for path in Path("mine").iterdir()] == ["thesis.tex"]

    @pytest.mark.parametrize("where", ["result/run.ckpt", "result", "result/below/run.ckpt", "link/run.ckpt", "run.ckpt"])
    def test_a_checkpoint_in_the_result_is_refused_before_any_work(self, cli, where):
        Path("link").symlink_to("result")
        out = "result" if where != "run.ckpt" else "run.ckpt/result"
        status, printed, err = cli(f"run {GOOD} --steps 2 --out {out} --checkpoint {where}")
        assert (status, printed) == (2, "")
        assert f"--checkpoint {where} cannot be in --out {out}" in err
        assert not Path(where).exists()

    @pytest.mark.parametrize("command", ["run --model USER.Net --data digits --steps 2", "demo --seeds 1 --epochs 1"])
    def test_the_current_folder_is_refused_before_any_work(self, cli, tmp_path, monkeypatch, command):
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path / "empty")
        monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
        for out in (".", "../empty", str(tmp_path)):
            status, printed, err = cli(f"{command} --out {out}")
            assert (status, printed) == (2, "")
            assert "is the current folder, or one above it" in err
        assert list((tmp_path / "empty").iterdir()) == []

    @pytest.mark.heavy
    def test_a_file_that_appears_meanwhile_loses_nothing(self, cli):
        """The steps are made: the result goes beside the folder, and the status says that it is not where it was to be."""
        status, _, err = cli("run --model USER.Net --data USER.busy_data --steps 2 --measure_batches 1 --out result")
        assert status == 2
        assert "The result is in result-2" in err
        assert [item.name for item in Path("result").iterdir()] == ["events.log"]
        assert {"result.json", "plot.png", "config.yaml"} <= {item.name for item in Path("result-2").iterdir()}

    @pytest.mark.heavy
    @pytest.mark.filterwarnings("default:there")
    @pytest.mark.parametrize(("count", "measured"), [(1, False), (2, True), (7, True)])
    def test_few_batches(self, cli, count, measured):
        status, out, err = cli(
            f"run --model USER.Net --data USER.annotated_batches --data.count {count} --steps 4 --out result"
        )
        assert status == 0
        assert "too few to hold measure_batches=10 back" in err
        assert ("held-back batches)" in out, initopt.Result.load("result").after is not None) == (measured, measured)

    def test_a_picture_that_cannot_be_drawn_loses_nothing(self, cli, monkeypatch):
        def broken(result):
            raise RuntimeError("no fonts")

        monkeypatch.setattr(initopt.Result, "plot", broken)
        status, _, err = cli(f"run {GOOD} --steps 2 --measure_batches 1 --out result")
        assert status == 1
        assert "no fonts" in err
        assert initopt.Result.load("result").scales
        assert not Path("result/plot.png").exists()

    @pytest.mark.heavy
    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    @pytest.mark.processes
    def test_a_kill_while_the_picture_is_drawn_leaves_nothing_in_the_way(self, cli, user_module, monkeypatch):
        line = f"run {GOOD} --steps 2 --measure_batches 1 --out result"
        cli(line)
        process = os.fork()
        if not process:
            monkeypatch.setattr(initopt.Result, "plot", lambda result: os.kill(os.getpid(), signal.SIGKILL))
            with pytest.raises(SystemExit):
                main(line.replace("USER", user_module).split())
            os._exit(0)
        assert os.waitpid(process, 0)[1] == signal.SIGKILL
        assert any(name.startswith(".result.") for name in os.listdir())
        assert cli(line)[0] == 0
        assert not any(name.startswith(".result.") for name in os.listdir())

    @pytest.mark.heavy
    def test_own_objective_and_checkpoint(self, cli):
        line = "run --model USER.Net --data digits --objective USER.negative_cosine --measure_batches 0 --checkpoint c.st"
        assert cli(f"{line} --steps 2 --out a")[0] == 0
        assert Path("c.st").is_file()
        assert cli(f"{line} --steps 4 --out a")[0] == 0
        assert len(initopt.Result.load("a").history) == 4
        status, _, err = cli(f"{line} --steps 4 --out a --lr 0.5")
        assert status == 2
        assert "lr was 0.03 and is 0.5" in err


GOOD_RUN = "run --model plain_mlp --data digits --data.batch_size 32 --loss CrossEntropyLoss --betas 0.8,0.9 --out o"


class TestConfig:
    def test_command_line_comes_first(self, cli, user_module):
        Path("run.yaml").write_text(
            f"model: {{class_path: {user_module}.Net, init_args: {{width: 5}}}}\ndata: digits\nnum_batches: 2\nquietly: 1\n"
        )
        status, _, err = cli("measure --config run.yaml")
        assert status == 2
        assert "--config run.yaml: initopt measure has no option 'quietly'" in err
        Path("run.yaml").write_text(Path("run.yaml").read_text().replace("quietly: 1", "num_subbatches: 8"))
        status, out, _ = cli("measure --config run.yaml --num_batches 3")
        assert status == 0
        assert "over 3 batches, each in 8 sub-batches of 8 samples" in out

    def test_print_config_reads_back(self, cli):
        _, printed, _ = cli("run --model USER.Net --model.width 5 --data digits --steps 7 --print_config")
        options = yaml.safe_load(printed)
        assert options["model"]["init_args"]["width"] == 5
        assert options["steps"] == 7
        assert options["method"] == "nio"
        Path("run.yaml").write_text(printed)
        assert cli("run --config run.yaml --print_config")[1] == printed

    @pytest.mark.parametrize("line", ["demo", "measure", "run", "compare", "run --method gradinit", GOOD_RUN])
    def test_what_is_printed_is_read_again(self, cli, line):
        _, printed, err = cli(f"{line} --print_config")
        assert err == ""
        Path("printed.yaml").write_text(printed)
        assert cli(f"{line.split()[0]} --config printed.yaml --print_config") == (0, printed, "")

    def test_null_is_a_value(self, cli):
        Path("run.yaml").write_text("{centre: null, microbatch: null}")
        _, printed, _ = cli("run --config run.yaml --print_config")
        assert yaml.safe_load(printed)["centre"] is None
        Path("run.yaml").write_text("steps: null")
        status, _, err = cli("run --config run.yaml --out o")
        assert status == 2
        assert "--steps: expected int; got None" in err

    def test_the_last_file_and_the_last_flag_count(self, cli, user_module):
        Path("a.yaml").write_text(f"model: {{class_path: {user_module}.Net, init_args: {{act: Tanh, width: 4}}}}\nsteps: 2")
        Path("b.yaml").write_text(f"model: {{class_path: {user_module}.Net, init_args: {{width: 5}}}}")
        _, printed, _ = cli("run --config a.yaml --model.width 6 --config=b.yaml --seed 3 --seed 4 --print_config")
        found = yaml.safe_load(printed)
        assert found["model"]["init_args"] == {"act": "Tanh", "width": 6}
        assert (found["steps"], found["seed"]) == (2, 4)

    def test_a_class_as_an_argument(self, cli):
        line = "measure --model plain_mlp --model.activation torch.nn.LeakyReLU --model.activation.negative_slope 0.5"
        _, printed, _ = cli(f"{line} --print_config")
        Path("a.yaml").write_text(printed)
        expected = {"class_path": "torch.nn.LeakyReLU", "init_args": {"negative_slope": 0.5, "inplace": False}}
        _, again, _ = cli("measure --config a.yaml --print_config")
        assert yaml.safe_load(again)["model"]["init_args"]["activation"] == expected

    def test_another_model_drops_the_arguments_of_the_first(self, cli, user_module):
        Path("run.yaml").write_text(f"model: {{class_path: {user_module}.Net, init_args: {{act: Tanh, width: 4}}}}")
        _, printed, _ = cli("run --config run.yaml --model torch.nn.Identity --print_config")
        assert yaml.safe_load(printed)["model"] == "torch.nn.Identity"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[1, 2]", "must hold options"),
            ("a: [", "is not YAML"),
            ("model: [3]", "model must be an import path"),
            ("model: {path: x}", "model must be an import path"),
            ("stpes: 3", "no option 'stpes'; did you mean 'steps'?"),
            ("config: other.yaml", "no option 'config'"),
            ("loss: {class_path: math.sqrt, init_args: {x: 1}}", "no option 'loss.x'"),
            ("steps: many", "--steps: expected int; got many"),
            ("method: nope", "unknown --method 'nope'; known are 'nio', 'gradinit', 'metainit', 'lsuv'"),
        ],
    )
    def test_bad_files(self, cli, text, message):
        Path("bad.yaml").write_text(text)
        status, out, err = cli("run --config bad.yaml")
        assert (status, out) == (2, "")
        assert message in err
        assert "Traceback" not in err

    def test_missing_file(self, cli):
        status, _, err = cli("run --config nowhere.yaml")
        assert status == 2
        assert "nowhere.yaml: No such file" in err


GOOD = "--model USER.Net --data digits --steps 2"
MEASURED = "--model USER.Net --data digits --num_batches 2"


class TestSpelling:
    """Options as users write them, and what is said of those that there are not."""

    def test_dashes(self, cli):
        line = f"run {GOOD} --steps 2 --print_config"
        assert cli(f"{line} --measure_batches 1 --num_subbatches=8") == cli(
            f"{line.replace('print_config', 'print-config')} --measure-batches 1 --num-subbatches=8"
        )

    @pytest.mark.heavy
    @pytest.mark.filterwarnings("default")
    def test_a_file_of_a_method_that_had_the_options_of_all(self, cli):
        Path("old.yaml").write_text("method: lsuv\nnum_subbatches: 8\nengine: exact\ngrad_params: null\nmeasure_steps: 1\n")
        status, _, err = cli(f"run {GOOD} --config old.yaml --out out")
        assert status == 0, err
        result = initopt.Result.load("out")
        assert result.after.gram.shape == (1, 8, 8)
        assert result.options["measuring"]["engine"] == "exact"

    @pytest.mark.filterwarnings("default")
    def test_former_names(self, cli):
        _, printed, err = cli(f"run {GOOD} --measure-steps 3 --print_config")
        assert err == "initopt: warning: --measure_steps is now --measure_batches\n"
        assert yaml.safe_load(printed)["measure_batches"] == 3
        Path("old.yaml").write_text("steps: 4")
        _, printed, err = cli("measure --config old.yaml --print_config")
        assert err == "initopt: warning: --config old.yaml: steps is now num_batches\n"
        assert yaml.safe_load(printed)["num_batches"] == 4

    def test_a_network_keeps_its_dashes(self, cli):
        _, out, _ = cli("compare --models.my-net USER.Net --initializations default --print_config")
        assert list(yaml.safe_load(out)["models"]) == ["my-net"]

    @pytest.mark.parametrize(
        ("line", "hint"),
        [
            (f"run {GOOD} --out o --step 3", "did you mean --steps?"),
            (f"run {GOOD} --out o --measure-batch=3", "did you mean --measure_batches?"),
            (f"measure {MEASURED} --modle.width 3", "did you mean --model.width?"),
            (f"measure {MEASURED} --confg x.yaml", "did you mean --config?"),
            ("compare --experiment digits --recipe.epoch 3 --out o", "did you mean --recipe.epochs?"),
            ("mesure --data digits", "there is no command 'mesure'; did you mean 'measure'?"),
        ],
    )
    def test_did_you_mean(self, cli, line, hint):
        status, out, err = cli(line)
        assert (status, out) == (2, "")
        assert hint in err

    @pytest.mark.parametrize(
        ("options", "name", "expected"),
        [
            ("--initializations default,nio", "initializations", ["default", "nio"]),
            ("--initializations=default,nio", "initializations", ["default", "nio"]),
            ("--initializations nio", "initializations", ["nio"]),
            ("--initializations [default,nio]", "initializations", ["default", "nio"]),
            ("--seeds 3,5", "seeds", [3, 5]),
            ("--seeds 3", "seeds", 3),
            ("--devices 0,1", "devices", [0, 1]),
        ],
    )
    def test_lists_without_brackets(self, cli, options, name, expected):
        status, out, err = cli(f"compare --models.mlp plain_mlp {options} --print_config")
        assert (status, err) == (0, "")
        assert yaml.safe_load(out)[name] == expected

    def test_lists_of_numbers(self, cli):
        _, out, _ = cli("compare --models.mlp plain_mlp --recipe.lr 0.01,0.1 --print_config")
        assert yaml.safe_load(out)["recipe"]["lr"] == [0.01, 0.1]
        _, out, _ = cli(f"run {GOOD} --betas 0.8,0.9 --print_config")
        assert yaml.safe_load(out)["betas"] == [0.8, 0.9]


@pytest.mark.processes
class TestForeignFolder:
    """A folder of somebody else, in which the user happens to stand, brings no code."""

    @pytest.mark.heavy
    @pytest.mark.parametrize(
        ("program", "line"),
        [
            pytest.param("initopt", "report .", marks=pytest.mark.heavy),
            ("python -m initopt", "measure --model plain_mlp --data digits --num_batches 1"),
        ],
    )
    def test_no_module_of_it_is_imported(self, tmp_path, program, line):
        for name in ("filelock", "jinja2", "pyarrow", "scipy", "PIL", "kornia", "datasets", "triton", "tensorboard"):
            (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})")
        (tmp_path / "comparison.json").write_text(
            '{"format": "initopt comparison 1", "recipe": {}, "networks": [], "initializations": [], "seeds": [], '
            '"versions": {}}'
        )
        start = "from initopt.cli import main; main()" if program == "initopt" else None
        command = [sys.executable, "-P", "-c", start] if start else [sys.executable, "-m", "initopt"]
        environment = with_the_tests() | {"PYTHONPATH": str(Path(initopt.__file__).parents[1])}
        ended = subprocess.run([*command, *line.split()], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ("Traceback" in ended.stderr, (tmp_path / "ran").exists()) == (False, False)

    def test_code_of_the_user_is_found_after_what_is_installed(self, cli, user_module):
        Path("yaml.py").write_text("raise RuntimeError('shadowed')")
        assert cli(f"measure {MEASURED} --num_batches 1")[0] == 0
        assert sys.path[-1] == os.getcwd()
        status, _, err = cli("measure --model yaml.Net --data digits")
        assert status == 2
        assert "'yaml' in the current folder has the name of this installed package, so rename it" in err

    def test_own_function_for_an_option_of_a_network_that_is_not(self, cli):
        assert cli("measure --model plain_mlp --data digits --num_batches 1 --grad_params USER.weights_only")[0] == 0


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(f'*{below}' for _ in range(10))}]\n"
    for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{','.join(f'*{below}' for _ in range(10))}]}}\n"
    for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)


class TestHostileConfig:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (BOMB, "its aliases stand for more than 100,000 values"),
            (MERGES, "its aliases stand for more than 100,000 values"),
            ("initializations: '" + BOMB.splitlines()[0] + "'", "has no option 'initializations'"),
            ("a: &a [*a]", "an alias stands within what it is an alias of"),
            ("steps: " + "[" * 5000, "nested too deeply"),
            ("? [1]\n: 2", "is not YAML"),
            ("steps: " + "9" * 5000, "is not YAML"),
            ("steps: !!python/object/apply:os.system [touch ran]", "is not YAML"),
            ("x: '" + "y" * 2_000_000 + "'", "has more than 1,048,576 bytes"),
        ],
    )
    def test_is_a_message(self, cli, text, message):
        Path("c.yaml").write_text(text)
        status, out, err = cli(f"run {GOOD} --out o --config c.yaml")
        assert (status, out) == (2, "")
        assert message in err
        assert "Traceback" not in err
        assert not Path("ran").exists()

    def test_aliases_within_a_string(self, cli):
        inner = "[" + ", ".join(f"&{name} [{','.join(['*' + below] * 10)}]" if below != name else f"&{name} [x]"
                                for below, name in zip("aabcdefgh", "abcdefghi", strict=True)) + "]"  # fmt: skip
        Path("c.yaml").write_text(yaml.safe_dump({"betas": inner}))
        status, _, err = cli(f"run {GOOD} --out o --config c.yaml")
        assert status == 2
        assert "its aliases stand for more than 100,000 values" in err

    def test_a_pipe(self, cli):
        os.mkfifo("c.yaml")
        status, _, err = cli(f"run {GOOD} --out o --config c.yaml")
        assert status == 2
        assert "c.yaml is a pipe and not a file" in err

    def test_anchors_of_an_honest_file(self, cli):
        Path("c.yaml").write_text("steps: &n 3\nmeasure_batches: *n\n")
        _, out, _ = cli(f"run {GOOD} --config c.yaml --print_config")
        assert yaml.safe_load(out)["measure_batches"] == 3


class TestErrors:
    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("measure --data digits", "--model is missing"),
            ("measure --model --data digits", "argument --model: expected one argument"),
            ("measure --model USER.Net", "--data is missing"),
            ("measure --data digits --model nowhere.Net", "no module 'nowhere'"),
            ("measure --data digits --model USER.Nett", "has no 'Nett'; did you mean 'Net'?"),
            ("measure --data digits --model Nett", "an import path such as my_net.Net; got 'Nett'"),
            ("measure --data digits --model a/b.py", "not an import path"),
            ("measure --data digits --model USER.net", "an instance of Net; give a class or a function"),
            ("measure --data digits --model USER.NoNet", "USER.NoNet gave NoNet; it must give an nn.Module"),
            ("measure --data digits --model USER.untyped_net", "needs --model.width"),
            ("measure --data digits --model torch.nn.Linear", "are required: --model.in_features, --model.out_features"),
            ("measure --data digitz --model USER.Net", "a short name (digits, cifar10"),
            ("measure --data USER.NoNet --model USER.Net", "must be an iterable of batches"),
            ("measure --data USER.floats --model USER.Net", "no integer class labels"),
            ("measure --data USER.batches --data.count 0 --model USER.Net", "batches is empty"),
            (
                "measure --data USER.batches --data.count 3 --model USER.Net --num_batches 9",
                "batches ended after 3 of the 9",
            ),
            ("measure --data digits --data.batch_size 3 --model USER.Net", "a batch of 3 samples cannot be split"),
            ("measure --data digits --data.subset no --model USER.Net", "one of 'train', 'validation', 'test'; got no"),
            (
                f"measure {MEASURED} --loss torch.nn.functional.cross_entropy",
                "a loss function is called with (model, batch)",
            ),
            (f"measure {MEASURED} --model.width x", "--model.width: expected int; got x"),
            (f"measure {MEASURED} --model.nope 1", "unrecognized arguments: --model.nope"),
            (f"measure {MEASURED} --num_subbatches 1", "num_subbatches must be an integer of 2 or more"),
            (f"measure {MEASURED} --grad_params USER.nope", "or give a function of (name, parameter, module)"),
            (f"measure {MEASURED} --seed -1", "--seed must be in [0, 2**32)"),
            (f"measure {MEASURED} --threads 0", "--threads must be an integer of 1 or more"),
            (f"measure {MEASURED} --quiet --progress", "not allowed with"),
            (f"measure {MEASURED} --device tpu", "--device tpu is not available; available: cpu"),
            (f"run {GOOD}", "--out DIR is missing"),
            (f"run {GOOD} --out o --method nope", "unknown --method 'nope'"),
            (f"run {GOOD} --out o --lr 0", "lr must be a number above 0"),
            (f"run {GOOD} --out o --max_grad_norm inf", "got inf (write .inf)"),
            (f"run {GOOD} --out o --objective nope", "unknown objective 'nope'"),
            (f"run {GOOD} --out o --objective USER.nope", "has no 'nope'"),
            (f"run {GOOD} --out o --checkpoint .", "is a folder"),
            ("run --model USER.Net --data digits --out file/result", "no folder that can be written to"),
            ("demo --seeds x", "--seeds: expected int; got x"),
        ],
    )
    def test_bad_input_is_a_message(self, cli, user_module, line, message):
        Path("file").touch()
        status, out, err = cli(line)
        assert (status, out) == (2, "")
        assert message.replace("USER", user_module) in err
        assert err.startswith(f"initopt {line.split()[0]}: error: ")
        assert "Traceback" not in err

    @pytest.mark.parametrize("loss", ["nan_loss", "zero_loss"])
    def test_numerical_failure(self, cli, loss):
        status, _, err = cli(f"run {GOOD} --loss USER.{loss} --out o")
        assert status == 1
        assert "in step 0: " in err
        assert "Traceback" not in err
        assert not Path("o").exists()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
    def test_device_that_is_not_there(self, cli):
        status, _, err = cli(f"run {GOOD} --out o --device cuda")
        assert status == 2
        assert "--device cuda is not available; available: cpu" in err
        assert "Try --device auto" in err

    def test_bug_of_the_user_keeps_its_traceback(self, cli):
        status, _, err = cli("measure --model USER.Buggy --data digits")
        assert status == 1
        assert "Traceback" in err
        assert "in forward" in err
        assert "a bug of the user" in err

    def test_module_of_the_user_that_fails_to_import_keeps_its_traceback(self, cli, user_module):
        Path(f"{user_module}_2.py").write_text("import not_there")
        status, _, err = cli("measure --model USER_2.Net --data digits")
        assert status == 1
        assert "Traceback" in err
        assert "No module named 'not_there'" in err

    def test_debug(self, cli, monkeypatch):
        line = f"measure {MEASURED} --num_subbatches 1"
        assert "Traceback" in cli(f"{line} --debug")[2]
        monkeypatch.setenv("INITOPT_DEBUG", "1")
        status, _, err = cli(line)
        assert status == 2
        assert "Traceback" in err

    @pytest.mark.filterwarnings("default")
    def test_warning_is_a_line(self, cli):
        status, _, err = cli("measure --model USER.Net --data USER.annotated_batches --num_batches 5")
        assert status == 0
        assert err.startswith("initopt: warning: there are fewer than num_batches=5 different batches")
        assert len(err.splitlines()) == 1


QUICK = "--recipe.epochs 1 --recipe.batch_size 16 --recipe.measure_batches 1 --seeds 2 --accelerator cpu"


@pytest.mark.training
class TestCompare:
    def test_own_network_and_data(self, cli):
        line = f"compare --models.mine USER.Net --data USER.Pieces --initializations [default,lsuv] {QUICK} --out out"
        status, out, err = cli(line)
        assert (status, err) == (0, "")
        assert "mine: test accuracy" in out
        assert re.search(r"lsuv +0.01 +2 of 2", out)
        assert "cannot be told from default" in out.replace("\n", " ")
        last = "Next, open out/report/report.html: it has curves, tests and what cannot be concluded."
        assert out.splitlines()[-1] == last
        assert Path("out/report/report.html").exists()
        found = initopt.comparison.load_comparison("out")
        assert [(run.initialization, run.seed) for run in found.runs] == [
            ("default", 0),
            ("default", 1),
            ("lsuv", 0),
            ("lsuv", 1),
        ]

    @pytest.mark.heavy
    def test_a_file_with_everything_in_it(self, cli, user_module):
        described = {
            "models": {
                "narrow": {"class_path": f"{user_module}.Net", "init_args": {"width": 4}},
                "a wide one": {
                    "class_path": f"{user_module}.Net",
                    "init_args": {"width": 16},
                    "recipe": {"optimizer": "adam", "lr": 0.001},
                },
            },
            "data": {"class_path": f"{user_module}.Pieces", "init_args": {"samples": 48}},
            "loss": {"class_path": "CrossEntropyLoss", "init_args": {"label_smoothing": 0.1}},
            "initializations": [
                "default",
                {"name": "warm", "recipe": {"warmup_steps": 2}},
                {"method": "nio", "options": {"steps": 2}},
            ],
            "recipe": {"epochs": 1, "batch_size": 16, "measure_batches": 1, "lr": [0.01, 0.1]},
            "seeds": [3],
            "selection_seeds": 1,
            "accelerator": "cpu",
        }
        Path("mine.yaml").write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")
        status, _, err = cli("compare --experiment mine.yaml --recipe.lr [0.02,0.2] --report false --out out")
        assert (status, err) == (0, "")
        found = initopt.comparison.load_comparison("out")
        assert (found.networks, found.initializations, found.seeds) == (
            ["narrow", "a wide one"],
            ["default", "warm", "nio"],
            [3],
        )
        assert {run.lr for run in found.runs if run.network == "a wide one"} == {0.001}
        assert {run.lr for run in found.selection} == {0.02, 0.2}
        assert found.details["networks"]["narrow"]["model"]["init_args"] == {"width": 4, "act": "ReLU"}
        assert found.details["data"]["train"]["samples"] == 48
        assert not Path("out/report").exists()

    def test_print_config_is_read_again(self, cli):
        line = f"compare --models.mine USER.Net --data USER.Pieces --initializations [default,lsuv] {QUICK}"
        status, out, _ = cli(f"{line} --print_config")
        assert status == 0
        Path("printed.yaml").write_text(out, encoding="utf-8")
        cli(f"{line} --report false --out out")
        assert cli("compare --config printed.yaml --report false --out out")[0] == 0

    @pytest.mark.heavy
    @pytest.mark.filterwarnings("default")
    def test_the_old_names_of_experiments(self, cli):
        status, listed, err = cli("compare --list_recipes")
        assert (status, listed) == (0, cli("compare --list-experiments")[1])
        assert err.startswith("initopt: warning: --list_recipes is now --list_experiments; a recipe is how to train, ")
        status, printed, err = cli("compare --recipe digits --recipe.epochs 3 --print_config")
        assert (status, printed) == (0, cli("compare --experiment digits --recipe.epochs 3 --print_config")[1])
        assert err.startswith("initopt: warning: --recipe is now --experiment; a recipe is how to train, ")
        assert yaml.safe_load(printed)["recipe"]["epochs"] == 3

    def test_arguments_of_the_loss(self, cli):
        line = (
            f"compare --models.mine USER.Net --data USER.Pieces --initializations default {QUICK} --report false --out out"
        )
        status, _, err = cli(f"{line} --loss CrossEntropyLoss --loss.label_smoothing 0.1")
        assert (status, err) == (0, "")
        assert "label_smoothing" in Path("out/comparison.json").read_text()

    def test_another_recipe_is_refused(self, cli):
        line = f"compare --models.mine USER.Net --data USER.Pieces --initializations [default] {QUICK} --out out"
        assert cli(f"{line} --report false")[0] == 0
        status, out, err = cli(f"{line} --recipe.epochs 2 --report false")
        assert (status, out) == (2, "")
        assert "holds another comparison" in err
        assert "\n  recipe.epochs was 1 and is 2\n" in err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ("", "--out DIR is missing"),
            (
                "--out o",
                "--models is missing: give some, as in --models.mlp plain_mlp, or an --experiment (see --list_experiments)",
            ),
            ("--out o --models.m USER.Net", "--initializations is missing: give some"),
            ("--out o --models.m USER.Nett --initializations [nio]", "did you mean 'Net'?"),
            ("--out o --models.m plain --initializations [nio]", "--models takes a short name (cifar_resnet,"),
            ("--out o --models.m USER.Net --initializations [nioo]", "unknown initialization 'nioo'"),
            (
                "--out o --models.m USER.Net --initializations [nio] --recipe.epochs x",
                "--recipe.epochs: expected int; got x",
            ),
            ("--out o --models.m USER.Net --initializations [nio] --recipe.lr -1", "lr must be a number above 0; got -1"),
            (
                "--out o --models.m USER.untyped_net --initializations [nio]",
                "needs {class_path: USER.untyped_net, init_args: {width: VALUE}}",
            ),
            (
                "--out o --models.m USER.Net --initializations [nio] --data USER.untyped_data",
                "--data USER.untyped_data needs --data.path",
            ),
            ("--out o --config method.yaml", "--config method.yaml: initopt compare has no option 'method'"),
            ("--out o --experiment method.yaml", "--experiment method.yaml: initopt compare has no option 'method'"),
            ("--out o --experiment cifar10-evidence-vit --models.mine USER.untyped_net", "init_args: {width: VALUE}}"),
            (
                "--out o --experiment fields.yaml --recipe.optimizer_options.momentum 0.9",
                "--recipe.optimizer_options has no effect, since every network here has its own",
            ),
            (
                "--out o --experiment cifar10-evidence --recipe.lr 0.5",
                "--recipe.lr has no effect, since every network here has its own, models.NAME.recipe.lr; write",
            ),
            (
                "--out o --experiment digit",
                "--experiment digit: there is no such file; by name there are digits, digits-vit and others",
            ),
            ("--out o --config wrong.yaml", "--models.m: Option 'models.depth' is not accepted"),
            (
                "--out o --models.m USER.Net --initializations [nio] --data mnist",
                "--data takes a short name (digits, cifar10",
            ),
        ],
    )
    def test_refuses(self, cli, user_module, options, message):
        wrong = {"class_path": f"{user_module}.Net", "init_args": {"depth": 3}}
        Path("wrong.yaml").write_text(yaml.safe_dump({"models": {"m": wrong}, "initializations": ["default"]}))
        Path("method.yaml").write_text("{method: gradinit}")
        own = {"class_path": f"{user_module}.Net", "recipe": {"optimizer_options": {"momentum": 0.5}}}
        Path("fields.yaml").write_text(yaml.safe_dump({"models": {"m": own}, "initializations": ["default"]}))
        status, out, err = cli(f"compare {options}")
        assert (status, out) == (2, "")
        assert err.startswith("initopt compare: error: ")
        assert message.replace("USER", user_module) in err
        assert not Path("o").exists()

    def test_a_field_of_the_recipe_that_there_is_not(self, cli):
        Path("wrong.yaml").write_text("recipe: {epoch: 3}")
        _, _, err = cli("compare --config wrong.yaml --out o")
        assert "initopt compare has no option 'recipe.epoch'; did you mean 'recipe.epochs'?" in err

    def test_a_failed_run_is_told_by_the_status(self, cli):
        line = (
            f"compare --models.bad USER.Buggy --models.good USER.Net --data USER.Pieces --initializations [default] {QUICK}"
        )
        status, out, err = cli(f"{line} --report false --out out")
        assert status == 1
        assert re.search(r"default +0.01 +0 of 2 .* 2 of 2", out)
        assert re.fullmatch(
            r"2 runs failed: \w+Error: .* \(in full in out/runs/bad/default/lr=0.01/seed=0/run.json\)\n", err
        )
        assert {run.status for run in initopt.comparison.load_comparison("out").runs} == {"failed", "done"}

    @pytest.mark.heavy
    def test_report(self, cli):
        line = f"compare --models.mine USER.Net --data USER.Pieces --initializations [default,lsuv] {QUICK}"
        cli(f"{line} --report false --out out")
        status, out, err = cli("report out")
        assert (status, err) == (0, "")
        assert out.startswith("Report: out/report/report.html\nNext, open it: ")
        assert Path("out/report/report.html").exists()

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("report nowhere", "nowhere holds no comparison, for want of comparison.json; give a folder that"),
            ("report", "DIR is missing: the folder that initopt compare --out wrote"),
        ],
    )
    def test_report_on_nothing(self, cli, line, message):
        status, out, err = cli(line)
        assert (status, out) == (2, "")
        assert message in err


FEW = {
    "choose": "--steps 4 --seeds 2 --more_seeds 0 --starts orthogonal,lsuv",
    "find-lr": "--seeds 2 --steps 20 --sweep_steps 40 --warmup_steps 0 --precision 1.5",
    "run": "--steps 2 --measure_batches 2",
    "compare": "--recipe.epochs 1 --recipe.batch_size 128 --recipe.measure_batches 1",
}
"""What makes a command of the documentation a quick one."""


@pytest.mark.training
class TestDocumentation:
    @pytest.mark.heavy
    @pytest.mark.parametrize("few", [FEW, pytest.param({}, marks=pytest.mark.slow)], ids=["few steps", "as written"])
    def test_every_command_runs(self, cli, tmp_path, few):
        for name in ("my_net.py", "run.yaml"):
            shutil.copy(ROOT / "examples" / name, tmp_path)
        text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
        shell = "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
        commands = [line.removeprefix("initopt ") for line in shell.splitlines() if line.startswith("initopt ")]
        assert len(commands) >= 6
        for command in commands:
            line, _, into = command.partition(" > ")
            if not line.startswith("demo"):
                status, out, err = cli(f"{line} {few.get(line.split()[0], '')}")
                found = {"choose": 10, "check": 1}.get(line.split()[0], 0)  # a better start, and an error
                assert (status in (0, found), err) == (True, ""), line
                if into:
                    Path(into).write_text(out, encoding="utf-8")


@pytest.mark.processes
class TestProcess:
    def test_measure_to_a_pipe(self, user_module):
        line = f"measure --model {user_module}.Net --data digits --num_batches 2"
        ended = subprocess.run([sys.executable, "-m", "initopt", *line.split()], capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert "GradCosine" in ended.stdout
        assert "\x1b" not in ended.stdout

    @pytest.mark.heavy
    @pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_signals(self, user_module, tmp_path, number, status):
        line = "run --model USER.Net --data USER.slow_batches --steps 1000000 --measure_batches 0 --out o"
        process = Python(COMMAND_LINE, *line.replace("USER", user_module).split(), said=tmp_path)
        while process.stdout.read_text() != "ready\n":
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(process.pid, number)
        assert (process.wait(), process.stderr.read_text()) == (status, "")
        assert not Path("o").exists()
