"""What ``initopt.choose`` says of each network of the study, and what trainings from each start come to.

    python benchmarks/study/choosing.py [--cifar DIR] [--text FILE] [--networks "vgg7,vit"] [--steps 100] [--horizon 300]

For each network, ``choose`` races the starts that fit it on training data, at the learning rate that was best for the
network's own start on the validation split (results/defaults.jsonl). Then, from three other seeds, each of these starts
is trained for ``--horizon`` steps at that rate with a cosine schedule, and judged on the validation split; so are the
network's own start with warm-up, GradInit, and NIO after orthogonal weights, which no race has. Vision transformers are
trained at three times the rate, too, which is where a warm-up pays. The test split is not touched. A row for each race
and each training goes into results/choosing.jsonl; the same call again goes on where it was ended. ``choosing_page.py``
makes docs/choosing.md of the rows.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from command import append_rows, networks_of, parser_of, read_rows, sources
from ideas import loss_of
from records import RESULTS as STORED
from records import Results, load
from starts import STARTS
from subjects import NETWORKS, make
from torch.utils.data import DataLoader

import initopt
from initopt._support.files import plain
from initopt.choice.batches import Batches
from initopt.choice.starts import default_starts, make_start
from initopt.comparison.running.evaluation import Judge
from initopt.comparison.spec.initialization import Initialization
from initopt.comparison.spec.recipe import lr_factor
from initopt.data import Splits
from initopt.model.losses import as_loss
from initopt.model.randomness import Stream, seeded
from initopt.training.optimizers import Rates, make_optimizer
from initopt.training.steps import Trainer, clipping, train_steps

__all__ = ["RESULTS", "WARM_UP", "main"]

RESULTS = Path(__file__).parents[1] / "results" / "choosing.jsonl"

CHOSEN = [name for name, network in NETWORKS.items() if network.role != "deep"]
"""Networks by default."""

_SEEDS = (0, 1, 2)
_NEW_SEEDS = (100, 101, 102)
_BATCH = 64

WARM_UP = "own, warm-up"
"""The name of the network's own start with 50 steps of linear warm-up."""

_BESIDE = {WARM_UP: "default, warm-up", "gradinit": "gradinit", "orthogonal + nio": "nio from orthogonal"}
"""Starts that no race has, by name: those of the study."""


def _rates(name: str) -> tuple[float, ...]:
    """At how many times the rate of the race a network is trained."""
    return (1.0, 3.0) if name.startswith("vit") else (1.0,)


class Subject:
    """A network with its data and its training."""

    def __init__(self, name: str, splits: Splits, lr: float, steps: int, horizon: int) -> None:
        network = NETWORKS[name]
        kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[network.optimizer]
        self.name, self.splits, self.lr, self.steps, self.horizon = name, splits, lr, steps, horizon
        self.clip = network.clip
        self.optimizer = partial(kind, lr=lr, **network.recipe()["optimizer_options"])

    def loader(self, seed: int, batch_size: int = _BATCH) -> DataLoader[Any]:
        """Batches in an order of the seed."""
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(self.splits.train, batch_size, shuffle=True, drop_last=True, generator=generator)

    def race(self) -> dict[str, Any]:
        """The verdict of ``choose``."""
        found = initopt.choose(
            partial(make, self.name),
            self.loader(0),
            self.optimizer,
            loss_of,
            steps=self.steps,
            seeds=len(_SEEDS),
            seed=_SEEDS[0],
            clip_grad_norm=self.clip,
            progress=False,
        )
        record = found.to_dict()
        for row in record["rows"]:
            row["looks"] = [curve["held_out"] for curve in row.pop("curves")]
        return {
            "kind": "choice",
            "network": self.name,
            "steps": self.steps,
            "epoch": len(self.splits.train) // _BATCH,
            "choice": record,
        }

    def train(self, start: Initialization, seed: int, times: float) -> dict[str, Any]:
        """What a training from a start comes to, on the validation split, at so many times the rate of the race."""
        begun = time.perf_counter()
        with seeded(seed, Stream.WEIGHTS):
            model = make(self.name)
        pool = list(islice(self.loader(seed), 100))
        halves = start.batch_size and list(islice(self.loader(seed, start.batch_size), 100 * _BATCH // start.batch_size))
        make_start(model, start, halves or pool, loss_of, seed)
        made = time.perf_counter() - begun
        warmup = int(start.recipe.get("warmup_steps", 0))
        optimizer = make_optimizer(self.optimizer, [p for p in model.parameters() if p.requires_grad])
        rates = Rates(optimizer)
        trainer = Trainer(model, optimizer, as_loss(loss_of), clip=clipping(optimizer, self.clip))
        order = islice(Batches(pool, []).order(seed), self.horizon)
        course = train_steps(
            trainer, order, seed, before=lambda step: rates.scale(times * lr_factor(step, self.horizon, "cosine", warmup))
        )
        judge = Judge(self.splits.validation, 500, as_loss(loss_of), torch.device("cpu"))
        loss, accuracy = judge(model)
        return {
            "kind": "training",
            "network": self.name,
            "start": start.name,
            "seed": seed,
            "lr": times * self.lr,
            "steps": self.horizon,
            "loss": loss,
            "accuracy": accuracy,
            "diverged": course.diverged,
            "seconds_of_start": made,
            "seconds": time.perf_counter() - begun,
        }

    def starts(self) -> list[Initialization]:
        """Those that the race had, and those beside it."""
        with seeded(_SEEDS[0], Stream.WEIGHTS):
            model = make(self.name)
        raced = default_starts(model, next(iter(self.loader(0))), loss_of, _SEEDS[0])
        return raced + [STARTS[stored].initialization(name, NETWORKS[self.name]) for name, stored in _BESIDE.items()]


def found_for(subject: Subject, there: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of a network that are not there yet."""
    mine = [row for row in there if row["network"] == subject.name]
    if not any(row["kind"] == "choice" and row["steps"] == subject.steps for row in mine):
        yield subject.race()
    trained = [row for row in mine if row["kind"] == "training" and row["steps"] == subject.horizon]
    done = {(row["start"], row["seed"], row["lr"]) for row in trained}
    for times, start, seed in product(_rates(subject.name), subject.starts(), _NEW_SEEDS):
        if (start.name, seed, times * subject.lr) not in done:
            yield subject.train(start, seed, times)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, CHOSEN)
    parser.add_argument("--steps", type=int, default=100, help="of a run in the race")
    parser.add_argument("--horizon", type=int, default=300, help="steps of a training")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    stored = Results(load(STORED))
    data = sources(options.cifar, options.text)
    for name in networks_of(parser, options):
        subject = Subject(
            name, data[NETWORKS[name].data](), stored.best_lr(name, "default"), options.steps, options.horizon
        )
        for row in found_for(subject, read_rows(options.out)):
            append_rows(options.out, plain(row))
            shown = row["choice"]["verdict"] if row["kind"] == "choice" else f"{row['start']} {row['accuracy']:.4f}"
            print(name, shown, flush=True)


if __name__ == "__main__":
    main()
