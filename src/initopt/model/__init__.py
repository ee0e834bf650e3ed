"""A model as a problem: its parameters, its loss, its state, and how all of it comes back as it was."""
