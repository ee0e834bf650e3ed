"""The page of a choice: one file that needs nothing else, with its table and its picture."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from initopt._support.files import write_json
from initopt._support.pages import png, source_of, write_page, write_rows
from initopt.choice.rows import HEAD, Row, cells, plain_row

if TYPE_CHECKING:
    from initopt.choice.choice import Choice

__all__ = ["fragment", "write_all"]

_STYLE = """
.initopt-choice { color: #1b1f24; background: #fff; font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 0 auto;
  padding: 1rem; }
.initopt-choice .verdict { font-weight: 600; } .initopt-choice .faint { color: #666; }
.initopt-choice .scroll { overflow-x: auto; } .initopt-choice img { max-width: 100%; height: auto; }
.initopt-choice table { border-collapse: collapse; font-size: 13px; }
.initopt-choice th, .initopt-choice td { padding: .2rem .6rem; border-bottom: 1px solid #d5d9de; text-align: right;
  white-space: nowrap; }
.initopt-choice th:first-child, .initopt-choice td:first-child, .initopt-choice td:last-child { text-align: left; }
.initopt-choice tr.best { background: #e7f5ef; }
"""


def write_all(choice: Choice, folder: Path) -> None:
    """Write the page, the picture, the JSON and the table into a folder that is there."""
    picture = _picture(choice)
    write_page(folder / "choice.html", "initopt choice", _fragment(choice, picture))
    (folder / "choice.png").write_bytes(picture)
    write_json(folder / "choice.json", choice.to_dict())
    write_rows(folder / "rows.csv", list(map(plain_row, choice.rows)))


def fragment(choice: Choice) -> str:
    """The HTML that a notebook shows."""
    return _fragment(choice, _picture(choice))


def _picture(choice: Choice) -> bytes:
    return png(choice.plot(), 130, facecolor="white")


def _cells(row: Row, relative: bool) -> str:
    return "".join(f"<td>{escape(cell)}</td>" for cell in cells(row, relative))


def _fragment(choice: Choice, picture: bytes) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in HEAD)
    body = "".join(
        f"<tr{' class=best' if row is choice.best else ''}>{_cells(row, choice.relative)}</tr>\n" for row in choice.rows
    )
    seeds = f"{choice.seeds} seeds"
    if choice.own.seeds > choice.seeds:
        seeds += f", {choice.own.seeds} where it was close"
    return "\n".join(
        [
            f"<style>{_STYLE}</style><div class='initopt-choice'>",
            f"<p class='verdict'>{escape(choice.verdict)}.</p><p>{escape(choice.advice)}</p>",
            f"<img alt='Losses over the steps, and differences to your own start' src='{source_of(picture)}'>",
            f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>",
            f"<p class='faint'>{seeds}; {choice.held_out} batches held out; this cost {choice.cost}</p></div>",
        ]
    )
