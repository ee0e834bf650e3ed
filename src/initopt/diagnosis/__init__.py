"""What is wrong with the start of a network, and in which layer."""

from initopt.diagnosis.change import Change, Checkup
from initopt.diagnosis.checking import assert_healthy, check, diagnose
from initopt.diagnosis.diagnosis import Diagnosis
from initopt.diagnosis.findings import Findings
from initopt.diagnosis.rows import Row
from initopt.diagnosis.rules import RULES, Finding, Rule
from initopt.diagnosis.seen import Trace
from initopt.diagnosis.trace import trace

__all__ = [
    "RULES",
    "Change",
    "Checkup",
    "Diagnosis",
    "Finding",
    "Findings",
    "Row",
    "Rule",
    "Trace",
    "assert_healthy",
    "check",
    "diagnose",
    "trace",
]
