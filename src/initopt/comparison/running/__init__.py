"""The runs of a comparison: which are to be done, and how each is done."""
