"""From command-line arguments to a request.

In two passes: what ``--model``, ``--data``, ``--loss`` and ``--method`` chose, on the command line or in a file, decides
which options there are for the second.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from initopt._support.current_folder import search_for_own_code
from initopt._support.errors import warn
from initopt.cli.commands.base import Command, Request
from initopt.cli.components import Component, find_component
from initopt.cli.files import Config, as_yaml, describe_recipe, merge_configs, read_options, read_recipe
from initopt.methods import find_method, method_names

__all__ = ["HelpFormatter", "as_text", "parse", "reworded"]

_METAVARS = {"model": "PATH", "data": "PATH", "loss": "PATH", "method": "NAME"}


def parse(command: Command, argv: Sequence[str]) -> Request | None:
    """The request, or ``None`` if it was only to print something, which is done.

    Raises:
        argparse.ArgumentError, ValueError, ImportError: for what cannot be understood; the message says why.
    """
    first = _first_pass(command)
    flags, rest = first.parse_known_args([_as_called_now(command, _with_underscores(flag)) for flag in argv])
    if getattr(flags, "list_recipes", False):
        print(_list(command))
        return None
    files = [*_recipes(command, flags), *((f"--config {name}", read_options(Path(name))) for name in flags.config or [])]
    config = merge_configs(files, command.choices)
    for old in command.renamed.keys() & config.options.keys():
        value, origin = config.options.pop(old), config.origins.pop(old)
        if value is not None:
            new = _as_called_now(command, f"--{old}").removeprefix("--")
            config.options.setdefault(new, value)
            config.origins.setdefault(new, origin)
    for name in command.choices:
        if getattr(flags, name) is not None:
            config.choose(name, getattr(flags, name))
    if command.choices:
        search_for_own_code([*config.chosen.values(), *config.options.values(), *(flag.partition("=") for flag in rest)])
    method = config.chosen.pop("method", "nio")
    if method not in method_names():
        raise ValueError(f"unknown --method {method!r}; known are {', '.join(map(repr, method_names()))}")
    find_method(method)  # one that cannot be imported is found out now
    components = {name: find_component(name, path, as_batches=command.as_batches) for name, path in config.chosen.items()}
    if flags.help:
        parser = _empty_parser(command)
        _add_choices(command, parser)
        _add_second_pass(command, parser, method, components, [])
        _add_general(command, parser)
        parser.print_help()
        return None
    parser = _empty_parser(command)
    _add_second_pass(command, parser, method, components, [*config.options, *_names(rest)])
    _refuse_unknown(config, parser, command)
    parsed = _parsed(parser, [*_as_flags(config), *_with_brackets(parser, rest)], first)
    shown = _as_config(command, method, components, yaml.safe_load(parser.dump(parsed, skip_unset=False)) or {})
    if flags.print_config:
        print(as_yaml(shown), end="")
        return None
    made = parser.instantiate(parsed)
    arguments = {name: dict(vars(made.pop(name))) if name in made else {} for name in components}
    return Request(components, arguments, method, dict(vars(made)), _progress(flags), shown, frozenset(_names(rest)))


def _with_underscores(flag: str) -> str:
    """A flag as it is called here, where it was written with dashes; networks have names of their own.

    >>> _with_underscores("--measure-batches=3"), _with_underscores("--models.my-net"), _with_underscores("-1")
    ('--measure_batches=3', '--models.my-net', '-1')
    """
    name, equals, value = flag.partition("=")
    if not name.startswith("--") or name.startswith("--models."):
        return flag
    return f"--{name[2:].replace('-', '_')}{equals}{value}"


def _as_called_now(command: Command, flag: str) -> str:
    """A flag under its present name."""
    name, equals, value = flag.partition("=")
    new = command.renamed.get(name.removeprefix("--")) if name.startswith("--") else None
    if new is None:
        return flag
    warn(f"{name} is called --{new} now; the old name will go")
    return f"--{new}{equals}{value}"


def _with_brackets(parser: ArgumentParser, flags: Sequence[str]) -> Iterator[str]:
    """Lists on the command line as YAML has them, where they were written as ``default,nio``, which any shell lets pass."""
    before = ""
    for flag in flags:
        is_option = flag.startswith("--")
        name, equals, value = flag.partition("=") if is_option else (before, "", flag)
        before = name if is_option and not equals else ""
        if (equals or not is_option) and _is_bare_list(parser, name, value):
            value = f"[{value}]"
        yield f"{name}{equals}{value}" if is_option else value


def _is_bare_list(parser: ArgumentParser, option: str, value: str) -> bool:
    lists, others = _takes(getattr(parser._option_string_actions.get(option), "_typehint", None))
    return lists and ("," in value or not others) and not set(value) & set("[]{}")


def _takes(kind: Any) -> tuple[bool, bool]:
    """Whether a type of an option has lists, and whether it has anything else; a string may have commas of its own."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    lists = [member for member in kinds if get_origin(member) in (list, tuple, Sequence, Iterable)]
    return bool(lists) and str not in kinds, len(kinds) > len(lists)


def _parsed(parser: ArgumentParser, flags: list[str], first: argparse.ArgumentParser) -> Any:
    try:
        return parser.parse_args(flags)
    except argparse.ArgumentError as error:
        message = str(error)
        if "nrecognized arguments" not in message:
            raise
        known = [name for each in (parser, first) for name in each._option_string_actions if name.startswith("--")]
        unknown = [flag.partition("=")[0] for flag in message.split() if flag.startswith("--")]
        near = [name for flag in unknown for name in difflib.get_close_matches(flag, known, 1)]
        hint = f"; did you mean {' and '.join(dict.fromkeys(near))}?" if near else ""
        raise argparse.ArgumentError(None, f"{message}{hint}") from None


def _first_pass(command: Command) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"initopt {command.name}", add_help=False, allow_abbrev=False, exit_on_error=False
    )
    _add_choices(command, parser)
    _add_general(command, parser)
    return parser


def _add_choices(command: Command, parser: argparse.ArgumentParser) -> None:
    if command.choices:
        group = parser.add_argument_group("what to work on")
        for name, text in command.choices.items():
            group.add_argument(f"--{name}", metavar=_METAVARS[name], help=text)


def _add_general(command: Command, parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("general")
    group.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        help="a YAML file of options; what the command line says overrides it",
    )
    group.add_argument("--print_config", action="store_true", help="print all options as YAML, and do no more")
    if command.recipes is not None:
        group.add_argument(
            "--recipe",
            metavar="NAME|FILE",
            help="a whole comparison: one that comes with initopt (digits, for one), or a YAML file",
        )
        group.add_argument(
            "--scale", metavar="NAME", help="a variant of the --recipe: small, which is done in minutes without a GPU"
        )
        group.add_argument("--list_recipes", action="store_true", help="print the names for --recipe, and do no more")
    if command.choices or command.recipes is not None:
        bar = group.add_mutually_exclusive_group()
        bar.add_argument("--progress", action="store_true", help="show a progress bar even if this is no terminal")
        bar.add_argument("--quiet", action="store_true", help="show no progress bar even if this is a terminal")
    group.add_argument("--debug", action="store_true", help="show the traceback of every error, as INITOPT_DEBUG=1 does")
    group.add_argument("-h", "--help", action="store_true", help="show this text, with the arguments of what was chosen")


def _recipes(command: Command, flags: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    name, scale = getattr(flags, "recipe", None), getattr(flags, "scale", None)
    if name is None:
        if scale is not None:
            raise ValueError(f"--scale {scale} is of a --recipe, and there is none")
        return []
    known = command.recipes or {}
    if name not in known and not Path(name).is_file():
        near = difflib.get_close_matches(name, known, 3) or list(known)[:1]
        raise ValueError(
            f"--recipe {name}: there is no such file; by name there are {', '.join(near)} and others, see --list_recipes"
        )
    return [(f"--recipe {name}", read_recipe(Path(known.get(name, name)), scale))]


def _list(command: Command) -> str:
    lines = []
    for name, path in (command.recipes or {}).items():
        text, scales = describe_recipe(path)
        lines.append("  ".join([f"{name:30}", text, *(f"(--scale {scale})" for scale in scales)]))
    return "\n".join(lines)


def _empty_parser(command: Command) -> ArgumentParser:
    return ArgumentParser(
        prog=f"initopt {command.name}",
        usage=command.usage,
        description=command.description,
        epilog=command.examples,
        formatter_class=HelpFormatter,
        exit_on_error=False,
        add_help=False,
        allow_abbrev=False,
        print_config=None,
        # The --recipe of files replaces that of jsonargparse, which would set the group recipe.* from a file.
        conflict_handler="error" if command.recipes is None else "resolve",
    )


def _names(flags: Iterable[str]) -> list[str]:
    """The names of the options among flags."""
    return [flag.removeprefix("--").partition("=")[0] for flag in flags if flag.startswith("--")]


def _add_second_pass(
    command: Command, parser: ArgumentParser, method: str, components: dict[str, Component], given: Iterable[str]
) -> None:
    for option, component in components.items():
        own = [name.removeprefix(f"{option}.") for name in given if name.startswith(f"{option}.")]
        component.add_arguments(parser, dict.fromkeys(own))
    command.add_options(parser, method)


def _progress(flags: argparse.Namespace) -> bool | None:
    if getattr(flags, "progress", False):
        return True
    return False if getattr(flags, "quiet", False) else None


def _refuse_unknown(config: Config, parser: ArgumentParser, command: Command) -> None:
    known = list(parser.get_defaults().keys())
    for name in config.options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{config.origins.get(name, '--config')}: initopt {command.name} has no option {name!r}{hint}")


def _as_flags(config: Config) -> list[str]:
    # null leaves an option at its default; for one that takes a string, it would be the string "null".
    return [f"--{name}={_as_text(value)}" for name, value in config.options.items() if value is not None]


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"))
    return text.removesuffix("...\n").strip()


def _as_config(command: Command, method: str, components: dict[str, Component], options: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name in command.choices:
        if name == "method":
            shown[name] = method
        elif name in components:
            arguments = options.pop(name, None)
            path = components[name].path
            shown[name] = {"class_path": path, "init_args": arguments} if arguments else path
        else:
            shown[name] = None
    return shown | options


_ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")
_LITERAL = re.compile(r"``(.+?)``", re.DOTALL)


def as_text(docstring: str) -> str:
    """A docstring without its markup.

    >>> as_text('``"exact"`` or a name in :data:`initopt.engines.ENGINES`')
    '"exact" or a name in initopt.engines.ENGINES'
    """
    return _LITERAL.sub(r"\1", _ROLE.sub(r"\1", docstring))


class HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Says what each option means and its default, in the words of the docstring."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)  # type: ignore[no-untyped-call]

    def add_argument(self, action: argparse.Action) -> None:
        # Options such as --objective.help are for picking classes, which none of ours are about.
        if not any(name.endswith(".help") for name in action.option_strings):
            super().add_argument(action)

    def _get_help_string(self, action: argparse.Action) -> str:
        if getattr(action, "_jsonargparse_preexpanded_help", False):
            return action.help or ""  # jsonargparse asks a second time for what has no help of its own
        text = as_text(action.help or "")
        has_default = action.nargs != 0 and action.default is not None and action.default != argparse.SUPPRESS
        return f"{text} (default: %(default)s)".lstrip() if has_default else text

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        if isinstance(action.default, int):
            return "N"
        return "X" if isinstance(action.default, float) else action.dest.rpartition(".")[2].upper()


_UNION = re.compile(
    r"Does not validate against any of the Union subtypes.*?Errors:\n(.*)\n\s*Given value type: .*\n\s*Given value: (.*)",
    re.DOTALL,
)
_REQUIRED = re.compile(r"(the following arguments are required: )(.*)")
_WORDINGS = (
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
    message = _UNION.sub(_without_union, message)
    message = _REQUIRED.sub(lambda match: match[1] + ", ".join(f"--{name}" for name in match[2].split(", ")), message)
    for pattern, replacement in _WORDINGS:
        message = re.sub(pattern, replacement, message)
    return message


def _without_union(match: re.Match[str]) -> str:
    """The one alternative that was meant: all unions here are of a type and None."""
    reasons = [line.strip().removeprefix("- ") for line in match[1].splitlines() if "NoneType'>" not in line[-12:]]
    return f"{'; '.join(reasons)}. Got value: {match[2]}"
