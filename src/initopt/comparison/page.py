"""A report as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
from importlib import resources

from initopt.comparison.content import Document, Strong

__all__ = ["to_html"]


def to_html(document: Document) -> str:
    """Render a document; the pictures are in the page, and its security policy keeps it from loading anything."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    environment.tests["strong"] = lambda cell: isinstance(cell, Strong)
    template = resources.files("initopt.comparison").joinpath("templates", "report.html.jinja")
    return environment.from_string(template.read_text(encoding="utf-8")).render(document=document) + "\n"
