"""From command-line arguments to a request, in one pass of jsonargparse.

Which options there are depends on what ``--model``, ``--data``, ``--loss`` and ``--method`` choose, here or in a file. So
these and the files are looked up first, and what the files say stands in front of the command line that is parsed. The
parser has the structure of a file: ``--model PATH`` is ``model.class_path``, ``--model.ARG`` is ``model.init_args.ARG``.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader

from initopt._support.current_folder import search_for_own_code
from initopt._support.errors import warn
from initopt._support.words import unknown
from initopt.cli.commands.base import Command, Request
from initopt.cli.components import Component, find_component
from initopt.cli.files import as_yaml, bounded_yaml, describe_experiment, path_and_arguments, read_experiment, read_options
from initopt.methods import Measuring, find_method, method_names
from initopt.recipes import RECIPES

__all__ = ["HelpFormatter", "as_text", "parse", "reworded"]

_GENERAL = (
    ("config", "FILE", "a YAML file of options; what the command line says overrides it"),
    ("print_config", None, "print all options as YAML, and do no more"),
    ("debug", None, "show the traceback of every error, as INITOPT_DEBUG=1 does"),
)
_PROGRESS = (
    ("progress", None, "show a progress bar even if this is no terminal"),
    ("quiet", None, "show no progress bar even if this is a terminal"),
)
_EXPERIMENT = (
    ("experiment", "NAME|FILE", "a whole comparison: one that comes with initopt (digits, for one), or a YAML file"),
    ("scale", "NAME", "a variant of the --experiment: small, which is done in minutes without a GPU"),
    ("list_experiments", None, "print the names for --experiment, and do no more"),
)
"""Options of the command line alone, by name, with what they take, if anything, and their help."""

_ASKED = tuple(name for name, *_ in (*_EXPERIMENT, *_GENERAL, *_PROGRESS))


def parse(command: Command, name: str, argv: Sequence[str]) -> Request | None:
    """Parse a command line; ``None`` if it was only to print something, which is done.

    Args:
        command: what is to be done.
        name: of the command.
        argv: the arguments that follow its name.

    Raises:
        argparse.ArgumentError, ValueError, ImportError: for what cannot be understood; the message says why.
        SystemExit: after ``--help``.
    """
    flags = list(_spelled(command, argv))
    if command.experiments and "--list_experiments" in flags:
        _list_experiments()
        return None
    files = [(f"--config {file}", read_options(Path(file))) for file in _given(flags, "config")]
    if command.experiments:
        files = [*_experiment(flags), *files]
    chosen = {option: given[-1] for option in command.components if (given := _given(flags, f"{option}.class_path"))}
    values, origins = _merged(command, [*files, ("", chosen)])
    paths = {option: values[f"{option}.class_path"] for option in command.components if f"{option}.class_path" in values}
    if command.components:
        search_for_own_code([*values.values(), *(flag.partition("=") for flag in flags)])
    method = [str(values.get("method") or "nio"), *_given(flags, "method")][-1] if command.method else None
    if method and method not in method_names():
        raise ValueError(unknown("--method", method, method_names()))
    components = {option: find_component(option, path, as_batches=command.as_batches) for option, path in paths.items()}

    parser = _parser(command, name, components, method, [*values, *_names(flags)])
    parsed = _parsed(parser, values, origins, flags)

    asked = {option: parsed.pop(option, None) for option in _ASKED}
    if asked["progress"] and asked["quiet"]:
        raise ValueError("--progress is not allowed with --quiet")
    shown = _as_file(command, yaml.safe_load(parser.dump(parsed, skip_unset=False)) or {})
    if asked["print_config"]:
        print(as_yaml(shown), end="")
        return None
    made = dict(vars(parser.instantiate(parsed)))
    parts = {option: made.pop(option) for option in command.components}
    arguments = {option: dict(vars(own)) if (own := parts[option].get("init_args")) else {} for option in components}
    progress = True if asked["progress"] else False if asked["quiet"] else None
    return Request(components, arguments, made, progress, shown, frozenset(_names(flags)))


def _spelled(command: Command, argv: Sequence[str]) -> Iterator[str]:
    """Flags as the parser takes them: with underscores, by their present names, and components as a file has them.

    Networks of a comparison have names of their own, which stay as they are.
    """
    for flag in argv:
        name, equals, value = flag.partition("=")
        if not name.startswith("--") or name.startswith("--models."):
            yield flag
            continue
        option, dot, argument = name[2:].replace("-", "_").partition(".")
        if option in command.components:
            dot, argument = ".", f"init_args.{argument}" if dot else "class_path"
        elif option in command.renamed and not dot:
            warn(f"--{option} is now --{command.renamed[option]}{command.renamed_hint}")
            option = command.renamed[option]
        yield f"--{option}{dot}{argument}{equals}{value}"


def _given(flags: Sequence[str], option: str) -> list[str]:
    """What an option is given, each time that it is there; if that is nothing, it is left to the parser to say so."""
    found = []
    for flag, following in pairwise([*flags, "--"]):
        name, equals, value = flag.partition("=")
        if name == f"--{option}" and (equals or not following.startswith("--")):
            found.append(value if equals else following)
    return found


def _names(flags: Iterable[str]) -> list[str]:
    """The names of the options among flags."""
    return [flag[2:].partition("=")[0] for flag in flags if flag.startswith("--")]


def _experiment(flags: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """What ``--experiment`` and ``--scale`` stand for."""
    name, scale = ([None, *_given(flags, option)][-1] for option in ("experiment", "scale"))
    if name is None:
        if scale is not None:
            raise ValueError(f"--scale {scale} is of an --experiment, and there is none")
        return []
    if name not in RECIPES and not Path(name).is_file():
        near = ", ".join(difflib.get_close_matches(name, RECIPES, 3) or list(RECIPES)[:1])
        raise ValueError(
            f"--experiment {name}: there is no such file; by name there are {near} and others, see --list_experiments"
        )
    return [(f"--experiment {name}", read_experiment(Path(RECIPES.get(name, name)), scale))]


def _list_experiments() -> None:
    for name, path in RECIPES.items():
        text, scales = describe_experiment(path)
        print("  ".join([f"{name:30}", text, *(f"(--scale {scale})" for scale in scales)]))


def _merged(command: Command, files: Iterable[tuple[str, Mapping[str, Any]]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Options from files, of which a later one overrides the earlier ones, and the file that each is from.

    A component is its import path, or ``{class_path: PATH, init_args: {ARG: VALUE}}``; another one drops the arguments that
    were for the first.

    Args:
        command: whose options they are.
        files: the option and name of each, as ``"--config FILE"``, and what it holds.

    Raises:
        ValueError: if a component is not of this form; the message names the file.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for file, held in files:
        new: dict[str, Any] = {}
        for given, value in held.items():
            option = given if isinstance(value, Mapping) else command.renamed.get(given, given)
            if option != given:
                warn(f"{file}: {given} is now {option}{command.renamed_hint}")
            if option in command.components and value is not None:
                path, arguments = path_and_arguments(value, f"{file}: {option}")
                if values.get(f"{option}.class_path", path) != path:
                    values = {name: old for name, old in values.items() if not name.startswith(f"{option}.")}
                new |= {f"{option}.class_path": path} | {f"{option}.init_args.{name}": x for name, x in arguments.items()}
            elif option == "recipe" and isinstance(value, Mapping):  # of which a later file may change a field
                new |= {f"recipe.{field}": x for field, x in value.items()}
            elif option not in command.components:
                new[option] = value
        values |= new
        origins |= dict.fromkeys(new, file)
    return values, {name: origins[name] for name in values}


def _parser(
    command: Command, name: str, components: Mapping[str, Component], method: str | None, given: Iterable[str]
) -> ArgumentParser:
    """The parser of a command; ``given`` are the names of options that are there."""
    parser = ArgumentParser(
        prog=f"initopt {name}",
        usage=command.usage,
        description=command.description,
        epilog=command.examples,
        formatter_class=HelpFormatter,
        exit_on_error=False,
        add_help=False,
        allow_abbrev=False,
        print_config=None,
        parser_mode="initopt",
    )
    if command.components:
        group = parser.add_argument_group("what to work on")
        for option, text in command.components.items():
            group.add_argument(f"--{option}.class_path", metavar="PATH", help=text)
        if method:
            group.add_argument("--method", metavar="NAME", default="nio", help=command.method)
    for option, component in components.items():
        prefix = f"{option}.init_args."
        component.add_arguments(parser, dict.fromkeys(x.removeprefix(prefix) for x in given if x.startswith(prefix)))
    if method:
        group = parser.add_argument_group(f"options of --method {method}")
        kind = find_method(method)
        own = group.add_class_arguments(kind, as_group=False, instantiate=False, fail_untyped=False)
        group = parser.add_argument_group("how to measure before and after")
        group.add_class_arguments(Measuring, as_group=False, instantiate=False, skip=set(own))
    command.add_options(parser)
    group = parser.add_argument_group("general")
    experiment, progress = _EXPERIMENT if command.experiments else (), _PROGRESS if command.components else ()
    for option, metavar, text in (*experiment, *_GENERAL, *progress):
        how: dict[str, Any] = {"metavar": metavar} if metavar else {"action": "store_true"}
        group.add_argument(f"--{option}", help=text, **how)
    group.add_argument("-h", "--help", action="help", help="show this text, with the arguments of what was chosen")
    return parser


def _parsed(
    parser: ArgumentParser, values: Mapping[str, Any], origins: Mapping[str, str], flags: Sequence[str]
) -> Namespace:
    """What files and flags say, in one pass; an option that there is not is refused with the nearest that there is."""
    defaults = parser.get_defaults()
    known = [_short(name) for name in defaults.keys()]  # noqa: SIM118
    for name, file in origins.items():
        if name not in defaults or name in _ASKED:
            near = difflib.get_close_matches(_short(name), known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{file}: {parser.prog} has no option {_short(name)!r}{hint}")
    try:
        return parser.parse_args([*_as_flags(values, defaults), *flags])
    except argparse.ArgumentError as error:
        message = _short(str(error))
        if "nrecognized arguments" not in message:
            raise
        unknown = [flag[2:].partition("=")[0] for flag in message.split() if flag.startswith("--")]
        near = [name for each in unknown for name in difflib.get_close_matches(each, known, 1)]
        hint = f"; did you mean {' and '.join(f'--{name}' for name in dict.fromkeys(near))}?" if near else ""
        raise argparse.ArgumentError(None, f"{message}{hint}") from None


def _short(name: str) -> str:
    """The name of an option as a user writes it."""
    return name.replace(".init_args.", ".").removesuffix(".class_path")


def _as_flags(values: Mapping[str, Any], defaults: Namespace) -> Iterator[str]:
    for name, value in values.items():
        if value is None and defaults.get(name) is None:
            continue  # for an option that takes a string, it would be the string "null"
        in_yaml = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"))
        yield f"--{name}={value}" if isinstance(value, str) else f"--{name}=" + in_yaml.removesuffix("...\n").strip()


def _as_file(command: Command, options: dict[str, Any]) -> dict[str, Any]:
    """Options as a file has them: a component without arguments is its path."""
    for option in command.components:
        if not options[option].get("init_args"):
            options[option] = options[option]["class_path"]
    return options


_load = get_loader("yaml")


def _load_value(text: str) -> Any:
    """What a value says in YAML; a list of numbers may go without brackets, which some shells do not let pass."""
    if "&" in text:  # an option in a file may be YAML in a string
        bounded_yaml(text)
    value = _load(text)
    if isinstance(value, str) and "," in value:
        items = [_load(item) for item in value.split(",")]
        if all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in items):
            return items
    return value


set_loader("initopt", _load_value, (yaml.YAMLError,))


_ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")
_LITERAL = re.compile(r"``(.+?)``", re.DOTALL)


def as_text(docstring: str) -> str:
    """A docstring without its markup.

    >>> as_text('``"exact"`` or a name in :data:`initopt.engines.ENGINES`')
    '"exact" or a name in initopt.engines.ENGINES'
    """
    return _LITERAL.sub(r"\1", _ROLE.sub(r"\1", docstring))


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """A formatter of help that says what each option means, in the words of the docstring, and its default."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)

    def add_argument(self, action: argparse.Action) -> None:
        # Options such as --objective.help are for picking classes, which none of ours are about.
        if any(name.endswith(".help") for name in action.option_strings):
            return
        if action.help != argparse.SUPPRESS:
            action.option_strings = [_short(name) for name in action.option_strings]
            has_default = action.nargs != 0 and action.default is not None and action.default != argparse.SUPPRESS
            default = " (default: %(default)s)" if has_default else ""
            action.help = f"{as_text(action.help or '')}{default}".lstrip()
            if action.metavar is None and action.nargs != 0 and action.choices is None:
                numbers = {int: "N", float: "X"}
                action.metavar = numbers.get(type(action.default), action.dest.rpartition(".")[2].upper())
        super().add_argument(action)


_WORDINGS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"\.init_args(?=\.)|(?<=\w)\.class_path\b", ""),
    (r'Parser key "([\w.]+)":\s*', r"--\1: "),
    (r"(?<=are required: ).*", lambda names: "--" + names[0].replace(", ", ", --")),
    (r"(?s)Does not validate against any of the Union subtypes.*?Errors:\s*- ", ""),
    (r"\s*- Expected a <class 'NoneType'>", ""),
    (r"\s*Given value type: .*\s*Given value: ", ". Got value: "),
    (r"\n\s*- ", " or "),
    (r"Type \S*Callable.* expects a function or a callable class: ", "expected the import path of a function: "),
    (r"Expected an? (?:\w+\.)*Literal\[(.*?)\]", r"expected one of \1"),
    (r"Expected an? (?:<class ')?(?:\w+\.)*(\w+)(?:'>)?", r"expected \1"),
    (r"(?<=or )expected ", ""),
    (r"\. Got value: ", "; got "),
    (r"got (-?)inf$", r"got \1inf (write \1.inf)"),  # numbers are read as YAML has them
)


def reworded(message: str) -> str:
    """The message of a parser with options and types as the user knows them.

    >>> reworded('Parser key "lr": Expected a float. Got value: inf')
    '--lr: expected float; got inf (write .inf)'
    """
    for pattern, replacement in _WORDINGS:
        message = re.sub(pattern, replacement, message)
    return message
