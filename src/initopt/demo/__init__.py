"""``initopt demo``: one deep network on handwritten digits, trained from its default start and from NIO's."""

from initopt.demo.run import run_demo

__all__ = ["run_demo"]
