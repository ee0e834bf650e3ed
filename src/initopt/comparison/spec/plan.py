"""All that a comparison consists of, checked before any work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from initopt._support.checks import check_integer
from initopt._support.files import plain
from initopt.comparison.spec.hardware import Hardware
from initopt.comparison.spec.initialization import Initialization, as_initialization
from initopt.comparison.spec.network import Network, as_network, described
from initopt.comparison.spec.recipe import Recipe
from initopt.comparison.spec.splits import load_splits, sizes_and_fingerprint
from initopt.comparison.storage.job import Job
from initopt.data import Splits
from initopt.model.losses import LossFunction, as_loss

__all__ = ["Plan"]

_OF_INITIALIZATIONS = (
    "optimizer",
    "optimizer_options",
    "lr",
    "schedule",
    "warmup_steps",
    "clip_grad_norm",
    "label_smoothing",
)
"""Fields of the recipe that an initialization may change: the others say which batches there are and who looks when."""

_TOP = 2**32


@dataclass(frozen=True)
class Plan:
    """Networks x initializations x seeds, and how each is trained.

    Attributes:
        networks: by name.
        initializations: by name.
        data: ``"digits"``, an object with the parts, or a factory of one.
        loss_fn: the user's loss.
        recipe: of all runs, but for what networks and initializations change.
        seeds: of the final runs.
        selection_seeds: of the runs that choose learning rates.
        hardware: where.
    """

    networks: Mapping[str, Network]
    initializations: Mapping[str, Initialization]
    data: Any
    loss_fn: LossFunction | None
    recipe: Recipe
    seeds: tuple[int, ...]
    selection_seeds: tuple[int, ...]
    hardware: Hardware

    @classmethod
    def create(
        cls,
        models: Any,
        data: Any,
        initializations: Any,
        *,
        loss_fn: LossFunction | None,
        recipe: Recipe | Mapping[str, Any] | None,
        seeds: int | Iterable[int],
        selection_seeds: int | Iterable[int],
        hardware: Hardware,
    ) -> Plan:
        """Check everything that can be checked without making a model.

        Raises:
            ValueError, TypeError: the message says what was given, and what is allowed.
        """
        as_loss(loss_fn)
        plan = cls(
            networks=_networks(models),
            initializations=_initializations(initializations),
            data=data,
            loss_fn=loss_fn,
            recipe=recipe if isinstance(recipe, Recipe) else Recipe().changed(recipe or {}),
            seeds=_seeds("seeds", seeds, 0),
            selection_seeds=_seeds("selection_seeds", selection_seeds, 1000),
            hardware=hardware,
        )
        plan._check_recipes()
        return plan

    def recipe_of(self, network: str, initialization: str) -> Recipe:
        """The recipe of a network from an initialization."""
        ours = self.recipe.changed(self.networks[network].recipe, f"the recipe of network {network!r}")
        changes = self.initializations[initialization].recipe
        return ours.changed(changes, f"the recipe of initialization {initialization!r}")

    def _check_recipes(self) -> None:
        for name, network in self.networks.items():
            if "precision" in network.recipe:
                raise ValueError(f"the recipe of network {name!r} has a precision; it is the same for all networks")
        for name, initialization in self.initializations.items():
            for option in initialization.recipe:
                if option in {known.name for known in fields(Recipe)} - set(_OF_INITIALIZATIONS):
                    raise ValueError(
                        f"the recipe of initialization {name!r} changes {option}, which has to be the same for all "
                        f"initializations, or they could not be compared; it may change {', '.join(_OF_INITIALIZATIONS)}"
                    )
        pairs = [(network, initialization) for network in self.networks for initialization in self.initializations]
        recipes = [self.recipe_of(*pair) for pair in pairs]
        for option in ("label_smoothing", "mixup"):
            if self.loss_fn is not None and any(getattr(recipe, option) for recipe in recipes):
                raise ValueError(f"{option} is of the built-in cross-entropy; with a loss_fn, put it into that")
        if any(len(recipe.lrs) > 1 for recipe in recipes):
            both = sorted(set(self.seeds) & set(self.selection_seeds))
            if both:
                raise ValueError(
                    f"seeds and selection_seeds share {both}; learning rates are chosen on seeds of their own, so that the "
                    "final runs are news"
                )

    def load_data(self) -> Splits:
        """The parts of the data.

        Raises:
            ValueError, TypeError: if something is missing, or is too small for the batches.
        """
        splits = load_splits(self.data)
        if splits.validation is None and any(job.purpose == "selection" for job in self.selection_jobs()):
            raise ValueError(
                "there are several learning rates to choose from, but data has no validation split; give it one (the test "
                "split is not for choosing), or a single lr"
            )
        for name in self.networks:
            recipe = self.recipe_of(name, next(iter(self.initializations)))
            count = len(splits.train)  # type: ignore[arg-type]
            needed = recipe.measure_batches + 1
            if count < needed * recipe.batch_size:
                raise ValueError(
                    f"the training set has {count} samples, which is less than {needed} batches of {recipe.batch_size}: "
                    f"{recipe.measure_batches} to measure on and one for the initialization; lower batch_size or "
                    "measure_batches"
                )
            left = (count // recipe.batch_size - recipe.measure_batches) * recipe.batch_size
            for initialization in self.initializations.values():
                if initialization.batch_size is not None and left < initialization.batch_size:
                    raise ValueError(
                        f"initialization {initialization.name!r} has a batch_size of {initialization.batch_size}, and "
                        f"network {name!r} leaves it {left} samples of the training set; lower that, or measure_batches"
                    )
        return splits

    def selection_jobs(self) -> list[Job]:
        """The runs that choose learning rates, where there are several to choose from."""
        return [
            Job(network, initialization, seed, "selection", lr)
            for network in self.networks
            for initialization in self.initializations
            for lrs in (self.recipe_of(network, initialization).lrs,)
            if len(lrs) > 1
            for seed in self.selection_seeds
            for lr in lrs
        ]

    def specification(self, splits: Splits, device: str) -> dict[str, Any]:
        """Everything that results depend on, as JSON has it; two comparisons are the same if this is."""
        found: dict[str, Any] = plain(
            {
                "recipe": _describe_recipe(self.recipe),
                "networks": {
                    name: {"model": described(network.factory), "recipe": network.recipe}
                    for name, network in self.networks.items()
                },
                "initializations": {name: value.describe() for name, value in self.initializations.items()},
                "seeds": self.seeds,
                "selection_seeds": self.selection_seeds if self.selection_jobs() else None,
                "data": {"source": described(self.data)} | sizes_and_fingerprint(splits),
                "loss": None if self.loss_fn is None else described(self.loss_fn),
                "hardware": {
                    "device": device,
                    "devices": self.hardware.devices,
                    "strategy": self.hardware.strategy,
                    "threads": self.hardware.threads,
                },
            }
        )
        return found


def _describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe, but for those that are off and that earlier versions did not have: their folders go on."""
    found = {option.name: getattr(recipe, option.name) for option in fields(recipe)}
    return {name: value for name, value in found.items() if name != "mixup" or value}


def _networks(models: Any) -> dict[str, Network]:
    if not isinstance(models, Mapping):
        raise TypeError(
            "models must be a dict from names to factories, such as {'mlp': functools.partial(Net, depth=10)}; got "
            f"{type(models).__name__}"
        )
    if not models:
        raise ValueError("models is empty; give at least one network")
    return {_checked_name("network", name): as_network(name, value) for name, value in models.items()}


def _initializations(values: Any) -> dict[str, Initialization]:
    if isinstance(values, (str, Mapping)) or not isinstance(values, Iterable):
        raise TypeError(f"initializations must be a list, such as ['default', 'nio']; got {values!r}")
    found: dict[str, Initialization] = {}
    for value in values:
        initialization = as_initialization(value)
        name = _checked_name("initialization", initialization.name)
        if name in found:
            raise ValueError(f"two initializations are called {name!r}; give one of them another name")
        found[name] = initialization
    if not found:
        raise ValueError("initializations is empty; give at least one, such as 'default'")
    return found


def _checked_name(kind: str, name: Any) -> str:
    """A name that can be that of a folder."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"the name of a {kind} must be a string of some length; got {name!r}")
    bad = sorted({character for character in name if character in '/\\:*?"<>|' or not character.isprintable()})
    if bad or name.startswith(".") or len(name.encode()) > 100:
        what = (
            f"it has {', '.join(map(repr, bad))}" if bad else "it begins with a dot" if name[0] == "." else "it is too long"
        )
        raise ValueError(f"{kind} {name!r}: a folder gets this name, and {what}; choose another one")
    return name


def _seeds(option: str, value: Any, first: int) -> tuple[int, ...]:
    if isinstance(value, int) and not isinstance(value, bool):
        return tuple(range(first, first + check_integer(option, value, 1)))
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"{option} must be a number of seeds or a list of seeds; got {value!r}")
    found = tuple(check_integer(option, seed, 0) for seed in value)
    if not found:
        raise ValueError(f"{option} is empty; give at least one seed")
    if len(set(found)) < len(found):
        raise ValueError(f"{option} has a seed twice: {list(found)}")
    if max(found) >= _TOP:
        raise ValueError(f"{option} must be below 2**32; got {max(found)}")
    return found
