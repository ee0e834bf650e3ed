"""Pictures, pages and tables that need nothing else."""

from __future__ import annotations

import base64
import csv
import math
from html.parser import HTMLParser
from pathlib import Path

from matplotlib.figure import Figure

from initopt._support.pages import in_notebook, png, source_of, write_page, write_rows

PNG = b"\x89PNG\r\n\x1a\n"


class Tags(HTMLParser):
    """The attributes of the tags of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: dict[str, dict[str, str | None]] = {}
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = dict(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_picture_lies_in_the_page_itself() -> None:
    picture = png(Figure(), 20)
    assert picture.startswith(PNG)
    kind, _, content = source_of(picture).partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content) == picture


def test_a_notebook_is_shown_words_as_they_are() -> None:
    found = Tags(in_notebook("a < b\n  & c", Figure(), 'the "run"'))
    assert found.text == "a < b\n  & c"
    assert found.tags["img"]["alt"] == 'the "run"'


def test_a_page_has_its_title_as_text(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", "of <Net>", "<p>body</p>", '<meta name="color-scheme" content="dark">')
    found = Tags((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "of <Net>" in found.text
    assert {"html", "head", "body", "p"} <= found.tags.keys()
    assert "net" not in found.tags
    assert found.tags["meta"] == {"name": "color-scheme", "content": "dark"}


def test_a_table_as_csv(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    write_rows(file, [{"name": "a, b", "rules": ("W1", "G2"), "loss": math.nan}, {"name": "c", "rules": (), "loss": 0.5}])
    with file.open(encoding="utf-8", newline="") as opened:
        assert list(csv.reader(opened)) == [["name", "rules", "loss"], ["a, b", "W1 G2", ""], ["c", "", "0.5"]]
    write_rows(file, [])
    assert not file.read_text(encoding="utf-8").strip()
