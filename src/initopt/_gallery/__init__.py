"""Odd little architectures, what every engine has to find on them, and the checks that :mod:`initopt.testing` offers."""
