"""The report of a comparison, as a page and as Markdown."""

from initopt.comparison.report.report import write_report

__all__ = ["write_report"]
