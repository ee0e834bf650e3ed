"""Initialization methods, one per file."""

from initopt.methods.base import Measuring, Method, MethodRun
from initopt.methods.gradinit import GradInit
from initopt.methods.lsuv import LSUV
from initopt.methods.metainit import MetaInit
from initopt.methods.nio import NIO
from initopt.methods.records import LayerRecord, Record, StepRecord
from initopt.methods.registry import GROUP, METHODS, create_method, find_method, method_names, record_class
from initopt.methods.scales import Scales

__all__ = [
    "GROUP",
    "LSUV",
    "METHODS",
    "NIO",
    "GradInit",
    "LayerRecord",
    "Measuring",
    "MetaInit",
    "Method",
    "MethodRun",
    "Record",
    "Scales",
    "StepRecord",
    "create_method",
    "find_method",
    "method_names",
    "record_class",
]
