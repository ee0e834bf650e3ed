"""Make the folder that travels to a machine with a GPU and without a network.

    python benchmarks/gpu/prepare.py --cifar10 DIR --imagenet DIR --out DIR

A subset of CIFAR-10 and some images of ImageNet, as the bytes of their files, and wheels of the packages that are missing
there. DIR is a folder in the layout of the Hugging Face hub (``uoft-cs/cifar10``, ``ILSVRC/imagenet-1k``). Needs
``initopt[data]``, and pip with a package index for the wheels. Refuses to make more than 45 MiB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from bundle import Files, write_files

from initopt.data.images import Source, open_source
from initopt.data.splits import Sizes, select, stratified_order

__all__ = ["MISSING", "MOST", "main"]

ROOT = Path(__file__).resolve().parents[2]

MISSING = (
    "jsonargparse",
    "typeshed_client",
    "docstring_parser",
    "datasets",
    "dill",
    "multiprocess",
    "kornia",
    "kornia_rs",
    "lightning-fabric",
)
"""What a machine with torch, torchvision, timm, transformers, lightning, matplotlib and what these need lacks of initopt's
own needs."""

MOST = 45 * 2**20
"""Bytes."""

_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True, metavar="DIR")
    parser.add_argument("--imagenet", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="must not be there yet")
    parser.add_argument("--train", type=int, default=20_000, help="images of CIFAR-10 to train on")
    parser.add_argument("--test", type=int, default=4_000, help="and to test on")
    parser.add_argument("--pictures", type=int, default=128, help="images of ImageNet")
    parser.add_argument("--about", default="CIFAR-10, a sample of ImageNet", metavar="TEXT", help="what the images are")
    parser.add_argument("--python", default="3.12", metavar="VERSION", help="there")
    parser.add_argument("--missing", nargs="*", default=MISSING, metavar="PACKAGE", help="packages to take along as wheels")
    options = parser.parse_args(arguments)
    if options.out.exists():
        raise SystemExit(f"--out {options.out} is there already; remove it, or choose another folder")
    cifar = open_source(None, options.cifar10, image=("img", "image"))
    imagenet = open_source(None, options.imagenet)
    chosen = select(_labels(cifar), Sizes(options.train, 0, options.test), str(options.cifar10))
    count = len(imagenet["train"].records)
    if not 1 <= options.pictures <= count:
        raise SystemExit(f"--pictures {options.pictures}: {options.imagenet} has {count}; choose 1 to {count}")
    pictures = np.sort(stratified_order(imagenet["train"].labels())[: options.pictures])
    made = Path(f"{options.out}.partial")
    shutil.rmtree(made, ignore_errors=True)
    try:
        made.mkdir(parents=True)
        write_files(made / "cifar10.npz", {part: _taken(cifar[split], rows) for part, (split, rows) in chosen.items()})
        write_files(made / "imagenet.npz", {"train": _taken(imagenet["train"], pictures)})
        _download(options.missing, options.python, made / "wheels")
        sizes = {path.name: path.stat().st_size for path in sorted(made.rglob("*")) if path.is_file()}
        about: dict[str, Any] = {"about": options.about, "python": options.python, "bytes": sizes}
        about["cifar10"] = {part: len(rows) for part, (_, rows) in chosen.items()}
        about["imagenet"] = {"train": len(pictures)}
        about["sha256"] = {name: _digest(made / name) for name in ("cifar10.npz", "imagenet.npz")}
        (made / "bundle.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        total = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
        if total > MOST:
            raise SystemExit(
                f"{total / 2**20:.1f} MiB are more than {MOST / 2**20:.0f}; lower --train, --test or --pictures, or leave "
                "out some of --missing"
            )
        made.rename(options.out)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    for name, size in sizes.items():
        print(f"{size / 2**20:8.2f} MiB  {name}")
    print(f"{total / 2**20:8.2f} MiB  {options.out}")


def _labels(sources: Mapping[str, Source]) -> dict[str, np.ndarray]:
    return {split: source.labels() for split, source in sources.items()}


def _taken(source: Source, rows: np.ndarray) -> Files:
    records = source.records.select(rows)
    contents = [image["bytes"] or Path(image["path"]).read_bytes() for image in records["image"]]
    return Files(contents, np.asarray(records["label"], dtype=np.int64), source.classes)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _download(packages: Sequence[str], python: str, folder: Path) -> None:
    """Wheels of packages for another Python, in the versions that the project is tested with."""
    folder.mkdir()
    if not packages:
        return
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    command += [argument for platform in _PLATFORMS for argument in ("--platform", platform)]
    command += ["--constraint", str(ROOT / "constraints.txt"), "--dest", str(folder), *packages]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit("pip could not download the wheels; without a network, take --missing with no names")


if __name__ == "__main__":
    main()
