"""What is wrong with the start of a network, and in which layer."""

from initopt.diagnosis.checking import assert_healthy, check, diagnose
from initopt.diagnosis.diagnosis import Diagnosis, Row
from initopt.diagnosis.rules import RULES, Finding, Rule
from initopt.diagnosis.seen import Trace
from initopt.diagnosis.trace import trace

__all__ = ["RULES", "Diagnosis", "Finding", "Row", "Rule", "Trace", "assert_healthy", "check", "diagnose", "trace"]
