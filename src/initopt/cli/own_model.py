"""What every command on a user's own model has: its options, and the model, data and loss that they make."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser
from torch import nn

from initopt._support.checks import check_integer
from initopt.cli.commands.base import Request
from initopt.data import SOURCES
from initopt.model.losses import LossFunction

__all__ = ["OWN_MODEL", "add_common_options", "make_model", "make_problem"]

OWN_MODEL = {
    "model": "class of your network, or a function that returns it, by import path, as in my_net.Net; the current folder "
    "is searched, too. Or the name of a network in initopt.zoo, or timm:NAME, torchvision:NAME, transformers:CLASS. Its "
    "arguments are --model.ARG VALUE",
    "data": "function or class whose result is an iterable of batches (a DataLoader, say), by import path; or the "
    f"name of a data set in initopt.data ({', '.join(SOURCES)}). Its arguments are --data.ARG VALUE (of data sets also "
    "--data.batch_size, --data.subset, --data.seed and --data.loaders)",
    "loss": "a criterion class, such as torch.nn.MSELoss, with its arguments as --loss.ARG VALUE; or a function of "
    "(model, batch) that returns the loss. Not given: cross-entropy of (inputs, integer targets), or the .loss that the "
    "model returns for a dict",
}
"""The components that such a command takes, with their help."""


def add_common_options(parser: ArgumentParser) -> None:
    """Add ``--device``, ``--threads`` and ``--seed``."""
    parser.add_argument_group("where and how").add_function_arguments(_prepare, as_group=False)


def _prepare(device: str = "auto", threads: int | None = None, seed: int = 0) -> torch.device:
    """Find the device, and set threads and random states.

    Args:
        device: cpu, cuda, cuda:1 and so on, or auto: CUDA where it is available
        threads: processor threads for PyTorch; its own choice, if not given
        seed: seeds PyTorch, NumPy and Python before the model is made, and again before the data are

    Raises:
        ValueError: for what cannot be; the message says what can.
    """
    found = _find_device(device)
    if threads is not None:
        torch.set_num_threads(check_integer("--threads", threads, 1))
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed must be in [0, 2**32); got {seed}")
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    return found


def make_problem(request: Request) -> tuple[nn.Module, Iterable[Any], LossFunction | None]:
    """The model on its device, the batches and the loss.

    Raises:
        ValueError, TypeError: if something is missing or is not what it has to be.
    """
    _refuse_missing(request, "model", "data")
    model = make_model(request)
    device = _prepare(**_surroundings(request))  # again: the order of the data does not depend on how much the model drew
    loss: LossFunction | None = request.make("loss")
    if isinstance(loss, nn.Module):
        loss.to(device)
    return model, request.make("data"), loss


def make_model(request: Request, option: str = "model") -> nn.Module:
    """The model of an option on its device.

    Raises:
        ValueError, TypeError: if it is missing or is not what it has to be.
    """
    _refuse_missing(request, option)
    device = _prepare(**_surroundings(request))
    model = request.make(option)
    if not isinstance(model, nn.Module):
        path = request.components[option].path
        raise TypeError(f"--{option} {path} gave {type(model).__name__}; it must give an nn.Module")
    return model.to(device)


def _refuse_missing(request: Request, *options: str) -> None:
    for option in options:
        if option not in request.components:
            raise ValueError(f"--{option} is missing: {OWN_MODEL[option]}")


def _surroundings(request: Request) -> dict[str, Any]:
    return {name: request.options[name] for name in ("device", "threads", "seed")}


def _find_device(name: str) -> torch.device:
    """The device of a name; a ValueError, with those that there are, if there is no such device."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    available = ["cpu", *(["cuda"] if count else []), *(f"cuda:{number}" for number in range(count))]
    if name not in available:
        built = "" if torch.version.cuda else "; this PyTorch was built without CUDA"
        raise ValueError(
            f"--device {name} is not available; available: {', '.join(available)}{built}. "
            "Try --device auto, which takes CUDA where there is one"
        )
    return torch.device(name)
