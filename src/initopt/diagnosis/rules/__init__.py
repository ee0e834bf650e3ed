"""The rules of a diagnosis, a file for each family."""

from initopt.diagnosis.rules import activations, data, gradients, norms, optimizer, state, weights
from initopt.diagnosis.rules.base import RULES, SEVERITIES, Evidence, Finding, Rule, found_in

__all__ = [
    "RULES",
    "SEVERITIES",
    "Evidence",
    "Finding",
    "Rule",
    "activations",
    "data",
    "found_in",
    "gradients",
    "norms",
    "optimizer",
    "state",
    "weights",
]
