"""Files that hold a whole comparison, for ``--recipe``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from initopt.cli.config import read_options
from initopt.comparison.recipes import RECIPES

__all__ = ["describe_recipe", "read_recipe"]


def read_recipe(path: Path, scale: str | None = None) -> dict[str, Any]:
    """The options that a file holds.

    Beside options, it may have three keys: ``base``, a recipe by name, or a file beside it, whose content it changes;
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
        raise ValueError(f"--scale {scale}: --recipe {path} has no such scale; {known}")
    return _changed(values, scales[scale])


def describe_recipe(path: Path) -> tuple[str, tuple[str, ...]]:
    """What a file says that it is, and the names of its scales."""
    values = _with_base(path, ())
    return str(values.get("description", "")), tuple(values.get("scales", {}))


def _with_base(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in [other.resolve() for other in above]:
        raise ValueError(f"--recipe {above[0]}: {path} is its own base")
    values = read_options(path, "--recipe")
    for name in ("recipe", "scales"):
        if not isinstance(values.get(name, {}), Mapping):
            raise ValueError(f"--recipe {path}: {name} must be a mapping; got {values[name]!r}")
    for name, changes in values.get("scales", {}).items():
        if not isinstance(changes, Mapping):
            raise ValueError(f"--recipe {path}: scale {name} must be a mapping of options; got {changes!r}")
    base = values.pop("base", None)
    if base is None:
        return values
    below = path.parent / str(base)
    if not below.is_file():
        below = RECIPES.get(str(base), below)
    if not below.is_file():
        raise ValueError(f"--recipe {path}: its base {base} is neither a file beside it nor a recipe (see --list_recipes)")
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
