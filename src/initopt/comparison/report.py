"""The report of a comparison: one HTML page, the same in Markdown, and its figures."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from initopt.comparison.content import Document, Figure, Image
from initopt.comparison.document import to_document
from initopt.comparison.markdown import to_markdown
from initopt.comparison.page import to_html
from initopt.comparison.store import load_comparison, refuse_link
from initopt.comparison.summary import summarize
from initopt.reading import read_text
from initopt.storage import check_replaceable, write_folder

__all__ = ["write_report"]

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
    _refuse_without("jinja2", "pyarrow", "scipy")
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


def _refuse_without(*packages: str) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ImportError(f"a report needs {' and '.join(missing)}: pip install 'initopt[compare]'")


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
