"""YAML files of options."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

__all__ = ["Config", "as_yaml", "merge_configs", "read_options", "write_yaml"]


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
            if isinstance(value, str):
                value = {"class_path": value}
            if not isinstance(value, dict) or "class_path" not in value or not value.keys() <= {"class_path", "init_args"}:
                raise ValueError(
                    f"{name}: {option} must be an import path, or {{class_path: PATH, init_args: {{ARG: VALUE}}}}; "
                    f"got {value!r}"
                )
            config.choose(option, value["class_path"])
            arguments = value.get("init_args") or {}
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
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{option} {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{option} {path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{option} {path} must hold options, a line each, as in 'steps: 100'; got {type(values).__name__}")
    return {str(key): value for key, value in values.items()}
