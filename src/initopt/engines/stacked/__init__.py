"""The engine that runs all sub-batches at once, stacked into one pass."""
