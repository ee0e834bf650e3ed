"""A run of a method from the first batch to its result, and measurements."""
