"""From command-line arguments to a request, in one pass of jsonargparse.

Which options there are depends on what ``--model``, ``--data``, ``--loss`` and ``--method`` choose, here or in a file. So
these and the files are looked up first, and what the files say stands in front of the command line that is parsed. The
parser has the structure of a file: ``--model PATH`` is ``model.class_path``, ``--model.ARG`` is ``model.init_args.ARG``.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, get_loader, set_loader

from initopt._support.current_folder import search_for_own_code
from initopt._support.errors import warn
from initopt.cli.commands.base import Command, Request
from initopt.cli.components import Component, find_component
from initopt.cli.files import as_yaml, describe_experiment, path_and_arguments, read_experiment, read_options
from initopt.methods import find_method, method_names
from initopt.recipes import RECIPES

__all__ = ["HelpFormatter", "as_text", "parse", "reworded"]

_GENERAL: dict[str, dict[str, Any]] = {
    "config": {
        "metavar": "FILE",
        "action": "append",
        "help": "a YAML file of options; what the command line says overrides it",
    },
    "print_config": {"action": "store_true", "help": "print all options as YAML, and do no more"},
    "debug": {"action": "store_true", "help": "show the traceback of every error, as INITOPT_DEBUG=1 does"},
}
_PROGRESS: dict[str, dict[str, Any]] = {
    "progress": {"action": "store_true", "help": "show a progress bar even if this is no terminal"},
    "quiet": {"action": "store_true", "help": "show no progress bar even if this is a terminal"},
}
_EXPERIMENT: dict[str, dict[str, Any]] = {
    "experiment": {
        "metavar": "NAME|FILE",
        "help": "a whole comparison: one that comes with initopt (digits, for one), or a YAML file",
    },
    "scale": {
        "metavar": "NAME",
        "help": "a variant of the --experiment: small, which is done in minutes without a GPU",
    },
    "list_experiments": {"action": "store_true", "help": "print the names for --experiment, and do no more"},
}
_RENAMED = {"recipe": "experiment", "list_recipes": "list_experiments"}


def parse(command: Command, name: str, argv: Sequence[str]) -> Request | None:
    """The request, or ``None`` if it was only to print something, which is done.

    Args:
        command: what is to be done.
        name: of the command.
        argv: the arguments that follow its name.

    Raises:
        argparse.ArgumentError, ValueError, ImportError: for what cannot be understood; the message says why.
        SystemExit: after ``--help``.
    """
    flags = list(_spelled(command, argv))
    general = _GENERAL | (_PROGRESS if command.has_progress else {}) | (_EXPERIMENT if command.experiments else {})
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
        raise ValueError(f"unknown --method {method!r}; known are {', '.join(map(repr, method_names()))}")
    components = {option: find_component(option, path, as_batches=command.as_batches) for option, path in paths.items()}

    parser = _parser(command, name, components, method, [*values, *_names(flags)])
    general_group = parser.add_argument_group("general")
    for option, how in general.items():
        general_group.add_argument(f"--{option}", **how)
    text = "show this text, with the arguments of what was chosen"
    general_group.add_argument("-h", "--help", action="help", help=text)
    defaults = {option: parser.get_default(option) for option in parser.get_defaults().keys()}  # noqa: SIM118
    _refuse_unknown(f"initopt {name}", origins, flags, defaults)
    parsed = parser.parse_args([*_as_flags(values, defaults), *flags])

    asked = {option: parsed.pop(option) for option in general}
    if asked.get("progress") and asked.get("quiet"):
        raise ValueError("--progress is not allowed with --quiet")
    shown = _as_file(command, yaml.safe_load(parser.dump(parsed, skip_unset=False)) or {})
    if asked["print_config"]:
        print(as_yaml(shown), end="")
        return None
    made = dict(vars(parser.instantiate(parsed)))
    parts = {option: made.pop(option) for option in command.components}
    arguments = {option: dict(vars(parts[option].get("init_args", argparse.Namespace()))) for option in components}
    progress = True if asked.get("progress") else False if asked.get("quiet") else None
    return Request(components, arguments, made, progress, shown, frozenset(_names(flags)))


def _spelled(command: Command, argv: Sequence[str]) -> Iterator[str]:
    """Flags as the parser has them: with underscores, by their present names, and components as a file has them.

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
        elif command.experiments and not dot and option in _RENAMED:
            warn(f"--{option} is now --{_RENAMED[option]}; a recipe is how to train, --recipe.FIELD VALUE")
            option = _RENAMED[option]
        yield f"--{option}{dot}{argument}{equals}{value}"


def _given(flags: Sequence[str], option: str) -> list[str]:
    """What an option is given, each time that it is there."""
    found = []
    for flag, following in zip(flags, [*flags[1:], ""], strict=True):
        name, equals, value = flag.partition("=")
        if name == f"--{option}":
            found.append(value if equals else following)
    return found


def _names(flags: Iterable[str]) -> list[str]:
    """The names of the options among flags."""
    return [flag[2:].partition("=")[0] for flag in flags if flag.startswith("--")]


def _experiment(flags: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """What ``--experiment`` and ``--scale`` stand for."""
    (*_, name), (*_, scale) = ["", *_given(flags, "experiment")], ["", *_given(flags, "scale")]
    if not name:
        if scale:
            raise ValueError(f"--scale {scale} is of an --experiment, and there is none")
        return []
    if name not in RECIPES and not Path(name).is_file():
        near = ", ".join(difflib.get_close_matches(name, RECIPES, 3) or list(RECIPES)[:1])
        raise ValueError(
            f"--experiment {name}: there is no such file; by name there are {near} and others, see --list_experiments"
        )
    return [(f"--experiment {name}", read_experiment(Path(RECIPES.get(name, name)), scale or None))]


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
        for option, value in held.items():
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
    """The parser of a command, without its general options; ``given`` are the names of options that are there."""
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
        group.add_class_arguments(find_method(method), as_group=False, instantiate=False, fail_untyped=False)
    command.add_options(parser)
    return parser


def _refuse_unknown(program: str, origins: Mapping[str, str], flags: Sequence[str], known: Iterable[str]) -> None:
    """Refuse an option that there is not, with the nearest that there is; what is below a known one is up to its type."""
    known = {*known, "help"}
    for name, file in origins.items():
        if name not in known:
            near = difflib.get_close_matches(_short(name), map(_short, known), 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{file}: {program} has no option {_short(name)!r}{hint}")
    for name in _names(flags):
        parts = name.removesuffix("+").split(".")
        if not any(".".join(parts[:count]) in known for count in range(1, len(parts) + 1)):
            near = difflib.get_close_matches(_short(name), map(_short, known), 1)
            hint = f"; did you mean --{near[0]}?" if near else ""
            raise argparse.ArgumentError(None, f"unrecognized arguments: --{_short(name)}{hint}")


def _short(name: str) -> str:
    """The name of an option as a user writes it."""
    return name.replace(".init_args.", ".").removesuffix(".class_path")


def _as_flags(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if value is None and defaults[name] is None:
            continue  # for an option that takes a string, it would be the string "null"
        text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
        text = text.removesuffix("...\n").strip()
        yield f"--{name}={text}"


def _as_file(command: Command, options: dict[str, Any]) -> dict[str, Any]:
    """Options as a file has them: a component without arguments is its path."""
    for option in command.components:
        if not options[option].get("init_args"):
            options[option] = options[option]["class_path"]
    return options


_load = get_loader("yaml")


def _load_value(text: str) -> Any:
    """What a value says in YAML; a list of numbers may go without brackets, which some shells do not let pass."""
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
    """Says what each option means and its default, in the words of the docstring."""

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


_UNION = re.compile(
    r"Does not validate against any of the Union subtypes.*?Errors:\n(.*)\n\s*Given value type: .*\n\s*Given value: (.*)",
    re.DOTALL,
)
_WORDINGS = (
    (r"\.init_args\.", "."),
    (r'Parser key "([\w.]+)":\s*', r"--\1: "),
    (r"Type \S*Callable.* expects a function or a callable class: ", "expected the import path of a function: "),
    (r"Expected an? (?:<class ')?(?:typing\.)?([^'\n]+?|Literal\[.*?\])(?:'>)?\. Got value: (.*)", r"expected \1; got \2"),
    (r"expected Literal\[(.*)\];", r"expected one of \1;"),
    (r"\. Got value: ", "; got "),
    (r"got (-?)inf$", r"got \1inf (write \1.inf)"),  # numbers are read as YAML has them
)


def reworded(message: str) -> str:
    """The message with options and types as the user knows them.

    >>> reworded('Parser key "lr": Expected a float. Got value: inf')
    '--lr: expected float; got inf (write .inf)'
    """

    def without_union(match: re.Match[str]) -> str:  # of a type and None: what is wrong with the type
        reasons = [line.strip().removeprefix("- ") for line in match[1].splitlines() if "NoneType'>" not in line[-12:]]
        return f"{'; '.join(reasons)}. Got value: {match[2]}"

    message = _UNION.sub(without_union, message)
    start, required, names = message.partition("arguments are required: ")
    message = start + required + ", ".join(f"--{name}" for name in names.split(", ")) if required else message
    for pattern, replacement in _WORDINGS:
        message = re.sub(pattern, replacement, message)
    return message
