"""Part (d): CIFAR-10 from three starts, several runs at a time on one device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, cycle
from pathlib import Path

from cifar_training import NETWORKS, STARTS, Recipe, Setting, time_steps, train_once
from tables import markdown
from tasks import Plan, Result, Task, Tell

__all__ = ["ARMS", "Arm", "cifar_plan", "cifar_table", "epochs_that_fit"]

SEEDS, WISHED, LEAST = 5, 10, 4
"""Seeds, and the most and the least epochs."""


@dataclass(frozen=True)
class Arm:
    """A network and how it is trained."""

    network: str
    recipe: Recipe

    @property
    def title(self) -> str:
        """For tables, and for the names of runs."""
        warmup = ", warm-up" if self.recipe.warmup else ""
        return f"{self.network}, lr {self.recipe.lr:g}{warmup}"


ARMS = (
    Arm("VGG-16, no norm", Recipe("sgd", 0.1, clip=1.0)),
    Arm("ResNet-56, no norm", Recipe("sgd", 0.1, clip=1.0)),
    Arm("ViT, 9 blocks, 192 wide", Recipe("adamw", 1e-3)),
    Arm("ViT, 9 blocks, 192 wide", Recipe("adamw", 1e-3, warmup=0.1)),
    Arm("ResNet-56, batch norm", Recipe("sgd", 0.1)),
    Arm("ViT, 9 blocks, 192 wide", Recipe("adamw", 3e-3)),
    Arm("ViT, 9 blocks, 192 wide", Recipe("adamw", 3e-3, warmup=0.1)),
)
"""In the order in which a seed does them. Networks without norm are clipped, as in the paper and in GradInit's."""

_AGAIN = (ARMS[4], "nio", 0)
"""The run that is done a second time, start and all: whether it comes out the same beside other runs."""

_LOOK = 1.1
"""Time of an epoch with a look at the test images, in that of its steps."""

_START = {"own": 30, "lsuv": 60, "nio": 730}
"""What a start costs, in training steps: measured before and after on 5 batches each at 3 steps; NIO's 100 steps of 4.4
training steps, in float32, which takes 1.6 times as long as bfloat16."""

_TIMED = 4.0
"""Seconds for which steps are counted."""

_EFFICIENCY = 0.9
"""Share of the time that is planned with: at its end not all workers have something to do."""

_FEW = 3
"""So many runs at a time keep the device busy; with fewer, each is no faster."""


def cifar_plan(
    setting: Setting,
    samples: Mapping[str, int],
    cache: Path,
    workers: int,
    deadline: float,
    later: float,
    seeds: int = SEEDS,
    warm_up: float = 14.0,
) -> Plan:
    """Times, then the number of epochs, then all runs, seed by seed.

    Args:
        setting: of all runs.
        samples: how many each part of the data has.
        cache: a folder for starts.
        workers: how many runs there are at a time.
        deadline: of ``time.monotonic()``.
        later: seconds that a later call will have.
        seeds: how many.
        warm_up: seconds from now on until steps are timed: all processes start meanwhile.
    """
    steps_per_epoch = samples["train"] // setting.batch_size
    begin = time.time() + warm_up

    def plan(results: Mapping[str, Result]) -> list[Task]:
        timings = _timings(setting, workers, begin, warm_up + _TIMED)
        if not all(task.name in results for task in timings):
            return timings
        step_seconds = _step_seconds(results)
        if "epochs" not in results:
            seconds = deadline - time.monotonic() + later
            arguments = {"step_seconds": step_seconds, "steps_per_epoch": steps_per_epoch, "seconds": seconds}
            return [Task("epochs", settle, {**arguments, "workers": workers, "seeds": seeds})]
        return list(_runs(setting, cache, workers, seeds, steps_per_epoch, step_seconds, results))

    return plan


def _timings(setting: Setting, workers: int, begin: float, alone: float) -> list[Task]:
    """As many as there are workers, so that steps are timed with as many beside them as there will be."""
    first = [next(arm for arm in ARMS if arm.network == network) for network in NETWORKS]
    tasks = []
    for number, arm in zip(range(max(workers, len(first))), chain(first, cycle(ARMS)), strict=False):
        arguments = {"network": arm.network, "recipe": arm.recipe, "setting": setting, "begin": begin, "seconds": _TIMED}
        tasks.append(Task(f"timing {number + 1}", time_steps, arguments, alone=alone))
    return tasks


def _step_seconds(results: Mapping[str, Result]) -> dict[str, float]:
    """Seconds of a step of each network that could be timed."""
    found: dict[str, list[float]] = {}
    for result in results.values():
        if "step_seconds" in result:
            found.setdefault(result["network"], []).append(result["step_seconds"])
    return {network: statistics.fmean(values) for network, values in found.items()}


def settle(
    step_seconds: Mapping[str, float], steps_per_epoch: int, seconds: float, workers: int, seeds: int, tell: Tell
) -> Result:
    """The number of epochs for which there is time; a task, so that it is stored, and later calls go on with it."""
    epochs = epochs_that_fit(step_seconds, steps_per_epoch, seconds, workers, seeds)
    return {"epochs": epochs, "workers": workers, "seconds": seconds}


def epochs_that_fit(
    step_seconds: Mapping[str, float], steps_per_epoch: int, seconds: float, workers: int, seeds: int = SEEDS
) -> int:
    """The most epochs for which all seeds come to their end, but at least 4 and at most 10.

    >>> times = {arm.network: 0.02 for arm in ARMS}
    >>> epochs_that_fit(times, 156, seconds=400, workers=14)
    10
    >>> epochs_that_fit(times, 156, seconds=250, workers=14)
    7
    """
    networks = [arm.network for arm in ARMS if arm.network in step_seconds]
    available = _EFFICIENCY * seconds * workers / seeds  # seconds of workers, for a seed
    starts = sum(step_seconds[network] for network in set(networks)) * sum(_START.values())
    epoch = sum(step_seconds[network] for network in networks) * len(STARTS) * steps_per_epoch * _LOOK
    return max(LEAST, min(WISHED, int((available - starts) / epoch))) if epoch else LEAST


def _runs(
    setting: Setting,
    cache: Path,
    workers: int,
    seeds: int,
    steps_per_epoch: int,
    step_seconds: Mapping[str, float],
    results: Mapping[str, Result],
) -> Iterator[Task]:
    epochs = results["epochs"]["epochs"]
    for seed in range(seeds):
        begun: dict[tuple[str, str], str] = {}
        for arm in ARMS:
            for start in STARTS:
                if arm.network not in step_seconds:
                    continue
                name = f"{arm.title}, {start}, seed {seed}"
                first = begun.setdefault((arm.network, start), name)
                if first == name or first in results:  # another recipe waits for the start
                    cost = 0 if first != name else _START[start]
                    yield _run(name, arm, start, seed, epochs, setting, cache, workers, cost, steps_per_epoch, step_seconds)
        arm, start, again = _AGAIN
        if seed == again and arm.network in step_seconds:
            name = f"{arm.title}, {start}, seed {seed}, again"
            yield _run(name, arm, start, seed, epochs, setting, None, workers, _START[start], steps_per_epoch, step_seconds)


def _run(
    name: str,
    arm: Arm,
    start: str,
    seed: int,
    epochs: int,
    setting: Setting,
    cache: Path | None,
    workers: int,
    start_steps: int,
    steps_per_epoch: int,
    step_seconds: Mapping[str, float],
) -> Task:
    share = (start_steps + _LOOK * epochs * steps_per_epoch) * step_seconds[arm.network] / workers
    arguments = {"network": arm.network, "recipe": arm.recipe, "start": start, "seed": seed, "epochs": epochs}
    return Task(
        name, train_once, {**arguments, "setting": setting, "cache": cache}, alone=share * min(_FEW, workers), share=share
    )


def cifar_table(results: Mapping[str, Result]) -> str:
    """Test accuracy of each start, and how far from that of the own start it is, seed by seed."""
    runs = [result for name, result in results.items() if "curve" in result and not name.endswith("again")]
    rows = []
    for arm in ARMS:
        of_arm = [run for run in runs if (run["network"], run["lr"], run["warmup"]) ==
                  (arm.network, arm.recipe.lr, arm.recipe.warmup)]  # fmt: skip
        own = {run["seed"]: _accuracy(run, -1) for run in of_arm if run["start"] == "own"}
        for start in STARTS:
            these = {run["seed"]: run for run in of_arm if run["start"] == start}
            if not these:
                continue
            end = {seed: _accuracy(run, -1) for seed, run in these.items()}
            apart = [value - own[seed] for seed, value in end.items() if seed in own]
            diverged = sum(run["diverged"] for run in these.values())
            rows.append(
                [
                    arm.title,
                    start,
                    _spread([_accuracy(run, 1) for run in these.values()]),
                    _spread(list(end.values())),
                    "" if start == "own" or not apart else _spread(apart, "+"),
                    f"{len(these)}{f' ({diverged} diverged)' if diverged else ''}",
                    f"{statistics.fmean(run['start_seconds'] for run in these.values()):.1f}",
                    " → ".join(_cosine(these, when) for when in ("before", "after")),
                ]
            )
    head = [
        "network, rate",
        "start",
        "after an epoch, %",
        "in the end, %",
        "apart from own",
        "seeds",
        "start, s",
        "GradCosine",
    ]
    return "\n\n".join(filter(None, [_settled(results), markdown(head, rows), _again(results)]))


def _accuracy(run: Result, epoch: int) -> float:
    return 100 * run["curve"][min(epoch, len(run["curve"]) - 1)][3]


def _spread(values: list[float], sign: str = "") -> str:
    """Mean and standard deviation.

    >>> _spread([1.0, 3.0]), _spread([1.0], "+")
    ('2.0 ± 1.4', '+1.0')
    """
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.1f}{spread}"


def _cosine(runs: Mapping[int, Result], when: str) -> str:
    values = [run[when]["grad_cosine"] for run in runs.values() if run[when] is not None]
    return f"{statistics.fmean(values):.3f}" if values else "-"


def _settled(results: Mapping[str, Result]) -> str:
    found = results.get("epochs", {})
    if "epochs" not in found:
        return ""
    times = ", ".join(f"{network} {1000 * seconds:.1f} ms" for network, seconds in _step_seconds(results).items())
    return f"{found['epochs']} epochs, {found['workers']} runs at a time. A training step beside the others: {times}."


def _again(results: Mapping[str, Result]) -> str:
    arm, start, seed = _AGAIN
    name = f"{arm.title}, {start}, seed {seed}"
    pair = [results.get(name, {}).get("fingerprint"), results.get(f"{name}, again", {}).get("fingerprint")]
    if None in pair:
        return ""
    return f"{name}, done twice beside other runs: the same to the last bit: {'yes' if pair[0] == pair[1] else 'no'}."
