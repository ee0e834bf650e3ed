"""How exact every engine is: relative errors against the slow truth in float64.

    python benchmarks/accuracy.py [--out benchmarks/results/accuracy.json]

On the odd little architectures of the gallery (initopt.testing), and on some networks of the zoo with 16 samples. The truth
is the engine ``plain`` in float64, plain double backward, which the tests hold against central differences; ``coupled`` in
float64 where batch norms take the statistics of the whole batch.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from networks import NETWORKS, build
from results import machine, save
from tables import markdown
from torch import Tensor

from initopt.engines import ENGINES
from initopt.testing import ENTRIES, INDEX, Entry, evaluate, relative_error

__all__ = ["accuracy_table", "main", "measure", "vector"]

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


OBJECTIVE = "cosine+norm"


@dataclass(frozen=True)
class Subject:
    """A model to be exact on, with what it sees and how that is split, and whose statistics normalize."""

    group: str
    mode: str
    entry: Entry

    def find(self, engine: str, index: int = INDEX) -> tuple[Tensor, Tensor]:
        """Gram matrix and derivatives by an engine, on the batch of a number."""
        found = evaluate(engine, self.entry, self.mode, [OBJECTIVE], index=index)
        return found.gram, vector(found.derivatives[OBJECTIVE])


def vector(values: dict[str, float]) -> Tensor:
    """Derivatives as a tensor."""
    return torch.tensor(list(values.values()), dtype=torch.float64)


def of_gallery() -> Iterator[Subject]:
    for entry in ENTRIES.values():
        if entry.double_backward and entry.conservative:
            yield from (Subject("gallery", mode, entry) for mode in entry.modes)


def of_networks() -> Iterator[Subject]:
    for name, mode in NETWORK_CASES:
        network = NETWORKS[name]
        entry = Entry(
            name,
            lambda name=name: build(name, "cpu").double(),
            lambda network=network: tuple(
                t.double() if t.is_floating_point() else t for t in network.batch(NETWORK_BATCH_SIZE)
            ),
            num_subbatches=4,
            overlap=0.0,
        )
        yield Subject("networks", mode, entry)


def measure(subject: Subject) -> dict[str, Any]:
    """Errors of every engine that can work on a subject, in float32; of inexact ones in float64, too."""
    entry, mode = subject.entry, subject.mode
    truth_engine = "plain" if mode == "subbatch" else "coupled"
    gram, derivative = subject.find(truth_engine)
    about = {"group": subject.group, "name": entry.name, "batch_norm": mode}
    if relative_error(subject.find(truth_engine, INDEX + 1)[0], gram) > 0:
        return {**about, "skipped": "draws random numbers, which are others in another precision"}
    problem = entry.problem(entry.model(), mode)
    engines = [name for name, engine in ENGINES.items() if engine.refusal(problem) is None]
    found: dict[str, Any] = {}
    for precision, current in {"float64": subject, "float32": Subject(subject.group, mode, entry.single())}.items():
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
    results = {"machine": machine("cpu", options.threads), "objective": OBJECTIVE, "subjects": subjects}
    save(options.out, results)
    print(accuracy_table(results))


if __name__ == "__main__":
    main()
