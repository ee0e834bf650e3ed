"""Train from several initializations, and compare."""
