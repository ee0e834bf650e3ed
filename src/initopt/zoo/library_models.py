"""The networks of timm, torchvision and transformers, by name."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from torch import nn

__all__ = ["LIBRARIES", "check_library_model", "library_model"]

LIBRARIES = ("timm", "torchvision", "transformers")
"""The libraries whose networks go by ``LIBRARY:NAME``."""

_INSTALL = {
    "timm": "pip install 'initopt[timm]'",
    "torchvision": "pip install torchvision",
    "transformers": "pip install 'initopt[transformers]'",
}
_BUILDS = (
    "torchvision fits one version and build of torch, so that pip may bring another torch with it (with CUDA, some 5.5 GB)"
)
_EXAMPLES = {
    "timm": "timm:resnet50",
    "torchvision": "torchvision:resnet50",
    "transformers": "transformers:ViTForImageClassification",
}


def library_model(name: str, /, **arguments: Any) -> nn.Module:
    """A network of timm, torchvision or transformers, with the weights that the library draws for it.

    Nothing is downloaded, and no weights are pretrained, unless the arguments ask for that.

    Args:
        name: ``"timm:NAME"`` for what ``timm.create_model`` knows, ``"torchvision:NAME"`` for what
            ``torchvision.models.get_model`` knows, ``"transformers:CLASS"`` for a class of models, such as
            ``"transformers:GPT2LMHeadModel"``.
        **arguments: of the library's function, such as ``num_classes``; for transformers, fields of the class's
            configuration, such as ``num_labels``. A class such as ``AutoModelForCausalLM`` needs ``config`` beside them:
            the name of a configuration on the Hugging Face hub, or a folder that has one.

    Returns:
        The network. That of transformers takes a dict batch and returns the ``.loss``, or takes inputs and returns
        ``.logits``; both are what a loss of ``None`` works with.

    Raises:
        ImportError: if the library is missing or broken; the message says what to install.
        ValueError: if the name or an argument is unknown; the message has names that are near.
        OSError: if a configuration cannot be had.

    To compare one, ``functools.partial`` makes a factory of it, which workers can be sent:

    >>> from functools import partial
    >>> factory = partial(library_model, "timm:resnet50", num_classes=10)
    >>> models = {"ResNet-50": factory}  # for initopt.compare
    """
    library, own_name = _parts(name)
    build = _builder(library, own_name)
    try:
        return build(**arguments)
    except TypeError as error:  # what the libraries raise for arguments that they do not know
        raise ValueError(f"{name} refuses the arguments {arguments}: {error}") from error


def check_library_model(name: str) -> None:
    """Refuse a name that stands for no network, without making one.

    Raises:
        ImportError, ValueError: as :func:`library_model`.
    """
    _builder(*_parts(name))


def _parts(name: str) -> tuple[str, str]:
    library, colon, own_name = name.partition(":")
    if library not in LIBRARIES or not colon or not own_name:
        known = ", ".join(f"{library}:NAME" for library in LIBRARIES)
        near = [] if library in LIBRARIES else difflib.get_close_matches(library, LIBRARIES, 1)
        hint = f"; did you mean {near[0]}:{own_name or 'NAME'}?" if near else ""
        raise ValueError(f"a network of a library is one of {known}; got {name!r}{hint}")
    return library, own_name


def _builder(library: str, name: str) -> Callable[..., nn.Module]:
    module = _imported(library, name)
    return {"timm": _of_timm, "torchvision": _of_torchvision, "transformers": _of_transformers}[library](module, name)


def _imported(library: str, name: str) -> ModuleType:
    what = f"{library}:{name}"
    hint = _INSTALL[library] + ("" if library == "transformers" else f"; {_BUILDS}")
    if find_spec(library) is None:
        raise ImportError(f"{what} needs {library}: {hint}")
    try:
        return importlib.import_module(f"{library}.models" if library == "torchvision" else library)
    except (ImportError, RuntimeError) as error:  # torchvision beside another build of torch raises either
        raise ImportError(f"{what}: {library} is installed, but cannot be imported ({error}); try {hint}") from error


def _of_timm(timm: ModuleType, name: str) -> Callable[..., nn.Module]:
    if not timm.is_model(name):
        raise ValueError(_unknown("timm", name, timm.list_models()))
    return functools.partial(timm.create_model, name)


def _of_torchvision(models: ModuleType, name: str) -> Callable[..., nn.Module]:
    known = models.list_models()
    if name not in known:
        raise ValueError(_unknown("torchvision", name, known))
    # Some builders, those of detectors for one, have pretrained parts by default.
    parameters = inspect.signature(models.get_model_builder(name)).parameters
    own_draw = {option: None for option in ("weights", "weights_backbone") if option in parameters}
    return functools.partial(models.get_model, name, **own_draw)


def _of_transformers(transformers: ModuleType, name: str) -> Callable[..., nn.Module]:
    kind = getattr(transformers, name, None)
    if getattr(kind, "config_class", None) is not None:
        return functools.partial(_configured, kind)
    if name.startswith("AutoModel") and hasattr(kind, "from_config"):
        return functools.partial(_of_hub, transformers.AutoConfig, kind)
    classes = [other for other in dir(transformers) if "For" in other or other.endswith("Model")]
    raise ValueError(_unknown("transformers", name, classes))


def _configured(kind: Any, **fields: Any) -> nn.Module:
    config = kind.config_class
    _check_fields(config.__name__, config(), fields)
    model: nn.Module = kind(config(**fields))
    return model


def _of_hub(configs: Any, kind: Any, *, config: str | None = None, **fields: Any) -> nn.Module:
    if config is None:
        raise ValueError(
            f"transformers:{kind.__name__} needs the argument config: the name of a configuration on the Hugging Face hub, "
            "or a folder that has a config.json"
        )
    try:
        found = configs.from_pretrained(config)
    except OSError as error:
        raise OSError(
            f"transformers:{kind.__name__}: the configuration {config!r} is not to be had ({error}); offline, give "
            "a folder that has its config.json, or a class such as transformers:GPT2LMHeadModel and the fields of its "
            "configuration"
        ) from error
    _check_fields(type(found).__name__, found, fields)
    for field, value in fields.items():
        setattr(found, field, value)
    model: nn.Module = kind.from_config(found)
    return model


def _check_fields(name: str, config: Any, fields: Iterable[str]) -> None:
    """Refuse fields that a configuration does not have: transformers itself would keep them and not use them."""
    for field in fields:
        if not hasattr(config, field):
            near = difflib.get_close_matches(field, [known for known in dir(config) if not known.startswith("_")], 3)
            hint = f"; near are {', '.join(near)}" if near else ""
            raise ValueError(f"{name} has no field {field!r}{hint}")


def _unknown(library: str, name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 5)
    hint = f"near are {', '.join(near)}" if near else f"an example is {_EXAMPLES[library]}"
    return f"{library} has no network {name!r}; {hint}"
