"""Run the sweep: ``python -m sweeps.zoo [--only NAME] [--shard i/n] [--resume]``."""

from __future__ import annotations

import argparse
import logging
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from sweeps.zoo import report, store, timm_cases, transformers_cases
from sweeps.zoo.examine import examine

CASES = (*timm_cases.CASES, *transformers_cases.CASES)


def main() -> int:
    """Examine models and report on all; 0 if every answer was right or rightly refused."""
    parser = argparse.ArgumentParser(prog="python -m sweeps.zoo", description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME", help="models or families of these names")
    parser.add_argument("--shard", default="0/1", metavar="i/n", help="each n-th model from the i-th on, counted from 0")
    parser.add_argument("--resume", action="store_true", help="leave out models with a result of an earlier, broken run")
    parser.add_argument("--report", action="store_true", help="run nothing; write the table and the page again")
    arguments = parser.parse_args()
    index, count = map(int, arguments.shard.split("/"))
    cases = [case for case in CASES if not arguments.only or {case.name, case.family} & set(arguments.only)]
    if not cases:
        parser.error(f"no model or family is called {' or '.join(arguments.only)}")

    logging.disable(logging.WARNING)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for case in [] if arguments.report else cases[index::count]:
        if arguments.resume and store.done(case):
            continue
        finding = examine(case)
        store.add(finding)
        seconds = finding.seconds["all"]
        print(f"{finding.status:8}{case.library}/{case.name}  {seconds:.1f} s  {finding.message}", flush=True)

    everything = store.write_all(store.collected(CASES))
    if count == 1:
        report.PAGE.write_text(report.markdown(everything), encoding="utf-8")
        names = {(case.library, case.name) for case in cases}
        report.show([model for model in everything["models"] if (model["library"], model["name"]) in names])
    return int(any(model["status"] not in ("ok", "refused") for model in everything["models"]))


if __name__ == "__main__":
    sys.exit(main())
