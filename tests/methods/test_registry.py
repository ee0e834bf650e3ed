"""Methods of other packages: the example of docs/methods.md, installed, and packages that are broken."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from importlib.metadata import EntryPoints
from pathlib import Path
from typing import Any

import pytest
import torch

import initopt
from initopt.methods import METHODS, find_method, method_names
from initopt.testing import check_method
from tests.forks import COMMAND_LINE, python
from tests.helpers import make_batches, make_model, values, with_the_tests

DOCS = Path(__file__).parents[2] / "docs" / "methods.md"


def install(folder: Path, package: str, source: str, entry: str) -> None:
    """What a package leaves in a folder of installed ones."""
    (folder / f"{package}.py").write_text(source, encoding="utf-8")
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(entry, encoding="utf-8")


def example() -> tuple[str, str]:
    """The module and the entry point of the documentation."""
    text = DOCS.read_text(encoding="utf-8").partition("<!-- tests/methods/test_registry.py runs this -->")[2]
    source = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    entry = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert source is not None
    assert entry is not None
    header, _, line = entry[1].partition("\n")
    assert header == '[project.entry-points."initopt.methods"]'
    return source[1], f"[initopt.methods]\n{line.replace(chr(34), '')}"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]
    importlib.invalidate_caches()


def test_the_documented_example(packages: Path) -> None:
    install(packages, "quieter", *example())
    assert method_names() == [*METHODS, "quieter"]
    model = make_model()
    start = values(model)
    options: dict[str, Any] = {"steps": 8, "max_grad_norm": 0.3, "factor": 0.8}
    result = initopt.optimize(model, make_batches(), method="quieter", measure_batches=2, **options)
    assert result.method == "quieter"
    assert result.options["factor"] == 0.8
    shrunk = sum(record.constrained for record in result.history)
    assert 0 < shrunk < 8
    assert result.scales["0.weight"] == pytest.approx(0.8**shrunk)
    assert result.after.grad_norm < result.before.grad_norm
    assert torch.allclose(model[0].weight, start["0.weight"] * 0.8**shrunk)
    with pytest.raises(TypeError, match="method 'quieter' has no option 'loud'; it has steps, .*factor"):
        initopt.optimize(model, make_batches(), method="quieter", loud=True)
    with pytest.raises(ValueError, match="steps must be an integer of 1 or more"):
        initopt.optimize(model, make_batches(), method="quieter", steps=0)


@pytest.mark.heavy
def test_the_documented_example_passes_the_check_of_methods(packages: Path) -> None:
    install(packages, "quieter", *example())
    method = find_method("quieter")(steps=3, max_grad_norm=1e-6, factor=0.9)  # type: ignore[call-arg]
    assert check_method(method, ["mlp", "batch_norm_1d", "zero_bias", "dropout_training"]) == 4
    with pytest.raises(AssertionError, match="layer_norm: .*scale"):
        check_method(method, ["layer_norm"], beyond={"layer_norm": "scale"})


def test_a_killed_run_of_it_goes_on_and_it_starts_from_a_scheme(packages: Path) -> None:
    install(packages, "quieter", *example())
    options: dict[str, Any] = {
        "method": "quieter", "steps": 6, "max_grad_norm": 0.3, "scheme": "xavier_normal", "seed": 0, "measure_batches": 1,
        "checkpoint_every": 1,
    }  # fmt: skip
    expected = initopt.optimize(make_model(), make_batches(), **options)

    def stop(record: Any) -> None:
        if record.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        initopt.optimize(make_model(), make_batches(), checkpoint=packages / "state", callbacks=stop, **options)
    found = initopt.optimize(make_model(), make_batches(), checkpoint=packages / "state", **options)
    assert found.scales == expected.scales
    assert found.after.grad_norm == expected.after.grad_norm


@pytest.mark.heavy
@pytest.mark.processes
def test_it_runs_from_the_command_line(tmp_path: Path) -> None:
    install(tmp_path, "quieter", *example())
    environment = with_the_tests()
    environment["PYTHONPATH"] = f"{tmp_path}:{environment['PYTHONPATH']}"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return python(COMMAND_LINE, "run", "--method", "quieter", *arguments, environment=environment)

    done = run(
        *("--model", "plain_mlp", "--model.depth", "3", "--data", "digits", "--out", str(tmp_path / "out")),
        *("--steps", "3", "--factor", "0.5", "--max_grad_norm", "0.01", "--measure_batches", "2"),
    )
    assert done.returncode == 0, done.stderr
    result = initopt.Result.load(tmp_path / "out")
    assert set(result.scales.values()) == {0.125}
    assert result.options["factor"] == 0.5
    helped = run("--help")
    assert "quieter" in helped.stdout
    assert "what the scales are multiplied by in a step" in " ".join(helped.stdout.split())


OWN_RECORD = """
from dataclasses import dataclass
from typing import ClassVar

from initopt.methods import Method, MethodRun, Record


@dataclass(frozen=True)
class Note(Record):
    loudness: float
    words: str

    def summary(self):
        return self.words


@dataclass(frozen=True, kw_only=True)
class Noter(Method):
    name: ClassVar[str] = "noter"
    record: ClassVar[type[Record]] = Note

    def start(self, problem, engine, originals):
        return _Run()


class _Run(MethodRun):
    def step(self, number, batches):
        next(batches)
        return [Note(number, 0.5 * number, f"step {number}")]

    def scales(self):
        return {}

    def state(self):
        return {}

    def load_state(self, state):
        pass
"""


def test_a_method_with_records_of_its_own(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(packages, "noter", OWN_RECORD, "[initopt.methods]\nnoter = noter:Noter\n")
    options: dict[str, Any] = {"method": "noter", "steps": 3, "measure_batches": 1, "checkpoint": packages / "state"}
    initopt.optimize(make_model(), make_batches(), **options | {"steps": 2})
    result = initopt.optimize(make_model(), make_batches(), **options)
    assert [(record.step, record.loudness, record.summary()) for record in result.history] == [
        (0, 0.0, "step 0"), (1, 0.5, "step 1"), (2, 1.0, "step 2"),
    ]  # fmt: skip
    assert list(result.to_dataframe().columns) == ["step", "loudness", "words"]
    assert result.plot().axes
    result.save(packages / "result")
    assert initopt.Result.load(packages / "result").history == result.history
    monkeypatch.setattr("initopt.methods.registry.entry_points", lambda **_: EntryPoints())
    with pytest.raises(ValueError, match=r"history\[0\] has no .*\(no installed package has its method 'noter'\)"):
        initopt.Result.load(packages / "result")


BROKEN = {
    "missing": ("", "missing:Nothing", ImportError, "method 'missing' .*of the package 'missing' cannot be imported: Attr"),
    "raising": ("1 / 0", "raising:Method", ImportError, "cannot be imported: ZeroDivisionError: division by zero"),
    "another": ("class Another: pass", "another:Another", TypeError, "is no subclass of initopt.methods.Method"),
    "misnamed": (
        "from initopt.methods import NIO\nclass Misnamed(NIO): name = 'other'", "misnamed:Misnamed", TypeError,
        "has the name 'other'; both have to be the same",
    ),
}  # fmt: skip


@pytest.mark.parametrize("package", BROKEN)
def test_broken_packages(package: str, packages: Path) -> None:
    source, value, error, message = BROKEN[package]
    install(packages, package, source, f"[initopt.methods]\n{package} = {value}\n")
    with pytest.raises(error, match=message):
        initopt.optimize(make_model(), make_batches(), method=package)
    assert initopt.nio(make_model(), make_batches(), steps=1, measure_batches=0).method == "nio"


def test_names_that_clash(packages: Path) -> None:
    source = "from initopt.methods import NIO\nclass Mine(NIO): name = {!r}"
    for package in ("one", "two"):
        install(packages, package, source.format("mine"), f"[initopt.methods]\nmine = {package}:Mine\n")
    with pytest.raises(
        ValueError, match=r"method 'mine' is brought by more than one package: .*'(one|two)'; .*'(one|two)'"
    ):
        find_method("mine")
    install(packages, "three", source.format("nio"), "[initopt.methods]\nnio = three:Mine\n")
    with pytest.warns(
        UserWarning, match="of the package 'three' is not used, since 'nio' is the name of a method of initopt"
    ):
        assert find_method("nio") is METHODS["nio"]


def test_an_unknown_name_lists_all(packages: Path) -> None:
    install(packages, "quieter", *example())
    with pytest.raises(ValueError, match="unknown method 'louder'; known are 'nio', .* 'quieter'"):
        find_method("louder")
