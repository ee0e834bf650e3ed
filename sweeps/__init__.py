"""Sweeps over many models, larger than what the tests run."""
