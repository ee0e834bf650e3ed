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

Of {seen} models that could be measured ({refused} of {all} could not), {clean} have no finding above a note. What the
others have is below, with the reason why we take it for true. Some of the small variants have layers of a handful of
units, and batches of 8 say little of dead units: what is said of such a one need not hold of the network at its real size.

| network | finding | what it says | why it stays |
| --- | --- | --- | --- |
"""

_BY_CLASSES = (
    "the library draws the classifier by its number of outputs, 10 here and 1,000 there: at its size, logits are a tenth "
    "of that"
)
_PRETRAINING = "used in masked pretraining alone; DistributedDataParallel trips over it"
WHY = {
    ("csatv2", "W115"): "a layer norm over one channel leaves its bias alone: odd at any size, worth a look by its authors",
    ("dla46x_c", "A208"): "the classifier is a convolution drawn by its fan out, 10 here: logits of 4 where 0 is wanted",
    ("dla34", "W108"): "as for dla46x_c",
    **{
        (name, "A208"): _BY_CLASSES
        for name in (
            *("mnasnet_small", "mobilenetv2_035", "tinynet_e", "mixnet_s", "mobilenetv4_conv_small_035"),
            *("mobilenetv5_base", "rexnet_100"),
        )
    },
    ("inception_v3", "A208"): "a classifier with a standard deviation of 0.1 behind 2,048 means: as published, and large",
    ("efficientvim_m1", "G305"): "as below, and at a single place even the rounding is gone",
    (
        "efficientvim_m1",
        "G307",
    ): "A is added to all places alike in front of a softmax over places, which takes it out: at any "
    "size it gets rounding noise for a gradient, worth a look by its authors",
    (
        "efficientvit_m0",
        "G305",
    ): "images of this size leave one place to attend to, so queries do nothing: true of the variant",
    ("GlobalContextVit", "G304"): "the small variant has one block a stage, and the first does not use the global queries",
    ("seresnext26t_32x4d", "A201"): "units behind a mean over the image hardly differ between 8 samples of noise",
    ("legacy_seresnet18", "A212"): "a bottleneck of 4 units behind a ReLU",
    ("Wav2Vec2ForSequenceClassification", "G303"): _PRETRAINING,
    ("Dinov2Model", "G303"): _PRETRAINING,
}
"""Why a finding is no false alarm, by network and rule."""


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
        f"| {row['library']}: {row['name']} | {found['rule']} {found['severity']} "
        f"| `{_shortened(found['place'])}`: {_shortened(found['text'])} | {WHY.get((row['name'], found['rule']), '')} |"
        for row in seen
        for found in row["findings"]
    ]
    head = TEXT.format(batches=BATCHES, seen=len(seen), all=len(rows), refused=len(rows) - len(seen), clean=len(clean))
    return head + "\n".join(line.replace("\n", " ") for line in lines) + "\n"


def _shortened(text: str, most: int = 160) -> str:
    return text if len(text) <= most else f"{text[: most - 4]} ..."


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
