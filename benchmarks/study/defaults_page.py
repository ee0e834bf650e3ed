"""docs/defaults.md, from the results of the study.

    python benchmarks/study/defaults_page.py [PLACE ...] [--out FILE]

PLACE is a folder that study.py wrote, or a file of rows; benchmarks/results/defaults.jsonl by default.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from records import RESULTS, VARIANTS, Results, load
from starts import STARTS
from subjects import NETWORKS

from initopt._support.files import write_file
from initopt.comparison import RunRecord
from initopt.comparison.storage.record import Subset

sys.path.append(str(Path(__file__).parents[1]))
from tables import fill, markdown, spread

__all__ = ["main", "page"]

PAGE = Path(__file__).parents[2] / "docs" / "defaults.md"

TEXT = Path(__file__).parent / "defaults.md"

REFERENCE = "default"


def _difference(found: dict[int, float], reference: dict[int, float]) -> str:
    """Paired difference in points; nothing if there are no pairs."""
    pairs = [found[seed] - reference[seed] for seed in found if seed in reference]
    if not pairs:
        return ""
    few = "" if len(pairs) >= 3 else f" ({len(pairs)} seed{'s' * (len(pairs) > 1)})"
    return f"{spread(pairs, '+')}{few}"


def differences(
    results: Results, networks: Sequence[str], starts: Sequence[str], part: Subset, over_lrs: bool = False
) -> str:
    """Paired differences to the network's own start, in points."""

    def values(network: str, start: str) -> dict[int, float]:
        return results.over_lrs(network, start) if over_lrs else results.at_best(network, start, part)

    rows = []
    own = [values(network, REFERENCE) for network in networks]
    rows.append(["the network's own start, %", *(f"{fmean(one.values()):.1f}" for one in own)])
    for start in starts:
        cells = [_difference(values(network, start), reference) for network, reference in zip(networks, own, strict=True)]
        if any(cells):
            rows.append([start, *cells])
    return markdown(["start", *(NETWORKS[network].title for network in networks)], rows)


VARIED = {
    "overlap": ("nio, no overlap", "idea: cosine less what shared samples give"),
    "settings": (
        *("nio, D = 2", "nio, D = 8", "nio, no overlap", "nio, bound 2", "nio, bound 5", "nio, bound 10"),
        *("nio, cosine", "nio, cosine+sqnorm", "nio, variance", "nio, variance+lognorm", "nio, variance+sqnorm"),
        *("published", "published_class_defaults"),
    ),
}
"""Starts that are compared with ``nio``, table by table."""


def against_nio(results: Results, starts: Sequence[str]) -> str:
    """Paired differences to ``nio`` in points, on the networks that some of the starts were run on."""
    networks = [name for name in NETWORKS if any(results.of(name, start) for start in starts)]
    found = {
        (name, start): results.at_best(name, start, "validation")
        for name in networks
        for start in (REFERENCE, "nio", *starts)
    }
    rows = [[f"`{start}`, %", *(spread(found[name, start].values()) for name in networks)] for start in (REFERENCE, "nio")]
    for start in starts:
        cells = [_difference(found[name, start], found[name, "nio"]) for name in networks]
        if any(cells):
            rows.append([f"`{start}`", *cells])
    return markdown(["start", *(NETWORKS[name].title for name in networks)], rows)


def old_and_new(results: Results, networks: Sequence[str]) -> str:
    """NIO on whole and on centred gradients beside the network's own start, on the split by which the network is judged."""
    starts = {"own start": REFERENCE, "nio until now": "uncentred nio", "nio": "nio"}
    rows = []
    for name in networks:
        part: Subset = "test" if NETWORKS[name].role == "confirmation" else "validation"
        found = [results.at_best(name, start, part) for start in starts.values()]
        if not all(found):
            continue
        cells = [
            f"{spread(one.values())} (lr {results.best_lr(name, start):g})"
            for one, start in zip(found, starts.values(), strict=True)
        ]
        rows.append([NETWORKS[name].title, *cells, _difference(found[2], found[0]), _difference(found[2], found[1])])
    return markdown(["network", *starts, "nio - own start, points", "nio - nio until now, points"], rows)


def accuracies(results: Results, networks: Sequence[str]) -> str:
    """Accuracy at the best learning rate of each start, in percent."""
    starts = [REFERENCE, *(name for name in STARTS if name != REFERENCE)]
    run = [start for start in starts if any(results.of(name, start) for name in networks)]
    rows = []
    for name in networks:
        cells = [spread(found.values()) if (found := results.at_best(name, start, "validation")) else "" for start in run]
        rows.append([NETWORKS[name].title, *cells])
    return markdown(["network", *run], rows)


def edges(results: Results, networks: Sequence[str]) -> str:
    """How often the learning rate that counts is the first or the last of its list, so that a better one may be beyond."""
    found = []
    for start in (REFERENCE, "nio"):
        run = [name for name in networks if results.of(name, start)]
        ends = [name for name in run if results.best_lr(name, start) in (NETWORKS[name].lrs[0], NETWORKS[name].lrs[-1])]
        found.append(f"for `{start}` on {len(ends)} of {len(run)} networks")
    return " and ".join(found)


def against_the_best(results: Results, networks: Sequence[str]) -> str:
    """NIO against the best of all other starts, chosen with hindsight on the test split."""
    rows = []
    for name in networks:
        ours = results.at_best(name, "nio", "test")
        others = {start: results.at_best(name, start, "test") for start in STARTS if start != "nio"}
        best = max(
            (start for start in others if others[start]), key=lambda start: fmean(others[start].values()), default=""
        )
        if not ours or not best:
            continue
        theirs = f"{best}: {spread(others[best].values())}"
        rows.append([NETWORKS[name].title, spread(ours.values()), theirs, _difference(ours, others[best])])
    return markdown(["network", "nio, %", "the best of the others, %", "paired difference, points"], rows)


def changes(results: Results, networks: Sequence[str], start: str) -> str:
    """What a start does to GradCosine, gradient norm and loss."""
    rows = []
    for network in networks:
        found = [run for run in results.of(network, start) if run.before and run.after and "loss" in run.before]
        if found:
            pairs = [
                " → ".join(f"{fmean(figures[key] for figures in when):.2f}" for when in _measured(found))
                for key in ("grad_cosine", "grad_norm", "loss")
            ]
            seconds = fmean(run.initialization_seconds for run in found)
            rows.append([NETWORKS[network].title, *pairs, f"{seconds:.0f} s"])
    return markdown(["network", "GradCosine", "gradient norm", "loss", "time"], rows)


def _measured(runs: Sequence[RunRecord]) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """The figures before and after."""
    return [run.before for run in runs if run.before], [run.after for run in runs if run.after]


def page(runs: Iterable[RunRecord]) -> str:
    """The whole page."""
    results, variants = Results(runs), Results(load(VARIANTS))
    seen = [name for name in NETWORKS if results.of(name, REFERENCE)]
    choice = [name for name in seen if NETWORKS[name].role == "choice"]
    confirmation = [name for name in seen if NETWORKS[name].role == "confirmation"]
    deep = [name for name in seen if NETWORKS[name].role == "deep"]
    starts = [name for name in STARTS if name != REFERENCE]
    parts = {
        "best": differences(results, choice, starts, "validation"),
        "over lrs": differences(results, choice, starts, "validation", over_lrs=True),
        "edges": edges(results, choice),
        "old and new": old_and_new(results, [*choice, *confirmation]),
        "deep": accuracies(results, deep),
        "confirmation": differences(results, confirmation, starts, "test"),
        "against the best": against_the_best(results, confirmation),
        **{name: against_nio(variants, starts) for name, starts in VARIED.items()},
        "changes": changes(results, [*choice, *confirmation], "nio"),
    }
    return fill(TEXT.read_text(), parts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="*", type=Path, default=[RESULTS], metavar="PLACE")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page")
    options = parser.parse_args(arguments)
    text = page(run for place in options.places for run in load(place))
    write_file(options.out, lambda path: path.write_text(text, encoding="utf-8"))
    print(f"page: {options.out}")


if __name__ == "__main__":
    main()
