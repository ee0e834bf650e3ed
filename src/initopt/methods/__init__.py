"""Initialization methods, one per file."""

from initopt.methods.base import Method, MethodRun
from initopt.methods.gradinit import GradInit
from initopt.methods.lsuv import LSUV
from initopt.methods.metainit import MetaInit
from initopt.methods.nio import NIO
from initopt.methods.registry import GROUP, METHODS, create_method, find_method, method_names

__all__ = [
    "GROUP",
    "LSUV",
    "METHODS",
    "NIO",
    "GradInit",
    "MetaInit",
    "Method",
    "MethodRun",
    "create_method",
    "find_method",
    "method_names",
]
