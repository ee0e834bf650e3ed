"""An initialization of a comparison: what is done to a model's own start, and what its recipe has of its own."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, TypeAlias

from torch import nn

from initopt._support.checks import check_integer
from initopt._support.files import plain
from initopt._support.words import did_you_mean, meant, unknown
from initopt.comparison.spec.network import described
from initopt.methods import METHODS, Method, create_method, method_names, presets
from initopt.model.losses import LossFunction
from initopt.model.parameters import ParameterFilter, as_predicate
from initopt.schemes import NAMES, Scheme, create_scheme

__all__ = [
    "DEFAULT",
    "Custom",
    "Drawing",
    "Function",
    "Initialization",
    "Step",
    "as_initialization",
    "known_initializations",
]

DEFAULT = "default"
"""The model's own start."""

Function: TypeAlias = Callable[[nn.Module, Iterable[Any], LossFunction | None], object]
"""Changes a model in place, given batches that can be iterated over again, and the loss function as the user gave it."""


@dataclass(frozen=True)
class Drawing:
    """A step that gives a model weights by a scheme: the scheme, what it is known by, and which parameters may change."""

    scheme: Scheme
    identity: Mapping[str, Any]
    params: ParameterFilter | None = None

    @property
    def name(self) -> str:
        """Name of the scheme."""
        return self.scheme.name


@dataclass(frozen=True)
class Custom:
    """A step of the user's own: the function, and what it is known by in a stored comparison."""

    function: Function
    identity: Any


Step: TypeAlias = Drawing | Method | Custom
"""One thing that is done to a model."""


@dataclass(frozen=True)
class Initialization:
    """What is done to a model before its first training step.

    The model's own start is drawn first, from the seed. Then the scheme, if there is one, draws weights anew; then the
    method, if there is one, improves them. In the place of a method there can be a function of one's own, or a list of
    schemes, methods and functions, which work one after the other.

    Args:
        scheme: a name in ``initopt.schemes.NAMES``, a :class:`initopt.schemes.Scheme` with its options, or ``None`` for the
            model's own start.
        method: a name in :func:`initopt.methods.method_names`; a :class:`initopt.methods.Method` with its options; a
            function ``(model, batches, loss_fn) -> None`` that changes the model in place; or a list of these, of names of
            schemes, of schemes, and of dicts ``{"method": ..., "options": ...}`` or
            ``{"scheme": ..., "scheme_options": ...}``.
        options: of a method that is given by its name.
        preset: a name in :data:`initopt.presets.PRESETS`, whose options the method has unless ``options`` say otherwise.
        batch_size: samples in a batch that methods, functions, and schemes that need one see; as in training, by default.
        scheme_options: of a scheme that is given by its name; and ``params``, which parameters it may change.
        recipe: changes to the recipe for this initialization, by field, such as ``{"warmup_steps": 100}``.
        name: how it is called; by default after its parts, or ``"default"``. A function is known again by its import path;
            one that has none (a lambda, one that is defined in another function) is known by this name, and needs it.

    Raises:
        ValueError, TypeError: for an unknown name, an option that the method does not have or that cannot work, or a
            function that cannot be called like that.

    >>> Initialization(method="nio").name
    'nio'
    >>> from initopt.methods import NIO
    >>> Initialization(method=["orthogonal", NIO(steps=50)]).name
    'orthogonal + nio'
    >>> Initialization(recipe={"warmup_steps": 100}, name="default, warm-up").steps
    ()
    """

    scheme: str | Scheme | None = None
    method: str | Method | Function | Sequence[Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    scheme_options: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    preset: str | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.scheme == DEFAULT:
            object.__setattr__(self, "scheme", None)
        if isinstance(self.scheme, str) and self.scheme not in NAMES:
            raise ValueError(_unknown("scheme", self.scheme, NAMES))
        if isinstance(self.method, str) and self.method not in method_names():
            raise ValueError(_unknown("method", self.method, method_names()))
        for option in ("options", "scheme_options", "recipe"):
            value = getattr(self, option)
            if not isinstance(value, Mapping):
                raise TypeError(f"{option} of initialization {self._called!r} must be a dict; got {value!r}")
            object.__setattr__(self, option, dict(value))
        for option, part in (("options", "method"), ("scheme_options", "scheme")):
            if getattr(self, option) and getattr(self, part) is None:
                raise ValueError(f"initialization {self._called!r} has {option}, but no {part}")
        sees_batches = self.method is not None or (self.scheme is not None and self._drawing().scheme.needs_batch)
        if (self.method is None and self.preset is not None) or (not sees_batches and self.batch_size is not None):
            raise ValueError(f"initialization {self._called!r} has a preset or a batch_size, but no method")
        if self.batch_size is not None:
            check_integer(f"batch_size of initialization {self._called!r}", self.batch_size, 1)
        _ = self.steps
        object.__setattr__(self, "name", self._called)

    @property
    def _called(self) -> str:
        parts = [] if self.scheme is None else [_name(self.scheme)]
        if isinstance(self.method, (list, tuple)):
            parts += [part.name for part in self._parts]
        elif self.method is not None:
            parts.append(_name(self.method))
        return self.name or " + ".join(parts) or DEFAULT

    @property
    def _parts(self) -> list[Initialization]:
        """The items of a list, each as an initialization by itself."""
        assert isinstance(self.method, (list, tuple))
        return [as_initialization(part) for part in self.method]

    @functools.cached_property  # a name is looked up among what is installed, which takes a while
    def steps(self) -> tuple[Step, ...]:
        """The steps, one after the other; none for the model's own start."""
        scheme: tuple[Step, ...] = () if self.scheme is None else (self._drawing(),)
        if self.method is None:
            return scheme
        if not isinstance(self.method, str) and (self.options or self.preset is not None):
            raise TypeError(
                f"initialization {self._called!r} has options or a preset, which are for a method by its name; give them "
                "to the method itself, bind them with functools.partial, or give each part of a list its own"
            )
        if isinstance(self.method, (list, tuple)):
            return scheme + self._steps_of_parts()
        if isinstance(self.method, (str, Method, type)):
            return (*scheme, self._method())
        return (*scheme, self._custom())

    def _steps_of_parts(self) -> tuple[Step, ...]:
        parts = self._parts
        if not parts:
            raise ValueError(f"initialization {self._called!r} is an empty list; give at least one part, or 'default'")
        for number, part in enumerate(parts):
            if part.recipe or part.batch_size is not None:
                raise ValueError(
                    f"part {part.name!r} of initialization {self._called!r} has a recipe or a batch_size, which are those "
                    "of all its parts; give it {'method': [...], 'recipe': ..., 'batch_size': ...}"
                )
            if number and not part.steps:
                raise ValueError(
                    f"part {part.name!r} of initialization {self._called!r} is the model's own start, which can come first "
                    "only"
                )
        return tuple(step for part in parts for step in part.steps)

    def _drawing(self) -> Drawing:
        options = {name: value for name, value in self.scheme_options.items() if name != "params"}
        params = self.scheme_options.get("params")
        try:
            scheme = create_scheme(self.scheme, options)
            if params is not None:
                as_predicate(params, "params")
        except (TypeError, ValueError) as error:
            raise type(error)(f"initialization {self._called!r}: {error}") from None
        given = scheme.options() if isinstance(self.scheme, Scheme) else {}
        return Drawing(scheme, {"scheme": scheme.name, "options": {**given, **self.scheme_options}}, params)

    def _method(self) -> Method:
        try:
            chosen = {} if self.preset is None else presets.get(self.preset)
            return create_method(self.method, chosen | dict(self.options))
        except (TypeError, ValueError) as error:
            raise type(error)(f"initialization {self._called!r}: {error}") from None

    def _custom(self) -> Custom:
        function: Any = self.method
        if not callable(function):
            raise TypeError(
                "the method of an initialization is a name, a Method, a function (model, batches, loss_fn) -> None, or a "
                f"list of these; got {function!r}"
            )
        try:
            inspect.signature(function).bind("model", "batches", "loss_fn")
        except TypeError as error:
            raise TypeError(
                f"initialization {self._called!r} is called with (model, batches, loss_fn), but {error}"
            ) from None
        except ValueError:  # a built-in function without a signature
            pass
        identity = _identity(function)
        if identity is None and not self.name:
            raise ValueError(
                f"initialization {_name(function)!r} cannot be known again by an import path ({function!r}): it is "
                "a lambda, defined in another function, or part of an object. Define it at the top level of a module and "
                "bind arguments with functools.partial, or say what it is called: {'name': 'my start', 'method': ...}"
            )
        return Custom(function, {"name": self.name} if identity is None else identity)

    def describe(self) -> dict[str, Any]:
        """Everything that the results of the initialization depend on, as JSON has it."""
        size = {} if self.batch_size is None else {"batch_size": self.batch_size}
        found: dict[str, Any] = plain({"steps": [_described(step) for step in self.steps], "recipe": self.recipe} | size)
        return found


def known_initializations() -> list[str]:
    """All names that stand for an initialization by themselves."""
    return list(dict.fromkeys([DEFAULT, *NAMES, *method_names()]))


def as_initialization(value: Any) -> Initialization:
    """Make an :class:`Initialization` of what the user gave as one.

    Args:
        value: a name, a scheme, a method, a function, a list of these, a dict of arguments, or an initialization.

    Raises:
        ValueError, TypeError: if it is none of that.

    >>> as_initialization({"method": "nio", "options": {"steps": 50}, "name": "short NIO"}).options
    {'steps': 50}
    >>> [step.name for step in as_initialization(["kaiming_normal", "lsuv"]).steps]
    ['kaiming_normal', 'lsuv']
    """
    if isinstance(value, Initialization):
        return value
    if isinstance(value, str):
        if value not in known_initializations():
            raise ValueError(_unknown("initialization", value, known_initializations()))
        return Initialization(scheme=value) if value in NAMES else Initialization(method=value)
    if isinstance(value, Scheme) or (isinstance(value, type) and issubclass(value, Scheme)):
        return Initialization(scheme=value)  # type: ignore[arg-type]  # a class is refused there
    if isinstance(value, Mapping):
        known = [option.name for option in dataclasses.fields(Initialization)]
        for option in value:
            if option not in known:
                raise ValueError(f"an initialization has no {option!r}{did_you_mean(str(option), known)}")
        return Initialization(**value)
    if not isinstance(value, (Method, list, tuple)) and not callable(value):
        raise TypeError(
            "an initialization is a name, a dict such as {'method': 'nio', 'options': {'steps': 50}}, a Scheme, a Method, "
            f"a function (model, batches, loss_fn) -> None, a list of these, or an Initialization; got {value!r}"
        )
    return Initialization(method=value)


def _unknown(kind: str, value: Any, known: Sequence[str]) -> str:
    return unknown(kind, value, known) + meant(str(value), known)


def _name(method: Any) -> str:
    """What a method, scheme or function is called by default."""
    if isinstance(method, functools.partial):
        return _name(method.func)
    named = isinstance(method, (Method, Scheme))
    found = method if isinstance(method, str) else getattr(method, "name" if named else "__name__", None)
    return str(found or type(method).__name__)


def _identity(function: Any) -> Any | None:
    """What a function is known by: its import path, with bound arguments; ``None`` if that does not say which one it is."""
    if isinstance(function, functools.partial):
        parts = [part for part in (function.func, *function.args, *function.keywords.values()) if callable(part)]
        return described(function) if all(_identity(part) is not None for part in parts) else None
    if dataclasses.is_dataclass(function) and not isinstance(function, type):
        arguments = {option.name: getattr(function, option.name) for option in dataclasses.fields(function)}
        return {"class_path": plain(type(function)), "init_args": plain(arguments)}
    belongs_to = getattr(function, "__self__", None)
    if "<" in getattr(function, "__qualname__", "<") or not isinstance(belongs_to, (type, ModuleType, type(None))):
        return None
    return plain(function)


def _described(step: Step) -> dict[str, Any]:
    if isinstance(step, Drawing):
        return dict(step.identity)
    if isinstance(step, Custom):
        return {"function": step.identity}
    options = {option.name: getattr(step, option.name) for option in dataclasses.fields(step)}
    path = {} if METHODS.get(step.name) is type(step) else {"class_path": plain(type(step))}
    return {"method": step.name, **path, "options": options}
