"""Whether figures of a start predict the training from it: a row a run, for predicting_page.py.

    python benchmarks/study/predicting.py --cifar DIR [--seeds 200,201,202,203,204] [--networks "vgg7,gelu-5"] [--out FILE]

Every start of a network is measured on batches that it did not see, and then trained by the protocol of the study, at one
learning rate: the one that is best for the network's own start in the stored rows of the study. The model is looked at
after a fifth of the steps and after all of them, on the test split. Nothing is chosen here, and no default was chosen on
these seeds. All runs of a seed come before those of the next one, and a row is written as soon as its run is done, so that
the same call again goes on where it was ended.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from command import append_rows, networks_of, parser_of, read_rows, sources
from ideas import loss_of
from records import RESULTS, Results, load
from study import experiment
from torch import Tensor, nn

import initopt
from initopt import functional
from initopt.comparison.running.batches import start_batches
from initopt.comparison.running.evaluation import Judge
from initopt.comparison.running.start import own_start, prepare_start
from initopt.comparison.running.training import Trained, train
from initopt.comparison.spec.hardware import Hardware
from initopt.comparison.spec.plan import Plan
from initopt.data import Splits
from initopt.diagnosis.trace import trace
from initopt.model.losses import as_loss

__all__ = ["BEGINNINGS", "PREDICTING", "SUBJECTS", "figures_of", "main"]

PREDICTING = RESULTS.with_name("predicting.jsonl")

SUBJECTS = ("relu-5", "gelu-5", "tanh-5", "tanh-10", "mlp-tanh", "resnet8-bn-digits", "vgg7", "vgg7-bn", "vit-wide")
"""Networks that learn something from their own start, the cheapest first."""

BEGINNINGS = (
    *("default", "own weights x 0.7", "own weights x 1.4"),
    *("random scales, 1st", "random scales, 2nd", "random scales, 3rd"),
    *("kaiming_normal", "xavier_normal", "orthogonal", "lsuv", "lsuv, own weights"),
    *("nio, 40 steps", "uncentred nio, cosine, 40 steps"),
)
"""Starts: the network's own, its weights multiplied, textbooks', and two of NIO's, of fewer steps than by default."""

LOOKS = 5
"""Looks in a pass over the data, of which two are had: after a fifth of all steps, and after all."""

HELD_BACK = 5
"""Batches that a start is measured on."""


class TwoLooks(Judge):
    """A judge that looks only after a fifth of the steps and after all; nan else, which costs nothing."""

    calls, wanted = 0, frozenset[int]()

    def __call__(self, model: nn.Module) -> tuple[float, float | None]:
        self.calls += 1
        return super().__call__(model) if self.calls - 1 in self.wanted else (math.nan, None)


def figures_of(model: nn.Module, held: Sequence[Any], seed: int) -> dict[str, float] | None:
    """The figures of a start; ``None`` where gradients are all zero, or not finite.

    Signs and what is of few samples are looked at on two of the batches: of single samples, or of four samples in networks
    with batch norm, which cannot take fewer.
    """
    few = 4 if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()) else 1
    try:
        found = initopt.measure(model, held, loss_of, seed=seed, progress=False)
        seen = trace(model, held[:3], loss_of, num_subbatches=len(held[0][1]) // few, seed=seed, progress=False)
    except (initopt.NonFiniteError, initopt.ZeroGradientError):
        return None
    ranks = [call.rank for call in seen.calls if (call.matrix or call.function) and not math.isnan(call.rank)]
    names = ("grad_cosine", "centred_grad_cosine", "grad_norm", "centred_grad_norm", "loss", "output_spread")
    return {
        **{name: getattr(found, name) for name in names},
        "signal_to_noise": 1 / found.noise_scale if found.noise_scale > 0 else math.inf,
        "coherence": _mean(functional.coherence(found.gram)),
        "few_samples": few,
        "few_grad_cosine": _mean(functional.grad_cosine(seen.whole.gram)),
        "few_coherence": _mean(functional.coherence(seen.whole.gram)),
        "sign_agreement": seen.sign_agreement,
        "rank": sum(ranks),
        "output_rank": seen.calls[-1].rank if not math.isnan(seen.calls[-1].rank) else 0.0,
    }


def _mean(values: Tensor) -> float:
    return float(values.mean())


def run(plan: Plan, splits: Splits, network: str, start: str, seed: int) -> dict[str, Any]:
    """Measure a start and train from it."""
    recipe = plan.recipe_of(network, start)
    loss = as_loss(plan.loss_fn)
    model = own_start(plan.networks[network], seed)
    prepared = prepare_start(model, plan.initializations[start], splits.train, recipe, plan.loss_fn, seed, measured=False)
    held, _ = start_batches(splits.train, recipe.batch_size, HELD_BACK, seed)
    figures = figures_of(model, held, seed)
    assert splits.test is not None
    judge = TwoLooks(splits.test, recipe.batch_size, loss, torch.device("cpu"), seed)
    judge.wanted = frozenset({recipe.epochs, LOOKS * recipe.epochs})
    fabric = Hardware("cpu").fabric(recipe.precision)
    trained = train(fabric, model, splits.train, loss, recipe, recipe.lrs[0], judge, "test", seed)
    return {"seconds": prepared.seconds, "figures": figures, **_outcome(trained)}


def _outcome(trained: Trained) -> dict[str, Any]:
    looks = [point for point in trained.curve if point.subset == "test" and point.accuracy is not None]
    ends = dict(zip(("early", "late"), looks, strict=False))
    found: dict[str, Any] = {"diverged": trained.diverged}
    for name in ("early", "late"):
        look = ends.get(name)
        finite = look is not None and math.isfinite(look.loss)
        found[name] = {"step": look.step, "loss": look.loss, "accuracy": look.accuracy} if look and finite else None
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, SUBJECTS)
    parser.add_argument("--starts", default=";".join(BEGINNINGS), help="names, with semicolons between them")
    parser.add_argument("--seeds", default="200,201,202,203,204")
    parser.add_argument("--out", type=Path, default=PREDICTING, metavar="FILE")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    stored = Results(load(RESULTS))
    starts, data = options.starts.split(";"), sources(options.cifar, options.text)
    done = {(row["network"], row["start"], row["seed"]) for row in read_rows(options.out)}
    plans: dict[str, tuple[Plan, Splits, dict[str, str]]] = {}
    for seed, network, start in product(map(int, options.seeds.split(",")), networks_of(parser, options), starts):
        if (network, start, seed) in done:
            continue
        if network not in plans:
            plans[network] = planned(network, starts, data, stored)
        plan, splits, names = plans[network]
        begun = time.perf_counter()
        row = {"network": network, "start": start, "seed": seed, "lr": plan.recipe_of(network, names[start]).lrs[0]}
        row |= run(plan, splits, network, names[start], seed)
        append_rows(options.out, row)
        print(f"{seed} {network} {start}: {time.perf_counter() - begun:.1f} s", row["late"], flush=True)


def planned(
    network: str, starts: Sequence[str], data: Mapping[str, Any], stored: Results
) -> tuple[Plan, Splits, dict[str, str]]:
    """The plan of a network at the learning rate of its own start, the data, and what the plan calls the starts."""
    call = experiment(network, starts, [0], data)
    recipe = {"lr": stored.best_lr(network, "default"), "looks_per_epoch": LOOKS, "measure_batches": HELD_BACK}
    parts = [call.pop(part) for part in ("models", "data", "initializations")]
    parts[0][network].recipe.update(recipe)
    plan = Plan.create(*parts, recipe=None, hardware=Hardware("cpu"), **call)
    return plan, plan.load_data(), dict(zip(starts, plan.initializations, strict=True))


if __name__ == "__main__":
    main()
