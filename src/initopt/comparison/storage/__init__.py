"""The runs of a comparison in a folder."""
