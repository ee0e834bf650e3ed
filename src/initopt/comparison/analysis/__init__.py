"""What the runs of a comparison say."""
