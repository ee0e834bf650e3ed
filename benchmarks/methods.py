"""Time of a step of every method, beside a plain training step.

    python benchmarks/methods.py [--suite cpu] [--out benchmarks/results/methods-cpu.json] [--only resnet56]

Goes on where an earlier call with the same --out left off.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cases import Case
from contenders import TRAINING, Contender, Step, contender, make_problem, model_and_batch
from networks import NETWORKS
from results import Results, load, machine, save
from tables import left_out, time_table
from timing import take_turns
from torch import Tensor, nn

from initopt.engines import create_engine
from initopt.methods import LSUV, NIO, GradInit, MetaInit, Method
from initopt.model.modes import measuring
from initopt.model.preserve import preserved, put_values

__all__ = ["METHODS", "main", "methods_section", "run_cases"]

RESULTS = Path(__file__).parent / "results"

METHODS: dict[str, Callable[[], Method]] = {
    "nio": NIO,
    "nio, uncentred": lambda: NIO(centre=None),
    "gradinit, free": lambda: GradInit(max_grad_norm=1e30, eta=1e-6),
    "gradinit, constrained": lambda: GradInit(max_grad_norm=1e-30),
    "metainit": MetaInit,
    "metainit, fused norms": lambda: MetaInit(norms="fused"),
    "lsuv": lambda: LSUV(scheme=None, tolerance=1e-6),
}
"""What is timed; the tolerance is such that every layer is scaled."""

SUITES: dict[str, tuple[Case, ...]] = {
    "smoke": tuple(Case(name, batch_size=8) for name in ("tiny-resnet", "tiny-resnet-bn", "tiny-vit", "tiny-gpt")),
    "cpu": tuple(Case(name) for name in ("resnet56", "resnet56-bn", "vit", "gpt", "wrn-16-4", "mlp")),
}
"""Suites by name."""

TEXT = """\
## Other methods

A step of each [method](methods.md), its update of scales and weights included, beside a training step on a batch of 64.
GradInit gets batches of 32, of which it joins two, once for the gradient and once for the loss after a step; steps within
its bound ("free") and beyond it are timed apart. A step of LSUV is all it does: a pass in which every layer is scaled.
`nio` is at its defaults of then, on whole gradients, with D = 4 and an overlap of 0.2, and decides in every step which
tensors are scale-invariant, which it really does once. Without that, and with centred gradients and the norm of the whole
one, which are the defaults now, a step costs 3.7 training steps on the ResNet-56 without norm (3.3 uncentred), 3.8 with
batch norm (3.4) and 3.3 on the ViT (2.9; `--methods "nio;nio, uncentred"`,
[nio-step-cpu.json](../benchmarks/results/nio-step-cpu.json)).
"""


def method_contender(name: str, case: Case, model: nn.Module, data: Any) -> Contender:
    """A method of a name as a contender; the weights are afterwards as before."""
    return partial(_stepping, METHODS[name](), case, model, data)


@contextmanager
def _stepping(method: Method, case: Case, model: nn.Module, data: Any) -> Iterator[Step]:
    batches = _halves(data) if isinstance(method, GradInit) else [data]
    problem = make_problem(model, case)
    with preserved(model) as kept, measuring(model):
        at_work = method.start(
            problem, create_engine(method.engine if isinstance(method, NIO) else "auto", problem), kept.originals
        )
        try:
            if isinstance(method, NIO):
                at_work.step(0, iter(batches))  # which decides what is scaled, once
            first = int(isinstance(method, NIO))
            yield lambda: at_work.step(first, itertools.cycle(batches))
        finally:
            put_values(kept.originals)


def _halves(data: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    size = len(data[0]) // 2
    return [tuple(tensor[:size] for tensor in data), tuple(tensor[size:] for tensor in data)]


def run_cases(
    cases: Sequence[Case], out: Path, device: str, threads: int, repetitions: int, methods: Sequence[str] = tuple(METHODS)
) -> Results:
    """Measure what ``out`` does not have yet.

    Args:
        cases: what to measure.
        out: the results; written after every case.
        device: ``"cpu"`` or ``"cuda"``.
        threads: threads of PyTorch.
        repetitions: least number of turns.
        methods: what is timed.
    """
    torch.set_num_threads(threads)
    head = {"machine": machine(device, threads), "settings": {"dtype": "float32", "repetitions": repetitions}}
    results = load(out, head)
    for number, case in enumerate(cases, 1):
        print(f"[{number}/{len(cases)}] {case.key}", flush=True)
        if case.key not in results["cases"]:
            results["cases"][case.key] = _timed(case, device, repetitions, methods)
            save(out, results)
    print(time_table(results["cases"].values(), "network", _title))
    return results


def _timed(case: Case, device: str, repetitions: int, methods: Sequence[str]) -> dict[str, Any]:
    model, data = model_and_batch(case, device)
    contenders = {TRAINING: contender(TRAINING, case, model, data)}
    contenders |= {name: method_contender(name, case, model, data) for name in methods}
    about = {key: getattr(case, key) for key in ("network", "num_subbatches", "batch_norm", "batch_size", "overlap")}
    found = take_turns(contenders, device, repetitions)
    return {**about, "parameters": sum(p.numel() for p in model.parameters()), "contenders": found}


def methods_section(results: Mapping[str, Any], name: str) -> str:
    """The part of the page about a results file."""
    cases = list(results["cases"].values())
    about = results["machine"]
    device = f"{about['processor']}, threads: {about['threads']}" if about["device"] == "cpu" else about["device"]
    parts = [
        TEXT.rstrip(),
        f"{device}, PyTorch {about['torch']} ([{name}.json](../benchmarks/results/{name}.json)).",
        time_table(cases, "network", _title),
    ]
    missing = left_out(cases)
    if missing:
        parts += ["Not measured:", missing]
    return "\n\n".join(parts) + "\n"


def _title(case: Mapping[str, Any]) -> str:
    return NETWORKS[case["network"]].title


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="cpu")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/methods-SUITE.json")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", metavar="NETWORK", help="one network")
    parser.add_argument("--methods", default=";".join(METHODS), help="names, with semicolons between them")
    options = parser.parse_args(arguments)
    cases = [case for case in SUITES[options.suite] if options.only in (None, case.network)]
    if not cases:
        known = ", ".join(case.network for case in SUITES[options.suite])
        raise SystemExit(f"no network {options.only!r} in suite {options.suite!r}, which has {known}")
    out = options.out or RESULTS / f"methods-{options.suite}.json"
    run_cases(cases, out, options.device, options.threads, options.repetitions, options.methods.split(";"))
    print(f"results: {out}")


if __name__ == "__main__":
    main()
