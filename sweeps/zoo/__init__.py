"""Measure and improve small variants of the architectures of timm and transformers, and compare with the truth."""
