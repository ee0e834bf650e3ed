"""``initopt compare``."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

import initopt
from initopt._support.words import counted
from initopt.cli.arguments import reworded
from initopt.cli.commands.base import Command, Request
from initopt.cli.components import find_component
from initopt.cli.files import path_and_arguments
from initopt.cli.own_model import OWN_MODEL
from initopt.comparison import Network, Recipe, RunRecord
from initopt.comparison.storage.job import Job
from initopt.data import SOURCES
from initopt.integrations.ray import RayExecutor

__all__ = ["COMMAND"]

_OWN_OPTIONS = {"models", "initializations", "recipe", "out", "ray_address", "ray_num_cpus", "ray_num_gpus"}


def _add_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("what to compare")
    group.add_argument(
        "--models",
        type=dict[str, str | dict] | None,  # type: ignore[type-arg]  # of Any, jsonargparse would make instances
        help="networks by name: --models.NAME PATH, where PATH is a class or function by import path, a name in "
        "initopt.zoo, or timm:NAME, torchvision:NAME, transformers:CLASS; in a file also {class_path: PATH, init_args: "
        "{ARG: VALUE}, recipe: {FIELD: VALUE}}",
    )
    group.add_argument(
        "--initializations",
        type=_names,
        metavar="LIST",
        help="names, such as default,xavier_normal,nio; in a file also {name: NAME, scheme: NAME, method: NAME, "
        "options: {OPTION: VALUE}, recipe: {FIELD: VALUE}}",
    )
    group = parser.add_argument_group("how to train: the recipe")
    group.add_class_arguments(Recipe, "recipe", as_group=False, instantiate=False, fail_untyped=False)
    group = parser.add_argument_group("where and how")
    group.add_argument(
        "--out",
        type=Path | None,
        metavar="DIR",
        help="folder for runs and report; one of the same comparison is gone on with",
    )
    group.add_function_arguments(
        initopt.compare,
        as_group=False,
        skip={"models", "data", "initializations", "recipe", "loss_fn", "progress", "out", "executor"},
        fail_untyped=False,
    )
    group = parser.add_argument_group("on other machines")
    group.add_argument(
        "--ray_address",
        type=str | None,
        metavar="ADDRESS",
        help="have a Ray cluster do the runs: auto for the one of this machine, local for a new one, or HOST:PORT",
    )
    group.add_argument("--ray_num_cpus", type=float, default=1.0, help="processors of each run there")
    group.add_argument("--ray_num_gpus", type=float, default=0.0, help="GPUs of each run there; a fraction shares one")


def _names(value: str | list[Any]) -> list[Any]:
    """A list in YAML, whose brackets may be left out."""
    return value if isinstance(value, list) else yaml.safe_load(value if value.lstrip().startswith("[") else f"[{value}]")


def _run(request: Request) -> int:
    options = dict(request.options)
    out = options["out"]
    if out is None:
        raise ValueError("--out DIR is missing: the folder for runs and report")
    for name, example in (("models", "--models.mlp plain_mlp"), ("initializations", "--initializations default,nio")):
        if not options[name]:
            raise ValueError(
                f"--{name} is missing: give some, as in {example}, or an --experiment (see --list_experiments)"
            )
    _refuse_overridden(request)
    with _executor(request) as executor:
        found = initopt.compare(
            {name: _network(name, value) for name, value in options["models"].items()},
            _data(request),
            options["initializations"],
            loss_fn=request.make("loss"),
            recipe=dict(vars(options["recipe"])),
            out=out,
            executor=executor,
            progress=request.progress,
            **{name: value for name, value in options.items() if name not in _OWN_OPTIONS},
        )
    print(f"\n{found}")
    sys.stdout.flush()  # what follows is on standard error
    failed = [run for run in [*found.selection, *found.runs] if run.status == "failed"]
    for reason in _reasons(failed, Path(out).expanduser()):
        print(reason, file=sys.stderr)
    return 1 if found.problems or failed else 0


def _reasons(failed: Sequence[RunRecord], folder: Path) -> Iterator[str]:
    """Every error once, with how many runs it ended and where there is more of it."""
    by_error: dict[str, list[RunRecord]] = {}
    for run in failed:
        by_error.setdefault((run.error or "no reason was stored").strip().splitlines()[0], []).append(run)
    for error, runs in by_error.items():
        yield f"{counted(len(runs), 'run')} failed: {error} (in full in {Job.of(runs[0]).place(folder) / 'run.json'})"


def _refuse_overridden(request: Request) -> None:
    """Refuse a field of the recipe on the command line that every network has of its own."""
    models: dict[str, Any] = request.options["models"]
    own = [set((value.get("recipe") or {}) if isinstance(value, Mapping) else {}) for value in models.values()]
    for field in sorted(set.intersection(*own)):
        if any(name.split(".")[:2] == ["recipe", field] for name in request.given):
            raise ValueError(
                f"--recipe.{field} has no effect, since every network here has its own, models.NAME.recipe.{field}; write "
                "the options into a file by --print_config, and change them there"
            )


def _executor(request: Request) -> AbstractContextManager[RayExecutor | None]:
    options = request.options
    if options["ray_address"] is not None:
        return RayExecutor(options["ray_address"], num_cpus=options["ray_num_cpus"], num_gpus=options["ray_num_gpus"])
    for name in sorted(request.given & {"ray_num_cpus", "ray_num_gpus"}):
        raise ValueError(f"--{name} is of a Ray cluster, and there is no --ray_address")
    return nullcontext()


def _network(name: str, value: Any) -> Network:
    """A network, as a file or the command line has it, its arguments checked against its signature."""
    own = dict(value) if isinstance(value, Mapping) else {"class_path": value}
    recipe = own.pop("recipe", None) or {}
    path, given = path_and_arguments(own, f"models.{name}")
    component = find_component("models", path)
    parser = ArgumentParser(exit_on_error=False)
    component.add_arguments(parser, given)
    try:
        parsed = parser.parse_object({"models": {"init_args": given}} if given else {})
    except ArgumentError as error:
        raise ValueError(f"--models.{name}: {reworded(str(error))}") from None
    made = parser.instantiate(parsed)
    return Network(component.maker(vars(made["models"]["init_args"]) if "models" in made else {}), recipe)


def _data(request: Request) -> Any:
    component = request.components.get("data")
    if component is None or component.path == "digits":
        return "digits"
    return component.maker(request.arguments["data"])


COMMAND = Command(
    usage="initopt compare --experiment NAME|FILE --out DIR [options]\n"
    "       initopt compare --models.NAME PATH ... --initializations LIST\n"
    "                       --out DIR [options]",
    description="""\
Train networks from several initializations by one recipe, seed by seed with the
same data in the same order, and write a report.

A learning rate is one number, or a list of which each initialization gets the
one that does best on the validation split. Every run is stored as soon as it is
done; the same command again goes on where the last one was ended.""",
    examples="""\
examples:
  initopt compare --experiment digits --out comparison --workers 2
  initopt compare --models.mine my_net.Net --initializations default,nio
                  --recipe.epochs 5 --recipe.lr [0.01,0.1] --out comparison
  initopt compare --experiment digits --print_config > mine.yaml
  initopt compare --list_experiments
  initopt compare --experiment cifar10-vgg19-nobn --scale small --out vgg""",
    add_options=_add_options,
    run=_run,
    components={
        "data": f"{', '.join(SOURCES)} (default: digits); or a class or function by import path whose result has the data "
        "sets train, validation and test. Its arguments are --data.ARG VALUE",
        "loss": OWN_MODEL["loss"],
    },
    as_batches=False,
    renamed={"recipe": "experiment", "list_recipes": "list_experiments"},
    renamed_hint="; a recipe is how to train, as in --recipe.lr 0.1",
    experiments=True,
)
