"""YAML files of options."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from initopt.reading import read_text

__all__ = ["Config", "as_yaml", "merge_configs", "path_and_arguments", "read_options", "write_yaml"]

_MOST = 2**20
"""The most bytes of a file of options."""

_MOST_VALUES, _DEEPEST = 100_000, 50


@dataclass
class Config:
    """Options from files.

    Attributes:
        chosen: the import path of each component that a file chose, and the method.
        options: every other option by its name on the command line; arguments of a component are ``"model.ARG"``.
        origins: the file that each option is from.
    """

    chosen: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def choose(self, option: str, path: str) -> None:
        """Choose a component; arguments that were for another one are dropped."""
        if self.chosen.get(option, path) != path:
            self.options = {name: value for name, value in self.options.items() if not name.startswith(f"{option}.")}
        self.chosen[option] = path


def merge_configs(files: Iterable[tuple[str, Mapping[str, Any]]], choices: Collection[str]) -> Config:
    """Options from files, of which a later one overrides the earlier ones.

    A component is its import path, or ``{class_path: PATH, init_args: {ARG: VALUE}}``.

    Args:
        files: the option and name of each, as ``"--config FILE"``, and what it holds.
        choices: the options that choose a component, and ``"method"`` if the command has methods.

    Raises:
        ValueError: if a component is not of this form; the message names the file.
    """
    config = Config()
    for name, held in files:
        values = dict(held)
        for option in (choice for choice in choices if choice != "method"):
            value = values.pop(option, None)
            if value is None:
                continue
            path, arguments = path_and_arguments(value, f"{name}: {option}")
            config.choose(option, path)
            given = {f"{option}.{argument}": value for argument, value in arguments.items()}
            config.options |= given
            config.origins |= dict.fromkeys(given, name)
        if "method" in choices and "method" in values:
            config.chosen["method"] = str(values.pop("method"))
        recipe = values.pop("recipe", None)
        if isinstance(recipe, dict):  # a group of options, of which a later file or the command line may change one
            values |= {f"recipe.{field}": value for field, value in recipe.items()}
        config.options |= values
        config.origins |= dict.fromkeys(values, name)
    return config


def path_and_arguments(value: Any, called: str) -> tuple[str, dict[str, Any]]:
    """The import path of a component in a file, and its arguments.

    Raises:
        ValueError: if it is of another form.
    """
    if isinstance(value, str):
        return value, {}
    if isinstance(value, dict) and value.keys() <= {"class_path", "init_args"}:
        path, arguments = value.get("class_path"), value.get("init_args") or {}
        if isinstance(path, str) and isinstance(arguments, dict) and all(isinstance(name, str) for name in arguments):
            return path, arguments
    raise ValueError(f"{called} must be an import path, or {{class_path: PATH, init_args: {{ARG: VALUE}}}}; got {value!r}")


def as_yaml(options: Mapping[str, Any]) -> str:
    """Options as a YAML file holds them."""
    return str(yaml.safe_dump(dict(options), sort_keys=False))


def write_yaml(path: Path, options: Mapping[str, Any]) -> None:
    """Write a file that :func:`read_options` reads."""
    path.write_text(as_yaml(options), encoding="utf-8")


def read_options(path: Path, option: str = "--config") -> dict[str, Any]:
    """What a YAML file of options holds.

    Args:
        path: of the file.
        option: that names it, for messages.

    Raises:
        ValueError: if it is not there, or is no mapping; the message names it.
    """
    try:
        values = _bounded_yaml(read_text(path, _MOST))
    except OSError as error:
        raise ValueError(f"{option} {path}: {error.strerror}") from None
    except RecursionError:
        raise ValueError(f"{option} {path} is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{option} {path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{option} {path} must hold options, a line each, as in 'steps: 100'; got {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


def _bounded_yaml(text: str) -> Any:
    """What YAML says, refused if aliases, which are a few bytes each, make more of it than a file could hold."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _nodes(node, {}, frozenset())
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _nodes(node: yaml.Node, counted: dict[int, int], above: frozenset[int]) -> int:
    """How many values there are in a node, an alias counted as often as it stands there.

    Raises:
        ValueError: if these are too many, or a node is in itself.
        RecursionError: if they are nested too deeply.
    """
    if id(node) in above:
        raise ValueError("an alias stands within what it is an alias of")
    if len(above) > _DEEPEST:
        raise RecursionError
    if id(node) not in counted:
        items = node.value if isinstance(node, yaml.CollectionNode) else []
        below = [part for item in items for part in (item if isinstance(item, tuple) else (item,))]
        counted[id(node)] = 1 + sum(_nodes(part, counted, above | {id(node)}) for part in below)
        if isinstance(node, yaml.ScalarNode) and "&" in node.value:  # an option may be YAML in a string
            counted[id(node)] += _nodes_in(node.value)
    if counted[id(node)] > _MOST_VALUES:
        raise ValueError(f"its aliases stand for more than {_MOST_VALUES:,} values")
    return counted[id(node)]


def _nodes_in(text: str) -> int:
    try:
        inner = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError:
        return 0
    return 0 if inner is None else _nodes(inner, {}, frozenset())
