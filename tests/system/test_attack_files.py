"""An attack on files and processes: kills, fuzzed files, the folder of a stranger. `make test-attack` has the long version.

What is promised: no kill loses what is done, no file ends in anything but a message, and nothing outside is touched.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import initopt
from initopt._support import files as storage
from initopt._support.tensorfile import load_tensors, save_tensors
from initopt.cli import main
from initopt.comparison import load_comparison
from initopt.comparison.report.report import write_report
from initopt.runs.checkpoint import Checkpoint
from tests.comparing import compare, raising
from tests.helpers import make_batches, make_model

pytestmark = [
    pytest.mark.processes,
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

CALLS = ("replace", "rename", "rmdir", "unlink", "mkdir", "open", "chmod", "fsync", "scandir", "close")
"""Of the operating system, before any of which a process may be killed."""


def forked(function: Callable[[], Any]) -> int:
    """Call a function in a process of its own, which this returns the number of."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        warnings.simplefilter("ignore")
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def wait(process: int) -> int:
    """The exit status of a process; that of a signal is negative."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill_at_call(number: int) -> None:
    """Have this process killed at its n-th call that changes or opens a file."""
    calls = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return wrapper

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    storage.exchange = counted(storage.exchange)  # type: ignore[attr-defined]


def run_and_save(folder: Path, pause: float = 0.0) -> None:
    """A run that writes its checkpoint after each step, and saves its result over an earlier one."""
    torch.manual_seed(7)
    result = initopt.nio(
        make_model(dropout=0.3),
        make_batches(),
        steps=8,
        measure_batches=2,
        train_mode=True,
        checkpoint=folder / "run.ckpt",
        checkpoint_every=1,
        callbacks=[lambda record: time.sleep(pause)],
        progress=False,
    )
    for _ in range(2):
        result.save(folder / "result")


def killed_until_done(folder: Path, draws: random.Random, most: int) -> int:
    """Kill the run again and again, at a random moment or call, and then leave it alone; how often it was killed."""
    kills = 0
    while kills < most:
        at_call = draws.randrange(1, 400) if draws.random() < 0.6 else None

        def attempt(at_call: int | None = at_call) -> None:
            if at_call is not None:
                kill_at_call(at_call)
            run_and_save(folder)

        process = forked(attempt)
        if at_call is None:
            time.sleep(draws.uniform(0, 0.4))
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        status = wait(process)
        assert status in (0, -signal.SIGKILL)
        kills += status != 0
        check_what_is_there(folder)
        if status == 0:
            break
    assert wait(forked(lambda: run_and_save(folder))) == 0
    return kills


def check_what_is_there(folder: Path) -> None:
    """A checkpoint is whole, or not there; so is a result, and one that was there is still there."""
    if (folder / "run.ckpt").exists():
        Checkpoint.read(folder / "run.ckpt")
    if (folder / "saved").exists() or (folder / "result").exists():
        (folder / "saved").touch()
        initopt.Result.load(folder / "result")


def same(one: Path, other: Path) -> bool:
    a, b = (initopt.Result.load(folder / "result") for folder in (one, other))
    assert a.after is not None
    assert b.after is not None
    return a.scales == b.scales and torch.equal(a.after.gram, b.after.gram) and len(a.history) == len(b.history)


def attack_by_kills(tmp_path: Path, wanted: int, seed: int) -> int:
    """Sequences of kills, until there were as many as wanted."""
    draws, kills, sequence = random.Random(seed), 0, 0
    (tmp_path / "unbroken").mkdir()
    assert wait(forked(lambda: run_and_save(tmp_path / "unbroken"))) == 0
    while kills < wanted:
        sequence += 1
        folder = tmp_path / f"killed-{sequence}"
        folder.mkdir()
        kills += killed_until_done(folder, draws, most=8)
        assert same(folder, tmp_path / "unbroken")
        left = {item.name for item in folder.iterdir()} - {"saved"}
        assert left == {"run.ckpt", "result"}
    return kills


@pytest.mark.heavy
def test_kills_with_resume(tmp_path: Path) -> None:
    assert attack_by_kills(tmp_path, wanted=3, seed=1) >= 3


@pytest.mark.slow
def test_a_hundred_kills_with_resume(tmp_path: Path) -> None:
    kills = attack_by_kills(tmp_path, wanted=100, seed=2)
    print(f"\n{kills} kills")


def attack_by_neighbours(tmp_path: Path, rounds: int) -> None:
    """Three processes at one checkpoint and one result, as a queue may start them: each ends, in what one alone ends in."""
    (tmp_path / "alone").mkdir()
    assert wait(forked(lambda: run_and_save(tmp_path / "alone"))) == 0
    for number in range(rounds):
        folder = tmp_path / str(number)
        folder.mkdir()
        processes = []
        for pause in (0.0, 0.01, 0.02):
            processes.append(forked(functools.partial(run_and_save, folder, pause)))
            time.sleep(0.05)
        assert [wait(process) for process in processes] == [0, 0, 0]
        assert same(folder, tmp_path / "alone")
        assert {item.name for item in folder.iterdir()} == {"run.ckpt", "result"}


@pytest.mark.heavy
def test_three_processes_at_one_checkpoint(tmp_path: Path) -> None:
    attack_by_neighbours(tmp_path, rounds=1)


@pytest.mark.slow
def test_three_processes_at_one_checkpoint_many_times(tmp_path: Path) -> None:
    attack_by_neighbours(tmp_path, rounds=40)


HOSTILE: list[Any] = [
    None,
    True,
    -1,
    0,
    10**30,
    1e308,
    "inf",
    "nan",
    "",
    "x",
    "../../victim",
    "/etc",
    "a\x00b",
    "\udce9",
    "\u202e<script>",
    [],
    {},
    [[]],
    {"": ""},
    [None] * 50,
]


def mutated_record(record: Any, draws: random.Random) -> Any:
    """A record with one to three places changed, removed or doubled."""
    record = copy.deepcopy(record)
    for _ in range(draws.choice([1, 1, 1, 2, 3])):
        place: Any = record
        while isinstance(place, (dict, list)) and place:
            key = draws.choice(list(place)) if isinstance(place, dict) else draws.randrange(len(place))
            if not isinstance(place[key], (dict, list)) or not place[key] or draws.random() < 0.3:
                break
            place = place[key]
        if not isinstance(place, (dict, list)) or not place:
            continue
        how = draws.random()
        if how < 0.2:
            del place[key]
        elif how < 0.3 and isinstance(place, dict):
            place[draws.choice(["more", "__class__", "format "])] = draws.choice(HOSTILE)
        elif how < 0.4 and isinstance(place, list):
            place.extend(copy.deepcopy(place))
        elif how < 0.5:
            value: Any = place[key]
            for _ in range(draws.choice([5, 90, 300])):
                value = [value]
            place[key] = value
        else:
            place[key] = copy.deepcopy(draws.choice(HOSTILE))
    return record


def mutated_bytes(content: bytes, draws: random.Random) -> bytes:
    """Bytes flipped, cut, put in, or doubled; most often near the beginning or the end, where headers are."""
    data = bytearray(content)
    for _ in range(draws.choice([1, 1, 2, 5, 30])):
        span = draws.choice([len(data), min(len(data), 600)])
        at = draws.randrange(span) if draws.random() < 0.7 else len(data) - 1 - draws.randrange(span)
        how = draws.random()
        if how < 0.6:
            data[at] = draws.randrange(256)
        elif how < 0.75:
            data[at : at + draws.randrange(1, 9)] = draws.randbytes(draws.randrange(9))
        elif how < 0.9:
            data[at:at] = draws.randbytes(draws.randrange(1, 40))
        else:
            del data[at:]
        if not data:
            return bytes(data)
    return bytes(data)


def mutated_file(path: Path, draws: random.Random) -> None:
    """Change a file in one of many ways."""
    kind, content = draws.random(), path.read_bytes()
    if kind < 0.06:
        path.unlink()
        draws.choice([lambda: os.mkfifo(path), path.mkdir, lambda: path.symlink_to("/dev/zero"), lambda: None])()
    elif kind < 0.6 and path.suffix == ".json":
        path.write_text(json.dumps(mutated_record(json.loads(content), draws)))
    elif kind < 0.6 and path.suffix == ".yaml":
        path.write_text(json.dumps(mutated_record(yaml.safe_load(content), draws)))  # JSON is YAML
    elif kind < 0.7 and path.suffix == ".ckpt":
        tensors, metadata = load_tensors(path)
        if draws.random() < 0.7:
            metadata["initopt"] = json.dumps(mutated_record(json.loads(metadata["initopt"]), draws))
        else:
            name = draws.choice(list(tensors))
            tensors[name] = draws.choice([torch.zeros(3), torch.ones(2, 2, dtype=torch.int8), tensors[name][:0]])
        save_tensors(tensors, path, metadata)
    else:
        path.write_bytes(mutated_bytes(content, draws))


class TooLongError(Exception):
    """Raised by an alarm."""


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def ring(number: int, frame: Any) -> None:
        raise TooLongError

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def snapshot(folder: Path) -> dict[str, Any]:
    """Everything in a folder: kinds, contents and times."""
    found: dict[str, Any] = {}
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(parent, name)
            stat = path.lstat()
            found[str(path)] = (stat.st_mode, stat.st_mtime_ns, path.read_bytes() if path.is_file() else None)
    return found


def read_result(folder: Path) -> None:
    initopt.Result.load(folder / "result", make_model())


def save_over_result(folder: Path) -> None:
    found = initopt.Result.load(folder / "result.kept")
    found.save(folder / "result")


def go_on(folder: Path) -> None:
    initopt.nio(make_model(), make_batches(), steps=4, measure_batches=2, checkpoint=folder / "run.ckpt", progress=False)


def read_comparison(folder: Path) -> None:
    load_comparison(folder / "out")


def report(folder: Path) -> None:
    write_report(folder / "out")


MODELS = {"small": functools.partial(raising, 1, "exception")}


def compare_again(folder: Path) -> None:
    compare(folder / "out", models=MODELS, recipe={"epochs": 1, "batch_size": 16, "measure_batches": 1}, retry_failed=True)


def configured(folder: Path) -> None:
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        with pytest.raises(SystemExit) as ended:
            main(["run", "--config", str(folder / "config.yaml"), "--print_config"])
        assert ended.value.code in (0, 2)


TARGETS: dict[Callable[[Path], None], tuple[float, list[str]]] = {
    read_result: (0.25, ["result/result.json", "result/weights.safetensors", "result/grams.safetensors"]),
    save_over_result: (0.05, ["result/result.json", "result/weights.safetensors"]),
    go_on: (0.2, ["run.ckpt"]),
    read_comparison: (0.2, ["out/comparison.json", "out/runs/**/run.json"]),
    report: (0.1, ["out/comparison.json", "out/runs/**/run.json"]),
    compare_again: (0.05, ["out/comparison.json", "out/runs/**/run.json"]),
    configured: (0.15, ["config.yaml"]),
}
"""What reads files, how often it is tried, and the files."""


def prepare(folder: Path) -> None:
    """Files of every kind, as initopt writes them."""
    folder.mkdir()
    warnings.simplefilter("ignore")
    found = initopt.nio(
        make_model(), make_batches(), steps=4, measure_batches=2, checkpoint=folder / "run.ckpt", progress=False
    )
    found.save(folder / "result")
    found.save(folder / "result.kept")
    compare_again(folder)
    (folder / "config.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {"class_path": "plain_mlp", "init_args": {"depth": 2, "width": 8}},
                "data": "digits",
                "steps": 3,
                "betas": [0.9, 0.99],
                "measure_batches": 1,
                "scheme": "xavier_normal",
            }
        )
    )


def fuzz(folder: Path, tries: int, seed: int) -> list[str]:
    """Change a file, have it read, and put it back; what went wrong, a line each."""
    draws, wrong, counts = random.Random(seed), [], dict.fromkeys((f.__name__ for f in TARGETS), 0)
    kept, work, victim = folder / "kept", folder / "work", folder / "victim"
    prepare(kept)
    victim.mkdir()
    (victim / "thesis.tex").write_text("mine")
    outside = snapshot(victim)
    for number in range(tries):
        shutil.copytree(kept, work, symlinks=True)
        reader = draws.choices(list(TARGETS), [share for share, _ in TARGETS.values()])[0]
        files = sorted(path for pattern in TARGETS[reader][1] for path in work.glob(pattern))
        path = draws.choice(files)
        mutated_file(path, draws)
        counts[reader.__name__] += 1
        what = f"try {number}, {reader.__name__}, {path.relative_to(work)}"
        try:
            with at_most(30), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reader(work)
        except (ValueError, OSError, ArithmeticError):
            pass
        except TooLongError:
            wrong.append(f"{what}: hangs")
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            wrong.append(f"{what}: {type(error).__name__}: {error} ({last.filename}:{last.lineno})"[:500])
        if snapshot(victim) != outside:
            wrong.append(f"{what}: something outside has changed")
        shutil.rmtree(work)
    print(f"\n{tries} fuzzed files: {counts}")
    return wrong


def attack_by_fuzzed_files(folder: Path, tries: int, seed: int) -> None:
    """In a process of its own, which may take 6 GB of memory."""

    def attack() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[0], resource.RLIM_INFINITY))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 6 * 2**30, resource.RLIM_INFINITY))
        (folder / "wrong").write_text("\n".join(fuzz(folder, tries, seed)))

    assert wait(forked(attack)) == 0
    assert (folder / "wrong").read_text() == ""


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in /proc")
def test_fuzzed_files(tmp_path: Path) -> None:
    attack_by_fuzzed_files(tmp_path, tries=20, seed=3)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in /proc")
@pytest.mark.parametrize("seed", range(4))
def test_a_thousand_fuzzed_files(tmp_path: Path, seed: int) -> None:
    attack_by_fuzzed_files(tmp_path, tries=250, seed=100 + seed)


def traps(folder: Path, victim: Path) -> None:
    """Turn a comparison into one that somebody has prepared for whoever goes on with it or reports on it."""
    runs = folder / "runs" / "small"
    places = sorted(file.parent for file in runs.rglob("run.json"))
    for place, (name, value) in zip(
        places,
        [("network", str(victim)), ("seed", "x/../../../../../../victim"), ("initialization", "../../../../victim")],
        strict=False,
    ):
        record = json.loads((place / "run.json").read_text())
        (place / "run.json").write_text(json.dumps(record | {name: value, "status": "failed", "error": "x"}))
    (folder / "runs" / "linked").symlink_to(victim)
    (folder / "runs" / ".linked").symlink_to(victim)
    (runs / "default" / "lr=9").symlink_to(victim)
    (runs / "default" / "lr=0.01" / "seed=77").symlink_to(victim)
    (runs / "default" / "lr=0.01" / ".seed=77.initopt-abcdefgh").symlink_to(victim)
    trap = runs / "default" / "lr=0.01" / ".seed=78.initopt-abcdefgh"
    trap.mkdir()
    (trap / "lock").symlink_to(victim / "thesis.tex")
    (trap / "new").symlink_to(victim)
    trap = folder / ".comparison.json.initopt-abcdefgh"
    trap.mkdir()
    (trap / "lock").touch()
    (trap / "new").symlink_to(victim)
    (trap / "old").symlink_to(victim)
    (folder / "report").symlink_to(victim / "report")
    for name in ("jinja2", "scipy", "filelock", "tensorboard"):
        (folder / f"{name}.py").write_text(f"open({str(victim / 'ran')!r}, 'w')")


@pytest.mark.heavy
def test_the_folder_of_a_stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, victim = tmp_path / "a" / "b" / "out", tmp_path / "victim"
    compare(folder, recipe={"epochs": 1, "batch_size": 16, "measure_batches": 1, "lr": 0.01})
    (victim / ".ssh").mkdir(parents=True)
    (victim / ".ssh" / "id_rsa").write_text("mine")
    (victim / "report").mkdir()
    (victim / "thesis.tex").write_text("mine")
    (victim / "seed=1").mkdir()
    traps(folder, victim)
    before = snapshot(victim)
    monkeypatch.chdir(folder)
    for action in (
        lambda: write_report(folder),
        lambda: compare(folder, recipe={"epochs": 1, "batch_size": 16, "measure_batches": 1, "lr": 0.01}),
        lambda: compare(
            folder, recipe={"epochs": 1, "batch_size": 16, "measure_batches": 1, "lr": 0.01}, retry_failed=True, report=True
        ),
        lambda: main(["report", "."]),
    ):
        with warnings.catch_warnings(), contextlib.suppress(ValueError, OSError, SystemExit):
            warnings.simplefilter("ignore")
            action()
        assert snapshot(victim) == before
