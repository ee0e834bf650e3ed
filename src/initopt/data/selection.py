"""Which samples of a data set each part gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from initopt.checks import check_integer

__all__ = ["PARTS", "Sizes", "select", "stratified_order", "test_split"]

PARTS = ("train", "validation", "test")

_SEED = 20221006
"""Of every split that is drawn here, so that the parts are the same for everybody."""

_MOST_HELD_BACK = 10_000


@dataclass(frozen=True)
class Sizes:
    """How many samples each part is to have; ``None`` for the default."""

    train: int | None
    validation: int | None
    test: int | None

    def __post_init__(self) -> None:
        for part, minimum in (("train", 1), ("validation", 0), ("test", 1)):
            if getattr(self, part) is not None:
                check_integer(f"{part}_samples", getattr(self, part), minimum)


def test_split(splits: Mapping[str, object]) -> str | None:
    """Which of the splits of a data set is for testing: the validation split, if there is no other.

    >>> test_split({"train": 0, "validation": 0}), test_split({"train": 0})
    ('validation', None)
    """
    return next((name for name in ("test", "validation") if name in splits), None)


def select(labels: Mapping[str, np.ndarray], sizes: Sizes, name: str) -> dict[str, tuple[str, np.ndarray]]:
    """Choose the samples of each part.

    A part without a split of its own is split off the training split: a tenth of it, at most 10,000, and for test at least
    one. All classes are represented in proportion. What is chosen for validation and test does not depend on the size of
    the training part, and a larger training part contains a smaller one.

    Args:
        labels: of each split that there is, shape ``(N,)``.
        sizes: of the parts.
        name: of the data set, for messages.

    Returns:
        For each part the split that it is from, and the indices there, shape ``(n,)``, ascending; no validation part if it
        is to have no samples.

    Raises:
        ValueError: if there are too few samples.
    """
    test = test_split(labels)
    origins = {"test": test, "validation": "validation" if "validation" in labels and test != "validation" else None}
    orders = {split: stratified_order(values) for split, values in labels.items() if split in PARTS}
    found: dict[str, tuple[str, np.ndarray]] = {}
    taken, total = 0, len(orders["train"])
    for part, origin in origins.items():
        wanted = getattr(sizes, part)
        if origin is not None:
            available = len(orders[origin])
            if not available and part == "test":
                raise ValueError(f"the split {origin!r} of {name} is for testing, and has no samples; fill or remove it")
            if wanted is not None and wanted > available:
                raise ValueError(f"{part}_samples must be at most {available}, which is what {name} has; got {wanted}")
            found[part] = (origin, np.sort(orders[origin][:wanted]))
        else:
            least = 1 if part == "test" else 0  # nothing need be chosen, but a result is measured
            count = max(min(total // 10, _MOST_HELD_BACK), least) if wanted is None else wanted
            found[part] = ("train", np.sort(orders["train"][taken : taken + count]))
            taken += count
    left = total - taken
    if left < 1 or (sizes.train is not None and sizes.train > left):
        wanted = f"fewer than train_samples={sizes.train}" if sizes.train is not None else "and nothing to train on"
        raise ValueError(
            f"the training split of {name} has {total} samples, of which {taken} go to validation and test: that leaves "
            f"{max(left, 0)}, {wanted}; lower train_samples, validation_samples or test_samples, or give more samples"
        )
    rest = orders["train"][taken:]
    found["train"] = ("train", np.sort(rest[: sizes.train]))
    return {part: found[part] for part in PARTS if len(found[part][1])}


def stratified_order(labels: np.ndarray) -> np.ndarray:
    """An order of which every beginning has the classes in proportion, and which is random otherwise.

    >>> labels = np.array([0, 0, 0, 0, 1, 1])
    >>> np.bincount(labels[stratified_order(labels)[:3]]).tolist()
    [2, 1]
    """
    order = np.random.default_rng(_SEED).permutation(len(labels))
    shuffled = labels[order]
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(shuffled == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    found: np.ndarray = order[np.argsort(place, kind="stable")]
    return found
