"""Part (b): a NIO step by every engine beside the published way, on networks of ImageNet size."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace

import torch
from cases import Case
from contenders import PUBLISHED, TRAINING, contender, model_and_batch
from memory import accelerator_memory
from results import memory_of
from tables import markdown, time_cell
from tasks import Plan, Result, Task, Tell
from timing import take_turns

__all__ = ["engines_plan", "engines_table", "time_engines"]

_REPETITIONS, _ENOUGH = 3, 0.3

_RUNS = 2 + _REPETITIONS + 1
"""How often a contender runs: twice to warm up, its turns, and once for its memory."""

_STEPS = 31
"""What all contenders take together, in training steps: themselves 1, ours 2.5 to 5, the published way 13."""

_BESIDE = 8.0
"""Seconds for the network and its weights, and for choosing kernels."""

_TRAINING_STEP = {
    ("resnet50-bn", "float32", False): 0.07,
    ("resnet50-bn", "float32", True): 0.06,
    ("resnet50-bn", "bf16", False): 0.045,
    ("resnet50-bn", "bf16", True): 0.03,
    ("vit-b-16", "float32", False): 0.15,
    ("vit-b-16", "bf16", False): 0.04,
}
"""Seconds on an H100 for 64 images of 224 x 224 pixels, as reckoned."""

_WORTH = (
    Case("resnet50-bn", precision="bf16", channels_last=True),
    Case("resnet50-bn"),
    Case("vit-b-16", precision="bf16"),
    Case("vit-b-16"),
    Case("resnet50-bn", precision="bf16"),
    Case("resnet50-bn", channels_last=True),
)
"""The most telling first."""

_DRY = tuple(
    replace(case, network={"resnet50-bn": "tiny-resnet-bn", "vit-b-16": "tiny-vit"}[case.network], batch_size=8)
    for case in _WORTH
)


def engines_plan(device: str, dry: bool) -> Plan:
    """A task for each network and precision."""

    def plan(results: Mapping[str, Result]) -> list[Task]:
        return [
            Task(case.key, time_engines, {"case": case, "device": device}, alone=_reckoned(case))
            for case in (_DRY if dry else _WORTH)
        ]

    return plan


def _reckoned(case: Case) -> float:
    return _BESIDE + _RUNS * _STEPS * _TRAINING_STEP.get((case.network, case.precision, case.channels_last), 0.0)


def time_engines(case: Case, device: str, tell: Tell) -> Result:
    """Time and peak memory of all contenders; batch norms on the statistics of the sub-batch, and of the batch.

    The published way has the statistics of the batch, and so has the engine ``coupled``.
    """
    model, data = model_and_batch(case, device)
    whole = replace(case, batch_norm="batch")
    engines = ["graph", "recompute", "differences"]
    if case.precision == "float32" and not case.network.endswith("-bn"):
        engines.append(
            "groups"
        )  # of which it is known that it takes no autocast; with batch norm it is for many sub-batches
    contenders = {TRAINING: contender(TRAINING, case, model, data)}
    contenders |= {name: contender(name, case, model, data) for name in engines}
    contenders |= {name: contender(name, whole, model, data) for name in ("coupled", PUBLISHED)}
    found = take_turns(contenders, device, _REPETITIONS, _ENOUGH)
    for name, its in found.items():
        if device != "cpu" and "skipped" not in its:
            its["memory"] = accelerator_memory(contenders[name])
    tf32 = {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32}
    about = {"network": case.network, "precision": case.precision, "channels_last": case.channels_last, "tf32": tf32}
    return {**about, "batch_size": case.batch_size, "num_subbatches": case.num_subbatches, "contenders": found}


def engines_table(results: Mapping[str, Result]) -> str:
    """Milliseconds, ratios to a training step, and memory."""
    rows = []
    for name, case in results.items():
        if "failed" in case:
            continue
        unit = case["contenders"][TRAINING].get("seconds")
        for contender_name, its in case["contenders"].items():
            milliseconds = f"{1000 * statistics.median(its['seconds']):.1f}" if its.get("seconds") else "-"
            memory = memory_of(its)
            size = "-" if memory is None else f"{memory / 1000:.2f}"
            why = its.get("skipped", its.get("memory", {}).get("skipped", ""))
            rows.append([name, contender_name, milliseconds, time_cell(its, unit), size, why])
    return markdown(["case", "step", "ms", "training steps", "peak, GB", "left out"], rows)
