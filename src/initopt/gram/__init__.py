"""Functions of K, the Gram matrix of the gradients of sub-batches, and what a measurement says of it."""
