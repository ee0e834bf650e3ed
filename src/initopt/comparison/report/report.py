"""The report of a comparison: one HTML page, the same in Markdown, and its figures."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from initopt._support.checks import require
from initopt._support.files import Contents, check_replaceable, plain, write_folder
from initopt._support.reading import read_text
from initopt._support.words import counted, first_few
from initopt.comparison.analysis.summary import NetworkSummary, Summary, summarize
from initopt.comparison.report.axes import FigureContext, slug, styles
from initopt.comparison.report.content import (
    Block,
    Document,
    Figure,
    Image,
    Listing,
    Section,
    Strong,
    Table,
)
from initopt.comparison.report.figures import CurveFigures, gradients_figure, results_figure
from initopt.comparison.report.findings import caveats, findings
from initopt.comparison.report.formatting import markdown_table, markdown_text
from initopt.comparison.report.tables import (
    cost_table,
    differences_table,
    gradients_table,
    layers_table,
    overview_table,
    results_table,
    selection_table,
    targets_table,
)
from initopt.comparison.storage.store import load_stored, refuse_link

__all__ = ["refuse_without_packages", "to_document", "to_html", "to_markdown", "write_report"]

_FIGURES = "figures"
_CONTENTS = Contents(".initopt-report", ("report.html", "report.md"), folders=(_FIGURES,))


def write_report(folder: Path) -> Path:
    """Write the report of a comparison into its subfolder ``report``, whole or not at all.

    The same runs give the same report, byte for byte. An earlier report is replaced.

    Args:
        folder: of the comparison.

    Returns:
        The path of the HTML page. ``report.md`` is beside it, with the pictures in ``figures``.

    Raises:
        ValueError: if the folder holds no comparison, or its ``report`` is a link.
        FileExistsError: if ``report`` holds files that no report wrote; the message names them.
        ImportError: if a package that the report needs is not installed; the message says what to install.
    """
    refuse_without_packages()
    out = Path(folder) / "report"
    refuse_link(out)
    check_replaceable(out, _CONTENTS)
    _refuse_foreign_figures(out)
    document = to_document(summarize(load_stored(Path(folder))))
    images = _images(document)

    def write(into: Path) -> None:
        (into / _FIGURES).mkdir()
        for image in images:
            (into / _FIGURES / f"{image.name}.png").write_bytes(image.png)
        (into / "report.html").write_text(to_html(document), encoding="utf-8")
        (into / "report.md").write_text(to_markdown(document, _FIGURES), encoding="utf-8")
        (into / _CONTENTS.marker).write_text("".join(f"{image.name}.png\n" for image in images), encoding="utf-8")

    write_folder(out, write, _CONTENTS)
    return out / "report.html"


def refuse_without_packages() -> None:
    """Raise an ImportError if a package is missing that a report needs; the message says which."""
    require("a report", "compare", "jinja2")


def _images(document: Document) -> list[Image]:
    blocks = [block for section in document.sections for block in section.blocks]
    return [image for block in blocks if isinstance(block, Figure) for image in block.images]


def _refuse_foreign_figures(out: Path) -> None:
    """Refuse to remove pictures that the marker of the report that is to be replaced does not list."""
    figures = out / _FIGURES
    if not figures.is_dir():
        return
    ours = read_text(out / _CONTENTS.marker).splitlines()
    foreign = sorted(file.name for file in figures.iterdir() if file.name not in ours or not file.is_file())
    if foreign:
        raise FileExistsError(
            f"{out} is not replaced, since its {_FIGURES} hold files that no report wrote: {first_few(foreign, 5)}; "
            "move them elsewhere"
        )


def to_document(summary: Summary) -> Document:
    """Put a report together."""
    drawn = styles(summary.comparison.initializations, summary.reference)
    return Document(
        title="Initializations compared",
        lead=_lead(summary),
        sections=[
            _section("In plain words", _in_plain_words(summary)),
            *(_section(network.name, _network(network, n)) for n, network in enumerate(summary.networks, 1)),
            _section("How it was done", _how(summary)),
        ],
        colours={name: style.colour for name, style in drawn.items()},
    )


def _lead(summary: Summary) -> str:
    comparison = summary.comparison
    text = (
        f"{counted(len(comparison.initializations), 'initialization')} on {counted(len(summary.networks), 'network')}, "
        f"{counted(len(comparison.seeds), 'seed')} each."
    )
    if len(comparison.initializations) > 1:
        text += (
            " Of a seed, all initializations have the same draw of random numbers and the same order of the data, and they "
            f"are compared with {summary.reference} seed by seed."
        )
    return text


def _section(title: str, blocks: Iterable[Block | None]) -> Section:
    """A section of the blocks that have something to show."""
    return Section(title, [block for block in blocks if block is not None])


def _in_plain_words(summary: Summary) -> Iterator[Block | None]:
    yield from findings(summary)
    yield overview_table(summary)
    yield "What cannot be concluded:"
    yield caveats(summary)


def _network(network: NetworkSummary, number: int) -> Iterator[Block | None]:
    shown = tuple(entry for entry in network.entries if len(entry.having("failed")) < len(entry.runs))
    if shown:
        drawn = styles([entry.name for entry in network.entries], network.reference)
        context = FigureContext(network, shown, drawn, f"{number}-{slug(network.name)}")
        curves = CurveFigures(context)
        yield results_table(network)
        yield results_figure(context)
        yield differences_table(network)
        yield targets_table(network)
        yield curves.together()
        yield curves.beside_reference()
        yield cost_table(network)
        yield gradients_table(network)
        yield layers_table(network)
        yield gradients_figure(context)
    else:
        yield "No run of this network has come to a result."
    yield selection_table(network)
    yield from _troubles(network)


def _troubles(network: NetworkSummary) -> Iterator[Block]:
    """Why runs failed or diverged."""
    for entry in network.entries:
        for status in ("failed", "diverged"):
            runs = entry.having(status)
            if runs:
                reasons = [f"seed {run.seed}: {(run.error or 'no reason was stored').strip()}" for run in runs]
                first = reasons[0].splitlines()[0] + (", and more" if len(runs) > 1 else "")
                yield Listing(f"{entry.name}: {counted(len(runs), 'run')} {status} ({first})", "\n\n".join(reasons))


def _how(summary: Summary) -> Iterator[Block]:
    yield _RULES
    comparison = summary.comparison
    yield Listing("The recipe", _as_yaml(comparison.recipe), open=True)
    whole = {"networks": comparison.networks, "initializations": comparison.initializations, "seeds": comparison.seeds}
    yield Listing("What was compared", _as_yaml(whole | comparison.details), open=not comparison.details)
    if comparison.problems:
        yield Listing("Stored runs that cannot be read", "\n".join(comparison.problems), open=True)
    runs = [*comparison.runs, *comparison.selection]
    versions = list({tuple(run.versions.items()): run.versions for run in runs}.values()) or [comparison.versions]
    for found in versions:
        count = sum(run.versions == found for run in runs)
        title = "Versions" if len(versions) == 1 else f"Versions of {counted(count, 'run')}"
        yield Listing(title, _as_yaml(found), open=True)


def _as_yaml(value: Any) -> str:
    return str(yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True, width=100)).strip()


_RULES = [
    "A run that diverged counts as an untrained network: as the median of all runs of that network before their first "
    "step. That is what it leaves to its user; to leave it out would flatter an initialization that makes runs diverge.",
    "A run that failed (an exception) or is missing has no result; the differences are over the seeds that both "
    "initializations have.",
    "Intervals are bootstrap percentile intervals of the mean over seeds (9999 draws, the same each time), widened for few "
    "seeds after Hesterberg (2015). Of five normal values, they have the true mean in them 93 times in 100; the plain ones "
    "84 times. For fewer than five seeds they are the range of the values, which has it 88 times in 100 for four, 75 for "
    "three, 50 for two.",
    "p is from Student's t-test on the paired differences. Wilcoxon's signed-rank test assumes less, but cannot give less "
    "than 0.0625 for five pairs, whatever they show. The correction is Holm's, over all comparisons of the report, once "
    "for the end and once for the first epoch.",
    "A difference is called clear if the corrected p is below 0.05 and the interval leaves zero out.",
    "GradCosine is the mean cosine similarity of the gradients of parts of a batch, the gradient norm their mean length, "
    "both on batches that the initialization has not seen.",
]


def to_html(document: Document) -> str:
    """Render a document; the pictures are in the page, and its security policy keeps it from loading anything."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    environment.tests["strong"] = lambda cell: isinstance(cell, Strong)
    template = resources.files("initopt.comparison.report").joinpath("templates", "report.html.jinja")
    return environment.from_string(template.read_text(encoding="utf-8")).render(document=document) + "\n"


def to_markdown(document: Document, pictures: str) -> str:
    """Render a document in the Markdown of GitHub.

    Args:
        document: the report.
        pictures: the folder of its pictures, as seen from the file.
    """
    parts = [f"# {markdown_text(document.title)}", markdown_text(document.lead)]
    for section in document.sections:
        parts.append(f"## {markdown_text(section.title)}")
        for block in section.blocks:
            parts += _block(block, pictures)
    return "\n\n".join(parts) + "\n"


def _block(block: Block, pictures: str) -> Iterator[str]:
    if isinstance(block, str):
        yield markdown_text(block)
    elif isinstance(block, list):
        yield "\n".join(f"- {markdown_text(sentence)}" for sentence in block)
    elif isinstance(block, Table):
        yield f"### {markdown_text(block.title)}"
        yield markdown_table(block.columns, block.rows)
        yield markdown_text(block.note)
    elif isinstance(block, Figure):
        yield "\n".join(
            f'<img src="{pictures}/{image.name}.png" width="{image.width}" alt="{html.escape(image.alt)}">'
            for image in block.images
        )
        yield f"*{markdown_text(block.caption)}*"
    elif isinstance(block, Listing):
        yield f"**{markdown_text(block.title)}**"
        yield _listing(block.text)


def _listing(text: str) -> str:
    """Lines between more backticks than they have in a row."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 0)
    return f"{fence}text\n{text.rstrip()}\n{fence}"
