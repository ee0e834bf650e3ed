"""``initopt run``."""

from __future__ import annotations

import itertools
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

import initopt
from initopt._support.files import check_file, check_replaceable, write_folder
from initopt.cli.commands.base import Command, Request
from initopt.cli.components import import_path
from initopt.cli.files import as_yaml
from initopt.cli.optimizer import bound_class
from initopt.cli.own_model import OWN_MODEL, add_common_options, make_problem
from initopt.methods import Measuring, find_method, method_names
from initopt.runs.result import CONTENTS, Result

__all__ = ["COMMAND"]

_FILES = {
    "result.json": "history, scales, options and measurements",
    "weights.safetensors": "the optimized weights",
    "grams.safetensors": "the Gram matrices of the measurements",
    "plot.png": "the run as a picture",
    "config.yaml": "all options of this run, for --config",
}


def _add_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out",
        type=Path | None,
        metavar="DIR",
        help="folder for the result; a folder that holds an earlier result is replaced, any other is refused",
    )
    group = parser.add_argument_group("the run")
    given: set[str | int] = {"model", "batches", "loss_fn", "method", "measuring", "seed", "progress", "callbacks"}
    group.add_function_arguments(initopt.optimize, as_group=False, skip=given, fail_untyped=False)
    add_common_options(parser)


def _run(request: Request) -> None:
    out = _checked_folder(request.options["out"])
    options = {name: value for name, value in request.options.items() if name not in {"device", "threads", "out"}}
    _check_checkpoint(options["checkpoint"], out)
    objective = options.get("objective")
    if isinstance(objective, str) and "." in objective:
        options["objective"] = import_path("objective", objective)
    if "optimizer" in options:
        options["optimizer"] = bound_class(options["optimizer"])
    kind = find_method(options.pop("method"))
    method = kind(**{option.name: options.pop(option.name) for option in fields(kind)})
    how = {option.name: options.pop(option.name) for option in fields(Measuring) if option.name in options}
    measuring = method.measuring(Measuring(**how)) if how else None
    model, batches, loss = make_problem(request)
    result = initopt.optimize(model, batches, loss, method, measuring=measuring, progress=request.progress, **options)
    scheme = result.options.get("scheme")
    print(result)
    if scheme is not None and result.tried_scales is None:
        print(f"\nThe scales are those of the weights of the scheme {scheme!r}.")
    _save(result, out, request.config)
    print(f"\n{out}/")
    for name, what in _FILES.items():
        if (out / name).exists():
            print(f"  {name:20} {what}")
    print(f'\nLoad the weights into your model:\n  initopt.Result.load("{out}").apply(model)')


def _checked_folder(out: Path | None) -> Path:
    """The folder, known to be writable before hours of work go into it."""
    if out is None:
        raise ValueError("--out DIR is missing: the folder for the result")
    out = out.expanduser()
    check_replaceable(out, CONTENTS)
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"--out {out}: {parent} is no folder that can be written to")
    return out


def _check_checkpoint(checkpoint: str | None, out: Path) -> None:
    """Refuse a checkpoint in the folder that is put in place at the end, or in whose place that folder would be."""
    if checkpoint is None:
        return
    path = Path(checkpoint).expanduser()
    check_file(path, f"--checkpoint {checkpoint}")
    real, folder = Path(os.path.realpath(path)), Path(os.path.realpath(out))
    if real.is_relative_to(folder) or folder.is_relative_to(real):
        raise ValueError(
            f"--checkpoint {checkpoint} cannot be in --out {out}, which is put in place whole at the end; give it a place "
            f"beside that, such as {out.name or 'run'}.ckpt"
        )


def _save(result: Result, out: Path, config: Any) -> None:
    """Put the folder in place; where something has come to be there meanwhile, beside it, since the work is done.

    Raises:
        FileExistsError: in that case; the message says where the result is.
        Exception: if the picture cannot be drawn; the result is in place.
    """
    problems: list[Exception] = []

    def write(into: Path) -> None:
        result.write_files(into)
        (into / "config.yaml").write_text(as_yaml(config), encoding="utf-8")
        try:
            result.plot().savefig(into / "plot.png", format="png")
        except Exception as error:
            (into / "plot.png").unlink(missing_ok=True)
            problems.append(error)

    try:
        write_folder(out, write, CONTENTS)
    except FileExistsError as error:
        numbered = (out.with_name(f"{out.name}-{number}") for number in itertools.count(2))
        beside = next(folder for folder in numbered if not os.path.lexists(folder))
        write_folder(beside, write, CONTENTS)
        raise FileExistsError(f"{error}. The result is in {beside}") from None
    if problems:
        raise problems[0]


COMMAND = Command(
    usage="initopt run --model PATH [--model.ARG VALUE ...]\n"
    "                   --data PATH [--data.ARG VALUE ...] --out DIR [options]",
    description="""\
Improve the initial weights of a network before its first training step.

The network is made, a few batches are held back, the method takes its steps on
the others, and the batches held back are measured with the old and the new
weights. The new weights, the history, a picture and all options go into the
folder --out.""",
    examples="""\
examples:
  initopt run --model my_net.Net --model.depth 20 --data digits --out result
  initopt run --config run.yaml --steps 200 --out result
  initopt run --model my_net.Net --data digits --out result \\
      --optimizer SGD --optimizer.lr 0.1 --optimizer.momentum 0.9
  initopt run --model my_net.Net --data digits --print_config > run.yaml

Then, before training:
  initopt.Result.load("result").apply(model)""",
    add_options=_add_options,
    run=_run,
    components=OWN_MODEL,
    renamed={"measure_steps": "measure_batches"},
    method=f"how to improve the weights: {', '.join(method_names())}",
)
