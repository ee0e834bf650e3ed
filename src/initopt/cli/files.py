"""YAML files: options, and whole experiments, read within bounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from initopt._support.reading import read_text
from initopt.recipes import RECIPES

__all__ = ["as_yaml", "bounded_yaml", "describe_experiment", "path_and_arguments", "read_experiment", "read_options"]

_MOST = 2**20
"""The most bytes of a file of options."""

_MOST_VALUES, _DEEPEST = 100_000, 50


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


def read_options(path: Path, option: str = "--config") -> dict[str, Any]:
    """Read the options in a YAML file.

    Args:
        path: of the file.
        option: that names it, for messages.

    Raises:
        ValueError: if it is not there, or is no mapping; the message names it.
    """
    try:
        values = bounded_yaml(read_text(path, _MOST))
    except OSError as error:
        raise ValueError(f"{option} {path}: {error.strerror}") from None
    except RecursionError:
        raise ValueError(f"{option} {path} is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{option} {path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{option} {path} must hold options, a line each, as in 'steps: 100'; got {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


def bounded_yaml(text: str) -> Any:
    """The value of a YAML text; refused if aliases, of a few bytes each, make more of it than a file could hold.

    Raises:
        ValueError, RecursionError: in that case, and if it is nested too deeply.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _size(node, {}, frozenset())
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _size(node: yaml.Node, sizes: dict[int, int], above: frozenset[int]) -> int:
    """How many values there are in a node, an alias counted as often as it stands there."""
    if id(node) in above:
        raise ValueError("an alias stands within what it is an alias of")
    if len(above) > _DEEPEST:
        raise RecursionError
    if id(node) not in sizes:
        items = node.value if isinstance(node, yaml.CollectionNode) else []
        below = [part for item in items for part in (item if isinstance(item, tuple) else (item,))]
        sizes[id(node)] = 1 + sum(_size(part, sizes, above | {id(node)}) for part in below)
    if sizes[id(node)] > _MOST_VALUES:
        raise ValueError(f"its aliases stand for more than {_MOST_VALUES:,} values")
    return sizes[id(node)]


def read_experiment(path: Path, scale: str | None = None) -> dict[str, Any]:
    """The options that a file holds.

    Beside options, it may have three keys: ``base``, an experiment by name, or a file beside it, whose content it changes;
    ``scales``, further changes by name, for ``--scale NAME``; and ``description``, what it is. A change replaces an option
    whole, but for the fields of the recipe and the arguments of the data, which it replaces one by one.

    Args:
        path: of the file.
        scale: the name of the changes to make.

    Raises:
        ValueError: if a file is not there or not of this form, or the scale is unknown.
    """
    values = _with_base(path, ())
    values.pop("description", None)
    scales = values.pop("scales", {})
    if scale is None:
        return values
    if scale not in scales:
        known = f"it has {', '.join(scales)}" if scales else "it has none"
        raise ValueError(f"--scale {scale}: --experiment {path} has no such scale; {known}")
    return _changed(values, scales[scale])


def describe_experiment(path: Path) -> tuple[str, tuple[str, ...]]:
    """The description in the file of an experiment, and the names of its scales."""
    values = _with_base(path, ())
    return str(values.get("description", "")), tuple(values.get("scales", {}))


def _with_base(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in [other.resolve() for other in above]:
        raise ValueError(f"--experiment {above[0]}: {path} is its own base")
    values = read_options(path, "--experiment")
    for name in ("recipe", "scales"):
        if not isinstance(values.get(name, {}), Mapping):
            raise ValueError(f"--experiment {path}: {name} must be a mapping; got {values[name]!r}")
    for name, changes in values.get("scales", {}).items():
        if not isinstance(changes, Mapping):
            raise ValueError(f"--experiment {path}: scale {name} must be a mapping of options; got {changes!r}")
    base = values.pop("base", None)
    if base is None:
        return values
    below = path.parent / str(base)
    if not below.is_file():
        below = RECIPES.get(str(base), below)
    if not below.is_file():
        raise ValueError(
            f"--experiment {path}: its base {base} is neither a file beside it nor an experiment (see --list_experiments)"
        )
    return _changed(_with_base(below, (*above, path)), values)


def _changed(below: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    made = {**below, **changes}
    if "recipe" in below and "recipe" in changes:
        made["recipe"] = {**below["recipe"], **changes["recipe"]}
    if "data" in below and "data" in changes:
        made["data"] = _changed_data(_in_full(below["data"]), _in_full(changes["data"]))
    if "scales" in below and "scales" in changes:
        old, new = below["scales"], changes["scales"]
        made["scales"] = {name: _changed(old.get(name, {}), new.get(name, {})) for name in {**old, **new}}
    return made


def _changed_data(below: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {**(below.get("init_args") or {}), **(changes.get("init_args") or {})}
    return {**below, **changes, **({"init_args": arguments} if arguments else {})}


def _in_full(data: Any) -> Mapping[str, Any]:
    return data if isinstance(data, Mapping) else {"class_path": data}
