"""What the user brings, by import path: a model, data and a loss."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, get_type_hints

from jsonargparse import ArgumentParser

from initopt._support.current_folder import hidden_by
from initopt.data import SOURCES, Splits
from initopt.zoo.library_models import LIBRARIES, check_library_model, library_model

__all__ = ["Component", "find_component", "import_path"]

_MODELS = ("model", "models", "against")
_HOMES = {**dict.fromkeys(_MODELS, "initopt.zoo"), "loss": "torch.nn.modules"}
_EXAMPLES = {**dict.fromkeys(_MODELS, "Net"), "data": "batches", "loss": "loss"}


@dataclass(frozen=True)
class Component:
    """A class or function that the user chose for an option, and from which the object itself is made.

    Attributes:
        option: ``"model"``, ``"models"``, ``"against"``, ``"data"`` or ``"loss"``.
        path: its import path, or short name, as the user gave it.
        target: what was found there.
        as_batches: whether data in three parts are to be made into the batches of one of them.
    """

    option: str
    path: str
    target: Callable[..., Any]
    as_batches: bool = False

    def add_arguments(self, parser: ArgumentParser, given: Iterable[str] = ()) -> None:
        """Add ``--OPTION.init_args.ARG`` for each of its arguments; a loss function has none, and is not called.

        Args:
            parser: to which they are added.
            given: the names of those that are there; a network of a library takes what the library knows, and has no list.
        """
        title, prefix = f"arguments of --{self.option} {self.path}", f"{self.option}.init_args"
        if isinstance(self.target, partial):
            group = parser.add_argument_group(title, f"those that the library has for it, as --{self.option}.ARG VALUE")
            for name in given:
                group.add_argument(f"--{prefix}.{name}", type=Any)
            return
        group = parser.add_argument_group(title)
        if inspect.isclass(self.target):
            group.add_class_arguments(self.target, prefix, as_group=False, instantiate=False, fail_untyped=False)
        elif self.option != "loss":
            group.add_function_arguments(self.target, prefix, as_group=False, fail_untyped=False)
        if self._makes_batches:
            group.add_method_arguments(Splits, "batches", prefix, as_group=False)

    def maker(self, arguments: Mapping[str, Any]) -> partial[Any]:
        """The function that makes the object: the class or function of the user with its arguments.

        Raises:
            ValueError: if a required argument is missing; one without a type passes the parser, which has None for it.
        """
        for name, parameter in inspect.signature(self.target).parameters.items():
            if parameter.annotation is parameter.default is parameter.empty and arguments.get(name, ...) is None:
                how = f"{{class_path: {self.path}, init_args: {{{name}: VALUE}}}}" if self.option == "models" else ""
                raise ValueError(f"--{self.option} {self.path} needs {how or f'--{self.option}.{name}'}")
        return partial(self.target, **arguments)

    def make(self, arguments: Mapping[str, Any]) -> Any:
        """Make the object.

        Raises:
            ValueError: as :meth:`maker`.
        """
        if self.option == "loss" and not inspect.isclass(self.target):
            return self.target
        known = inspect.signature(Splits.batches).parameters if self._makes_batches else {}
        made = self.maker({name: value for name, value in arguments.items() if name not in known})()
        return made.batches(**{name: arguments[name] for name in known if name in arguments}) if known else made

    @property
    def _makes_batches(self) -> bool:
        """Whether these are data in three parts, by what their function says that it returns, and batches are wanted."""
        try:
            returned = get_type_hints(self.target).get("return") if self.as_batches else None
        except Exception:  # annotations of the user's may name what is not there
            return False
        return inspect.isclass(returned) and issubclass(returned, Splits)


def find_component(option: str, path: str, *, as_batches: bool = True) -> Component:
    """The component at an import path or with a short name.

    Args:
        option: what it is for.
        path: the import path or name.
        as_batches: whether data are batches; else they are in three parts.

    Raises:
        ValueError, ImportError: if there is none; the message says what was looked for, and where.
    """
    if ":" in path and option in _MODELS:
        check_library_model(path)
        return Component(option, path, partial(library_model, path))
    if "." not in path:
        if option == "data":
            known: dict[str, Any] = dict(SOURCES)
        else:
            home = importlib.import_module(_HOMES[option])
            known = {name: getattr(home, name) for name in home.__all__ if name != library_model.__name__}
        if path in known:
            return Component(option, path, known[path], as_batches)
        few = f"a short name ({', '.join(known)}) or " if 0 < len(known) <= 20 else ""
        few += f"{', '.join(f'{library}:NAME' for library in LIBRARIES)} or " if option in _MODELS else ""
        raise ValueError(f"--{option} takes {few}an import path such as my_net.{_EXAMPLES[option]}; got {path!r}")
    target = import_path(option, path)
    if not (inspect.isclass(target) or inspect.isroutine(target)):
        raise ValueError(f"--{option} {path}: this is an instance of {type(target).__name__}; give a class or a function")
    return Component(option, path, target, as_batches)


def import_path(option: str, path: str) -> Any:
    """The object at a dotted path.

    An exception that a module of the user raises while it is imported is not touched.

    Raises:
        ImportError: if there is no such module, or nothing of that name in it.
    """
    parts = path.split(".")
    if not all(part.isidentifier() for part in parts):
        raise ImportError(
            f"--{option} {path}: not an import path; it is names with dots between them, as in package.module.Name"
        )
    for cut in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, and misses another one
            continue
        for place, part in enumerate(parts[cut:], start=cut):
            if not hasattr(found, part):
                hint = hidden_by(parts[0], sys.modules[parts[0]])
                raise ImportError(f"--{option} {path}: {_missing(part, found, '.'.join(parts[:place]))}{hint}")
            found = getattr(found, part)
        return found
    near = difflib.get_close_matches(parts[0], [module.name for module in pkgutil.iter_modules()], 1, 0.75)
    raise ImportError(
        f"--{option} {path}: there is no module {parts[0]!r} in the current folder or among the installed packages"
        + (f"; did you mean {near[0]!r}?" if near else "")
    )


def _missing(part: str, owner: Any, owner_path: str) -> str:
    names = [name for name in dir(owner) if not name.startswith("_")]
    near = difflib.get_close_matches(part, names, 1)
    where = f" ({owner.__file__})" if getattr(owner, "__file__", None) else ""
    return f"{owner_path}{where} has no {part!r}" + (f"; did you mean {near[0]!r}?" if near else "")
