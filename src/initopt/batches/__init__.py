"""Batches: nests of tensors, streams of them, and how one is split."""
