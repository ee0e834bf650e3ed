"""Initialization methods, one per file."""

from initopt.methods.base import Method, MethodRun
from initopt.methods.nio import NIO
from initopt.methods.registry import METHODS, create_method

__all__ = ["METHODS", "NIO", "Method", "MethodRun", "create_method"]
