"""The report of a comparison: one HTML page, the same in Markdown, and its figures."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from initopt._support.files import check_replaceable, plain, write_folder
from initopt._support.reading import read_text
from initopt.comparison.analysis.summary import NetworkSummary, Summary, summarize
from initopt.comparison.report.axes import FigureContext, slug, styles
from initopt.comparison.report.content import (
    Block,
    Document,
    Figure,
    Image,
    Listing,
    Section,
    Sentences,
    Strong,
    Table,
    Text,
)
from initopt.comparison.report.curve_figures import CurveFigures
from initopt.comparison.report.findings import caveats, findings
from initopt.comparison.report.formatting import counted
from initopt.comparison.report.row_figures import gradients_figure, results_figure
from initopt.comparison.report.tables import cost_table, gradients_table, network_tables, overview_table, selection_table
from initopt.comparison.storage.store import load_comparison, refuse_link

__all__ = ["network_figures", "refuse_without_packages", "to_document", "to_html", "to_markdown", "write_report"]

_MARKER = ".initopt-report"
_FIGURES = "figures"


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
    check_replaceable(out, _MARKER)
    _refuse_foreign_figures(out)
    document = to_document(summarize(load_comparison(Path(folder))))
    images = _images(document)

    def write(into: Path) -> None:
        (into / _FIGURES).mkdir()
        for image in images:
            (into / _FIGURES / f"{image.name}.png").write_bytes(image.png)
        (into / "report.html").write_text(to_html(document), encoding="utf-8")
        (into / "report.md").write_text(to_markdown(document, _FIGURES), encoding="utf-8")
        (into / _MARKER).write_text("".join(f"{image.name}.png\n" for image in images), encoding="utf-8")

    write_folder(out, write, _MARKER)
    return out / "report.html"


def refuse_without_packages() -> None:
    """Raise an ImportError if a package is missing that a report needs; the message says which."""
    if find_spec("jinja2") is None:
        raise ImportError("a report needs jinja2: pip install 'initopt[compare]'")


def _images(document: Document) -> list[Image]:
    blocks = [block for section in document.sections for block in section.blocks]
    return [image for block in blocks if isinstance(block, Figure) for image in block.images]


def _refuse_foreign_figures(out: Path) -> None:
    """The marker lists the pictures of the report that is to be replaced; others are not ours to remove."""
    figures = out / _FIGURES
    if not figures.is_dir():
        return
    ours = read_text(out / _MARKER).splitlines()
    foreign = sorted(file.name for file in figures.iterdir() if file.name not in ours or not file.is_file())
    if foreign:
        more = f" and {len(foreign) - 5} more" if len(foreign) > 5 else ""
        raise FileExistsError(
            f"{out} is not replaced, since its {_FIGURES} hold files that no report wrote: {', '.join(foreign[:5])}{more}; "
            "move them elsewhere"
        )


def network_figures(network: NetworkSummary, number: int) -> dict[str, Figure]:
    """Draw all figures of a network.

    Args:
        network: with at least one final run that did not fail.
        number: of the network, for the names of the files.

    Returns:
        Those that have something to show, by what that is: ``"results"``, ``"curves"``, ``"panels"`` (small learning
        curves, where there are too many initializations for bands in one chart) and ``"gradients"``.
    """
    context = FigureContext(
        network,
        tuple(entry for entry in network.entries if len(entry.having("failed")) < len(entry.runs)),
        styles([entry.name for entry in network.entries], network.reference),
        f"{number}-{slug(network.name)}",
    )
    curves = CurveFigures(context)
    found = {
        "results": results_figure(context),
        "curves": curves.together(),
        "panels": curves.beside_reference(),
        "gradients": gradients_figure(context),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def to_document(summary: Summary) -> Document:
    """Put a report together.

    Args:
        summary: of the comparison.
    """
    drawn = styles(summary.comparison.initializations, summary.reference)
    return Document(
        title="Initializations compared",
        lead=_lead(summary),
        sections=[
            Section("In plain words", list(_in_plain_words(summary))),
            *(Section(network.name, list(_network(network, n))) for n, network in enumerate(summary.networks, 1)),
            Section("How it was done", list(_how(summary))),
        ],
        colours={name: style.colour for name, style in drawn.items()},
    )


def _lead(summary: Summary) -> str:
    comparison = summary.comparison
    paired = (
        " Of a seed, all initializations have the same draw of random numbers and the same order of the data, and they are "
        f"compared with {summary.reference} seed by seed."
        if len(comparison.initializations) > 1
        else ""
    )
    return (
        f"{counted(len(comparison.initializations), 'initialization')} on {counted(len(summary.networks), 'network')}, "
        f"{counted(len(comparison.seeds), 'seed')} each.{paired}"
    )


def _in_plain_words(summary: Summary) -> Iterator[Block]:
    for paragraph in findings(summary):
        yield Text(paragraph)
    table = overview_table(summary)
    if table is not None:
        yield table
    yield Text("What cannot be concluded:")
    yield Sentences(caveats(summary))


def _network(network: NetworkSummary, number: int) -> Iterator[Block]:
    if any(run.status != "failed" for run in network.runs):
        figures = network_figures(network, number)
        results, *others = network_tables(network)
        yield results
        if "results" in figures:
            yield figures["results"]
        yield from others
        yield from (figures[name] for name in ("curves", "panels") if name in figures)
        yield cost_table(network)
        gradients = gradients_table(network)
        if gradients is not None:
            yield gradients
        if "gradients" in figures:
            yield figures["gradients"]
    else:
        yield Text("No run of this network has come to a result.")
    selection = selection_table(network)
    if selection is not None:
        yield selection
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
    yield Sentences(_RULES)
    comparison = summary.comparison
    yield Listing("The recipe", _as_yaml(comparison.recipe), open=True)
    whole = {"networks": comparison.networks, "initializations": comparison.initializations, "seeds": comparison.seeds}
    yield Listing("What was compared", _as_yaml(whole | comparison.details), open=not comparison.details)
    if comparison.problems:
        yield Listing("Stored runs that cannot be read", "\n".join(comparison.problems), open=True)
    versions = {tuple(run.versions.items()): run.versions for run in [*comparison.runs, *comparison.selection]}
    versions = versions or {(): comparison.versions}
    for found in versions.values():
        which = [run for run in [*comparison.runs, *comparison.selection] if run.versions == found]
        title = "Versions" if len(versions) == 1 else f"Versions of {counted(len(which), 'run')}"
        yield Listing(title, _as_yaml(found), open=True)


def _as_yaml(value: Any) -> str:
    return str(yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True, width=100)).strip()


_RULES = (
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
)


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
    parts = [f"# {_text(document.title)}", _text(document.lead)]
    for section in document.sections:
        parts.append(f"## {_text(section.title)}")
        for block in section.blocks:
            parts += _block(block, pictures)
    return "\n\n".join(parts) + "\n"


def _block(block: Block, pictures: str) -> Iterator[str]:
    if isinstance(block, Text):
        yield _text(block.text)
    elif isinstance(block, Sentences):
        yield "\n".join(f"- {_text(sentence)}" for sentence in block.sentences)
    elif isinstance(block, Table):
        yield f"### {_text(block.title)}"
        yield _table(block)
        if block.note:
            yield _text(block.note)
    elif isinstance(block, Figure):
        yield "\n".join(
            f'<img src="{pictures}/{image.name}.png" width="{image.width}" alt="{html.escape(image.alt)}">'
            for image in block.images
        )
        yield f"*{_text(block.caption)}*"
    elif isinstance(block, Listing):
        yield f"**{_text(block.title)}**"
        yield _listing(block.text)


def _table(table: Table) -> str:
    rule = ["---", *["---:"] * (len(table.columns) - 1)]
    rows = [[f"**{_text(c)}**" if isinstance(c, Strong) else _text(c) for c in row] for row in table.rows]
    return "\n".join(_row(cells) for cells in [[_text(column) for column in table.columns], rule, *rows])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _listing(text: str) -> str:
    """Fenced by more backticks than the text has in a row."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 0)
    return f"{fence}text\n{text.rstrip()}\n{fence}"


def _text(text: str) -> str:
    r"""Text of which nothing is taken for markup.

    >>> print(_text("a|b <c> *d* xavier_normal _e_"))
    a\|b \<c\> \*d\* xavier_normal \_e\_
    """
    escaped = re.sub(r"([\\`*|<>\[\]$~])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)
