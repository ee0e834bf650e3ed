"""What NIO costs on several devices: bytes sent, and the time of a step against a training step on the same devices.

    python benchmarks/devices.py [--out benchmarks/results/devices.json] [--only vit] [--sizes 1 2]

Each rank is a process on this machine, with one thread and its part of a batch of 64 samples; they talk by gloo over the
loopback device. A training step is forward and backward of a DistributedDataParallel, whose gradient is reduced. Contenders
take turns. Then, on one process: how well the Gram matrix is known from a share of the rows of every gradient.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from initopt.functional import grad_cosine
from networks import NETWORKS, build
from results import RESULTS, load, machine, save
from tables import markdown
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from initopt.engines import create_engine
from initopt.engines.gradients import subbatch_gradients
from initopt.methods import NIO
from initopt.model.group import Group
from initopt.model.losses import as_loss
from initopt.model.modes import measuring
from initopt.model.parameters import Parameters
from initopt.model.problem import Problem
from initopt.model.ranks import Alone, Ranks

__all__ = ["main"]

OUT = RESULTS / "devices.json"
SAMPLES = 64
TURNS = 7
CHOSEN = ("resnet56", "vit")
SHARES = (0.003, 0.01, 0.03, 0.1)
DRAWS = 8


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="the JSON file, which is gone on with")
    parser.add_argument("--only", nargs="+", default=CHOSEN, choices=[*NETWORKS], help="networks")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 2], help="numbers of processes")
    parser.add_argument("--turns", type=int, default=TURNS, help="timed steps of each contender")
    options = parser.parse_args(arguments)
    results = load(options.out, {"machine": machine("cpu", 1), "samples": SAMPLES, "subbatches": NIO().num_subbatches})
    for name in options.only:
        for size in options.sizes:
            case = f"{name}, {size}"
            if case not in results["cases"]:
                results["cases"][case] = in_group(size, name, options.turns)
                save(options.out, results)
        results.setdefault("rows", {}).setdefault(name, from_rows(name))
        save(options.out, results)
    print(tables(results))


def in_group(size: int, name: str, turns: int) -> dict[str, Any]:
    """The figures of rank 0 of a group of processes."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (size, folder, name, turns), nprocs=size)
        found: dict[str, Any] = torch.load(f"{folder}/found", weights_only=False)
        return found


def _rank(rank: int, size: int, folder: str, name: str, turns: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", size), rank=rank, world_size=size)
    torch.manual_seed(0)
    model, batch = build(name, "cpu"), NETWORKS[name].batch(SAMPLES)
    own = tuple(part.tensor_split(size)[rank] for part in batch)
    found = _timed(model, own, size, turns)
    if rank == 0:
        torch.save(found, f"{folder}/found")
    dist.destroy_process_group()


def _timed(model: nn.Module, batch: tuple[Tensor, ...], size: int, turns: int) -> dict[str, Any]:
    group = dist.group.WORLD
    ranks: dict[str, Ranks] = {"alone": Alone()}
    if size > 1:
        ranks = {share: Group(group, torch.device("cpu"), share) for share in ("union", "average")}
    wrapped = DistributedDataParallel(model)

    def train() -> None:
        wrapped.zero_grad()
        out = wrapped(batch[0])
        F.cross_entropy(out.flatten(0, -2), batch[1].flatten()).backward()

    steps: dict[str, Callable[[], object]] = {"training": train}
    for share, together in ranks.items():
        steps[share] = _step_of(model, batch, together)
    seconds: dict[str, list[float]] = {kind: [] for kind in steps}
    for turn in range(turns + 1):
        for kind, step in steps.items():
            dist.barrier()
            begun = time.perf_counter()
            step()
            if turn:  # the first one is to warm up, and decides what NIO scales
                seconds[kind].append(time.perf_counter() - begun)
    found: dict[str, Any] = {"seconds": seconds, "parameters": sum(p.numel() for p in model.parameters())}
    for share, together in ranks.items():
        if isinstance(together, Group):
            before = dict(together.sent), together.exchanges
            steps[share]()
            sent = {kind: together.sent[kind] - before[0][kind] for kind in before[0]}
            found[share] = {"sent": sent, "exchanges": together.exchanges - before[1]}
    return found


def _step_of(model: nn.Module, batch: tuple[Tensor, ...], ranks: Ranks) -> Callable[[], object]:
    """A step of NIO by its defaults but for the overlap, which makes batches larger."""
    method = NIO(overlap=0.0)
    problem = Problem(model, as_loss(None), Parameters.of(model), method.measuring(None).subbatches(), 0, ranks=ranks)
    engine = create_engine("graph", problem)
    run = method.start(problem, engine, {p: p.detach().clone() for p in model.parameters()})
    numbers = iter(range(10**9))

    def step() -> object:
        with measuring(model):
            return run.step(next(numbers), iter([batch]))

    return step


def from_rows(name: str) -> dict[str, Any]:
    """GradCosine and gradient norm from a share of the rows of every parameter, beside those from all."""
    torch.manual_seed(0)
    model, batch = build(name, "cpu"), NETWORKS[name].batch(SAMPLES)
    problem = Problem(model, as_loss(None), Parameters.of(model), NIO(overlap=0.0).measuring(None).subbatches(), 0)
    parameters = [p.value for p in problem.grad_params]
    with measuring(model):
        prepared = problem.prepare(batch, 0)
        gradients = [found for _, found in subbatch_gradients(problem, prepared, parameters, None)]
    columns = [torch.stack([g[k].reshape(len(g[k]), -1) if g[k].ndim else g[k].reshape(1, 1) for g in gradients]).double()
               for k in range(len(parameters)) if gradients[0][k] is not None]  # fmt: skip
    gram = sum(_products(column) for column in columns)
    generator = torch.Generator().manual_seed(1)
    shares: dict[str, Any] = {}
    for share in SHARES:
        cosines, norms = [], []
        for _ in range(DRAWS):
            guess = torch.zeros_like(gram)
            for column in columns:
                rows = column.shape[1]
                count = max(1, round(share * rows))
                chosen = torch.randperm(rows, generator=generator)[:count]
                guess += _products(column[:, chosen]) * rows / count
            cosines.append(float(grad_cosine(guess) - grad_cosine(gram)))
            norms.append(float((guess.trace() / gram.trace()).sqrt() - 1))
        shares[str(share)] = {"cosine": cosines, "norm": norms}
    return {"cosine": float(grad_cosine(gram)), "shares": shares}


def _products(column: Tensor) -> Tensor:
    flat = column.flatten(1)
    return flat @ flat.T


def tables(results: dict[str, Any]) -> str:
    """What was measured, as Markdown."""
    rows = []
    for case, found in results["cases"].items():
        name, size = case.rsplit(", ", 1)
        unit = statistics.median(found["seconds"]["training"])
        for kind, seconds in found["seconds"].items():
            if kind == "training":
                continue
            ratio = [s / unit for s in seconds]
            one = found.get(kind)
            gradient = 4 * found["parameters"]
            sent = (
                ""
                if one is None
                else f"{one['sent']['gradients'] / gradient:.0f} gradients, {one['sent']['others'] / 1e3:.1f} kB"
            )
            shown = f"{statistics.median(ratio):.1f} [{min(ratio):.1f}..{max(ratio):.1f}]"
            rows.append([NETWORKS[name].title, size, kind, shown, sent, "" if one is None else str(one["exchanges"])])
    text = markdown(["network", "ranks", "share", "step", "sent by a rank", "exchanges"], rows)
    rows = []
    for name, found in results.get("rows", {}).items():
        for share, errors in found["shares"].items():
            spread = [statistics.fmean(e * e for e in errors[kind]) ** 0.5 for kind in ("cosine", "norm")]
            rows.append([NETWORKS[name].title, f"{100 * float(share):g} %", f"{found['cosine']:.3f}", f"{spread[0]:.3f}",
                         f"{100 * spread[1]:.0f} %"])  # fmt: skip
    return text + "\n" + markdown(["network", "rows", "GradCosine", "error of it", "of the gradient norm"], rows)


if __name__ == "__main__":
    main()
