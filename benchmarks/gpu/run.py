"""All that needs a GPU, in order of worth, within some minutes.

    python benchmarks/gpu/run.py --bundle DIR --minutes 9 --out OUT [--later 2.5]
    python benchmarks/gpu/run.py --bundle DIR --minutes 5 --out OUT --dry    # does it work? On a CPU, with tiny sizes
    python benchmarks/gpu/run.py --out OUT --show                            # the tables of what is there, anywhere

Four parts: (a) correctness, (b) engines, (c) NIO on a ResNet-50, (d) training on CIFAR-10. DIR is the folder that
``prepare.py`` made. Every result is stored in OUT at once, nothing is begun that does not fit into the minutes, and a
second call with the same OUT goes on; what failed is tried again. Needs no network, and no installation: what is missing of
the packages is taken from DIR. The tables come last, and are in OUT/tables.md, too.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[2] / "src"))
sys.path.insert(1, str(Path(__file__).parents[2]))
sys.path.insert(1, str(Path(__file__).parents[1]))

from bundle import Bundle, make_wheels_importable

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[2]

PARTS = {
    "correctness": "(a) Correctness",
    "engines": "(b) A step of every engine",
    "resnet50": "(c) NIO on a ResNet-50",
    "cifar": "(d) CIFAR-10",
}
"""The titles of the parts by name, in the order in which they are done."""

MINUTES = {"correctness": 1.5, "engines": 1.8, "resnet50": 1.8}
"""What a part may take at the most; the last one has the rest."""


@dataclass(frozen=True)
class Part:
    """A part of the whole.

    Attributes:
        plan: its tasks, given the time at which they have to be done.
        workers: processes that do tasks side by side.
    """

    plan: Callable[[float], Any]
    workers: int = 1


def main(arguments: Sequence[str] | None = None) -> None:
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT")
    parser.add_argument("--minutes", type=float, default=9.0, help="for this call")
    parser.add_argument("--later", type=float, default=0.0, metavar="MINUTES", help="that a later call will have, for (d)")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, with commas between")
    parser.add_argument("--workers", type=int, help="runs at a time in (a) and (d); two less than there are processors")
    parser.add_argument("--dry", action="store_true", help="on a CPU, with tiny sizes")
    parser.add_argument("--show", action="store_true", help="do nothing, and print the tables of what OUT has")
    options = parser.parse_args(arguments)
    names = options.parts.split(",")
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise SystemExit(f"--parts: there is no part {', '.join(map(repr, unknown))}, but {', '.join(PARTS)}")
    if options.workers is not None and options.workers < 1:
        raise SystemExit(f"--workers must be 1 or more; got {options.workers}")
    if options.show:
        _show(_stored(options.out, names), options.out)
        return
    if options.bundle is None:
        raise SystemExit("--bundle DIR is missing: the folder that benchmarks/gpu/prepare.py made")
    bundle = Bundle(options.bundle.resolve())
    scratch = Path(tempfile.gettempdir()) / f"initopt-gpu-{os.getuid()}"
    scratch.mkdir(exist_ok=True)
    _make_importable(bundle, scratch)
    deadline = begun + 60 * options.minutes

    import torch
    from results import load, machine

    device = "cpu" if options.dry else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device that torch can use; --dry tries everything on a CPU")
    head = {"machine": machine(device, 1), "bundle": bundle.about["sha256"], "dry": options.dry}
    paths = {name: options.out / f"{name}.json" for name in names}
    stored = {name: load(path, head) for name, path in paths.items()}  # before any work: refuses what is of another machine
    print(f"{head['machine']['device']}, torch {torch.__version__}, {os.cpu_count()} processors; "
          f"{deadline - time.monotonic():.0f} s are left", flush=True)  # fmt: skip
    made = _parts(bundle, scratch, device, options, stored)
    broken = [name for name in names if not _do(name, made[name], stored[name], paths[name], deadline)]
    _show({name: stored[name]["cases"] for name in names}, options.out)
    if broken:
        raise SystemExit(f"broken off, see above: {', '.join(broken)}")


def _stored(out: Path, names: Sequence[str]) -> dict[str, Any]:
    """The results that there are, by part."""
    from initopt._support.files import read_json

    return {name: read_json(out / f"{name}.json")["cases"] for name in names if (out / f"{name}.json").is_file()}


def _make_importable(bundle: Bundle, scratch: Path) -> None:
    """What the bundle brings, and the project itself, for this process and those that it starts."""
    for name, done in make_wheels_importable(bundle.wheels, scratch / f"packages-{_short(bundle.wheels)}").items():
        print(f"{name}: {done}")
    source = str(ROOT / "src")
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([source, *(path for path in known if path and path != source)])
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without which matrix products are not the same again
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _short(value: object) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()[:12]


def _parts(
    bundle: Bundle, scratch: Path, device: str, options: argparse.Namespace, stored: Mapping[str, Any]
) -> dict[str, Part]:
    from cifar import SEEDS, cifar_plan
    from cifar_training import Setting, decode_once
    from correctness import correctness_plan
    from engine_steps import engines_plan
    from resnet50 import resnet50_plan

    dry = options.dry
    many = options.workers or max(1, (os.cpu_count() or 1) - 2)

    def runs(deadline: float) -> Any:
        pixels = scratch / f"cifar10-{_short((bundle.about['sha256'], dry))}.npz"
        samples = decode_once(bundle.folder, pixels, 96 if dry else None)
        setting = Setting(pixels, device, **({"batch_size": 8, "nio_steps": 2, "measured": 2, "tiny": True} if dry else {}))
        starts = scratch / f"starts-{_short(options.out.resolve())}"
        if not stored["cifar"]["cases"]:
            shutil.rmtree(starts, ignore_errors=True)  # of another run, and perhaps of other code
        starts.mkdir(parents=True, exist_ok=True)
        sizes = {"seeds": 2, "warm_up": 12.0} if dry else {"seeds": SEEDS}
        return cifar_plan(setting, samples, starts, many, deadline, 60 * options.later, **sizes)

    loaders = 0 if dry else min(8, many)
    return {
        "correctness": Part(lambda deadline: correctness_plan(device, dry), many),
        "engines": Part(lambda deadline: engines_plan(device, dry)),
        "resnet50": Part(lambda deadline: resnet50_plan(bundle.folder, device, loaders, dry)),
        "cifar": Part(runs, many),
    }


def _do(name: str, part: Part, stored: dict[str, Any], path: Path, deadline: float) -> bool:
    """Do what is left of a part; whether nothing broke, which must not keep the next one from its turn."""
    from results import save
    from tasks import run_tasks

    begun = time.monotonic()
    limit = min(deadline, begun + 60 * MINUTES.get(name, float("inf")))
    results = stored["cases"]
    for failed in [task for task, result in results.items() if "failed" in result]:
        del results[failed]
    print(f"\n{PARTS[name]}: {limit - begun:.0f} s", flush=True)
    try:
        left = run_tasks(part.plan(limit), results, lambda: save(path, stored), part.workers, limit)
    except Exception:
        traceback.print_exc()
        return False
    print(f"{PARTS[name]}: done in {time.monotonic() - begun:.0f} s", flush=True)
    if left:
        print(f"  out of time; call again for {len(left)} more: {', '.join(left[:8])}{', ...' if len(left) > 8 else ''}")
    return True


def _show(results: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """Print the tables, and write them beside the results."""
    from cifar import cifar_table
    from correctness import correctness_table
    from engine_steps import engines_table
    from resnet50 import resnet50_table

    tables: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "correctness": correctness_table,
        "engines": engines_table,
        "resnet50": resnet50_table,
        "cifar": cifar_table,
    }
    text = "\n".join(
        f"## {PARTS[name]}\n\n{tables[name](found)}\n{_failures(found)}" for name, found in results.items() if found
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "tables.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nresults: {out}", flush=True)


def _failures(results: Mapping[str, Any]) -> str:
    failed = {name: result["failed"].splitlines()[0] for name, result in results.items() if "failed" in result}
    return "\n" + "".join(f"- {name} failed: {why}\n" for name, why in failed.items()) if failed else ""


if __name__ == "__main__":
    main()
