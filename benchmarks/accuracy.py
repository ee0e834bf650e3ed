"""How exact every engine is: relative errors against the slow truth in float64.

    python benchmarks/accuracy.py [--out benchmarks/results/accuracy.json]

On the odd little architectures of the tests' gallery, and on some networks of the zoo with 16 samples. The truth is the
engine ``plain`` in float64, plain double backward, which the tests hold against central differences; ``coupled`` in
float64 where batch norms take the statistics of the whole batch.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from networks import NETWORKS, build
from results import machine, save
from tables import markdown
from torch import Tensor, nn

from initopt import objectives
from initopt.batches.subbatches import SubBatches
from initopt.engines import ENGINES
from initopt.model.losses import as_loss
from initopt.model.modes import measuring
from initopt.model.parameters import Parameters
from initopt.model.preserve import preserved
from initopt.model.problem import Problem

sys.path.append(str(Path(__file__).parents[1]))
from tests.gallery import ENTRIES

__all__ = ["accuracy_table", "main", "measure"]

OUT = Path(__file__).parent / "results" / "accuracy.json"
NETWORK_CASES = (("mlp", "subbatch"), ("resnet56", "subbatch"), ("resnet56-bn", "subbatch"), ("resnet56-bn", "batch"),
                 ("vit", "subbatch"), ("gpt", "subbatch"))  # fmt: skip
NETWORK_BATCH_SIZE = 16

INTRODUCTION = """\
Relative error of the Gram matrix and of the derivatives (largest error over largest entry) against plain double
backward in float64, on the architectures of the tests' gallery, which are small and odd, and on networks of the zoo
with {samples} samples in 4 sub-batches ([accuracy.json](../benchmarks/results/accuracy.json)). `differences` take
longer steps in float32, to keep above the rounding, and those cross kinks (ReLU), whose curvature double backward
leaves out; the short steps of float64 hardly meet one. A dash: the engine cannot do that network."""


@dataclass(frozen=True)
class Subject:
    """A model to be exact on, with what is seen and how it is split. Models and data are float64."""

    group: str
    name: str
    mode: str
    model: nn.Module
    data: Any
    options: dict[str, Any]
    loss_fn: Any = None
    train_mode: bool = False

    def problem(self, seed: int) -> Problem:
        subbatches = SubBatches(batch_norm=self.mode, **self.options)  # type: ignore[arg-type]
        return Problem(self.model, as_loss(self.loss_fn), Parameters.of(self.model), subbatches, seed)

    def single(self) -> Subject:
        """The same in float32."""
        loss_fn = as_single(self.loss_fn) if isinstance(self.loss_fn, nn.Module) else self.loss_fn
        parts = (self.group, self.name, self.mode, as_single(self.model), single_tensors(self.data), self.options)
        return Subject(*parts, loss_fn, self.train_mode)

    def find(self, engine: str, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Gram matrix and derivatives of cosine+norm by an engine."""
        problem = self.problem(seed)
        with preserved(self.model), measuring(self.model, self.train_mode):
            evaluation = ENGINES[engine](problem).evaluate(problem.prepare(self.data, 0), differentiate=True)
            gram = evaluation.gram.requires_grad_()
            (slope,) = torch.autograd.grad(objectives.get("cosine+norm")(gram), gram)
            return gram.detach(), evaluation.scale_derivatives(slope)


def of_gallery() -> Iterator[Subject]:
    for name, entry in ENTRIES.items():
        for mode in entry.modes:
            options = {"count": entry.num_subbatches, "overlap": entry.overlap}
            parts = ("gallery", name, mode, entry.model(), entry.batch(), options, entry.loss_fn(), entry.train_mode)
            if entry.double_backward and entry.conservative:
                yield Subject(*parts)


def of_networks() -> Iterator[Subject]:
    for name, mode in NETWORK_CASES:
        model = build(name, "cpu").double()
        data = tuple(t.double() if t.is_floating_point() else t for t in NETWORKS[name].batch(NETWORK_BATCH_SIZE))
        yield Subject("networks", name, mode, model, data, {})


_SINGLE = {torch.float64: torch.float32, torch.complex128: torch.complex64}


def as_single(module: nn.Module) -> nn.Module:
    """``module.float()``, for complex parameters, too."""
    return module._apply(lambda tensor: tensor.to(_SINGLE.get(tensor.dtype, tensor.dtype)))


def single_tensors(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.to(_SINGLE.get(tree.dtype, tree.dtype))
    if isinstance(tree, dict):
        return type(tree)({key: single_tensors(value) for key, value in tree.items()})
    if isinstance(tree, (list, tuple)):
        return type(tree)(single_tensors(value) for value in tree)
    return tree


def relative_error(found: Tensor, truth: Tensor) -> float:
    """Largest error over the largest entry."""
    return float((found - truth).abs().max() / truth.abs().max())


def measure(subject: Subject) -> dict[str, Any]:
    """Errors of every engine that can work on a subject, in float32; of inexact ones in float64, too."""
    truth_engine = "plain" if subject.mode == "subbatch" else "coupled"
    gram, derivative = subject.find(truth_engine)
    about = {"group": subject.group, "name": subject.name, "batch_norm": subject.mode}
    if relative_error(subject.find(truth_engine, seed=1)[0], gram) > 0:
        return {**about, "skipped": "draws random numbers, which are others in another precision"}
    engines = [name for name, engine in ENGINES.items() if engine.refusal(subject.problem(0)) is None]
    found: dict[str, Any] = {}
    for precision in ("float64", "float32"):  # float32 last: it changes the model for good
        current = subject if precision == "float64" else subject.single()
        for name in engines:
            if precision == "float64" and name == truth_engine:
                continue
            try:
                its_gram, its_derivative = current.find(name)
                errors = {"gram": relative_error(its_gram, gram), "derivative": relative_error(its_derivative, derivative)}
            except Exception as error:  # an architecture beyond an engine
                errors = {"skipped": f"{type(error).__name__}: {error}".splitlines()[0][:160]}
            found[f"{name} {precision}"] = errors
    return {**about, "engines": found}


def accuracy_table(results: dict[str, Any]) -> str:
    """The part of the page."""
    parts = [
        "## Accuracy",
        INTRODUCTION.format(samples=NETWORK_BATCH_SIZE),
        "### Gallery",
        _gallery_table([subject for subject in results["subjects"] if subject["group"] == "gallery"]),
        "### Networks: derivatives",
        _networks_table([subject for subject in results["subjects"] if subject["group"] == "networks"]),
    ]
    return "\n\n".join(parts) + "\n"


def _gallery_table(subjects: list[dict[str, Any]]) -> str:
    rows = []
    for column in _columns(subjects):
        errors = {
            (subject["name"], subject["batch_norm"]): subject["engines"][column]
            for subject in subjects
            if "derivative" in subject.get("engines", {}).get(column, {})
        }
        grams, derivatives = ([error[what] for error in errors.values()] for what in ("gram", "derivative"))
        worst = max(errors, key=lambda key: errors[key]["derivative"])
        name, precision = column.rsplit(" ", 1)
        cells = [f"{statistics.median(grams):.0e}", f"{max(grams):.0e}"]
        cells += [f"{statistics.median(derivatives):.0e}", f"{max(derivatives):.0e} ({worst[0]})"]
        rows.append([f"`{name}`", precision, str(len(errors)), *cells])
    head = ["engine", "precision", "cases", "Gram: median", "worst", "derivatives: median", "worst"]
    return markdown(head, rows)


def _networks_table(subjects: list[dict[str, Any]]) -> str:
    columns = _columns(subjects)

    def cell(subject: dict[str, Any], column: str) -> str:
        errors = subject["engines"].get(column)
        return "" if errors is None else f"{errors['derivative']:.0e}" if "derivative" in errors else "-"

    def title(subject: dict[str, Any]) -> str:
        network = NETWORKS[subject["name"]]
        return network.title + (f" of the {subject['batch_norm']}" if network.coupled else "")

    rows = [[title(subject), *(cell(subject, column) for column in columns)] for subject in subjects]
    return markdown(["network", *columns], rows)


def _columns(subjects: list[dict[str, Any]]) -> list[str]:
    """Engines and precisions: all of float32, and what is not exact in float64."""
    names = dict.fromkeys(column for subject in subjects for column in subject.get("engines", {}))
    return [name for name in names if name.endswith("float32")] + [name for name in names if name == "differences float64"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gallery-only", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    subjects = [measure(subject) for subject in of_gallery()]
    if not options.gallery_only:
        subjects += [measure(subject) for subject in of_networks()]
    results = {"machine": machine("cpu", options.threads), "objective": "cosine+norm", "subjects": subjects}
    save(options.out, results)
    print(accuracy_table(results))


if __name__ == "__main__":
    main()
