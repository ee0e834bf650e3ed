"""Comparisons as they might have come out, without training: for the tests of the report, and to look at it."""

import dataclasses
import math
import random

from initopt.comparison import Comparison
from initopt.comparison.storage.record import CurvePoint, RunRecord

VERSIONS = {"initopt": "0.1.0", "torch": "2.13.0", "python": "3.11.2"}
STEPS_PER_EPOCH = 17

# name: (final accuracy, epochs until it learned two thirds, GradCosine, gradient norm, seconds of the initialization)
STARTS = {
    "default": (0.940, 4.0, 0.12, 0.2, 0.0),
    "default + warm-up": (0.945, 4.4, 0.12, 0.2, 0.0),
    "xavier_normal": (0.958, 1.6, 0.25, 1.9, 0.002),
    "xavier_uniform": (0.957, 1.6, 0.24, 1.8, 0.002),
    "kaiming_normal": (0.952, 2.0, 0.22, 1.4, 0.002),
    "kaiming_uniform": (0.938, 2.4, 0.2, 1.2, 0.002),
    "orthogonal": (0.956, 1.4, 0.3, 2.2, 0.01),
    "trunc_normal": (0.62, 9.0, 0.08, 0.02, 0.002),
    "lsuv": (0.955, 1.8, 0.27, 2.0, 0.09),
    "gradinit": (0.961, 1.3, 0.34, 3.1, 3.4),
    "metainit": (0.943, 2.8, 0.2, 1.0, 7.9),
    "nio": (0.969, 1.1, 0.52, 4.6, 1.6),
}


def run(network="plain", initialization="default", seed=0, *, epochs=20, lr=0.05, purpose="final", noise=0.006, **changes):
    """A run of a made-up network, the same each time; ``changes`` are fields of the record."""
    final, pace, cosine, norm, seconds = STARTS.get(initialization, STARTS["default"])
    # The seed's own luck, which all initializations share, and that of the run.
    shared = random.Random(f"{network} {seed} {purpose}").gauss(0, noise)
    own = random.Random(f"{network} {initialization} {seed} {lr} {purpose}")
    shift = {"plain": 0.0, "batch norm": 0.012, "ViT": -0.05}.get(network, 0.0)
    narrow = 0.25 if network == "batch norm" else 1.0  # where initializations hardly matter
    end = 0.955 + shift + narrow * (final - 0.955) + shared + own.gauss(0, noise)
    end -= 0.4 * math.log10(lr / 0.05) ** 2
    subsets = ("train", "validation") if purpose == "selection" else ("train", "test")
    points = []
    for epoch in range(epochs + 1):
        learned = 1 - math.exp(-epoch / (pace * narrow + 1 - narrow))
        accuracy = 0.1 + max(end - 0.1, 0) * learned
        for subset in subsets:
            wobble = own.gauss(0, noise) * learned
            loss = 2.303 * (1 - accuracy) / 0.9 * (0.7 if subset == "train" else 1.0) + abs(own.gauss(0, 0.01)) + 0.004
            if subset != "train" or epoch:
                share = min(max(round(364 * (accuracy + wobble)) / 364, 0.0), 1.0)
                points.append(CurvePoint(epoch * STEPS_PER_EPOCH, float(epoch), subset, loss, share))
    own_cosine, own_norm = own.gauss(cosine, 0.02), norm * math.exp(own.gauss(0, 0.1))
    base_cosine, base_norm = 0.12 + 2 * shared, 0.2 * math.exp(5 * shared)
    step_seconds = 0.002 * math.exp(own.gauss(0, 0.05))
    if initialization.startswith("default"):
        own_cosine, own_norm = base_cosine, base_norm
    cost = seconds * math.exp(own.gauss(0, 0.05))
    record = RunRecord(
        network=network,
        initialization=initialization,
        seed=seed,
        lr=lr,
        purpose=purpose,
        status="done",
        error=None,
        steps=epochs * STEPS_PER_EPOCH,
        initialization_seconds=cost,
        initialization_steps=cost / step_seconds,
        step_seconds=step_seconds,
        seconds=cost + epochs * STEPS_PER_EPOCH * step_seconds,
        before=figures(base_cosine, base_norm),
        after=figures(own_cosine, own_norm),
        scales=None,
        curve=tuple(points),
        versions=VERSIONS,
    )
    return dataclasses.replace(record, **changes)


def figures(cosine, norm):
    found = {"grad_cosine": cosine, "grad_norm": norm, "grad_variance": norm**2, "noise_scale": 80.0}
    return found | {f"{name}_sem": abs(value) / 10 for name, value in found.items()}


def diverged(record, epoch, peak=1e9):
    """The same run, but its loss exploded after an epoch."""
    kept = tuple(point for point in record.curve if point.epoch <= epoch)
    step = (epoch + 1) * STEPS_PER_EPOCH
    last = (
        CurvePoint(step - 8, epoch + 0.5, "train", peak, 0.1),
        CurvePoint(step, epoch + 1.0, "train", math.nan, 0.1),
    )
    return dataclasses.replace(
        record, status="diverged", error=f"the loss of step {step} is nan", steps=step, curve=kept + last
    )


def failed(record, error="RuntimeError: out of cheese"):
    """The same run, but an exception ended it."""
    trace = f'{error}\n\nTraceback (most recent call last):\n  File "net.py", line 7, in forward\n{error}'
    return dataclasses.replace(record, status="failed", error=trace, steps=0, curve=(), before=None, after=None)


def without_accuracy(record):
    """The same run of a task that has a loss only."""
    curve = tuple(dataclasses.replace(point, accuracy=None) for point in record.curve)
    return dataclasses.replace(record, curve=curve)


def comparison(runs, selection=(), seeds=None, networks=None, initializations=None, **recipe):
    """A comparison of these runs."""
    recipe = {
        "optimizer": "sgd",
        "optimizer_options": {"momentum": 0.9},
        "lr": [0.02, 0.05, 0.1],
        "schedule": "cosine",
        "warmup_steps": 0,
        "clip_grad_norm": None,
        "epochs": 20,
        "batch_size": 64,
        "precision": "32-true",
        "data": "digits",
    } | recipe
    return Comparison(
        recipe=recipe,
        networks=networks or list(dict.fromkeys(record.network for record in runs)),
        initializations=initializations or list(dict.fromkeys(record.initialization for record in runs)),
        seeds=seeds or sorted({record.seed for record in runs}),
        runs=list(runs),
        selection=list(selection),
        versions=VERSIONS,
    )


def ordinary(networks=("plain", "batch norm", "ViT"), names=(*tuple(STARTS)[:10], "nio"), seeds=5):
    """Three networks, ten initializations and more, five seeds, learning rates chosen on the validation split."""
    runs = [run(network, name, seed) for network in networks for name in names for seed in range(seeds)]
    selection = [
        run(network, name, seed, lr=lr, purpose="selection")
        for network in networks
        for name in names
        for lr in (0.02, 0.05, 0.1)
        for seed in (100, 101)
    ]
    return comparison(runs, selection)


def ugly():
    """Diverged, failed and missing runs, one network with a single seed, one without accuracy, awkward names."""
    plain = {
        (name, seed): run("a|network_with<a>very-long$name*that goes on", name, seed)
        for name in (
            "default",
            "xavier_normal",
            "trunc_normal",
            "nio",
            "gradinit",
            "an initialization, by <b>its</b> long name",
        )
        for seed in range(5)
    }
    for seed in range(5):
        plain["trunc_normal", seed] = diverged(plain["trunc_normal", seed], epoch=seed)
    plain["default", 2] = diverged(plain["default", 2], epoch=9, peak=1e30)
    plain["nio", 4] = failed(plain["nio", 4])
    plain["gradinit", 0] = failed(plain["gradinit", 0], "NonFiniteError: loss of step 3 <is> nan | in 'conv.weight'")
    del plain["gradinit", 1]
    del plain["xavier_normal", 3]
    single = [run("single seed", name, 0, epochs=1) for name in ("default", "xavier_normal", "nio")]
    losses = [without_accuracy(run("language model", name, s)) for name in ("default", "nio", "gradinit") for s in range(3)]
    losses[4] = diverged(losses[4], epoch=5, peak=1e12)
    odd = dataclasses.replace(single[1], versions=VERSIONS | {"torch": "2.12.0"})
    runs = [*plain.values(), single[0], odd, single[2], *losses]
    selection = [run("language model", "nio", 100, lr=lr, purpose="selection") for lr in (0.02, 0.05)] + [
        diverged(run("language model", "nio", 100, lr=0.1, purpose="selection"), 2)
    ]
    return comparison(runs, [without_accuracy(record) for record in selection], seeds=list(range(5)))
