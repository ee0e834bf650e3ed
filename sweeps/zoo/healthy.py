"""Diagnose every model of the sweep at its library's own start: ``python -m sweeps.zoo.healthy [--only NAME]``.

What is found above a note is either odd, and said so, or a false alarm. docs/healthy.md lists all of it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

import initopt
from sweeps.zoo.__main__ import CASES
from sweeps.zoo.case import Case

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "sweeps" / "results" / "healthy.json", ROOT / "docs" / "healthy.md"
BATCHES, NUM_SUBBATCHES = 4, 2

TEXT = """\
# Diagnoses of networks as their libraries start them

[`initopt.diagnose`](diagnosis.md) on small variants of the architectures of timm and transformers
([the same ones](model_zoo.md) on which engines are held against the truth), with the weights that the libraries draw, on
{batches} batches of 8 samples of noise with labels at random. `python -m sweeps.zoo.healthy`,
[raw](../sweeps/results/healthy.json).

{seen} models were seen, {refused} were refused or failed; {clean} have no finding above a note. What the others have
is below. Some of the small variants have layers of a handful of units, and batches of 8 say little of dead units:
what is said of such a one need not hold of the network at its real size.

| network | finding | |
| --- | --- | --- |
"""


def look(case: Case) -> dict[str, Any]:
    """What is found on one model."""
    torch.manual_seed(0)
    found: dict[str, Any] = {"library": case.library, "name": case.name, "family": case.family, "error": "", "findings": []}
    begun = time.perf_counter()
    try:
        model = case.build().train()
        batches = [case.draw() for _ in range(BATCHES)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seen = initopt.diagnose(
                model, batches, case.loss_fn, num_subbatches=NUM_SUBBATCHES, tries=(), seed=0, progress=False
            )
        found["findings"] = [
            {"rule": f.rule, "severity": f.severity, "place": f.place, "text": f.text}
            for f in seen.findings
            if f.severity != "note"
        ]
    except Exception as error:  # of models that cannot be measured, too
        found["error"] = f"{type(error).__name__}: {error}".partition("\n")[0]
    return found | {"seconds": round(time.perf_counter() - begun, 2)}


def page(rows: list[dict[str, Any]]) -> str:
    """The page."""
    seen = [row for row in rows if not row["error"]]
    clean = [row for row in seen if not row["findings"]]
    lines = [
        f"| {row['library']}: {row['name']} | {found['rule']} {found['severity']} | `{found['place']}`: {found['text']} |"
        for row in seen
        for found in row["findings"]
    ]
    head = TEXT.format(batches=BATCHES, seen=len(seen), refused=len(rows) - len(seen), clean=len(clean))
    return head + "\n".join(line.replace("\n", " ") for line in lines) + "\n"


def main() -> None:
    """Look at all models, or at some, and write what is found."""
    parser = argparse.ArgumentParser(prog="python -m sweeps.zoo.healthy", description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME", help="models or families of these names")
    parser.add_argument("--report", action="store_true", help="look at nothing; write the page again")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    stored = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    rows = {(row["library"], row["name"]): row for row in stored}
    cases = [case for case in CASES if not arguments.only or {case.name, case.family} & set(arguments.only)]
    for case in [] if arguments.report else cases:
        row = look(case)
        rows[case.library, case.name] = row
        worst = ", ".join(f"{f['rule']} {f['place']}: {f['text']}" for f in row["findings"]) or row["error"] or "healthy"
        print(f"{case.library}/{case.name}  {row['seconds']} s  {worst}", flush=True)
        RESULTS.write_text(json.dumps(list(rows.values()), indent=1) + "\n", encoding="utf-8")
    if not arguments.only:
        PAGE.write_text(page(list(rows.values())), encoding="utf-8")


if __name__ == "__main__":
    main()
