"""The page of the rules, ``docs/rules.md``, from the rules themselves."""

from __future__ import annotations

from initopt.diagnosis.rules.base import RULES, Rule

__all__ = ["rules_page"]

_FAMILIES = {
    "W": "Weights",
    "S": "State and processes",
    "D": "Data and loss",
    "A": "Outputs of layers",
    "G": "Gradients",
    "O": "Optimizer",
}

_NEEDS = {
    "weights": "nothing but the model",
    "batch": "a batch, forwards",
    "gradient": "a batch, forwards and backwards",
    "optimizer": "a batch and the optimizer",
}

_BEGINNING = """\
# The rules

`initopt.check` and `initopt.diagnose` ask these rules ([what they show](diagnosis.md)). A code is a letter for the family
and a number; `select=["W", "A201"]` and `ignore=[...]` take codes or their beginnings. An **error** will keep the network
from training as it could; a **warning** is worth a look; a **note** may be meant so. A finding that follows from another
one (outputs that are not finite, from a weight that is not) is a note beside that.

This page is made from the rules, by `initopt.diagnosis.rules.page.rules_page()`.
"""


def rules_page() -> str:
    """The page, in Markdown."""
    parts = [_BEGINNING, _table()]
    for family, title in _FAMILIES.items():
        parts.append(f"## {title}\n")
        parts += [_section(rule) for rule in _of(family)]
    return "\n".join(parts)


def _table() -> str:
    rows = [
        f"| [{r.code}](#{_anchor(r)}) | {r.name} | {r.severity} | {_NEEDS[r.needs]} |" for f in _FAMILIES for r in _of(f)
    ]
    return "\n".join(["| code | what | severity | needs |", "| --- | --- | --- | --- |", *rows, ""])


def _of(family: str) -> list[Rule]:
    return [RULES[code] for code in sorted(RULES) if code[0] == family]


def _anchor(rule: Rule) -> str:
    kept = (c if c.isalnum() or c == "-" else "-" if c == " " else "" for c in f"{rule.code} {rule.name}".lower())
    return "".join(kept)


def _section(rule: Rule) -> str:
    words = [" ".join(paragraph.split()) for paragraph in rule.words.replace("``", "`").split("\n\n")]
    facts = {"From": rule.threshold, "Severity": rule.severity, "Needs": _NEEDS[rule.needs], "Source": rule.source}
    if rule.explains:
        facts["What follows from it"] = ", ".join(rule.explains)
    listed = [f"- {name}: {fact}" for name, fact in facts.items()]
    return "\n\n".join([f"### {rule.code} {rule.name}", *words, "\n".join(listed)]) + "\n"
