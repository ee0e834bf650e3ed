"""The page of a choice: one file that needs nothing else, with its table and its picture."""

from __future__ import annotations

import base64
import csv
import io
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from initopt._support.files import write_json
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
    title = "initopt choice"
    (folder / "choice.html").write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title></head><body>\n'
        f"{_fragment(choice, picture)}\n</body></html>\n",
        encoding="utf-8",
    )
    (folder / "choice.png").write_bytes(picture)
    write_json(folder / "choice.json", choice.to_dict())
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(plain_row(choice.own)))
        writer.writeheader()
        writer.writerows(plain_row(row) for row in choice.rows)


def fragment(choice: Choice) -> str:
    """What a notebook shows."""
    return _fragment(choice, _picture(choice))


def _picture(choice: Choice) -> bytes:
    buffer = io.BytesIO()
    choice.plot().savefig(buffer, format="png", dpi=130, facecolor="white")
    return buffer.getvalue()


def _cells(row: Row, relative: bool) -> str:
    return "".join(f"<td>{escape(cell)}</td>" for cell in cells(row, relative))


def _fragment(choice: Choice, picture: bytes) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in HEAD)
    body = "".join(
        f"<tr{' class=best' if row is choice.best else ''}>{_cells(row, choice.relative)}</tr>\n" for row in choice.rows
    )
    source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    return "\n".join(
        [
            f"<style>{_STYLE}</style><div class='initopt-choice'>",
            f"<p class='verdict'>{escape(choice.verdict)}.</p><p>{escape(choice.advice)}</p>",
            f"<img alt='Losses over the steps, and differences to your own start' src='{source}'>",
            f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>",
            f"<p class='faint'>{choice.seeds} seeds; {choice.held_out} batches held out; this cost {choice.cost}</p></div>",
        ]
    )
